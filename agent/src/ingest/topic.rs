//! Topic templates: `sensors/{device}/telemetry` is a subscription to `sensors/+/telemetry` that captures a level.
//!
//! A [`Template`] is checked once, at the configuration: it is a topic filter of MQTT (5.0, section 4.7) in which
//! `{name}` may stand where `+` may. Matching never allocates.

use std::fmt;

/// MQTT writes the length of a string in two bytes.
const MAX_FILTER_BYTES: usize = 65_535;

/// How a shared subscription begins: `$share/<group>/<filter>` (MQTT 5.0, section 4.8.2).
const SHARE_PREFIX: &str = "$share/";

/// A checked topic template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: Box<str>,
    filter: Box<str>,
    levels: Box<[Level]>,
    rest: Rest,
}

/// What one level of a topic has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Level {
    /// This text.
    Literal(Box<str>),
    /// Anything: `+`.
    Any,
    /// Anything, and it is kept under this name: `{name}`.
    Capture(Box<str>),
}

/// What may follow the last level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// Nothing.
    Nothing,
    /// Any number of levels, none included: `#`.
    Anything,
}

/// Why a text is no topic template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// There is nothing to subscribe to.
    #[error("the topic is empty; \"#\" would take every topic")]
    Empty,
    /// MQTT cannot carry it.
    #[error("the topic is {bytes} bytes long; MQTT carries at most {MAX_FILTER_BYTES}")]
    TooLong {
        /// Its length as a filter.
        bytes: usize,
    },
    /// MQTT forbids U+0000 in topics.
    #[error("the topic holds the character U+0000 at byte {at}, which MQTT forbids")]
    Nul {
        /// Where.
        at: usize,
    },
    /// `+` or `#` beside other characters of its level.
    #[error(
        "in the level \"{level}\" '{wildcard}' stands beside other text; a wildcard stands for a whole level"
    )]
    PartialWildcard {
        /// `+` or `#`.
        wildcard: char,
        /// The level.
        level: String,
    },
    /// `#` before the last level.
    #[error("'#' takes all that follows, so it must be the last level")]
    HashNotLast,
    /// A brace beside other characters of its level.
    #[error(
        "in the level \"{level}\" a brace stands beside other text; a placeholder stands for a whole level, as in \
         \"sensors/{{device}}/state\""
    )]
    PartialPlaceholder {
        /// The level.
        level: String,
    },
    /// A placeholder with a name of other characters.
    #[error(
        "\"{{{name}}}\" is no placeholder; a name is written with a-z, 0-9 and _, and begins with no digit"
    )]
    BadName {
        /// What stands between the braces.
        name: String,
    },
    /// A name that stands twice.
    #[error("the placeholder \"{{{name}}}\" stands twice; each may stand once")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// `$share/` without a group or without a topic, or with a group that is no plain name.
    #[error(
        "a shared subscription is written \"$share/group/topic\", the group without '+', '#', '{{' and '}}'"
    )]
    BadShare,
}

impl Template {
    /// The name of the placeholder that captures the device.
    pub const DEVICE: &str = "device";
    /// The name of the placeholder that captures the name of a bare value's field.
    pub const FIELD: &str = "field";

