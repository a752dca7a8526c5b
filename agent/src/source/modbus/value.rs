//! From registers to a value. Pure.

use super::settings::{Bytes, Format, Number, Order, Register, Scale, Words};
use crate::reading::Value;
use crate::source::measured::widened;

/// What a device answered: as many registers or bits as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// Of input or holding registers.
    Registers(Vec<u16>),
    /// Of coils or discrete inputs.
    Bits(Vec<bool>),
}

impl Data {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Registers(registers) => registers.len(),
            Self::Bits(bits) => bits.len(),
        }
    }
}

/// The value of `register`, which begins at `at` in `data`. `None` if it is no finite number, or does not lie there.
pub(super) fn value(register: &Register, data: &Data, at: usize) -> Option<Value> {
    let registers = match data {
        Data::Bits(bits) => return bits.get(at).map(|bit| Value::Bool(*bit)),
        Data::Registers(registers) => registers.get(at..at + usize::from(register.count()))?,
    };
    match register.format {
        Format::Truth => registers.first().map(|word| Value::Bool(*word != 0)),
        Format::Bit(bit) => {
            let word = registers.first()?.checked_shr(bit.into())?;
            Some(Value::Bool(word & 1 == 1))
        }
        Format::Number { number, order, scale } => parse(number, &bits(registers, order), scale.as_ref()),
        Format::Text { bytes, .. } => Some(Value::Text(text(registers, bytes))),
    }
}

/// The bits of a number of up to four registers, most significant first, at the end of what is returned.
fn bits(registers: &[u16], order: Order) -> [u8; 8] {
    let shift = |bits: u64, register: &u16| {
        let register = match order.bytes {
            Bytes::BigFirst => *register,
            Bytes::LittleFirst => register.swap_bytes(),
        };
        bits << 16 | u64::from(register)
    };
    let bits = match order.words {
        Words::BigFirst => registers.iter().fold(0, shift),
        Words::LittleFirst => registers.iter().rev().fold(0, shift),
    };
    bits.to_be_bytes()
}

fn parse(number: Number, bits: &[u8; 8], scale: Option<&Scale>) -> Option<Value> {
    let [.., a, b] = *bits;
    let [_, _, _, _, long @ ..] = *bits;
    let value = match number {
        Number::U16 => Value::Int(u16::from_be_bytes([a, b]).into()),
        Number::I16 => Value::Int(i16::from_be_bytes([a, b]).into()),
        Number::U32 => Value::Int(u32::from_be_bytes(long).into()),
        Number::I32 => Value::Int(i32::from_be_bytes(long).into()),
        Number::U64 => {
            let value = u64::from_be_bytes(*bits);
            i64::try_from(value).map_or(Value::Uint(value), Value::Int)
        }
        Number::I64 => Value::Int(i64::from_be_bytes(*bits)),
        Number::F32 => {
            let float = f32::from_be_bytes(long);
            Value::Float(float.is_finite().then(|| widened(float))?)
        }
        Number::F64 => Value::Float(f64::from_be_bytes(*bits)),
    };
    let value = match scale {
        Some(scale) => Value::Float(scale.apply(value.as_f64()?)),
        None => value,
    };
    match value {
        Value::Float(float) if !float.is_finite() => None,
        value => Some(value),
    }
}

