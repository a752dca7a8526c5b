//! What devices write for a time.
//!
//! Numbers count from the Unix epoch, their unit told by their magnitude. Texts are RFC 3339, or a date and a time of
//! day without a zone. Parsed by hand: the forms are few, and this is on the path of every reading.

use jiff::civil;
use jiff::tz::TimeZone;

use crate::reading::Timestamp;

/// Below this a number counts seconds (until the year 5138), above it milliseconds.
const SECONDS_BELOW: u64 = 100_000_000_000;
/// Below this a number counts milliseconds, above it microseconds.
const MILLIS_BELOW: u64 = SECONDS_BELOW * 1_000;
/// Below this a number counts microseconds, above it nanoseconds.
const MICROS_BELOW: u64 = MILLIS_BELOW * 1_000;

/// Why something is no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is not written like one.
    Unreadable,
    /// It lies outside the years 0000 to 9999.
    OutOfRange,
}

/// The time that a whole number says. Nanoseconds are rounded down.
pub(super) fn from_i64(number: i64) -> Result<Timestamp, Fault> {
    in_range(match number.unsigned_abs() {
        magnitude if magnitude < SECONDS_BELOW => number * 1_000_000,
        magnitude if magnitude < MILLIS_BELOW => number * 1_000,
        magnitude if magnitude < MICROS_BELOW => number,
        _ => number.div_euclid(1_000),
    })
}

/// The time that a whole number says.
pub(super) fn from_u64(number: u64) -> Result<Timestamp, Fault> {
    match i64::try_from(number) {
        Ok(number) => from_i64(number),
        Err(_) => in_range(i64::try_from(number / 1_000).expect("a thousandth of 64 bits fits 63")),
    }
}

/// The time that any number says, rounded to the nearest microsecond.
#[expect(clippy::cast_precision_loss, reason = "the limits are powers of ten and exact as floats")]
#[expect(clippy::cast_possible_truncation, reason = "the range is checked before")]
pub(super) fn from_f64(number: f64) -> Result<Timestamp, Fault> {
    let micros = match number.abs() {
        magnitude if magnitude < SECONDS_BELOW as f64 => number * 1e6,
        magnitude if magnitude < MILLIS_BELOW as f64 => number * 1e3,
        magnitude if magnitude < MICROS_BELOW as f64 => number,
        _ => number / 1e3,
    };
    // Not a number lies in no range.
    if (Timestamp::MIN.0 as f64..=Timestamp::MAX.0 as f64).contains(&micros) {
        in_range(micros.round() as i64)
    } else {
        Err(Fault::OutOfRange)
    }
}

/// The time that a text says: `YYYY-MM-DD`, then `T` or a space, then `HH:MM:SS`, perhaps with a fraction, perhaps with
/// `Z` or an offset (`+01:00`, also `+0100` and `+01`, which ISO 8601 allows and devices write). Without either it is a
/// time of day in `zone`; where clocks are put forward or back, the offset before the change counts.
///
/// The fraction is cut at the microsecond. A leap second is the first second of the next minute, as POSIX counts.
pub(super) fn from_text(text: &str, zone: &TimeZone) -> Result<Timestamp, Fault> {
    let (moment, rest) = text.as_bytes().split_first_chunk::<19>().ok_or(Fault::Unreadable)?;
    let civil = Civil::parse(moment).ok_or(Fault::Unreadable)?;
    let (fraction, rest) = fraction(rest).ok_or(Fault::Unreadable)?;
    let seconds = match rest {
        b"" => civil.seconds_in(zone).ok_or(Fault::OutOfRange)?,
        b"Z" | b"z" => civil.seconds_utc(),
        offset => civil.seconds_utc() - offset_seconds(offset).ok_or(Fault::Unreadable)?,
    };
    in_range(seconds * 1_000_000 + fraction)
}

fn in_range(micros: i64) -> Result<Timestamp, Fault> {
    let time = Timestamp(micros);
    if (Timestamp::MIN..=Timestamp::MAX).contains(&time) { Ok(time) } else { Err(Fault::OutOfRange) }
}