    /// Checks `text`.
    ///
    /// # Errors
    /// If it is no topic filter of MQTT, or its placeholders are not well-formed.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.is_empty() {
            return Err(TemplateError::Empty);
        }
        if let Some(at) = text.find('\0') {
            return Err(TemplateError::Nul { at });
        }
        let (share, topic) = split_share(text)?;

        let mut levels = Vec::new();
        let mut rest = Rest::Nothing;
        for level in topic.split('/') {
            if rest == Rest::Anything {
                return Err(TemplateError::HashNotLast);
            }
            match level {
                "#" => rest = Rest::Anything,
                _ => levels.push(Level::parse(level, &levels)?),
            }
        }

        let filter = filter(share, &levels, rest);
        if filter.len() > MAX_FILTER_BYTES {
            return Err(TemplateError::TooLong { bytes: filter.len() });
        }
        Ok(Self { text: text.into(), filter: filter.into(), levels: levels.into(), rest })
    }

    /// The text it was parsed from.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What is subscribed at a broker: `+` where a placeholder stands, the group of a shared subscription included.
    #[must_use]
    pub fn filter(&self) -> &str {
        &self.filter
    }

    /// True if a level names the device.
    #[must_use]
    pub fn has_device(&self) -> bool {
        self.captures().any(|name| name == Self::DEVICE)
    }

    /// True if a level names the field of a bare value.
    #[must_use]
    pub fn has_field(&self) -> bool {
        self.captures().any(|name| name == Self::FIELD)
    }

    /// The names of the captures, in the order of the levels.
    pub fn captures(&self) -> impl Iterator<Item = &str> {
        self.levels.iter().filter_map(Level::name)
    }

    /// What the levels of `topic` are, or `None` if it does not match.
    ///
    /// A leading `$share/group/` plays no part. A wildcard in the first level does not match a topic that begins with
    /// `$` (MQTT 5.0, section 4.7.2): `#` does not subscribe to what the broker says of itself.
    #[must_use]
    pub fn matches<'a>(&'a self, topic: &'a str) -> Option<Captures<'a>> {
        if topic.starts_with('$') && !matches!(self.levels.first(), Some(Level::Literal(_))) {
            return None;
        }
        let mut given = topic.split('/');
        for level in &self.levels {
            if !level.matches(given.next()?) {
                return None;
            }
        }
        match (given.next(), self.rest) {
            (None, _) | (_, Rest::Anything) => Some(Captures { template: self, topic }),
            (Some(_), Rest::Nothing) => None,
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The levels of a topic that a template captures.
#[derive(Clone, Copy, Debug)]
pub struct Captures<'a> {
    template: &'a Template,
    topic: &'a str,
}

impl<'a> Captures<'a> {
    /// Name and level of each capture, in the order of the levels.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let levels = self.template.levels.iter().zip(self.topic.split('/'));
        levels.filter_map(|(level, given)| Some((level.name()?, given)))
    }

    /// The level captured as `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.iter().find(|(captured, _)| *captured == name).map(|(_, level)| level)
    }

    /// The level that names the device.
    #[must_use]
    pub fn device(&self) -> Option<&'a str> {
        self.get(Template::DEVICE)
    }

    /// The level that names the field of a bare value.
    #[must_use]
    pub fn field(&self) -> Option<&'a str> {
        self.get(Template::FIELD)
    }

    /// What says more about the device: every other capture, in the order of the levels.
    pub fn tags(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.iter().filter(|(name, _)| *name != Template::DEVICE && *name != Template::FIELD)
    }
}

impl Level {
    fn parse(text: &str, before: &[Self]) -> Result<Self, TemplateError> {
        if text == "+" {
            return Ok(Self::Any);
        }
        if let Some(wildcard) = text.chars().find(|c| matches!(c, '+' | '#')) {
            return Err(TemplateError::PartialWildcard { wildcard, level: text.into() });
        }
        if !text.contains(['{', '}']) {
            return Ok(Self::Literal(text.into()));
        }
        let name = text
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
            .filter(|name| !name.contains(['{', '}']))
            .ok_or_else(|| TemplateError::PartialPlaceholder { level: text.into() })?;
        if !is_name(name) {
            return Err(TemplateError::BadName { name: name.into() });
        }
        if before.iter().filter_map(Self::name).any(|earlier| earlier == name) {
            return Err(TemplateError::Duplicate { name: name.into() });
        }
        Ok(Self::Capture(name.into()))
    }

    fn name(&self) -> Option<&str> {
        match self {
            Self::Capture(name) => Some(name),
            Self::Literal(_) | Self::Any => None,
        }
    }

    fn matches(&self, given: &str) -> bool {
        match self {
            Self::Literal(text) => **text == *given,
            Self::Any | Self::Capture(_) => true,
        }
    }

    fn filter(&self) -> &str {
        match self {
            Self::Literal(text) => text,
            Self::Any | Self::Capture(_) => "+",
        }
    }
}

