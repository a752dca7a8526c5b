//! Durations and sizes as operators write them: `"250ms" "10s" "5m" "1h" "30d"`, `"64KiB" "1GiB"`. One unit each, whole
//! numbers, so that what is read back is what was meant.

use std::time::Duration;

/// Units of time, in milliseconds, the largest first.
const TIME_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
/// Units of size, in bytes, the largest first.
const SIZE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// What a duration looks like, for messages.
pub(super) const DURATION_FORM: &str = "a duration such as \"250ms\", \"10s\", \"5m\", \"1h\" or \"30d\"";
/// What a size looks like, for messages.
pub(super) const SIZE_FORM: &str = "a size such as \"512B\", \"64KiB\", \"16MiB\" or \"1GiB\"";

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NotUnderstood {
    /// A text that would be understood and is probably meant.
    pub(super) nearest: Option<String>,
    /// What was expected.
    pub(super) expected: String,
}

/// The duration that `text` says.
pub(super) fn duration(text: &str) -> Result<Duration, NotUnderstood> {
    quantity(text, &TIME_UNITS).map(Duration::from_millis).map_err(|nearest| NotUnderstood {
        nearest: nearest.or_else(|| common_duration(text)),
        expected: DURATION_FORM.to_owned(),
    })
}

/// The bytes that `text` says.
pub(super) fn size(text: &str) -> Result<u64, NotUnderstood> {
    quantity(text, &SIZE_UNITS).map_err(|nearest| {
        let decimal = split(text).filter(|(_, unit)| {
            matches!(*unit, "KB" | "kB" | "MB" | "GB" | "TB" | "K" | "k" | "M" | "G" | "T")
        });
        match decimal {
            Some((number, unit)) => NotUnderstood {
                nearest: Some(format!("{number}{}iB", unit.to_ascii_uppercase().trim_end_matches('B'))),
                expected: format!("{SIZE_FORM} (powers of 1024 alone)"),
            },
            None => NotUnderstood { nearest, expected: SIZE_FORM.to_owned() },
        }
    })
}

/// Number times unit, or what was probably meant.
fn quantity(text: &str, units: &[(&'static str, u64)]) -> Result<u64, Option<String>> {
    let (number, unit) = split(text).ok_or(None)?;
    if let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) {
        let number: u64 = number.parse().map_err(|_| None)?;
        return number.checked_mul(*factor).ok_or(None);
    }
    let same = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()));
    Err(same.map(|(name, _)| format!("{number}{name}")))
}

/// Digits, and what follows them.
fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 { None } else { text.split_at_checked(digits) }
}

/// Units as other programs write them.
fn common_duration(text: &str) -> Option<String> {
    let (number, unit) = split(text)?;
    let unit = match unit.trim() {
        "sec" | "secs" | "second" | "seconds" | "" => "s",
        "min" | "mins" | "minute" | "minutes" => "m",
        "hr" | "hrs" | "hour" | "hours" => "h",
        "day" | "days" => "d",
        "msec" | "millis" | "milliseconds" => "ms",
        _ => return None,
    };
    Some(format!("{number}{unit}"))
}

/// `duration` in the largest unit that leaves no rest.
pub(crate) fn show_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 { "0s".to_owned() } else { show(millis, &TIME_UNITS) }
}

/// `bytes` in the largest unit that leaves no rest.
pub(crate) fn show_size(bytes: u64) -> String {
    show(bytes, &SIZE_UNITS)
}

fn show(amount: u64, units: &[(&str, u64)]) -> String {
    let unit = units.iter().find(|(_, factor)| amount != 0 && amount.is_multiple_of(*factor));
    unit.map_or_else(|| format!("{amount}B"), |(name, factor)| format!("{}{name}", amount / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_one_unit() {
        let check = |text: &str, millis: u64| assert_eq!(duration(text), Ok(Duration::from_millis(millis)));
        check("250ms", 250);
        check("10s", 10_000);
        check("5m", 300_000);
        check("1h", 3_600_000);
        check("30d", 2_592_000_000);
        check("0s", 0);
    }

    #[test]
    fn what_is_no_duration_is_explained() {
        let nearest = |text: &str| duration(text).unwrap_err().nearest;
        assert_eq!(nearest("10sec").as_deref(), Some("10s"));
        assert_eq!(nearest("10 s").as_deref(), Some("10s"));
        assert_eq!(nearest("5M").as_deref(), Some("5m"));
        assert_eq!(nearest("30").as_deref(), Some("30s"));
        for text in ["", "s", "1h30m", "1.5s", "-1s", "99999999999999999999s", "99999999999999999d", "١s"] {
            assert_eq!(nearest(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("1GiB"), Ok(1 << 30));
        assert_eq!(size("0B"), Ok(0));
        let nearest = |text: &str| size(text).unwrap_err().nearest;
        assert_eq!(nearest("1GB").as_deref(), Some("1GiB"));
        assert_eq!(nearest("64k").as_deref(), Some("64KiB"));
        assert_eq!(nearest("16mib").as_deref(), Some("16MiB"));
        assert_eq!(nearest("16"), None);
        assert_eq!(nearest("99999999999TiB"), None);
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for millis in [1, 999, 1_000, 1_500, 60_000, 90_000, 3_600_000, 86_400_000] {
            let shown = show_duration(Duration::from_millis(millis));
            assert_eq!(duration(&shown), Ok(Duration::from_millis(millis)), "{shown}");
        }
        for bytes in [0, 1, 1_023, 1_024, 65_536, 1 << 30, (1 << 30) + 1] {
            assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }
    }
}
