//! Reads tables whose every value knows where it stands, and gathers all faults instead of stopping at the first.
//!
//! A [`Section`] is asked for its keys one by one, each with the type and bounds it must have; a key that is there but
//! wrong becomes a fault and reads as absent. [`Section::finish`] then reports the keys that nobody asked for.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::{DeInteger, DeTable, DeValue};

use super::fault::{Place, Problem};
use super::nearest::nearest;
use super::report::{Report, clip};
use super::units::{self, DURATION_FORM, NotUnderstood, SIZE_FORM};

/// Whether what a value says may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Privacy {
    /// It may.
    Public,
    /// It is, or may be, a secret.
    Secret,
}

/// A value that was given and is as it should be.
#[derive(Clone, Debug)]
pub(super) struct Given<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

impl<T> Given<T> {
    fn map<U>(self, with: impl FnOnce(T) -> U) -> Given<U> {
        Given { value: with(self.value), place: self.place }
    }
}

/// The value, or the default where none was given.
pub(super) fn value_or<T>(given: Option<Given<T>>, default: T) -> T {
    given.map_or(default, |given| given.value)
}

/// A value of whatever type.
#[derive(Clone)]
pub(super) struct Item<'r, 'a> {
    pub(super) report: &'r Report<'a>,
    pub(super) value: &'r DeValue<'a>,
    pub(super) place: Place,
    privacy: Privacy,
}

impl<'r, 'a> Item<'r, 'a> {
    /// Reports that it should have been `expected`.
    pub(super) fn wrong_type(&self, expected: &'static str) {
        let found = match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) | DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        let text = match self.privacy {
            Privacy::Public => self.report.shown(&self.place),
            Privacy::Secret => "the value (not shown)".to_owned(),
        };
        self.report.fault(&self.place, Problem::WrongType { text, found, expected });
    }

    pub(super) fn text(self, expected: &'static str) -> Option<Given<&'r str>> {
        match self.value {
            DeValue::String(text) => Some(Given { value: text, place: self.place }),
            _ => {
                self.wrong_type(expected);
                None
            }
        }
    }

    pub(super) fn section(self, expected: &'static str) -> Option<Section<'r, 'a>> {
        match self.value {
            DeValue::Table(table) => Some(Section {
                report: self.report,
                place: self.place,
                table: Some(table),
                known: RefCell::default(),
                privacy: self.privacy,
            }),
            _ => {
                self.wrong_type(expected);
                None
            }
        }
    }

    pub(super) fn number(self, range: RangeInclusive<u64>) -> Option<Given<u64>> {
        let DeValue::Integer(number) = self.value else {
            self.wrong_type("a whole number");
            return None;
        };
        let number = whole(number).filter(|number| range.contains(number));
        if number.is_none() {
            let text = self.report.shown(&self.place);
            let problem = Problem::NumberRange { text, min: *range.start(), max: *range.end() };
            self.report.fault(&self.place, problem);
        }
        Some(Given { value: number?, place: self.place })
    }

    fn list(self, expected: &'static str) -> Option<Given<Vec<Self>>> {
        let DeValue::Array(array) = self.value else {
            self.wrong_type(expected);
            return None;
        };
        let item = |(index, element): (usize, &'r toml::Spanned<DeValue<'a>>)| Item {
            report: self.report,
            value: element.get_ref(),
            place: Place { key: format!("{}[{index}]", self.place.key), span: element.span() },
            privacy: self.privacy,
        };
        Some(Given { value: array.iter().enumerate().map(item).collect(), place: self.place })
    }

    /// Reports the text of `self` as not understood.
    fn invalid(&self, reason: NotUnderstood) {
        invalid(self.report, &self.place, reason.nearest, reason.expected);
    }
}

/// Reports what stands at `place` as not understood.
pub(super) fn invalid(
    report: &Report<'_>,
    place: &Place,
    nearest: Option<String>,
    expected: impl Into<String>,
) {
    let text = report.shown(place);
    report.fault(place, Problem::Invalid { text, nearest, expected: expected.into() });
}

