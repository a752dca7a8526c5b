//! What is asked of devices that answer, refuse, stay silent, and come back.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::super::fault::Exception;
use super::super::settings::{Format, Kind, Number, Order};
use super::*;

const INTERVAL: Duration = Duration::from_secs(5);
const SILENCE: Fault = Fault::NoAnswer { within: Duration::from_secs(1) };

fn read(unit: u8, device: &str, addresses: &[u16]) -> Read {
    let register = |address: &u16| Register {
        field: format!("f{address}"),
        kind: Kind::Holding,
        address: *address,
        format: Format::Number { number: Number::U16, order: Order::default(), scale: None },
    };
    Read { unit, device: device.to_owned(), registers: addresses.iter().map(register).collect() }
}

/// A unit, and what is known of it.
struct Bench {
    unit: Unit,
    start: Instant,
    round: u32,
    asked: RefCell<Vec<String>>,
}

/// What a device does when it is asked for so many registers from an address on.
type Device<'d> = &'d dyn Fn(u16, u16) -> Result<(), Fault>;

fn well(_: u16, _: u16) -> Result<(), Fault> {
    Ok(())
}

fn silent(_: u16, _: u16) -> Result<(), Fault> {
    Err(SILENCE)
}

impl Bench {
    fn new(reads: &[Read]) -> Self {
        let mut units = Unit::all("rack", reads, INTERVAL);
        assert_eq!(units.len(), 1);
        Self { unit: units.remove(0), start: Instant::now(), round: 0, asked: RefCell::default() }
    }

    /// The next round; each register holds its address. Returns what was asked, and what was read.
    fn round(&mut self, device: Device<'_>) -> (Vec<String>, BTreeMap<String, Value>) {
        let round = self.start + self.round * INTERVAL;
        self.round += 1;
        let mut read = BTreeMap::new();
        if self.unit.is_due(round) {
            for table in self.unit.order() {
                let step = self.ask(table, round, device);
                if let Some(reading) = self.unit.tables[table].take_reading(round) {
                    let names = reading.shape.names.iter().map(ToString::to_string);
                    read.extend(names.zip(reading.values));
                }
                if step == Step::Leave {
                    break;
                }
            }
        }
        (self.asked.take(), read)
    }

    fn ask(&mut self, table: usize, round: Instant, device: Device<'_>) -> Step {
        while let Some((question, span)) = self.unit.next(table, round) {
            let (first, count) = (span.address, span.count);
            self.asked.borrow_mut().push(format!("{first}+{count}"));
            let answer = device(first, count);
            let answer = answer.map(|()| Data::Registers((first..first + count).collect()));
            if self.unit.settle(table, question, round, answer) == Step::Leave {
                return Step::Leave;
            }
        }
        Step::GoOn
    }

    fn asks(&mut self, device: Device<'_>) -> Vec<String> {
        self.round(device).0
    }

    fn error(&self, table: usize) -> Option<&str> {
        self.unit.trouble(table).map(|trouble| trouble.error)
    }
}

fn fields(read: &BTreeMap<String, Value>) -> Vec<&str> {
    read.keys().map(String::as_str).collect()
}

#[test]
fn one_request_brings_all_fields_round_after_round() {
    let mut bench = Bench::new(&[read(3, "meter", &[0, 1, 4])]);
    for _ in 0..3 {
        let (asked, read) = bench.round(&well);
        assert_eq!((asked, fields(&read)), (vec!["0+5".to_owned()], vec!["f0", "f1", "f4"]));
        assert_eq!(read["f4"], Value::Int(4));
        assert_eq!(bench.error(0), None);
    }
}

#[test]
fn a_silent_unit_is_asked_one_question_ever_less_often_and_read_at_once_when_it_is_back() {
    let mut bench = Bench::new(&[read(3, "meter", &[0, 100]), read(3, "meter", &[200])]);
    let rounds: Vec<usize> = (0..40).filter(|_| !bench.asks(&silent).is_empty()).collect();
    // Pauses of 5, 10, 20, 30, 30 s: in rounds.
    assert_eq!(rounds, [0, 1, 3, 7, 13, 19, 25, 31, 37]);
    let error = "unit 3, holding register 0: no answer within 1s; check the device's power and wiring";
    assert!(bench.error(0).unwrap().starts_with(error), "{:?}", bench.error(0));
    assert!(bench.error(1).is_some());
    for _ in 40..43 {
        assert!(bench.asks(&well).is_empty());
    }
    let (asked, read) = bench.round(&well);
    assert_eq!((asked.len(), fields(&read)), (3, vec!["f0", "f100", "f200"]), "all of it, at once");
    assert_eq!((bench.error(0), bench.error(1)), (None, None));
}