/// True for `[a-z_][a-z0-9_]*`.
fn is_name(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
        && text.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

/// `$share/group/`, or nothing, and the topic behind it.
fn split_share(text: &str) -> Result<(&str, &str), TemplateError> {
    if text == "$share" {
        return Err(TemplateError::BadShare);
    }
    let Some(rest) = text.strip_prefix(SHARE_PREFIX) else {
        return Ok(("", text));
    };
    match rest.split_once('/') {
        Some((group, topic)) if is_group(group) && !topic.is_empty() => {
            let (share, _) = text.split_at(text.len() - topic.len());
            Ok((share, topic))
        }
        Some(_) | None => Err(TemplateError::BadShare),
    }
}

fn is_group(text: &str) -> bool {
    !text.is_empty() && !text.contains(['+', '#', '{', '}'])
}

fn filter(share: &str, levels: &[Level], rest: Rest) -> String {
    let mut parts: Vec<&str> = levels.iter().map(Level::filter).collect();
    if rest == Rest::Anything {
        parts.push("#");
    }
    share.to_owned() + &parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_subscribes_with_plus_where_a_placeholder_stands() {
        let check = |text: &str, filter: &str, names: &[&str]| {
            let template = Template::parse(text).unwrap();
            assert_eq!(template.filter(), filter, "{text}");
            assert_eq!(template.captures().collect::<Vec<_>>(), names, "{text}");
            assert_eq!(template.to_string(), text);
        };
        check("sensors/{device}/telemetry", "sensors/+/telemetry", &["device"]);
        check("{site}/{line}/{device}/{field}", "+/+/+/+", &["site", "line", "device", "field"]);
        check("a/+/{device}/#", "a/+/+/#", &["device"]);
        check("#", "#", &[]);
        check("+", "+", &[]);
        check("/", "/", &[]);
        check("a//b", "a//b", &[]);
        check("$share/g/{device}/x", "$share/g/+/x", &["device"]);
        check("$share/g//x", "$share/g//x", &[]);
        check("$shared/{_x9}", "$shared/+", &["_x9"]);
        check("größe/{device}", "größe/+", &["device"]);
    }

    #[test]
    fn a_template_knows_what_it_captures() {
        let check = |text: &str, device: bool, field: bool| {
            let template = Template::parse(text).unwrap();
            assert_eq!((template.has_device(), template.has_field()), (device, field), "{text}");
        };
        check("a/{device}", true, false);
        check("a/{field}", false, true);
        check("{device}/{field}", true, true);
        check("{devices}/device", false, false);
    }

    #[test]
    fn what_is_no_template_is_refused_with_its_reason() {
        let check = |text: &str, expected: TemplateError| {
            assert_eq!(Template::parse(text), Err(expected), "{text}");
        };
        let partial = |level: &str| TemplateError::PartialPlaceholder { level: level.into() };
        let wildcard =
            |wildcard, level: &str| TemplateError::PartialWildcard { wildcard, level: level.into() };
        let name = |name: &str| TemplateError::BadName { name: name.into() };
        check("", TemplateError::Empty);
        check("a/\0b", TemplateError::Nul { at: 2 });
        check("a{x}b", partial("a{x}b"));
        check("s/{a}{b}", partial("{a}{b}"));
        check("s/{a", partial("{a"));
        check("s/a}", partial("a}"));
        check("s/{{a}}", partial("{{a}}"));
        check("s/}{", partial("}{"));
        check("s/{}", name(""));
        check("s/{Device}", name("Device"));
        check("s/{9a}", name("9a"));
        check("s/{a-b}", name("a-b"));
        check("s/{ü}", name("ü"));
        check("{a}/x/{a}", TemplateError::Duplicate { name: "a".into() });
        check("a+/b", wildcard('+', "a+"));
        check("a/b#", wildcard('#', "b#"));
        check("a/##", wildcard('#', "##"));
        check("a/{x}+", wildcard('+', "{x}+"));
        check("#/a", TemplateError::HashNotLast);
        check("a/#/#", TemplateError::HashNotLast);
        check("a/#/", TemplateError::HashNotLast);
        check("$share", TemplateError::BadShare);
        check("$share/", TemplateError::BadShare);
        check("$share/g", TemplateError::BadShare);
        check("$share/g/", TemplateError::BadShare);
        check("$share//a", TemplateError::BadShare);
        check("$share/+/a", TemplateError::BadShare);
        check("$share/{g}/a", TemplateError::BadShare);
    }

    #[test]
    fn a_filter_may_be_as_long_as_mqtt_can_carry() {
        assert!(Template::parse(&"x".repeat(65_535)).is_ok());
        let too_long = Template::parse(&"x".repeat(65_536));
        assert_eq!(too_long, Err(TemplateError::TooLong { bytes: 65_536 }));
        // It is the filter that MQTT carries, and it is shorter.
        let levels = format!("{{device}}/{}", "x".repeat(65_533));
        assert_eq!(Template::parse(&levels).unwrap().filter().len(), 65_535);
    }

    #[test]
    fn reasons_speak_to_the_operator() {
        let reason = Template::parse("a{x}b/c").unwrap_err().to_string();
        assert!(reason.contains("\"a{x}b\"") && reason.contains("whole level"), "{reason}");
        let reason = Template::parse("{Device}").unwrap_err().to_string();
        assert!(reason.contains("\"{Device}\""), "{reason}");
    }

    #[test]
    fn a_topic_matches_and_its_levels_are_captured() {
        let check = |template: &str, topic: &str, captured: &[(&str, &str)]| {
            let template = Template::parse(template).unwrap();
            let captures = template.matches(topic).unwrap_or_else(|| panic!("{topic} matches {template}"));
            assert_eq!(captures.iter().collect::<Vec<_>>(), captured, "{template} on {topic}");
        };
        check("sensors/{device}/telemetry", "sensors/d1/telemetry", &[("device", "d1")]);
        check("{line}/+/{device}", "a/b/c", &[("line", "a"), ("device", "c")]);
        check("{device}/#", "d1", &[("device", "d1")]);
        check("{device}/#", "d1/", &[("device", "d1")]);
        check("{device}/#", "d1/a/b", &[("device", "d1")]);
        check("#", "a/b", &[]);
        check("#", "/", &[]);
        check("+/{x}", "/finance", &[("x", "finance")]);
        check("{x}/a", "/a", &[("x", "")]);
        check("a/b", "a/b", &[]);
        check("$SYS/{x}", "$SYS/uptime", &[("x", "uptime")]);
        check("$share/g/{device}/x", "d1/x", &[("device", "d1")]);
        check("a/+", "a/$b", &[]);
    }

    #[test]
    fn other_topics_do_not_match() {
        let check = |template: &str, topic: &str| {
            assert!(Template::parse(template).unwrap().matches(topic).is_none(), "{template} on {topic}");
        };
        check("sensors/{device}/telemetry", "sensors/d1");
        check("sensors/{device}/telemetry", "sensors/d1/telemetry/x");
        check("sensors/{device}/telemetry", "sensors/d1/Telemetry");
        check("sensors/{device}/telemetry", "sensors/a/b/telemetry");
        check("+", "/a");
        check("a/+", "a");
        check("a/#", "b");
        check("a/#", "ab");
        check("#", "$SYS/uptime");
        check("+/uptime", "$SYS/uptime");
        check("{device}/uptime", "$SYS/uptime");
        check("$share/g/#", "$SYS/uptime");
        check("$share/g/a", "$share/g/a");
    }

    #[test]
    fn captures_are_found_by_their_role() {
        let template = Template::parse("{line}/{device}/{area}/{field}").unwrap();
        let captures = template.matches("l/d/a/f").unwrap();
        assert_eq!((captures.device(), captures.field()), (Some("d"), Some("f")));
        assert_eq!(captures.tags().collect::<Vec<_>>(), [("line", "l"), ("area", "a")]);
        assert_eq!((captures.get("area"), captures.get("none")), (Some("a"), None));
    }
}
