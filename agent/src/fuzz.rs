//! Every parser of bytes that come from elsewhere, one function each, for fuzzers and property tests: whatever the bytes are,
//! it does not panic, and what it takes it can give back.
//!
//! Compiled for tests and under `--cfg fuzzing` only. `scripts/fuzz` runs them under libFuzzer (`tests/fuzz`); the tests
//! below run them on random bytes and on mutations of what is well-formed.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::ingest::decode::{Decoded, Decoder};
use crate::ingest::settings::{Columns, Delimiter, Pattern, Payload, Pointer, Subscription};
use crate::ingest::topic::Template;
use crate::reading::{Reading, Timestamp};
use crate::stream::Seq;
use crate::{config, receive, source, store, wire};

/// A chunk of the store; what is inside it, too.
pub fn chunk(bytes: &[u8]) {
    store::fuzz::chunk(bytes);
}

/// A configuration file.
pub fn configuration(bytes: &[u8]) {
    config::fuzz::configuration(bytes);
}

/// A request to the reference receiver; the first byte says how it is compressed.
pub fn batch(bytes: &[u8]) {
    let _records = receive::fuzz::batch(bytes);
}

/// What a client sends to our own listener.
pub fn packets(bytes: &[u8]) {
    source::listen::fuzz::packets(bytes);
}

/// How payloads are read in [`payload`].
static SUBSCRIPTIONS: LazyLock<[Subscription; 7]> = LazyLock::new(|| {
    let plain = |topic| Subscription::new(Template::parse(topic).expect("a template"));
    let pointer = |text| Some(Pointer::parse(text).expect("a pointer"));
    let (time, device) = (pointer("/ts"), pointer("/deviceId"));
    let csv = |names: &[&str], delimiter| {
        let columns = Columns::new(names.iter().copied()).expect("columns");
        Payload::Csv(columns, Delimiter::new(delimiter).expect("one"))
    };
    let pattern =
        Pattern::new(r"T=\s*(?<t>[-0-9.]+)( C)?(, H=(?<h>\S+))?(?: #(?<deviceId>.*))?").expect("one");
    [
        Subscription { time: time.clone(), device: device.clone(), ..plain("a/#") },
        Subscription { fields: Some(vec![pointer("/a/b").expect("one")]), ..plain("b/{device}") },
        Subscription { payload: Payload::Value, ..plain("c/{device}/{field}") },
        Subscription {
            payload: csv(&["ts", "deviceId", "", "v"], ","),
            time: time.clone(),
            device: device.clone(),
            ..plain("d/csv")
        },
        Subscription { payload: csv(&["a", "b"], "\t"), device_name: Some("press".into()), ..plain("d/tsv") },
        Subscription { payload: Payload::Regex(pattern), device: device.clone(), ..plain("d/text") },
        Subscription { max_future: Duration::ZERO, time: pointer("/0/ts"), ..plain("{device}/{kind}") },
    ]
});

/// A payload, read in each way there is.
pub fn payload(bytes: &[u8]) {
    let received = Timestamp(1_795_148_112_123_000);
    let mut decoder = Decoder::new(&Arc::from("source"), Arc::from(SUBSCRIPTIONS.clone()));
    for topic in ["a/x", "b/press", "c/press/t", "d/csv", "d/tsv", "d/text", "press/kind"] {
        match decoder.decode(topic, bytes, received, None) {
            Decoded::Reading(reading) => written(&reading),
            Decoded::Readings(readings) => readings.iter().for_each(written),
            Decoded::Nothing | Decoded::Rejected(_) => {}
        }
    }
}

