//! Which registers are asked for together. Pure.
//!
//! A request costs more than the registers in it, so neighbours of one kind share one, also over a few registers that nobody
//! wants. A device that refuses such a request is asked for its halves, until the register that it has not is alone.

use std::fmt;
use std::time::Duration;

use super::settings::{Kind, Register};

/// So many unused registers in a row are read along: at 9 600 baud they take as long as another request takes.
const BRIDGED_REGISTERS: u32 = 8;
/// The same for bits, of which eight make a byte.
const BRIDGED_BITS: u32 = 64;
/// Bytes that a request and its answer have beside the data: 8, and 5.
const FRAME_BYTES: u32 = 13;
/// Bits on the wire for a byte, at least: start, eight, stop.
const BYTE_BITS: u32 = 10;

/// What one request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) kind: Kind,
    /// The first register or bit.
    pub(super) address: u16,
    /// How many.
    pub(super) count: u16,
    /// The registers of the read that lie in it, by their places there, in the order of their addresses.
    pub(super) members: Vec<usize>,
}

impl Span {
    /// Of members in order, none of which is beyond 65 536.
    fn of(members: &[usize], registers: &[Register]) -> Option<Self> {
        let first = registers.get(*members.first()?)?;
        let end = members.iter().map(|place| end(&registers[*place])).max()?;
        let count = u16::try_from(end - u32::from(first.address)).ok()?;
        Some(Self { kind: first.kind, address: first.address, count, members: members.to_vec() })
    }

    /// Where `register`, one of its members, begins within it.
    pub(super) fn place_of(&self, register: &Register) -> usize {
        usize::from(register.address.saturating_sub(self.address))
    }

    /// Two requests in its place: cut at the widest gap, or in the middle. `None` if it cannot be cut.
    pub(super) fn halves(&self, registers: &[Register]) -> Option<(Self, Self)> {
        let middle = self.members.len() / 2;
        let mut reached = 0;
        let mut cuts = Vec::new();
        for (at, place) in self.members.iter().enumerate() {
            let register = &registers[*place];
            if at > 0
                && let Some(gap) = u32::from(register.address).checked_sub(reached)
            {
                cuts.push((at, gap));
            }
            reached = reached.max(end(register));
        }
        let (at, _) = cuts.into_iter().min_by_key(|(at, gap)| (u32::MAX - gap, at.abs_diff(middle)))?;
        let (first, second) = self.members.split_at(at);
        Some((Self::of(first, registers)?, Self::of(second, registers)?))
    }
}

/// `input registers 0 to 1`.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Input => "input register",
            Kind::Holding => "holding register",
            Kind::Coil => "coil",
            Kind::Discrete => "discrete input",
        };
        let first = self.address;
        match self.count {
            1 => write!(f, "{kind} {first}"),
            count => write!(f, "{kind}s {first} to {}", u32::from(first) + u32::from(count) - 1),
        }
    }
}

/// The address behind a register.
fn end(register: &Register) -> u32 {
    u32::from(register.address) + u32::from(register.count())
}

/// As few requests as the protocol and the gaps allow.
pub(super) fn plan(registers: &[Register]) -> Vec<Span> {
    let mut places: Vec<usize> = (0..registers.len()).collect();
    places.sort_by_cached_key(|place| {
        let register = &registers[*place];
        (register.kind as usize) << u16::BITS | usize::from(register.address)
    });
    let mut spans = Vec::new();
    let mut rest = &places[..];
    while !rest.is_empty() {
        let count = together(rest, registers);
        let (members, others) = rest.split_at(count);
        spans.extend(Span::of(members, registers));
        rest = others;
    }
    spans
}

/// How many of the first of `places` fit one request; at least one.
fn together(places: &[usize], registers: &[Register]) -> usize {
    let first = &registers[places[0]];
    let bridged = if first.kind.is_bits() { BRIDGED_BITS } else { BRIDGED_REGISTERS };
    let mut reached = end(first);
    let fits = |place: &&usize| {
        let register = &registers[**place];
        let length = end(register).max(reached) - u32::from(first.address);
        let fits = register.kind == first.kind
            && u32::from(register.address) <= reached + bridged
            && length <= u32::from(first.kind.most());
        if fits {
            reached = reached.max(end(register));
        }
        fits
    };
    1 + places[1..].iter().take_while(fits).count()
}

/// How long the requests for `registers` and their answers take on the wire, at least.
#[must_use]
pub fn wire_time(registers: &[Register], baud: u32) -> Duration {
    let bytes: u32 = plan(registers)
        .iter()
        .map(|span| {
            let count = u32::from(span.count);
            FRAME_BYTES + if span.kind.is_bits() { count.div_ceil(8) } else { 2 * count }
        })
        .sum();
    Duration::from_secs(1) * (bytes * BYTE_BITS) / baud.max(1)
}

