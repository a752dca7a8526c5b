//! What sensors measured, as readings have it.

use firmware_bridge::value::Value as Measurement;

use crate::reading::Value;

/// The value; `None` if there is none, or none that can be written down.
pub(super) fn value(measured: &Measurement) -> Option<Value> {
    match measured {
        Measurement::Missing => None,
        Measurement::Bool(value) => Some(Value::Bool(*value)),
        Measurement::Int(value) => Some(Value::Int(*value)),
        Measurement::Single(value) => value.is_finite().then(|| Value::Float(widened(*value))),
        Measurement::Double(value) => value.is_finite().then_some(Value::Float(*value)),
    }
}

/// The double nearest to what the single is written as: 21.53, not 21.530000686645508, which it is exactly. Nobody measured the other
/// digits, and they would be paid for at every step of the way.
pub(super) fn widened(value: f32) -> f64 {
    zmij::Buffer::new().format_finite(value).parse().unwrap_or_else(|_| f64::from(value))
}
