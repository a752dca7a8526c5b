//! Makes maps of a few entries.
//!
//! `collect()` sorts what goes into a [`BTreeMap`] first, which brings 6 KiB of sorting to the binary for each type of entry. For what
//! a person configures or looks at, inserting does as well.

use std::collections::BTreeMap;

/// What `entries` hold; of those with the same key the last.
pub(crate) fn map<K: Ord, V>(entries: impl IntoIterator<Item = (K, V)>) -> BTreeMap<K, V> {
    let mut map = BTreeMap::new();
    for (key, value) in entries {
        map.insert(key, value);
    }
    map
}
