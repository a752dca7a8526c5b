//! "Did you mean": the word that was probably meant.

/// The candidate that `word` was probably meant to be: a typing error or two away, or alike but for case, `-` and `_`.
pub(super) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<String> {
    // Longer words are never near, and comparing them would take long.
    const LONGEST: usize = 64;
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    if word.is_empty() || word.len() > LONGEST {
        return None;
    }
    let word = plain(word);
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= allowed && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_near_and_other_words_are_not() {
        let keys = ["max_size", "max_age", "url", "type", "lateness"];
        let check = |word: &str, expected: Option<&str>| {
            assert_eq!(nearest(word, keys).as_deref(), expected, "{word}");
        };
        check("max_szie", Some("max_size"));
        check("max-size", Some("max_size"));
        check("MaxSize", Some("max_size"));
        check("ulr", Some("url"));
        check("typ", Some("type"));
        check("latenes", Some("lateness"));
        check("headers", None);
        check("x", None);
        check("", None);
        check(&"url".repeat(100), None);
    }
}