#[test]
fn a_question_that_is_never_answered_costs_its_own_field_only() {
    let mut bench = Bench::new(&[read(3, "meter", &[0, 100, 200])]);
    // Some devices do not answer at all where they should refuse.
    let device = |first: u16, _: u16| if first == 0 { Err(SILENCE) } else { Ok(()) };
    // The first time nobody can tell it from a device that is away.
    assert_eq!(bench.asks(&device), ["0+1"]);
    let (asked, read) = bench.round(&device);
    assert_eq!(
        (asked, fields(&read)),
        (["100+1", "200+1", "0+1"].map(String::from).to_vec(), vec!["f100", "f200"])
    );
    let mut times = 0;
    for _ in 0..40 {
        let (asked, read) = bench.round(&device);
        assert_eq!(fields(&read), ["f100", "f200"]);
        assert_eq!(asked[..2], ["100+1", "200+1"]);
        times += asked.len() - 2;
    }
    assert!((5..=8).contains(&times), "{times}");
    assert!(bench.error(0).unwrap().starts_with("unit 3, holding register 0: no answer"));
    assert_eq!(bench.unit.tables[0].failures, 2 + times as u64);
}

#[test]
fn after_an_unanswered_question_a_unit_is_left_alone_until_the_next_round() {
    let mut bench = Bench::new(&[read(3, "a", &[0, 100, 200]), read(3, "b", &[300])]);
    let device = |first: u16, _: u16| if first == 100 { Err(SILENCE) } else { Ok(()) };
    let (asked, read) = bench.round(&device);
    assert_eq!((asked, fields(&read)), (["0+1", "100+1"].map(String::from).to_vec(), vec!["f0"]));
    assert_eq!((bench.error(0).is_some(), bench.error(1)), (true, None), "its other table is well");
    let (asked, read) = bench.round(&device);
    assert_eq!(asked, ["300+1", "0+1", "200+1", "100+1"], "what may fail comes last");
    assert_eq!(fields(&read), ["f0", "f200", "f300"]);
}

#[test]
fn a_wrong_address_among_good_ones_is_found_and_costs_its_own_field_only() {
    let addresses: Vec<u16> = (0..40).collect();
    let mut bench = Bench::new(&[read(3, "meter", &addresses)]);
    for code in [2, 3] {
        bench.unit = Unit::all("rack", &[read(3, "meter", &addresses)], INTERVAL).remove(0);
        let device = |first: u16, count: u16| {
            if (first..first + count).contains(&17) { Err(Fault::Refused(Exception(code))) } else { Ok(()) }
        };
        let (asked, read) = bench.round(&device);
        assert!(asked.len() <= 13, "{asked:?}");
        assert_eq!(read.len(), 39);
        let (asked, read) = bench.round(&device);
        assert!(asked.len() <= 7 && read.len() == 39, "{asked:?}");
        let error = bench.error(0).unwrap();
        assert!(error.starts_with("unit 3, holding register 17: illegal data"), "{error}");
    }
    // The device is mended: all are asked for together again.
    for _ in 0..8 {
        bench.asks(&well);
    }
    let (asked, read) = bench.round(&well);
    assert_eq!((asked, read.len(), bench.error(0)), (vec!["0+40".to_owned()], 40, None));
}

#[test]
fn a_gap_that_a_device_does_not_have_is_not_read_again() {
    let mut bench = Bench::new(&[read(3, "meter", &[0, 1, 5, 6])]);
    let device = |first: u16, count: u16| {
        if first <= 3 && first + count > 3 { Err(Fault::Refused(Exception(2))) } else { Ok(()) }
    };
    assert_eq!(bench.asks(&device), ["0+7", "0+2", "5+2"]);
    for _ in 0..3 {
        let (asked, read) = bench.round(&device);
        assert_eq!((asked, read.len()), (vec!["0+2".to_owned(), "5+2".to_owned()], 4));
        assert_eq!((bench.error(0), bench.unit.tables[0].failures), (None, 0), "no trouble of the device");
    }
}

