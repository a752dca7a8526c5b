//! Topic templates: `sensors/{device}/telemetry` is a subscription to `sensors/+/telemetry` that captures a level.

/// A checked topic template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
    filter: String,
}

/// Why a text is no topic template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It is empty, or has a NUL.
    #[error("a topic has 1 to 65535 bytes and no NUL")]
    Text,
    /// A level is neither plain, nor a wildcard, nor one placeholder.
    #[error("level {level:?} mixes a wildcard or placeholder with other text; each stands for a whole level")]
    Level {
        /// The level.
        level: String,
    },
    /// `#` elsewhere than at the end.
    #[error("'#' stands for all further levels and is allowed last only")]
    HashNotLast,
    /// Two placeholders of one name.
    #[error("placeholder {{{name}}} stands here twice")]
    Twice {
        /// The name.
        name: String,
    },
}

impl Template {
    /// Parses `text`.
    ///
    /// # Errors
    /// If `text` is no topic template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.is_empty() || text.len() > 65_535 || text.contains('\0') {
            return Err(TemplateError::Text);
        }
        let levels: Vec<&str> = text.split('/').collect();
        let mut names = Vec::new();
        let mut filter = Vec::with_capacity(levels.len());
        for (index, level) in levels.iter().enumerate() {
            let placeholder = level.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
            let is_name = |name: &str| {
                !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            };
            match placeholder {
                Some(name) if is_name(name) => {
                    if names.contains(&name) {
                        return Err(TemplateError::Twice { name: name.to_owned() });
                    }
                    names.push(name);
                    filter.push("+");
                }
                None if *level == "#" && index + 1 < levels.len() => return Err(TemplateError::HashNotLast),
                None if matches!(*level, "#" | "+") || !level.contains(['{', '}', '#', '+']) => {
                    filter.push(level)
                }
                Some(_) | None => return Err(TemplateError::Level { level: (*level).to_owned() }),
            }
        }
        Ok(Self { text: text.to_owned(), filter: filter.join("/") })
    }

    /// The topic filter to subscribe to.
    #[must_use]
    pub fn filter(&self) -> &str {
        &self.filter
    }

    /// True if a level is captured as `{device}`.
    #[must_use]
    pub fn has_device(&self) -> bool {
        self.text.contains("{device}")
    }

    /// True if a level is captured as `{field}`.
    #[must_use]
    pub fn has_field(&self) -> bool {
        self.text.contains("{field}")
    }
}