/// A date and a time of day, checked.
#[derive(Clone, Copy)]
struct Civil {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    /// 60 in a leap second.
    second: i64,
}

impl Civil {
    fn parse(text: &[u8; 19]) -> Option<Self> {
        let separators = [text[4], text[7], text[13], text[16]];
        if separators != *b"--::" || !matches!(text[10], b'T' | b't' | b' ') {
            return None;
        }
        let civil = Self {
            year: two_digits(text[0], text[1])? * 100 + two_digits(text[2], text[3])?,
            month: two_digits(text[5], text[6])?,
            day: two_digits(text[8], text[9])?,
            hour: two_digits(text[11], text[12])?,
            minute: two_digits(text[14], text[15])?,
            second: two_digits(text[17], text[18])?,
        };
        let is_date = (1..=12).contains(&civil.month) && (1..=civil.days_in_month()).contains(&civil.day);
        let is_time = civil.hour < 24 && civil.minute < 60 && civil.second <= 60;
        (is_date && is_time).then_some(civil)
    }

    fn days_in_month(&self) -> i64 {
        match self.month {
            2 if self.is_leap_year() => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }

    fn is_leap_year(&self) -> bool {
        self.year % 4 == 0 && (self.year % 100 != 0 || self.year % 400 == 0)
    }

    /// Seconds since the Unix epoch if it is meant in UTC.
    ///
    /// Civil date to days after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`.
    fn seconds_utc(&self) -> i64 {
        let year = if self.month <= 2 { self.year - 1 } else { self.year };
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let shifted_month = (self.month + 9) % 12;
        let day_of_year = (153 * shifted_month + 2) / 5 + self.day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        days * 86_400 + self.hour * 3_600 + self.minute * 60 + self.second
    }

    /// Seconds since the Unix epoch if it is meant in `zone`; `None` beyond what the zone's rules can tell.
    fn seconds_in(&self, zone: &TimeZone) -> Option<i64> {
        if *zone == TimeZone::UTC {
            return Some(self.seconds_utc());
        }
        let leap = i64::from(self.second == 60);
        let small = |number: i64| i8::try_from(number).ok();
        let date_time = civil::DateTime::new(
            i16::try_from(self.year).ok()?,
            small(self.month)?,
            small(self.day)?,
            small(self.hour)?,
            small(self.minute)?,
            small(self.second - leap)?,
            0,
        );
        let moment = zone.to_ambiguous_timestamp(date_time.ok()?).compatible().ok()?;
        Some(moment.as_second() + leap)
    }
}

/// The microseconds of a fraction (".5" is 500000), none where there is no fraction, and what follows it.
fn fraction(text: &[u8]) -> Option<(i64, &[u8])> {
    let Some(digits) = text.strip_prefix(b".") else {
        return Some((0, text));
    };
    let count = digits.iter().take_while(|digit| digit.is_ascii_digit()).count();
    if count == 0 {
        return None;
    }
    let (digits, rest) = digits.split_at(count);
    let six = digits.iter().chain(std::iter::repeat(&b'0')).take(6);
    Some((six.fold(0, |micros, digit| micros * 10 + i64::from(digit - b'0')), rest))
}

/// What `+01:00`, `+0100` or `+01` is ahead of UTC, in seconds.
fn offset_seconds(text: &[u8]) -> Option<i64> {
    let (sign, hours, minutes) = match *text {
        [sign, a, b, b':', c, d] | [sign, a, b, c, d] => (sign, two_digits(a, b)?, two_digits(c, d)?),
        [sign, a, b] => (sign, two_digits(a, b)?, 0),
        _ => return None,
    };
    let ahead = hours * 3_600 + minutes * 60;
    match sign {
        b'+' if hours < 24 && minutes < 60 => Some(ahead),
        b'-' if hours < 24 && minutes < 60 => Some(-ahead),
        _ => None,
    }
}

fn two_digits(tens: u8, ones: u8) -> Option<i64> {
    let is_number = tens.is_ascii_digit() && ones.is_ascii_digit();
    is_number.then(|| i64::from(tens - b'0') * 10 + i64::from(ones - b'0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OUT: Result<Timestamp, Fault> = Err(Fault::OutOfRange);
    const UNREADABLE: Result<Timestamp, Fault> = Err(Fault::Unreadable);

    #[test]
    fn the_magnitude_of_a_number_tells_its_unit() {
        let check =
            |number: i64, micros: i64| assert_eq!(from_i64(number), Ok(Timestamp(micros)), "{number}");
        check(0, 0);
        check(1_795_148_112, 1_795_148_112_000_000);
        check(-1, -1_000_000);
        check(99_999_999_999, 99_999_999_999_000_000);
        check(100_000_000_000, 100_000_000_000_000);
        check(1_795_148_112_123, 1_795_148_112_123_000);
        check(99_999_999_999_999, 99_999_999_999_999_000);
        check(100_000_000_000_000, 100_000_000_000_000);
        check(1_795_148_112_123_456, 1_795_148_112_123_456);
        check(99_999_999_999_999_999, 99_999_999_999_999_999);
        check(100_000_000_000_000_000, 100_000_000_000_000);
        check(1_795_148_112_123_456_789, 1_795_148_112_123_456);
        check(-62_167_219_200, Timestamp::MIN.0);
        check(-1_795_148_112_123, -1_795_148_112_123_000);
        check(-1_795_148_112_123_456_789, -1_795_148_112_123_457);
        check(i64::MAX, 9_223_372_036_854_775);
        check(i64::MIN, -9_223_372_036_854_776);
        assert_eq!(from_i64(-62_167_219_201), OUT);
        assert_eq!(from_i64(-99_999_999_999), OUT);
        assert_eq!(from_u64(u64::MAX), Ok(Timestamp(18_446_744_073_709_551)));
        assert_eq!(from_u64(1_795_148_112), Ok(Timestamp(1_795_148_112_000_000)));
    }

    #[test]
    fn floats_keep_their_fraction_to_the_microsecond() {
        let check =
            |number: f64, micros: i64| assert_eq!(from_f64(number), Ok(Timestamp(micros)), "{number}");
        check(0.0, 0);
        check(-0.0, 0);
        check(1_772_345_702.51, 1_772_345_702_510_000);
        check(1_772_345_702.123_456, 1_772_345_702_123_456);
        check(1_772_345_702_510.25, 1_772_345_702_510_250);
        check(1_772_345_702_510_250.2, 1_772_345_702_510_250);
        check(-0.5, -500_000);
        check(1.8e18, 1_800_000_000_000_000);
        for number in [1e300, -1e300, 1e21, -1e11 + 1.0, f64::INFINITY, f64::NAN] {
            assert_eq!(from_f64(number), OUT, "{number}");
        }
    }

    #[test]
    fn texts_are_times_in_utc_unless_they_say_otherwise() {
        let check = |text: &str, expected: &str| {
            let time = from_text(text, &TimeZone::UTC).map(|time| time.to_string());
            assert_eq!(time.as_deref(), Ok(expected), "{text}");
        };
        check("2026-11-20T04:15:12Z", "2026-11-20T04:15:12.000000Z");
        check("2026-11-20t04:15:12z", "2026-11-20T04:15:12.000000Z");
        check("2026-11-20T04:15:12.123Z", "2026-11-20T04:15:12.123000Z");
        check("2026-11-20T04:15:12.1234567899Z", "2026-11-20T04:15:12.123456Z");
        check("2026-03-01T07:15:02+01:00", "2026-03-01T06:15:02.000000Z");
        check("2026-03-01T07:15:02-0530", "2026-03-01T12:45:02.000000Z");
        check("2026-03-01T07:15:02.5+02", "2026-03-01T05:15:02.500000Z");
        check("2026-03-01 07:15:02-00:00", "2026-03-01T07:15:02.000000Z");
        check("2026-11-20 04:15:12", "2026-11-20T04:15:12.000000Z");
        check("2026-11-20 04:15:12.5", "2026-11-20T04:15:12.500000Z");
        check("2026-11-20T04:15:12", "2026-11-20T04:15:12.000000Z");
        check("1970-01-01T00:00:00", "1970-01-01T00:00:00.000000Z");
        check("1969-12-31T23:59:59.999999Z", "1969-12-31T23:59:59.999999Z");
        check("2024-02-29T00:00:00Z", "2024-02-29T00:00:00.000000Z");
        check("2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000000Z");
        check("0000-01-01T00:00:00Z", "0000-01-01T00:00:00.000000Z");
        check("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z");
    }

    #[test]
    fn a_time_without_a_zone_is_meant_in_the_configured_one() {
        // Rules in POSIX form, so that the test needs no zone database.
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let check = |text: &str, expected: &str| {
            let time = from_text(text, &berlin).map(|time| time.to_string());
            assert_eq!(time.as_deref(), Ok(expected), "{text}");
        };
        check("2026-01-15 12:00:00", "2026-01-15T11:00:00.000000Z");
        check("2026-07-15T12:00:00.25", "2026-07-15T10:00:00.250000Z");
        check("2026-07-15T12:00:00Z", "2026-07-15T12:00:00.000000Z");
        // Put forward: 02:30 does not exist. Put back: 02:30 happens twice.
        check("2026-03-29 02:30:00", "2026-03-29T01:30:00.000000Z");
        check("2026-10-25 02:30:00", "2026-10-25T00:30:00.000000Z");
        check("2026-07-15T12:00:60", "2026-07-15T10:01:00.000000Z");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        let unreadable = [
            "",
            "now",
            "yesterday at noon",
            "2026-11-20",
            "2026-11-20T04:15",
            "20261120T041512Z",
            "2026/11/20 04:15:12",
            "2026-11-20_04:15:12",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2026-04-31T00:00:00Z",
            "2026-04-00T00:00:00Z",
            "2026-11-20T24:00:00Z",
            "2026-11-20T04:60:00Z",
            "2026-11-20T04:15:61Z",
            "2026-11-20T04:15:12.Z",
            "2026-11-20T04:15:12,5Z",
            "2026-11-20T04:15:12ZZ",
            "2026-11-20T04:15:12 Z",
            "2026-11-20T04:15:12+24:00",
            "2026-11-20T04:15:12+01:60",
            "2026-11-20T04:15:12+1:00",
            "2026-11-20T04:15:12+01:0",
            "2026-11-20T04:15:12CET",
            "+026-11-20T04:15:12Z",
            "2026-11-20T04:15:1٣Z",
            "1795148112",
        ];
        for text in unreadable {
            assert_eq!(from_text(text, &TimeZone::UTC), UNREADABLE, "{text}");
        }
        for text in ["0000-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "9999-12-31T23:59:60Z"] {
            assert_eq!(from_text(text, &TimeZone::UTC), OUT, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_we_write_we_read(micros in Timestamp::MIN.0..=Timestamp::MAX.0) {
            let text = Timestamp(micros).to_string();
            prop_assert_eq!(from_text(&text, &TimeZone::UTC), Ok(Timestamp(micros)));
        }

        #[test]
        fn every_readable_time_can_be_written(
            text in "[0-9]{4}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-5][0-9]:[0-6][0-9](\\.[0-9]{1,9})?([Zz]|[+-][0-2][0-9]:?[0-5][0-9])?|.{0,40}",
            float in any::<f64>(),
            signed in any::<i64>(),
            unsigned in any::<u64>(),
        ) {
            let text = from_text(&text, &TimeZone::UTC);
            for time in [text, from_f64(float), from_i64(signed), from_u64(unsigned)].into_iter().flatten() {
                prop_assert!((Timestamp::MIN..=Timestamp::MAX).contains(&time), "{}", time.0);
            }
        }
    }
}