/// A table, or the place where one might be.
pub(super) struct Section<'r, 'a> {
    pub(super) report: &'r Report<'a>,
    pub(super) place: Place,
    table: Option<&'r DeTable<'a>>,
    known: RefCell<Vec<&'static str>>,
    privacy: Privacy,
}

impl<'r, 'a> Section<'r, 'a> {
    /// The whole file.
    pub(super) fn root(report: &'r Report<'a>, table: &'r DeTable<'a>) -> Self {
        let place = Place::default();
        Self { report, place, table: Some(table), known: RefCell::default(), privacy: Privacy::Public }
    }

    /// Whatever stands at `key`.
    pub(super) fn item(&self, key: &'static str) -> Option<Item<'r, 'a>> {
        self.item_with(key, self.privacy)
    }

    /// Whatever stands at `key`, which may be secret.
    pub(super) fn secret_item(&self, key: &'static str) -> Option<Item<'r, 'a>> {
        self.item_with(key, Privacy::Secret)
    }

    fn item_with(&self, key: &'static str, privacy: Privacy) -> Option<Item<'r, 'a>> {
        if !self.known.borrow().contains(&key) {
            self.known.borrow_mut().push(key);
        }
        let value = self.table?.get(key)?;
        let place = Place { key: self.path(key), span: value.span() };
        Some(Item { report: self.report, value: value.get_ref(), place, privacy })
    }

    /// True if it is there, without a single key.
    pub(super) fn is_empty(&self) -> bool {
        self.table.is_some_and(DeTable::is_empty)
    }

    /// True if there is something at `key`, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Reports that `key` is not there, if it is not there at all, not even with a typing error.
    pub(super) fn require(&self, key: &'static str, expected: &'static str) {
        let is_misspelt =
            |table: &DeTable<'_>| table.iter().any(|(name, _)| nearest(name.get_ref(), [key]).is_some());
        if self.table.is_some_and(|table| !table.contains_key(key) && !is_misspelt(table)) {
            let place = Place { key: self.path(key), span: self.place.span.clone() };
            self.report.fault(&place, Problem::Missing { expected });
        }
    }

