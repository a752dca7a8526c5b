//! Each driver's transfers, with the values that its data sheet gives as an example.

use embedded_hal::i2c::{ErrorKind, NoAcknowledgeSource};
use embedded_hal_mock::eh1::i2c::{Mock, Transaction as Transfer};
use firmware_bridge::value::Value;

use super::*;

fn sensor(driver: Driver, address: u8) -> settings::Sensor {
    settings::Sensor { driver, address, device: "d".to_owned(), interval: Duration::from_secs(1) }
}

/// What the sensor tells after each of so many readings, if these transfers take place and no others.
fn readings(
    driver: Driver,
    address: u8,
    transfers: &[Transfer],
    count: u64,
) -> Vec<Result<Vec<Value>, Failure>> {
    let mut mock = Mock::new(transfers);
    let mut scheduled = scheduled(&sensor(driver, address), &Bus::new(mock.clone(), |_| ()));
    let read = (0..count).map(|round| scheduled.read(round * 1_000).unwrap());
    let readings = read.map(|read| read.map(|values| values.as_slice().to_vec())).collect();
    mock.done();
    readings
}

fn reading(driver: Driver, address: u8, transfers: &[Transfer]) -> Result<Vec<Value>, Failure> {
    readings(driver, address, transfers, 1).remove(0)
}

/// The values are these, but for the rounding of single precision.
fn check(found: &Result<Vec<Value>, Failure>, expected: &[f64]) {
    let found = found.as_ref().unwrap();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let Value::Single(value) = *found else { panic!("{found:?}") };
        assert!((f64::from(value) - expected).abs() <= expected.abs() * 1e-5, "{value}, not {expected}");
    }
}

fn get(address: u8, register: u8, answer: &[u8]) -> Transfer {
    Transfer::write_read(address, vec![register], answer.to_vec())
}

fn put(address: u8, bytes: &[u8]) -> Transfer {
    Transfer::write(address, bytes.to_vec())
}

fn nack() -> ErrorKind {
    ErrorKind::NoAcknowledge(NoAcknowledgeSource::Address)
}

/// T1 to T3, P1 to P9: the example of the data sheet (BMP280, section 3.12), then H1.
fn calibration() -> Vec<u8> {
    let words: [u16; 12] =
        [27_504, 26_435, 64_536, 36_477, 54_851, 3_024, 2_855, 140, 65_529, 15_500, 50_936, 6_000];
    words.iter().flat_map(|word| word.to_le_bytes()).chain([0, 75]).collect()
}

/// Pressure and temperature of that example, and some humidity.
const RAW: [u8; 8] = [0x65, 0x5A, 0xC0, 0x7E, 0xED, 0x00, 0x6E, 0x00];
/// By the formulas of the data sheet (BME280, section 8.1) in double precision.
const MEASURED: [f64; 3] = [25.08248, 45.1442, 100653.27];

fn bosch_configures(address: u8, id: u8) -> Vec<Transfer> {
    vec![
        get(address, 0xD0, &[id]),
        put(address, &[0xE0, 0xB6]),
        get(address, 0x88, &calibration()),
        get(address, 0xE1, &[0x6A, 0x01, 0x00, 0x13, 0x08, 0x03, 0x1E]),
        get(address, 0xF4, &[0]),
        put(address, &[0xF2, 0x01]),
        get(address, 0xF4, &[0]),
        put(address, &[0xF4, 0x50]),
        get(address, 0xF5, &[0]),
        put(address, &[0xF5, 0x00]),
    ]
}

fn bosch_measures(address: u8) -> Vec<Transfer> {
    vec![
        get(address, 0xF4, &[0x50]),
        get(address, 0xF4, &[0x50]),
        put(address, &[0xF4, 0x51]),
        get(address, 0xF7, &RAW),
    ]
}

#[test]
fn a_bme280_tells_the_values_of_its_data_sheet() {
    let mut transfers = vec![get(0x76, 0xD0, &[0x60])];
    transfers.extend(bosch_configures(0x76, 0x60));
    for _ in 0..2 {
        transfers.push(get(0x76, 0xF2, &[0x01, 0, 0x50]));
        transfers.extend(bosch_measures(0x76));
    }
    let readings = readings(Driver::Bme280, 0x76, &transfers, 2);
    readings.iter().for_each(|reading| check(reading, &MEASURED));
}

#[test]
fn a_bmp280_has_no_humidity() {
    let mut transfers = vec![get(0x77, 0xD0, &[0x58])];
    transfers.extend(bosch_configures(0x77, 0x58));
    // It has no such register.
    transfers.push(get(0x77, 0xF2, &[0, 0, 0x50]));
    transfers.extend(bosch_measures(0x77));
    check(&reading(Driver::Bmp280, 0x77, &transfers), &[MEASURED[0], MEASURED[2]]);

    let found = reading(Driver::Bme280, 0x77, &[get(0x77, 0xD0, &[0x58])]);
    assert_eq!(found, Err(Failure::NoHumidity), "rather than a humidity of nothing");
    let found = reading(Driver::Bme280, 0x77, &[get(0x77, 0xD0, &[0x61])]);
    assert_eq!(found, Err(Failure::WrongChip { found: 0x61, expected: 0x60 }));
}

