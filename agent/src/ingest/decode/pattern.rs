//! Payloads that are text for people, such as `T=21.5 C, H=48 %`: a pattern finds the values.
//!
//! The first match anywhere in the payload counts; each named group that took part in it is a field, read as a bare value
//! without the blanks around it.

use regex_lite::CaptureLocations;

use super::assemble::Assembly;
use super::json::Scratch;
use super::rejection::{Rejection, start_of};
use crate::ingest::settings::Pattern;
use crate::reading::Reading;

/// The longest text that a pattern is tried on. Matching looks at each character once for every state of the pattern that
/// is possible there: some 50 ns a character with patterns as people write them, but 35 µs with the worst that compiles, so
/// this is half a second then. Lines of devices are far shorter.
pub(super) const MAX_TEXT_BYTES: usize = 16 << 10;

/// The reading of `text`, or `None` if no group has a value. `locations` are those of `pattern`.
pub(super) fn read(
    text: &str,
    pattern: &Pattern,
    locations: &mut Option<CaptureLocations>,
    scratch: &mut Scratch,
    assembly: &mut Assembly<'_>,
) -> Result<Option<Reading>, Rejection> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(Rejection::TooLongForPattern { bytes: text.len(), limit_bytes: MAX_TEXT_BYTES });
    }
    let locations = locations.get_or_insert_with(|| pattern.locations());
    if !pattern.find(text, locations) {
        return Err(Rejection::NoMatch { start: start_of(text) });
    }
    let object = &mut scratch.object;
    object.begin(assembly);
    for (index, part) in assembly.plan.parts.iter().enumerate() {
        let group = locations.get(index).and_then(|(start, end)| text.get(start..end));
        part.take(group.unwrap_or_default().trim_ascii(), assembly.zone, object)?;
    }
    assembly.reading(object)
}