fn text(registers: &[u16], order: Bytes) -> Box<str> {
    let bytes: Vec<u8> = registers
        .iter()
        .flat_map(|register| match order {
            Bytes::BigFirst => register.to_be_bytes(),
            Bytes::LittleFirst => register.to_le_bytes(),
        })
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).trim_end().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::settings::Kind;
    use super::*;

    fn register(format: Format) -> Register {
        Register { field: "x".to_owned(), kind: Kind::Holding, address: 0, format }
    }

    fn order(name: &str) -> Order {
        let (words, bytes) = match name {
            "abcd" => (Words::BigFirst, Bytes::BigFirst),
            "cdab" => (Words::LittleFirst, Bytes::BigFirst),
            "badc" => (Words::BigFirst, Bytes::LittleFirst),
            "dcba" => (Words::LittleFirst, Bytes::LittleFirst),
            _ => panic!("{name}"),
        };
        Order { words, bytes }
    }

    fn number(number: Number, name: &str, registers: &[u16]) -> Option<Value> {
        let format = Format::Number { number, order: order(name), scale: None };
        value(&register(format), &Data::Registers(registers.to_vec()), 0)
    }

    #[test]
    fn the_four_orders_are_those_of_the_manuals() {
        // 230.5 is 0x43668000.
        let check = |name: &str, registers: [u16; 2]| {
            assert_eq!(number(Number::F32, name, &registers), Some(Value::Float(230.5)), "{name}");
        };
        check("abcd", [0x4366, 0x8000]);
        check("cdab", [0x8000, 0x4366]);
        check("badc", [0x6643, 0x0080]);
        check("dcba", [0x0080, 0x6643]);
        assert_eq!(number(Number::U16, "abcd", &[0x1234]), Some(Value::Int(0x1234)));
        assert_eq!(number(Number::U16, "badc", &[0x1234]), Some(Value::Int(0x3412)));
    }

    #[test]
    fn integers_stay_integers() {
        assert_eq!(number(Number::I16, "abcd", &[0xFFFE]), Some(Value::Int(-2)));
        assert_eq!(number(Number::U32, "abcd", &[0xFFFF, 0xFFFF]), Some(Value::Int(4_294_967_295)));
        assert_eq!(number(Number::I32, "cdab", &[0xFFFF, 0xFFFF]), Some(Value::Int(-1)));
        assert_eq!(number(Number::U64, "abcd", &[0xFFFF; 4]), Some(Value::Uint(u64::MAX)));
        assert_eq!(number(Number::U64, "cdab", &[1, 0, 0, 0]), Some(Value::Int(1)));
        assert_eq!(number(Number::I64, "abcd", &[0x8000, 0, 0, 0]), Some(Value::Int(i64::MIN)));
        let scaled = Format::Number {
            number: Number::U16,
            order: Order::default(),
            scale: Some(Scale::new(0.1, 0.0)),
        };
        let scaled = value(&register(scaled), &Data::Registers(vec![2_301]), 0);
        assert_eq!(scaled, Some(Value::Float(230.1)));
    }

    #[test]
    fn floats_are_those_that_people_mean_and_finite() {
        let of = |float: f32| {
            let [a, b, c, d] = float.to_be_bytes();
            number(Number::F32, "abcd", &[u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])])
        };
        assert_eq!(of(230.1), Some(Value::Float(230.1)));
        assert_eq!(of(-0.001), Some(Value::Float(-0.001)));
        assert_eq!(of(f32::MAX), Some(Value::Float(3.402_823_5e38)));
        for none in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(of(none), None);
        }
        assert_eq!(number(Number::F64, "abcd", &[0x7FF8, 0, 0, 0]), None);
        let beyond = Format::Number {
            number: Number::F64,
            order: Order::default(),
            scale: Some(Scale::new(10.0, 0.0)),
        };
        assert_eq!(value(&register(beyond), &Data::Registers(vec![0x7FEF, 0xFFFF, 0xFFFF, 0xFFFF]), 0), None);
    }

    #[test]
    fn text_ends_at_its_first_zero() {
        let text = |registers: &[u16], bytes| {
            let format = Format::Text { registers: 3, bytes };
            value(&register(format), &Data::Registers(registers.to_vec()), 0)
        };
        let is = |text: &str| Some(Value::Text(text.into()));
        assert_eq!(text(&[0x4142, 0x4300, 0x4444], Bytes::BigFirst), is("ABC"));
        assert_eq!(text(&[0x4241, 0x2043, 0x2020], Bytes::LittleFirst), is("ABC"));
        assert_eq!(text(&[0, 0, 0], Bytes::BigFirst), is(""));
        assert_eq!(text(&[0xFF41, 0, 0], Bytes::BigFirst), is("\u{FFFD}A"));
    }

    #[test]
    fn bits_are_counted_from_the_least() {
        let bit = |bit| value(&register(Format::Bit(bit)), &Data::Registers(vec![0b1000]), 0);
        assert_eq!([bit(3), bit(0), bit(15)], [true, false, false].map(|bit| Some(Value::Bool(bit))));
        let truth = |data: Data, at| value(&register(Format::Truth), &data, at);
        assert_eq!(truth(Data::Bits(vec![false, true]), 1), Some(Value::Bool(true)));
        assert_eq!(truth(Data::Bits(vec![true]), 1), None);
        assert_eq!(truth(Data::Registers(vec![0, 7]), 1), Some(Value::Bool(true)));
    }

    /// The registers of `bytes`, most significant first, in another order.
    fn disordered(bytes: &[u8], order: Order) -> Vec<u16> {
        let mut registers: Vec<u16> = bytes
            .chunks(2)
            .map(|pair| match order.bytes {
                Bytes::BigFirst => u16::from_be_bytes([pair[0], pair[1]]),
                Bytes::LittleFirst => u16::from_le_bytes([pair[0], pair[1]]),
            })
            .collect();
        if order.words == Words::LittleFirst {
            registers.reverse();
        }
        registers
    }

    fn any_order() -> impl Strategy<Value = Order> {
        prop::sample::select(vec!["abcd", "cdab", "badc", "dcba"]).prop_map(order)
    }

    proptest! {
        #[test]
        fn a_number_is_read_as_it_was_written(
            u in any::<u64>(), f in any::<f64>(), short in any::<f32>(), order in any_order(),
        ) {
            let read = |number, bytes: &[u8]| {
                let format = Format::Number { number, order, scale: None };
                value(&register(format), &Data::Registers(disordered(bytes, order)), 0)
            };
            let i = u.cast_signed();
            prop_assert_eq!(read(Number::I64, &i.to_be_bytes()), Some(Value::Int(i)));
            let expected = i64::try_from(u).map_or(Value::Uint(u), Value::Int);
            prop_assert_eq!(read(Number::U64, &u.to_be_bytes()), Some(expected));
            let int = i32::from_be_bytes(short.to_be_bytes());
            prop_assert_eq!(read(Number::I32, &short.to_be_bytes()), Some(Value::Int(int.into())));
            prop_assert_eq!(read(Number::F64, &f.to_be_bytes()), f.is_finite().then_some(Value::Float(f)));
            match read(Number::F32, &short.to_be_bytes()) {
                #[expect(clippy::cast_possible_truncation, reason = "back to what it was")]
                Some(Value::Float(read)) => prop_assert_eq!((read as f32).to_bits(), short.to_bits()),
                other => prop_assert!(other.is_none() && !short.is_finite(), "{:?}", other),
            }
        }

        #[test]
        fn whatever_a_device_answers_does_no_harm(
            registers in prop::collection::vec(any::<u16>(), 0..6),
            at in 0_usize..8,
            number in prop::sample::select(Number::ALL.to_vec()),
            order in any_order(),
            length in 1_u16..6,
        ) {
            let data = Data::Registers(registers.clone());
            let scale = Some(Scale::new(1e300, 1.0));
            let formats = [
                Format::Number { number, order, scale },
                Format::Number { number, order, scale: None },
                Format::Text { registers: length, bytes: order.bytes },
                Format::Bit(15),
                Format::Truth,
            ];
            for format in formats {
                let register = register(format);
                let value = value(&register, &data, at);
                let fits = at + usize::from(register.count()) <= registers.len();
                prop_assert!(fits || value.is_none());
                prop_assert!(!matches!(value, Some(Value::Float(float)) if !float.is_finite()));
            }
        }
    }
}