#[test]
fn a_bme280_that_forgot_its_configuration_is_set_up_before_it_is_read() {
    let mut transfers = vec![get(0x76, 0xD0, &[0x60])];
    transfers.extend(bosch_configures(0x76, 0x60));
    // As after a reset.
    transfers.push(get(0x76, 0xF2, &[0, 0, 0]));
    transfers.extend(bosch_configures(0x76, 0x60));
    transfers.extend(bosch_measures(0x76));
    check(&reading(Driver::Bme280, 0x76, &transfers), &MEASURED);
}

#[test]
fn an_sht3x_tells_the_values_of_its_data_sheet() {
    let answer = |crc: u8| Transfer::read(0x44, vec![0xBE, 0xEF, 0x92, 0xBE, 0xEF, crc]);
    let asks = || [put(0x44, &[0x30, 0x93]), put(0x44, &[0x24, 0x00])];
    let [stop, measure] = asks();
    let shares = f64::from(0xBEEF_u16) / 65_535.0;
    check(
        &reading(Driver::Sht3x, 0x44, &[stop, measure, answer(0x92)]),
        &[shares * 175.0 - 45.0, shares * 100.0],
    );
    let [stop, measure] = asks();
    assert_eq!(reading(Driver::Sht3x, 0x44, &[stop, measure, answer(0x93)]), Err(Failure::Checksum));
}

#[test]
fn an_lm75_that_sleeps_is_woken() {
    let transfers = [get(0x48, 1, &[0x61]), put(0x48, &[1, 0x60]), get(0x48, 0, &[0xE7, 0x20])];
    check(&reading(Driver::Lm75, 0x48, &transfers), &[-24.875]);
}

#[test]
fn an_ads1115_converts_one_input_after_the_other() {
    let inputs = Inputs { range: Range::V4_096, read: [true, false, true, false] };
    let transfers = [
        put(0x49, &[1, 0x83, 0x83]),
        // The range was written, which began a conversion; then A0 against ground.
        get(0x49, 1, &[0x03, 0x83]),
        get(0x49, 1, &[0x83, 0x83]),
        put(0x49, &[1, 0xC3, 0x83]),
        get(0x49, 1, &[0x43, 0x83]),
        get(0x49, 1, &[0xC3, 0x83]),
        get(0x49, 0, &[0x40, 0x00]),
        // A2.
        get(0x49, 1, &[0xC3, 0x83]),
        put(0x49, &[1, 0xE3, 0x83]),
        get(0x49, 1, &[0xE3, 0x83]),
        get(0x49, 0, &[0xFF, 0xFF]),
    ];
    let found = reading(Driver::Ads1115(inputs), 0x49, &transfers).unwrap();
    assert_eq!((found[1], found[3]), (Value::Missing, Value::Missing));
    // A step is 125 µV (data sheet, table 7-1).
    check(&Ok(vec![found[0], found[2]]), &[2.048, -0.000_125]);
}

#[test]
fn an_ads1015_has_twelve_bits() {
    let inputs = Inputs { range: Range::V6_144, read: [false, false, false, true] };
    let transfers = [
        put(0x48, &[1, 0x81, 0x83]),
        get(0x48, 1, &[0x81, 0x83]),
        put(0x48, &[1, 0xF1, 0x83]),
        get(0x48, 1, &[0xF1, 0x83]),
        get(0x48, 0, &[0x7F, 0xF0]),
    ];
    let found = reading(Driver::Ads1015(inputs), 0x48, &transfers).unwrap();
    check(&Ok(vec![found[3]]), &[6.141]);
}

#[test]
fn a_conversion_that_never_ends_is_given_up() {
    let inputs = Inputs { read: [true, false, false, false], ..Inputs::default() };
    let mut transfers = vec![put(0x48, &[1, 0x85, 0x83])];
    transfers.extend((0..20).map(|_| get(0x48, 1, &[0, 0])));
    assert_eq!(reading(Driver::Ads1115(inputs), 0x48, &transfers), Err(Failure::NotReady));
}

#[test]
fn who_does_not_answer_says_so_with_every_driver() {
    let inputs = Inputs::default;
    let first = [
        (Driver::Bme280, get(0x76, 0xD0, &[0])),
        (Driver::Bmp280, get(0x76, 0xD0, &[0])),
        (Driver::Sht3x, put(0x44, &[0x30, 0x93])),
        (Driver::Lm75, get(0x48, 1, &[0])),
        (Driver::Ads1015(inputs()), put(0x48, &[1, 0x85, 0x83])),
        (Driver::Ads1115(inputs()), put(0x48, &[1, 0x85, 0x83])),
    ];
    for (driver, transfer) in first {
        let address = driver.addresses()[0];
        let name = driver.name();
        // Asked in each round, and set up from the beginning.
        let transfers = [transfer.clone().with_error(nack()), transfer.with_error(nack())];
        let readings = readings(driver, address, &transfers, 2);
        assert!(readings.iter().all(|reading| *reading == Err(Failure::Bus(Fault::NoAnswer))), "{name}");
    }
}