#[test]
fn what_a_device_refused_for_a_while_is_asked_for_together_again() {
    let mut bench = Bench::new(&[read(3, "meter", &[0, 1, 5, 6])]);
    let starting = |_: u16, count: u16| if count > 2 { Err(Fault::Refused(Exception(2))) } else { Ok(()) };
    assert_eq!(bench.asks(&starting), ["0+7", "0+2", "5+2"]);
    let in_parts = (0..60).take_while(|_| bench.asks(&well).len() == 2).count();
    assert_eq!(in_parts, 12, "a minute");
    assert_eq!(bench.asks(&well), ["0+7"]);
    // Another time, it is a minute again.
    assert_eq!(bench.asks(&starting), ["0+7", "0+2", "5+2"]);
    assert_eq!((0..60).take_while(|_| bench.asks(&well).len() == 2).count(), 12);
    // Who was away may have been started anew.
    assert_eq!(bench.asks(&starting).len(), 3);
    assert_eq!(bench.asks(&silent).len(), 1);
    let asked: Vec<_> = (0..4).map(|_| bench.asks(&well).len()).collect();
    assert_eq!(asked, [2, 1, 1, 1]);
}

#[test]
fn what_is_refused_for_good_is_tried_ever_more_seldom_and_costs_no_value() {
    let mut bench = Bench::new(&[read(3, "meter", &[0, 1, 5, 6])]);
    let device = |first: u16, count: u16| {
        if first <= 3 && first + count > 3 { Err(Fault::Refused(Exception(2))) } else { Ok(()) }
    };
    let mut tries = Vec::new();
    for minute in (0..12 * 60 * 6).map(|round| round / 12) {
        let (asked, read) = bench.round(&device);
        assert_eq!((read.len(), bench.error(0)), (4, None));
        if asked.len() > 2 {
            tries.push(minute);
        }
    }
    assert_eq!(tries, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303]);
    assert_eq!(bench.unit.tables[0].failures, 0, "no trouble of the device");
}

#[test]
fn a_gateway_that_answers_for_a_device_is_not_the_device() {
    let mut bench = Bench::new(&[read(3, "meter", &[0, 100])]);
    let device = |_: u16, _: u16| Err(Fault::Refused(Exception(11)));
    assert_eq!(bench.asks(&device), ["0+1"], "one question suffices");
    assert!(bench.error(0).unwrap().contains("gateway target does not answer (exception 11)"));
    // A busy device is there.
    let mut bench = Bench::new(&[read(3, "meter", &[0, 100])]);
    let device = |first: u16, _: u16| if first == 0 { Err(Fault::Refused(Exception(6))) } else { Ok(()) };
    assert_eq!(fields(&bench.round(&device).1), ["f100"]);
    assert_eq!(fields(&bench.round(&well).1), ["f0", "f100"], "asked again in the next round");
}

#[test]
fn a_new_line_is_a_new_chance_for_everybody() {
    let mut bench = Bench::new(&[read(3, "meter", &[0])]);
    for _ in 0..5 {
        bench.asks(&silent);
    }
    assert!(bench.asks(&well).is_empty());
    bench.unit.begin_afresh(bench.start + bench.round * INTERVAL);
    assert_eq!(bench.asks(&well), ["0+1"]);
}

#[test]
fn values_that_are_none_leave_a_reading_of_the_others() {
    let mut table = read(3, "meter", &[0, 2]);
    let order = Order::default();
    for register in &mut table.registers {
        register.format = Format::Number { number: Number::F32, order, scale: None };
    }
    let mut unit = Unit::all("rack", &[table], INTERVAL).remove(0);
    let round = Instant::now();
    let mut reading = |registers: [u16; 4]| {
        unit.tables[0].questions[0].asked = None;
        assert_eq!(unit.settle(0, 0, round, Ok(Data::Registers(registers.to_vec()))), Step::GoOn);
        let reading = unit.tables[0].take_reading(round).unwrap();
        (reading.shape, reading.values)
    };
    let (whole, values) = reading([0x4366, 0x8000, 0x3F80, 0]);
    assert_eq!(values, [Value::Float(230.5), Value::Float(1.0)]);
    let (partial, values) = reading([0x7FC0, 0, 0x3F80, 0]);
    assert_eq!((&partial.names[..], values), (&["f2".into()][..], vec![Value::Float(1.0)]));
    let (none, values) = reading([0x7FC0, 0, 0x7FC0, 0]);
    assert!(none.names.is_empty() && values.is_empty(), "counted as skipped");
    let (again, _) = reading([0x4366, 0x8000, 0x3F80, 0]);
    assert!(Arc::ptr_eq(&whole, &again), "shapes are shared");
}
