//! Text and lists that cannot outgrow their bound: neither built too large here, nor received too large.
//!
//! A node has no allocator, and the size of the largest frame has to be known when its buffers are declared. So every
//! bound is part of the type, and deserialising checks it like any other fault of what was received.

use core::fmt;
use core::marker::PhantomData;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
#[cfg(test)]
use serde::{Serialize, Serializer, ser::SerializeSeq as _};

/// It does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TooLong {
    /// The bound, in bytes of text or items of a list.
    pub max: usize,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "longer than {}", self.max)
    }
}

impl core::error::Error for TooLong {}

/// UTF-8 text of at most `MAX` bytes, borrowed from where it lies: flash on a node, the receive buffer on a host.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Text<'a, const MAX: usize>(&'a str);

impl<'a, const MAX: usize> Text<'a, MAX> {
    /// The text, if it is short enough. Usable in constants, where a text that is too long need not wait for its test.
    ///
    /// # Errors
    /// If it has more than `MAX` bytes.
    pub const fn new(text: &'a str) -> Result<Self, TooLong> {
        if text.len() <= MAX { Ok(Self(text)) } else { Err(TooLong { max: MAX }) }
    }

    /// The text, up to the last letter that fits.
    #[must_use]
    pub fn cut(text: &'a str) -> Self {
        // A letter has at most four bytes.
        let lengths = (MAX.saturating_sub(3)..=MAX).rev();
        Self(if text.len() <= MAX {
            text
        } else {
            lengths.filter_map(|end| text.get(..end)).next().unwrap_or("")
        })
    }

    /// The text.
    #[must_use]
    pub const fn as_str(&self) -> &'a str {
        self.0
    }
}

#[cfg(feature = "defmt")]
impl<const MAX: usize> defmt::Format for Text<'_, MAX> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::Format::format(self.0, f);
    }
}

impl<const MAX: usize> fmt::Debug for Text<'_, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}

impl<const MAX: usize> fmt::Display for Text<'_, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

#[cfg(test)]
impl<const MAX: usize> Serialize for Text<'_, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de: 'a, 'a, const MAX: usize> Deserialize<'de> for Text<'a, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&'a str>::deserialize(deserializer)?;
        Self::new(text).map_err(D::Error::custom)
    }
}

/// At most `MAX` items, in place.
#[derive(Clone, Copy)]
pub struct List<T, const MAX: usize> {
    /// The items, and behind them what fills the rest.
    items: [T; MAX],
    len: usize,
}

impl<T: Copy + Default, const MAX: usize> List<T, MAX> {
    /// No items.
    #[must_use]
    pub fn new() -> Self {
        Self { items: [T::default(); MAX], len: 0 }
    }

    /// A copy of `items`.
    ///
    /// # Errors
    /// If there are more than `MAX`.
    pub fn from_slice(items: &[T]) -> Result<Self, TooLong> {
        let mut list = Self::new();
        items.iter().try_for_each(|item| list.push(*item))?;
        Ok(list)
    }

    /// Appends `item`.
    ///
    /// # Errors
    /// If there are `MAX` already; the list stays as it was.
    pub fn push(&mut self, item: T) -> Result<(), TooLong> {
        let place = self.items.get_mut(self.len).ok_or(TooLong { max: MAX })?;
        *place = item;
        // Below `MAX`, or there would have been no place.
        self.len = self.len.wrapping_add(1);
        Ok(())
    }
}

impl<T, const MAX: usize> List<T, MAX> {
    /// Forgets all but the first `length` items.
    pub fn truncate(&mut self, length: usize) {
        self.len = self.len.min(length);
    }

    /// The items.
    #[must_use]
    pub fn as_slice(&self) -> &[T] {
        self.items.get(..self.len).unwrap_or_default()
    }
}

#[cfg(feature = "defmt")]
impl<T: defmt::Format, const MAX: usize> defmt::Format for List<T, MAX> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::Format::format(self.as_slice(), f);
    }
}

impl<T, const MAX: usize> AsRef<[T]> for List<T, MAX> {
    fn as_ref(&self) -> &[T] {
        self.as_slice()
    }
}

impl<T: Copy + Default, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: PartialEq, const MAX: usize> PartialEq for List<T, MAX> {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl<T: fmt::Debug, const MAX: usize> fmt::Debug for List<T, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.as_slice()).finish()
    }
}

#[cfg(test)]
impl<T: Serialize, const MAX: usize> Serialize for List<T, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let items = self.as_slice();
        let mut sequence = serializer.serialize_seq(Some(items.len()))?;
        items.iter().try_for_each(|item| sequence.serialize_element(item))?;
        sequence.end()
    }
}

impl<'de, T: Deserialize<'de> + Copy + Default, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Items(PhantomData))
    }
}

/// Takes items until there are no more, or one too many.
struct Items<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de> + Copy + Default, const MAX: usize> Visitor<'de> for Items<T, MAX> {
    type Value = List<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut list = List::new();
        while let Some(item) = sequence.next_element()? {
            list.push(item).map_err(A::Error::custom)?;
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_up_to_its_bound_is_taken() {
        assert_eq!(Text::<4>::new("abcd").unwrap().as_str(), "abcd");
        assert_eq!(Text::<4>::new("abcde"), Err(TooLong { max: 4 }));
        assert_eq!(Text::<4>::new("äöü"), Err(TooLong { max: 4 }), "bytes count, not letters");
    }

    #[test]
    fn text_is_cut_between_letters() {
        assert_eq!(Text::<4>::cut("abcd").as_str(), "abcd");
        assert_eq!(Text::<4>::cut("abcde").as_str(), "abcd");
        assert_eq!(Text::<4>::cut("aäöü").as_str(), "aä");
        assert_eq!(Text::<4>::cut("🦀🦀").as_str(), "🦀");
        assert_eq!(Text::<3>::cut("🦀🦀").as_str(), "");
    }

    #[test]
    fn a_full_list_stays_as_it_was() {
        let mut list = List::<u8, 2>::from_slice(&[1, 2]).unwrap();
        assert_eq!(list.push(3), Err(TooLong { max: 2 }));
        assert_eq!(list.as_slice(), [1, 2]);
    }

    #[test]
    fn what_comes_too_long_is_refused() {
        let mut buffer = [0; 32];
        let text = postcard::to_slice("abcde", &mut buffer).unwrap();
        assert!(postcard::from_bytes::<Text<'_, 5>>(text).is_ok());
        assert!(postcard::from_bytes::<Text<'_, 4>>(text).is_err());
        let items = postcard::to_slice(&[1_u8, 2, 3][..], &mut buffer).unwrap();
        assert_eq!(postcard::from_bytes::<List<u8, 3>>(items).unwrap().as_slice(), [1, 2, 3]);
        assert!(postcard::from_bytes::<List<u8, 2>>(items).is_err());
    }
}