    pub(super) fn text(&self, key: &'static str, expected: &'static str) -> Option<Given<&'r str>> {
        self.item(key)?.text(expected)
    }

    pub(super) fn flag(&self, key: &'static str) -> Option<Given<bool>> {
        let item = self.item(key)?;
        let DeValue::Boolean(flag) = item.value else {
            item.wrong_type("true or false");
            return None;
        };
        Some(Given { value: *flag, place: item.place })
    }

    pub(super) fn number(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<Given<u64>> {
        self.item(key)?.number(range)
    }

    /// A finite number, whole or not.
    pub(super) fn float(&self, key: &'static str) -> Option<Given<f64>> {
        let item = self.item(key)?;
        let number = match item.value {
            DeValue::Float(number) => number.as_str().parse().ok(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse().ok(),
            DeValue::Integer(_) => None,
            _ => {
                item.wrong_type("a number");
                return None;
            }
        };
        let number = number.filter(|number: &f64| number.is_finite());
        if number.is_none() {
            invalid(self.report, &item.place, None, "a number such as 0.1");
        }
        Some(Given { value: number?, place: item.place })
    }

    pub(super) fn duration(
        &self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Given<Duration>> {
        let item = self.item(key)?;
        let given = item.clone().text(DURATION_FORM)?;
        match units::duration(given.value) {
            Ok(value) if range.contains(&value) => Some(given.map(|_| value)),
            Ok(_) => {
                let text = self.report.shown(&item.place);
                let problem = Problem::DurationRange { text, min: *range.start(), max: *range.end() };
                self.report.fault(&item.place, problem);
                None
            }
            Err(reason) => {
                item.invalid(reason);
                None
            }
        }
    }

    pub(super) fn size(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<Given<u64>> {
        let item = self.item(key)?;
        let given = item.clone().text(SIZE_FORM)?;
        match units::size(given.value) {
            Ok(value) if range.contains(&value) => Some(given.map(|_| value)),
            Ok(_) => {
                let text = self.report.shown(&item.place);
                let problem = Problem::SizeRange { text, min: *range.start(), max: *range.end() };
                self.report.fault(&item.place, problem);
                None
            }
            Err(reason) => {
                item.invalid(reason);
                None
            }
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &self,
        key: &'static str,
        expected: &'static str,
        choices: &[(&'static str, T)],
    ) -> Option<Given<T>> {
        let given = self.text(key, expected)?;
        let chosen = choices.iter().find(|(word, _)| *word == given.value);
        if chosen.is_none() {
            let nearest = nearest(given.value, choices.iter().map(|(word, _)| *word));
            invalid(self.report, &given.place, nearest, expected);
        }
        chosen.map(|(_, value)| given.map(|_| *value))
    }

    /// As [`choice`](Self::choice), or the one that was probably meant, so that the rest can be checked too.
    pub(super) fn choice_or_meant<T: Copy>(
        &self,
        key: &'static str,
        expected: &'static str,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let given = self.text(key, expected)?;
        let of_word =
            |wanted: &str| choices.iter().find(|(word, _)| *word == wanted).map(|(_, value)| *value);
        of_word(given.value).or_else(|| {
            let near = nearest(given.value, choices.iter().map(|(word, _)| *word));
            let meant = near.as_deref().and_then(of_word);
            invalid(self.report, &given.place, near, expected);
            meant
        })
    }

    /// A table of its own; if it is not there, one without keys.
    pub(super) fn section(&self, key: &'static str, expected: &'static str) -> Self {
        self.item(key).and_then(|item| item.section(expected)).unwrap_or_else(|| Self {
            report: self.report,
            place: Place { key: self.path(key), span: self.place.span.clone() },
            table: None,
            known: RefCell::default(),
            privacy: self.privacy,
        })
    }

    pub(super) fn list(&self, key: &'static str, expected: &'static str) -> Option<Given<Vec<Item<'r, 'a>>>> {
        self.item(key)?.list(expected)
    }

    /// A list of strings, no element faulty.
    pub(super) fn texts(
        &self,
        key: &'static str,
        expected: &'static str,
    ) -> Option<Given<Vec<Given<&'r str>>>> {
        let Given { value: items, place } = self.list(key, expected)?;
        let count = items.len();
        let value: Vec<_> = items.into_iter().filter_map(|item| item.text(expected)).collect();
        (value.len() == count).then_some(Given { value, place })
    }

    /// All entries, in the order of the file: for tables whose keys are names that the operator chose. The place of a
    /// name is that of its key.
    pub(super) fn entries(&self) -> Vec<(Given<&'r str>, Item<'r, 'a>)> {
        let mut entries: Vec<_> = self.table.into_iter().flatten().collect();
        entries.sort_by_cached_key(|(key, _)| key.span().start);
        let entry = |(key, value): (&'r toml::Spanned<_>, &'r toml::Spanned<DeValue<'a>>)| {
            let name: &'r std::borrow::Cow<'a, str> = key.get_ref();
            let path = self.path(name);
            let item = Item {
                report: self.report,
                value: value.get_ref(),
                place: Place { key: path.clone(), span: value.span() },
                privacy: self.privacy,
            };
            (Given { value: &**name, place: Place { key: path, span: key.span() } }, item)
        };
        entries.into_iter().map(entry).collect()
    }

    /// The place of the table; `None` if there is none.
    pub(super) fn given_place(&self) -> Option<&Place> {
        self.table.map(|_| &self.place)
    }

    /// Reports the keys that nobody asked for.
    pub(super) fn finish(&self) {
        let known = self.known.borrow();
        for (key, _) in self.table.into_iter().flatten() {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let problem = Problem::UnknownKey {
                key: clip(name),
                nearest: nearest(name, known.iter().copied()),
                expected: known.clone(),
            };
            self.report.fault(&Place { key: self.path(name), span: key.span() }, problem);
        }
    }

    /// The path of `key` within this table, as it would be written in TOML.
    pub(super) fn path(&self, key: &str) -> String {
        let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let key = if !key.is_empty() && key.bytes().all(is_bare) {
            key.to_owned()
        } else {
            format!("{:?}", clip(key))
        };
        if self.place.key.is_empty() { key } else { format!("{}.{key}", self.place.key) }
    }
}

/// The value of a TOML integer that is not negative.
fn whole(number: &DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}