/// What was decoded can be sent, within the bound that batches are cut by.
fn written(reading: &Reading) {
    let mut line = Vec::new();
    wire::write_reading(Seq(u64::MAX), reading, &mut line);
    assert!(line.len() <= wire::reading_bound(reading), "longer than its bound: {reading:?}");
    let value: serde_json::Value = serde_json::from_slice(&line).expect("it is JSON");
    assert_eq!(value["fields"].as_object().map(serde_json::Map::len), Some(reading.values.len()), "{value}");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Random bytes, or `seeds` with a few bytes changed, cut out or put in.
    fn bytes(seeds: &[&[u8]]) -> impl Strategy<Value = Vec<u8>> {
        let seeds: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.to_vec()).collect();
        let patch = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..4),
            prop::sample::select(vec![
                &b"\""[..],
                b"{",
                b"}",
                b"[",
                b"]",
                b",",
                b":",
                b"\\u",
                b"1e9",
                b"-",
                b"\xff"
            ])
            .prop_map(<[u8]>::to_vec),
        ];
        let edit = (any::<prop::sample::Index>(), 0_usize..5, patch);
        let mutated = (prop::sample::select(seeds), prop::collection::vec(edit, 0..6)).prop_map(
            |(mut bytes, edits)| {
                for (at, removed, patch) in edits {
                    let at = at.index(bytes.len() + 1);
                    let end = (at + removed).min(bytes.len());
                    bytes.splice(at..end, patch);
                }
                bytes
            },
        );
        prop_oneof![3 => mutated, 1 => prop::collection::vec(any::<u8>(), 0..300)]
    }

    const PAYLOADS: &[&[u8]] = &[
        br#"{"ts":1795148112.5,"deviceId":"press-7","temperature":21.53,"a":{"b":[1,2.5,true,null,"x"]}}"#,
        br#"[{"ts":"2026-11-20T04:15:12Z","deviceId":"a","v":18446744073709551615},{"ts":1,"deviceId":7,"w":-9223372036854775808}]"#,
        b"-12.5e-3",
        "\u{feff}{\"\\u00e4\":\"\\ud83d\\ude00\"}\0".as_bytes(),
        b"ts,deviceId,x,v\r\n1795148112.5,press-7,\"a,\"\"b\",21.53\r\n2026-11-20T04:15:12Z,a,,true\r\n",
        b"\t1\n\"x\ty\"\t2\n",
        b"07:15 T= 21.5 C, H=48 #press-7",
    ];
    const BATCHES: &[&[u8]] = &[
        b"\x00{\"format\":1,\"agent\":\"gw\",\"epoch\":\"0b8cf1f0-0000-4000-8000-000000000001\",\"stream\":\"readings\",\"first\":7,\"last\":11,\"gaps\":[{\"first\":7,\"last\":9,\"reason\":\"shed:size\"}],\"records\":[{\"seq\":10,\"a\":1},{\"seq\":11}]}",
        b"\x01\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff",
        b"\x02\x28\xb5\x2f\xfd\x04\x00",
    ];
    const PACKETS: &[&[u8]] = &[
        b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a\x32\x09\x00\x03a/b\x00\x07{}\xc0\x00\xe0\x00",
        b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01a\x34\x0a\x00\x03a/b\x00\x07\x00{}\x62\x02\x00\x07",
    ];

    #[test]
    fn what_the_mutations_begin_with_is_well_formed() {
        let mut decoder = Decoder::new(&Arc::from("source"), Arc::from(SUBSCRIPTIONS.clone()));
        for (payload, topic) in
            PAYLOADS.iter().zip(["a/x", "a/x", "c/press/t", "b/press", "d/csv", "d/tsv", "d/text"])
        {
            let decoded = decoder.decode(topic, payload, Timestamp(0), None);
            assert!(!matches!(decoded, Decoded::Rejected(_)), "{decoded:?}");
        }
        assert!(receive::fuzz::batch(BATCHES[0]).is_some());
        assert!(PACKETS.iter().all(|bytes| source::listen::fuzz::packets(bytes) >= 3));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn any_payload_is_readings_or_a_rejection(bytes in bytes(PAYLOADS)) {
            payload(&bytes);
        }

        #[test]
        fn any_chunk_is_records_or_an_error(bytes in bytes(&[&store::fuzz::sample(), b"\x01\0\0\0\0", b"HFCK\x01"])) {
            chunk(&bytes);
        }

        #[test]
        fn any_request_is_a_batch_or_refused(bytes in bytes(BATCHES)) {
            batch(&bytes);
        }

        #[test]
        fn any_packets_are_taken_or_a_fault(bytes in bytes(PACKETS)) {
            packets(&bytes);
        }

        #[test]
        fn any_file_is_a_configuration_or_faults(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            configuration(&bytes);
        }
    }
}