/// How many requests a round takes for `registers`.
#[must_use]
pub fn requests(registers: &[Register]) -> usize {
    plan(registers).len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::settings::{Bytes, Format, Number, Order};
    use super::*;

    fn register(kind: Kind, address: u16, registers: u16) -> Register {
        let format = match registers {
            _ if kind.is_bits() => Format::Truth,
            1 => Format::Number { number: Number::U16, order: Order::default(), scale: None },
            registers => Format::Text { registers, bytes: Bytes::BigFirst },
        };
        Register { field: format!("{address}"), kind, address, format }
    }

    fn shown(spans: &[Span]) -> Vec<String> {
        spans.iter().map(Span::to_string).collect()
    }

    fn planned(of: &[(Kind, u16, u16)]) -> Vec<String> {
        let registers: Vec<_> =
            of.iter().map(|(kind, address, count)| register(*kind, *address, *count)).collect();
        shown(&plan(&registers))
    }

    #[test]
    fn neighbours_share_a_request_and_strangers_do_not() {
        use Kind::{Coil, Discrete, Holding, Input};
        assert_eq!(planned(&[(Input, 2, 2), (Input, 0, 2)]), ["input registers 0 to 3"]);
        assert_eq!(planned(&[(Input, 0, 1), (Input, 9, 1)]), ["input registers 0 to 9"], "eight between");
        assert_eq!(planned(&[(Input, 0, 1), (Input, 10, 1)]), ["input register 0", "input register 10"]);
        assert_eq!(planned(&[(Holding, 0, 1), (Input, 1, 1)]), ["input register 1", "holding register 0"]);
        assert_eq!(planned(&[(Input, 0, 125), (Input, 125, 1)]).len(), 2, "125 at most");
        assert_eq!(planned(&[(Input, 65_535, 1), (Input, 65_530, 2)]), ["input registers 65530 to 65535"]);
        let bits: Vec<_> = (0..2_001).map(|address| (Coil, address, 1)).collect();
        assert_eq!(planned(&bits), ["coils 0 to 1999", "coil 2000"]);
        assert_eq!(planned(&[(Discrete, 0, 1), (Discrete, 65, 1)]), ["discrete inputs 0 to 65"]);
        assert_eq!(planned(&[]), [""; 0]);
    }

    #[test]
    fn what_is_refused_is_cut_at_its_widest_gap_and_then_in_the_middle() {
        let registers: Vec<_> =
            [0, 1, 2, 5, 6].map(|address| register(Kind::Holding, address, 1)).into_iter().collect();
        let [whole] = &plan(&registers)[..] else { panic!() };
        let (low, high) = whole.halves(&registers).unwrap();
        assert_eq!(shown(&[low.clone(), high]), ["holding registers 0 to 2", "holding registers 5 to 6"]);
        let (low, high) = low.halves(&registers).unwrap();
        assert_eq!(shown(&[low.clone(), high]), ["holding register 0", "holding registers 1 to 2"]);
        assert_eq!(low.halves(&registers), None);
    }

    #[test]
    fn what_overlaps_is_not_cut() {
        let registers =
            [register(Kind::Input, 0, 2), register(Kind::Input, 1, 1), register(Kind::Input, 1, 4)];
        let [whole] = &plan(&registers)[..] else { panic!() };
        assert_eq!((whole.count, whole.halves(&registers)), (5, None));
    }

    #[test]
    fn the_time_on_the_wire_counts_requests_and_data() {
        let registers = [register(Kind::Input, 0, 1), register(Kind::Input, 100, 100)];
        // 2 * 13 + 2 * 101 bytes of ten bits.
        assert_eq!(wire_time(&registers, 9_600), Duration::from_secs(1) * 2_280 / 9_600);
    }

    fn any_registers() -> impl Strategy<Value = Vec<Register>> {
        let kinds = prop::sample::select(vec![Kind::Input, Kind::Holding, Kind::Coil, Kind::Discrete]);
        let address = prop_oneof![0_u16..200, 65_000_u16..=65_400];
        let one =
            (kinds, address, 1_u16..=125).prop_map(|(kind, address, count)| register(kind, address, count));
        prop::collection::vec(one, 0..60)
    }

    /// Each register is in one span, within it, and no span asks for more than it may.
    fn check(spans: &[Span], registers: &[Register]) -> Result<(), TestCaseError> {
        let mut seen: Vec<usize> = spans.iter().flat_map(|span| span.members.clone()).collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..registers.len()).collect::<Vec<_>>());
        for span in spans {
            prop_assert!(span.count >= 1 && span.count <= span.kind.most());
            for place in &span.members {
                let register = &registers[*place];
                prop_assert_eq!(register.kind, span.kind);
                prop_assert!(register.address >= span.address);
                prop_assert!(end(register) <= u32::from(span.address) + u32::from(span.count));
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn each_register_is_asked_for_once_however_often_it_is_cut(registers in any_registers()) {
            let mut spans = plan(&registers);
            check(&spans, &registers)?;
            while let Some((at, (low, high))) =
                spans.iter().enumerate().find_map(|(at, span)| Some((at, span.halves(&registers)?)))
            {
                prop_assert!(u32::from(low.address) + u32::from(low.count) <= u32::from(high.address));
                spans.splice(at..=at, [low, high]);
                check(&spans, &registers)?;
            }
        }
    }
}
