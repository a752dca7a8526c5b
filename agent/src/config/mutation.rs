//! Whatever a file has become, reading it does not panic, and every fault lies within it.

use proptest::prelude::*;

use super::parse_bytes;
use super::tests::{Bench, FULL};

/// What a mutation puts into the file: mostly what means something there.
fn patch() -> impl Strategy<Value = Vec<u8>> {
    let token = prop::sample::select(vec![
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "=",
        "\"",
        "'",
        "\"\"\"",
        "\n",
        "\r\n",
        ",",
        ".",
        "#",
        "0",
        "-1",
        "1e999",
        "9999999999999999999999",
        "0x",
        "true",
        "nan",
        "2026-11-20",
        "\u{0}",
        "ü",
        "\u{feff}",
        "\\",
        "\"1GB\"",
        "max_size",
        "[sources.plant]",
        "[sinks.x]",
        "@",
        "://",
        "$share/",
        "{device}",
    ]);
    prop_oneof![
        3 => token.prop_map(|token| token.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn no_mutation_panics_and_every_fault_lies_in_the_file(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..6, patch()), 1..6),
    ) {
        let mut bytes = FULL.as_bytes().to_vec();
        for (at, removed, patch) in edits {
            let at = at.index(bytes.len() + 1);
            let end = (at + removed).min(bytes.len());
            bytes.splice(at..end, patch);
        }
        if let Err(faults) = parse_bytes(&bytes, "h.toml", &Bench::named()) {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.split('\n').collect();
            prop_assert!(!faults.0.is_empty());
            let mut last = None;
            for fault in &faults.0 {
                let position = fault.position.expect("what was read has positions");
                prop_assert!((1..=lines.len()).contains(&position.line), "{fault}");
                let length = lines[position.line - 1].chars().count();
                prop_assert!((1..=length + 1).contains(&position.column), "{fault} in a line of {length}");
                prop_assert!(Some(position) >= last, "out of order: {faults}");
                prop_assert!(!fault.to_string().contains('\n'), "{fault:?}");
                last = Some(position);
            }
        }
    }
}

#[test]
fn deep_nesting_is_a_fault_and_not_the_end() {
    for (open, close) in [("[", "]"), ("{a=", "}"), ("[{a=", "}]")] {
        let text = format!("a = {}1{}", open.repeat(50_000), close.repeat(50_000));
        assert!(parse_bytes(text.as_bytes(), "h.toml", &Bench::named()).is_err());
    }
    let text = format!("{}1 = 2", "a.".repeat(50_000));
    assert!(parse_bytes(text.as_bytes(), "h.toml", &Bench::named()).is_err());
}
