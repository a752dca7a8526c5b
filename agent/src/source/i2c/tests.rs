//! The source on a bus of a test: sensors that are unplugged, lose their power, or hold up the bus.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard};

use embedded_hal::i2c::{ErrorType, I2c, Operation};
use firmware_bridge::value::Value as Measurement;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::*;
use crate::clock::SimulatedWall;
use crate::ingest::inlet::{Batch, Outcome};
use crate::ingest::{Intake, SourceSpec};
use crate::reading::{Reading, Timestamp};
use crate::source::{Report, State};

/// When the simulated day begins.
const START: Timestamp = Timestamp(1_800_000_000_000_000);

/// A bus, and what is on it.
#[derive(Clone, Default)]
struct World(Arc<(Mutex<Board>, Condvar)>);

#[derive(Default)]
struct Board {
    /// What befalls everybody on the bus.
    fault: Option<Fault>,
    hangs: bool,
    chips: BTreeMap<u8, Chip>,
    /// How often the bus was opened.
    opened: usize,
}

/// Registers of one byte; an LM75's of two lie side by side.
struct Chip {
    answers: bool,
    /// How often it was spoken to.
    asked: usize,
    registers: [u8; 256],
    after_reset: [u8; 256],
    at: usize,
}

impl Chip {
    /// As it is after power-on.
    fn with(registers: &[(usize, &[u8])]) -> Self {
        let mut all = [0; 256];
        for (at, bytes) in registers {
            all[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        Self { answers: true, asked: 0, registers: all, after_reset: all, at: 0 }
    }

    /// 25 °C. Its second register begins at 1, as its second byte does: the bits that matter there are zero.
    fn lm75() -> Self {
        Self::with(&[(0, &[25, 0])])
    }

    fn bme280() -> Self {
        Self::with(&[
            (0x88, &[0x70, 0x6B, 0x43, 0x67, 0x18, 0xFC, 0x7D, 0x8E, 0x43, 0xD6, 0xD0, 0x0B, 0x27, 0x0B]),
            (0x96, &[0x8C, 0x00, 0xF9, 0xFF, 0x8C, 0x3C, 0xF8, 0xC6, 0x70, 0x17]),
            (0xA1, &[75]),
            (0xD0, &[0x60]),
            (0xE1, &[0x6A, 0x01, 0x00, 0x13, 0x08, 0x03, 0x1E]),
            // What it tells before it has measured.
            (0xF7, &[0x80, 0, 0, 0x80, 0, 0, 0x80, 0]),
        ])
    }

    fn write(&mut self, bytes: &[u8]) {
        let [at, values @ ..] = bytes else { return };
        self.at = usize::from(*at);
        for (place, value) in self.registers[self.at..].iter_mut().zip(values) {
            *place = *value;
        }
        let is_bme280 = self.registers[0xD0] == 0x60;
        match (at, values) {
            (0xE0, [0xB6]) => self.registers = self.after_reset,
            // A measurement, if it is set up; then it sleeps again.
            (0xF4, [mode]) if is_bme280 && mode & 0b11 != 0 => {
                if mode & 0b1111_1100 == 0x50 && self.registers[0xF2] == 1 {
                    self.registers[0xF7..0xFF].copy_from_slice(&[0x65, 0x5A, 0xC0, 0x7E, 0xED, 0, 0x6E, 0]);
                }
                self.registers[0xF4] = mode & !0b11;
            }
            _ => {}
        }
    }
}

impl World {
    fn state(&self) -> MutexGuard<'_, Board> {
        self.0.0.lock().unwrap()
    }

    fn chip<T>(&self, address: u8, with: impl FnOnce(&mut Chip) -> T) -> T {
        with(self.state().chips.get_mut(&address).unwrap())
    }

    fn unplug(&self, address: u8) {
        self.chip(address, |chip| chip.answers = false);
    }

    fn plug_in(&self, address: u8) {
        self.chip(address, |chip| chip.answers = true);
    }

    fn hang(&self) {
        self.state().hangs = true;
    }

    fn go_on(&self) {
        self.state().hangs = false;
        self.0.1.notify_all();
    }
}

impl ErrorType for World {
    type Error = Fault;
}

impl I2c for World {
    fn transaction(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), Fault> {
        let mut state = self.0.1.wait_while(self.state(), |state| state.hangs).unwrap();
        if let Some(fault) = &state.fault {
            return Err(fault.clone());
        }
        let chip = state.chips.get_mut(&address).ok_or(Fault::NoAnswer)?;
        chip.asked += 1;
        if !chip.answers {
            return Err(Fault::NoAnswer);
        }
        for operation in operations {
            match operation {
                Operation::Write(bytes) => chip.write(bytes),
                Operation::Read(bytes) => {
                    for (byte, register) in bytes.iter_mut().zip(chip.registers.iter().cycle().skip(chip.at))
                    {
                        *byte = *register;
                    }
                }
            }
        }
        Ok(())
    }
}

fn lm75(device: &str, address: u8, interval_ms: u64) -> Sensor {
    let interval = Duration::from_millis(interval_ms);
    Sensor { driver: Driver::Lm75, address, device: device.to_owned(), interval }
}

/// A source that runs.
struct Bench {
    world: World,
    batches: mpsc::Receiver<Batch>,
    report: watch::Receiver<Report>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Bench {
    fn start(world: &World, sensors: Vec<Sensor>) -> Self {
        Self::start_at(world, sensors, Pace::DEFAULT)
    }

    fn start_at(world: &World, sensors: Vec<Sensor>, pace: Pace) -> Self {
        let settings = Settings { name: "board".to_owned(), bus: PathBuf::from("/dev/i2c-1"), sensors };
        let clock = Clock::simulated(Box::leak(Box::new(SimulatedWall::showing(START))));
        let source = Arc::new(SourceSpec {
            name: "board".into(),
            subscriptions: Arc::new([]),
            max_payload_bytes: 0,
            in_flight: 0,
            kept_payload_bytes: 0,
        });
        let (intake, batches) = Intake::new(clock);
        let (report, seen) = watch::channel(Report::default());
        let stop = CancellationToken::new();
        let opening = world.clone();
        let open = move || {
            let mut state = opening.state();
            state.opened += 1;
            match &state.fault {
                Some(fault) => Err(fault.clone()),
                None => Ok(Bus::new(opening.clone(), |_| ())),
            }
        };
        let rooms = Rooms { source, intake, report, stop: stop.clone(), clock };
        let task = tokio::spawn(run_on(settings, rooms, Arc::new(open), pace));
        Self { world: world.clone(), batches, report: seen, stop, task }
    }

    /// The next reading.
    async fn reading(&mut self) -> Reading {
        let mut batch = self.batches.recv().await.unwrap();
        assert_eq!(batch.items.len(), 1, "one sensor at a time");
        let item = batch.items.remove(0);
        assert_eq!(item.delivery, Delivery::AtMostOnce);
        let Outcome::Reading(reading) = item.outcome else { panic!("{:?}", item.outcome) };
        reading
    }

    /// The next readings: who, and how many milliseconds after the start.
    async fn times(&mut self, count: usize) -> Vec<(String, i64)> {
        let mut times = Vec::new();
        while times.len() < count {
            let reading = self.reading().await;
            assert_eq!(reading.time, reading.received);
            times.push((reading.origin.device.to_string(), reading.time.micros_since(START) / 1_000));
        }
        times
    }

    async fn reaches(&mut self, state: State) -> Report {
        self.report.wait_for(|report| report.state == state).await.unwrap().clone()
    }

    async fn ends(self) {
        self.stop.cancel();
        timeout(Duration::from_secs(1), self.task).await.expect("it stops within a second").unwrap();
    }
}

fn of(device: &str, times_ms: &[i64]) -> Vec<(String, i64)> {
    times_ms.iter().map(|time| (device.to_owned(), *time)).collect()
}

#[tokio::test(start_paused = true)]
async fn each_sensor_has_its_own_schedule_which_does_not_drift() {
    let world = World::default();
    world.state().chips.extend([(0x48, Chip::lm75()), (0x49, Chip::lm75())]);
    let mut bench = Bench::start(&world, vec![lm75("a", 0x48, 1_000), lm75("b", 0x49, 2_500)]);
    let mut times = bench.times(9).await;
    times.sort();
    assert_eq!(
        times,
        [of("a", &[0, 1_000, 2_000, 3_000, 4_000, 5_000]), of("b", &[0, 2_500, 5_000])].concat()
    );
    let report = bench.reaches(State::Connected).await;
    assert!(report.settled && report.last_error.is_none());
    assert_eq!(report.devices["a"].about, "lm75 at 0x48: temperature °C");
    bench.ends().await;
}

#[tokio::test(start_paused = true)]
async fn a_reading_has_the_names_of_its_sensor() {
    let world = World::default();
    world.state().chips.insert(0x76, Chip::bme280());
    let sensor = Sensor { driver: Driver::Bme280, address: 0x76, ..lm75("enclosure", 0, 1_000) };
    let mut bench = Bench::start(&world, vec![sensor]);
    let reading = bench.reading().await;
    assert_eq!((&*reading.origin.source, &*reading.origin.device), ("board", "enclosure"));
    let names: Vec<&str> = reading.shape.names.iter().map(|name| &**name).collect();
    assert_eq!(names, ["temperature", "humidity", "pressure"]);
    let Value::Float(temperature) = reading.values[0] else { panic!("{:?}", reading.values) };
    assert!(temperature.to_string().len() < 10, "{temperature} has no more digits than it was measured with");
    let again = bench.reading().await;
    assert!(Arc::ptr_eq(&reading.shape, &again.shape) && Arc::ptr_eq(&reading.origin, &again.origin));
    bench.ends().await;
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_is_named_and_holds_up_nobody() {
    let world = World::default();
    world.state().chips.extend([(0x48, Chip::lm75()), (0x49, Chip::lm75())]);
    world.unplug(0x48);
    let mut bench = Bench::start(&world, vec![lm75("a", 0x48, 1_000), lm75("b", 0x49, 1_000)]);
    assert_eq!(bench.times(9).await, of("b", &[0, 1_000, 2_000, 3_000, 4_000, 5_000, 6_000, 7_000, 8_000]));
    let report = bench.reaches(State::DeviceErrors).await;
    let error = "lm75 at 0x48 on /dev/i2c-1 does not answer; check wiring and address (i2cdetect -y 1 shows what answers)";
    assert_eq!(report.last_error, Some(format!("a: {error}")));
    assert_eq!(report.devices["a"].last_error.as_deref(), Some(error));
    assert_eq!(report.devices["b"].last_error, None);
    assert!(report.settled);
    // At 0, 1, 3 and 7 seconds; the next time would be after 15.
    assert_eq!((world.chip(0x48, |chip| chip.asked), report.devices["a"].failures), (4, 4));

    world.plug_in(0x48);
    let times = bench.times(9).await;
    assert_eq!(
        times.into_iter().filter(|(device, _)| device == "a").collect::<Vec<_>>(),
        of("a", &[15_000, 16_000])
    );
    let report = bench.reaches(State::Connected).await;
    assert_eq!((report.last_error, report.devices["a"].failures), (None, 4));
    bench.ends().await;
}

#[tokio::test(start_paused = true)]
async fn a_sensor_is_asked_at_least_once_a_minute() {
    let world = World::default();
    let bench = Bench::start(&world, vec![lm75("a", 0x48, 7_000)]);
    sleep(Duration::from_secs(3_600)).await;
    let failures = bench.report.borrow().devices["a"].failures;
    assert!((60..80).contains(&failures), "{failures}");
    let long =
        Turn { failures: 9, ..Turn::new("s", &lm75("b", 0x48, 600_000), &Bus::new(world.clone(), |_| ())) };
    assert_eq!(long.skipped_rounds(), 0, "rounds that are longer are all taken");
    bench.ends().await;
}

#[tokio::test(start_paused = true)]
async fn a_sensor_that_lost_its_power_tells_no_nonsense() {
    let world = World::default();
    world.state().chips.insert(0x76, Chip::bme280());
    let sensor = Sensor { driver: Driver::Bme280, address: 0x76, ..lm75("enclosure", 0, 1_000) };
    let mut bench = Bench::start(&world, vec![sensor]);
    let first = bench.reading().await;
    // Off and on between two readings.
    world.chip(0x76, |chip| chip.registers = chip.after_reset);
    assert_eq!(bench.reading().await.values, first.values);
    // Off for longer.
    world.unplug(0x76);
    bench.reaches(State::DeviceErrors).await;
    world.chip(0x76, |chip| *chip = Chip::bme280());
    assert_eq!(bench.reading().await.values, first.values);
    bench.ends().await;
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_is_gone_is_opened_anew() {
    let world = World::default();
    world.state().chips.insert(0x48, Chip::lm75());
    world.state().fault = Some(Fault::Absent);
    let mut bench = Bench::start(&world, vec![lm75("a", 0x48, 1_000)]);
    let report = bench.reaches(State::Unplugged).await;
    assert!(report.settled);
    assert!(report.last_error.unwrap().starts_with("/dev/i2c-1 is not there; turn the bus on"));
    for (fault, state) in [
        (Fault::Denied, State::PermissionDenied),
        (Fault::NotABus, State::Misconfigured),
        (Fault::InUse, State::Disconnected),
    ] {
        world.state().fault = Some(fault);
        bench.reaches(state).await;
    }
    assert!(bench.batches.is_empty());
    world.state().fault = None;
    bench.reading().await;
    bench.reaches(State::Connected).await;

    // As it may be while the kernel takes its time: the file is there, and nothing behind it.
    world.state().fault = Some(Fault::Absent);
    let report = bench.reaches(State::Unplugged).await;
    assert_eq!(report.devices["a"].failures, 0, "it is not the sensor's fault");
    let opened = world.state().opened;
    world.state().fault = None;
    bench.reading().await;
    assert!(world.state().opened > opened);
    bench.reaches(State::Connected).await;
    bench.ends().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_nothing_holds_it_back() {
    let world = World::default();
    world.state().chips.insert(0x48, Chip::lm75());
    let mut bench = Bench::start(&world, vec![lm75("a", 0x48, 100)]);
    bench.reaches(State::Blocked).await;
    let asked = world.chip(0x48, |chip| chip.asked);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.chip(0x48, |chip| chip.asked), asked, "what could not be kept is not measured");
    while bench.report.borrow_and_update().state != State::Connected {
        bench.reading().await;
    }
    bench.ends().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_measured_before_it_stops_is_handed_over_as_soon_as_there_is_room() {
    let world = World::default();
    world.state().chips.insert(0x48, Chip::lm75());
    let mut bench = Bench::start(&world, vec![lm75("a", 0x48, 100)]);
    bench.reaches(State::Blocked).await;
    let waiting = bench.batches.max_capacity() + 1;
    bench.stop.cancel();
    sleep(Duration::from_secs(2)).await;
    let mut readings = 0;
    while bench.batches.recv().await.is_some() {
        readings += 1;
    }
    assert_eq!(readings, waiting);
    bench.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_hangs_is_a_state_and_no_hung_room() {
    let world = World::default();
    world.state().chips.insert(0x48, Chip::lm75());
    let pace = Pace { hangs_after: Duration::from_millis(20), ..Pace::DEFAULT };
    let mut bench = Bench::start_at(&world, vec![lm75("a", 0x48, 100)], pace);
    bench.reading().await;
    world.hang();
    let report = bench.reaches(State::Hanging).await;
    assert!(report.last_error.unwrap().starts_with("a: /dev/i2c-1 hangs in the kernel"));
    world.go_on();
    bench.reaches(State::Connected).await;
    bench.reading().await;

    // Whoever hangs for ever is left behind.
    world.hang();
    bench.reaches(State::Hanging).await;
    let world = bench.world.clone();
    bench.ends().await;
    world.go_on();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_whose_bus_hangs_gives_signs_of_life() {
    use crate::pulse::{Rooms as Asked, waiting};

    let world = World::default();
    world.hang();
    let asked = Asked::default();
    let pulse = asked.add("source board".to_owned(), Duration::ZERO);
    let hung = world.clone();
    let room = tokio::spawn(pulse.carried_by(waiting(async move {
        blocking_for_long(move || hung.clone().read(0x48, &mut [0])).await
    })));
    let mut asker = crate::pulse::Asker::new(asked, Instant::now());
    let mut answers = 0;
    while answers < 3 {
        let (vitals, _) = asker.ask(Instant::now());
        answers += usize::from(vitals["source board"].silent.is_zero());
        tokio::task::yield_now().await;
    }
    world.go_on();
    assert_eq!(room.await.unwrap(), Err(Fault::NoAnswer));
}

#[test]
fn what_is_no_number_is_left_out() {
    let world = World::default();
    let sensor = Sensor { driver: Driver::Sht3x, ..lm75("a", 0x44, 1_000) };
    let mut turn = Turn::new("s", &sensor, &Bus::new(world, |_| ()));
    let mut measured = |values: &[Measurement]| {
        let measured = turn.measured(&Values::from_slice(values).unwrap());
        (measured.shape.names.iter().map(ToString::to_string).collect::<Vec<_>>(), measured.values)
    };
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (warm, wet) = (Measurement::Single(21.53), Measurement::Single(40.0));
    let (temperature, humidity) = (Value::Float(21.53), Value::Float(40.0));
    assert_eq!(
        measured(&[warm, wet]),
        (names(&["temperature", "humidity"]), vec![temperature, humidity.clone()])
    );
    assert_eq!(measured(&[Measurement::Single(f32::NAN), wet]), (names(&["humidity"]), vec![humidity]));
    assert_eq!(measured(&[Measurement::Missing, Measurement::Double(f64::INFINITY)]), (names(&[]), vec![]));
}

proptest! {
    /// A panic of a driver would end the agent.
    #[test]
    fn no_chip_can_say_what_a_driver_panics_at(registers in vec(any::<u8>(), 256), is_bosch: bool, rounds in 1_u64..4) {
        for (driver, address) in [
            (Driver::Bme280, 0x76),
            (Driver::Bmp280, 0x76),
            (Driver::Sht3x, 0x44),
            (Driver::Lm75, 0x48),
            (Driver::Ads1015(Inputs::default()), 0x48),
            (Driver::Ads1115(Inputs::default()), 0x48),
        ] {
            let mut chip = Chip::with(&[(0, &registers)]);
            if is_bosch {
                chip.registers[0xD0] = 0x60;
            }
            let world = World::default();
            world.state().chips.insert(address, chip);
            let sensor = Sensor { driver, address, ..lm75("d", 0, 1_000) };
            let mut turn = Turn::new("s", &sensor, &Bus::new(world, |_| ()));
            for round in 0..rounds {
                let read = turn.schedule.as_mut().unwrap().read(round * 1_000).unwrap();
                let Ok(values) = read else { continue };
                let all_finite = turn.measured(&values).values.iter().all(|value| value.as_f64().unwrap().is_finite());
                prop_assert!(all_finite);
            }
        }
    }
}
