//! Bare values: a payload that is one number, one boolean or one text.

use super::rejection::{Rejection, quoted};
use crate::reading::Value;

/// The value that `text` is, or `None` if there is none: nothing but blanks, or no finite number.
///
/// Numbers are written as in JSON; `true` and `false` are booleans; all else is text. `field` is for the reason.
pub(super) fn parse(text: &str, field: &str) -> Result<Option<Value>, Rejection> {
    match text {
        "" => Ok(None),
        "true" => Ok(Some(Value::Bool(true))),
        "false" => Ok(Some(Value::Bool(false))),
        _ if is_not_finite(text) => Ok(None),
        _ => match NumberForm::of(text) {
            Some(NumberForm::Integer) => integer(text, field).map(Some),
            Some(NumberForm::Float) => float(text).map(Some),
            None => Ok(Some(Value::Text(text.into()))),
        },
    }
}

/// The whole number that is written in `text`, if 64 bits hold it.
pub(super) fn parse_integer(text: &str) -> Option<Value> {
    let signed = text.parse().map(Value::Int);
    signed.or_else(|_| text.parse().map(Value::Uint)).ok()
}

fn integer(text: &str, field: &str) -> Result<Value, Rejection> {
    parse_integer(text).ok_or_else(|| Rejection::IntegerTooLarge { field: field.into() })
}

fn float(text: &str) -> Result<Value, Rejection> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(Value::Float(number)),
        Ok(_) | Err(_) => Err(Rejection::NumberTooLarge { text: quoted(text) }),
    }
}

/// What failed sensors send: `nan`, `-inf`, `Infinity` and the like.
fn is_not_finite(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    ["nan", "inf", "infinity"].iter().any(|word| unsigned.eq_ignore_ascii_case(word))
}

/// How a number is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NumberForm {
    /// Digits, perhaps with a minus before them.
    Integer,
    /// With a fraction or an exponent.
    Float,
}

impl NumberForm {
    /// The form of `text` if it is a number as JSON writes them (RFC 8259, section 6): `-0.5e+3`, but not `+1`, `01`,
    /// `.5` or `1.`.
    pub(super) fn of(text: &str) -> Option<Self> {
        let unsigned = text.strip_prefix('-').unwrap_or(text).as_bytes();
        let rest = match unsigned {
            [b'0', rest @ ..] => rest,
            [b'1'..=b'9', ..] => without_digits(unsigned),
            _ => return None,
        };
        if rest.is_empty() {
            return Some(Self::Integer);
        }
        let rest = match rest {
            [b'.', fraction @ ..] => some_digits(fraction)?,
            _ => rest,
        };
        let rest = match rest {
            [b'e' | b'E', b'+' | b'-', exponent @ ..] | [b'e' | b'E', exponent @ ..] => {
                some_digits(exponent)?
            }
            _ => rest,
        };
        rest.is_empty().then_some(Self::Float)
    }
}

/// What follows the digits at the start of `text`, of which there must be one.
fn some_digits(text: &[u8]) -> Option<&[u8]> {
    let rest = without_digits(text);
    (rest.len() < text.len()).then_some(rest)
}

fn without_digits(text: &[u8]) -> &[u8] {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    text.split_at(digits).1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bare_value_is_a_number_a_boolean_or_a_text() {
        let check = |text: &str, value: Value| assert_eq!(parse(text, "f"), Ok(Some(value)), "{text}");
        let text = |text: &str| check(text, Value::Text(text.into()));
        check("0", Value::Int(0));
        check("-17", Value::Int(-17));
        check("9223372036854775807", Value::Int(i64::MAX));
        check("-9223372036854775808", Value::Int(i64::MIN));
        check("9223372036854775808", Value::Uint(1 << 63));
        check("18446744073709551615", Value::Uint(u64::MAX));
        check("63.91", Value::Float(63.91));
        check("-0.5e+3", Value::Float(-500.0));
        check("1E2", Value::Float(100.0));
        check("0e0", Value::Float(0.0));
        check("21.0", Value::Float(21.0));
        check("1e-400", Value::Float(0.0));
        check("true", Value::Bool(true));
        check("false", Value::Bool(false));
        for word in ["ON", "OFF", "True", "TRUE", "online", "Offline", "22,5", "21.4 °C", "null", "{}"] {
            text(word);
        }
        for not_quite in
            ["+1", "01", "-01", ".5", "1.", "1e", "1e+", "-", "--1", "1.5.2", "0x10", "1_000", "1 2"]
        {
            text(not_quite);
        }
        for not_quite in ["nano", "info", "infinite", "--inf", "+-nan"] {
            text(not_quite);
        }
    }

    #[test]
    fn what_is_not_finite_is_dropped() {
        for text in
            ["nan", "NaN", "NAN", "-nan", "+NaN", "inf", "-inf", "+Inf", "INF", "Infinity", "-infinity", ""]
        {
            assert_eq!(parse(text, "f"), Ok(None), "{text}");
        }
    }

    #[test]
    fn numbers_that_nothing_holds_are_rejected() {
        for text in ["18446744073709551616", "-9223372036854775809", "89490200001234567890"] {
            assert_eq!(parse(text, "f"), Err(Rejection::IntegerTooLarge { field: "f".into() }), "{text}");
        }
        for text in ["1e400", "-1e400", "1.5e999999999999999999999"] {
            assert_eq!(
                parse(text, "f"),
                Err(Rejection::NumberTooLarge { text: format!("{text:?}") }),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_number_is_what_the_json_reader_takes_for_one(text in "-?[0-9]{0,4}(\\.[0-9]{0,3})?([eE][+-]?[0-9]{0,2})?") {
            let is_number = serde_json::from_str::<serde_json::Number>(&text).is_ok();
            prop_assert_eq!(NumberForm::of(&text).is_some(), is_number, "{}", text);
        }

        #[test]
        fn no_text_becomes_a_number_without_end(text in "[0-9.eE+-]{0,30}|.{0,30}") {
            if let Ok(Some(Value::Float(number))) = parse(&text, "f") {
                prop_assert!(number.is_finite(), "{}", text);
            }
        }
    }
}
