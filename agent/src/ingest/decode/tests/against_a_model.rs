//! Any bytes, and generated documents against a naive walk.

use proptest::prelude::*;

use super::*;

/// A document as it is written: keys may stand twice.
#[derive(Clone, Debug)]
enum Tree {
    /// A literal, and the value it is; `None` for null.
    Leaf(String, Option<Value>),
    /// An integer that nothing holds.
    TooLarge(String),
    Array(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

impl Tree {
    fn write(&self, out: &mut String) {
        match self {
            Self::Leaf(literal, _) | Self::TooLarge(literal) => out.push_str(literal),
            Self::Array(elements) => {
                let mut separator = '[';
                for element in elements {
                    out.push(separator);
                    element.write(out);
                    separator = ',';
                }
                out.push_str(if elements.is_empty() { "[]" } else { "]" });
            }
            Self::Object(members) => {
                let mut separator = '{';
                for (key, member) in members {
                    write!(out, "{separator}{}:", serde_json::to_string(key).unwrap()).unwrap();
                    member.write(out);
                    separator = ',';
                }
                out.push_str(if members.is_empty() { "{}" } else { "}" });
            }
        }
    }

    /// Adds the fields, or says that the document is to be rejected.
    fn flatten(&self, name: &str, fields: &mut Vec<(String, Value)>) -> Result<(), ()> {
        let join = |key: &str| if name == "$" { key.to_owned() } else { format!("{name}.{key}") };
        match self {
            Self::Leaf(_, None) => Ok(()),
            Self::Leaf(_, Some(value)) if fields.iter().all(|(other, _)| other != name) => {
                fields.push((name.to_owned(), value.clone()));
                Ok(())
            }
            Self::Leaf(..) | Self::TooLarge(_) => Err(()),
            Self::Array(elements) => elements
                .iter()
                .enumerate()
                .try_for_each(|(n, tree)| tree.flatten(&join(&n.to_string()), fields)),
            Self::Object(members) => members.iter().enumerate().try_for_each(|(n, (key, tree))| {
                if members[..n].iter().any(|(other, _)| other == key) {
                    return Err(());
                }
                tree.flatten(&join(key), fields)
            }),
        }
    }
}

fn leaf() -> impl Strategy<Value = Tree> {
    let known = |literal: String, value| Tree::Leaf(literal, Some(value));
    prop_oneof![
        20 => any::<i64>().prop_map(move |n| known(n.to_string(), Value::Int(n))),
        5 => (1_u64 << 63..).prop_map(move |n| known(n.to_string(), Value::Uint(n))),
        1 => (u128::from(u64::MAX) + 1..1 << 80).prop_map(|n| Tree::TooLarge(n.to_string())),
        1 => (-1_i128 << 80..i128::from(i64::MIN)).prop_map(|n| Tree::TooLarge(n.to_string())),
        20 => any::<f64>().prop_filter("JSON has finite numbers only", |n| n.is_finite())
            .prop_map(move |n| known(format!("{n:?}"), Value::Float(n))),
        5 => any::<bool>().prop_map(move |b| known(b.to_string(), Value::Bool(b))),
        10 => ".{0,8}".prop_map(move |s| known(serde_json::to_string(&s).unwrap(), Value::Text(s.into()))),
        5 => Just(Tree::Leaf("null".into(), None)),
    ]
}

fn object() -> impl Strategy<Value = Tree> {
    let tree = leaf().prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Tree::Array),
            prop::collection::vec(("[a-d.]{0,3}|[a-z\"\\\\ü]{3,9}", inner), 0..6).prop_map(Tree::Object),
        ]
    });
    prop::collection::vec(("[a-d0.]{0,2}|[a-z]{3,9}", tree), 0..24).prop_map(Tree::Object)
}

proptest! {
    #[test]
    fn any_object_is_what_a_naive_walk_finds(object in object()) {
        let mut payload = String::new();
        object.write(&mut payload);
        let mut fields = Vec::new();
        let expected = object.flatten("$", &mut fields);
        // Twice: the second time its names are known.
        let mut decoder = decoder([json()]);
        for _ in 0..2 {
            match decoder.decode("sensors/x", payload.as_bytes(), RECEIVED, None) {
                Decoded::Reading(reading) => {
                    let names = reading.shape.names.iter().map(ToString::to_string);
                    let found: Vec<_> = names.zip(reading.values).collect();
                    prop_assert!(expected.is_ok(), "{}", payload);
                    prop_assert_eq!(&found, &fields, "{}", payload);
                }
                Decoded::Nothing => prop_assert!(expected.is_ok() && fields.is_empty(), "{}", payload),
                Decoded::Rejected(reason) => prop_assert!(expected.is_err(), "{}: {}", reason, payload),
                Decoded::Readings(_) => prop_assert!(false, "no array: {}", payload),
            }
        }
    }

    #[test]
    fn no_bytes_panic(topic in "[a-z/$]{0,6}", payload in prop::collection::vec(any::<u8>(), 0..64)) {
        for subscription in [json(), value("#"), with_time("/a"), with_device("/a")] {
            let subscription = Subscription { topic: Template::parse("#").unwrap(), ..subscription };
            prop_assert!(!short(&decode(subscription, &topic, &payload)).is_empty());
        }
    }

    #[test]
    fn no_text_that_looks_like_json_panics(payload in "[\\[\\]{}:,\"a\\\\ 0-9eE.+-]{0,40}") {
        for subscription in [json(), value("sensors/+"), with_time("/a"), with_device("/a/0")] {
            prop_assert!(!short(&decode(subscription, "sensors/x", payload.as_bytes())).is_empty());
        }
    }

    #[test]
    fn a_message_cut_short_is_never_taken_for_a_whole_one(object in object(), cut in 1_usize..64) {
        let mut payload = String::new();
        object.write(&mut payload);
        let cut = payload.len().saturating_sub(cut);
        let decoded = decode(json(), "sensors/x", &payload.as_bytes()[..cut]);
        prop_assert!(matches!(decoded, Decoded::Rejected(_)) || cut == 0, "{}", payload);
    }
}
