//! Topic templates: `sensors/{device}/telemetry` is a subscription to `sensors/+/telemetry` that captures a level.

/// A checked topic template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
}
