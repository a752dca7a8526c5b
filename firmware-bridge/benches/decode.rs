//! What a host does with each frame: decoding and checking it, placing the record, unpacking its values. The issue asks for a
//! million frames a second.
#![expect(clippy::unwrap_used, clippy::let_underscore_must_use, reason = "a bench may panic")]

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use firmware_bridge::codec::{Decoded, Decoder, HOST_DECODER_BYTES};
use firmware_bridge::frame::{Channel, MAX_NODE_WIRE_BYTES, MAX_WINDOW};
use firmware_bridge::host::{Happening, Host, Now, Settings as HostSettings};
use firmware_bridge::link::{Identity, Link, Settings};
use firmware_bridge::value::{Kind, Value};

const CHANNELS: &[Channel<'static>] = &[
    Channel::new("temperature", "°C", Kind::Single),
    Channel::new("humidity", "%", Kind::Single),
    Channel::new("count", "", Kind::Int),
];
const SAMPLES: u64 = 10_000;
const NOW: Now = Now { monotonic_us: 9_000_000, wall_us: 1_795_148_112_123_000, is_synced: true };

fn main() {
    divan::main();
}

/// A host that knows the node, and all that the node sends then.
fn line() -> (Host, Vec<u8>) {
    let mut link =
        Link::<{ 1 << 19 }>::new(Identity::new("n", "1", 1, CHANNELS).unwrap(), Settings::default());
    let mut host = Host::new(HostSettings { window: MAX_WINDOW, ..HostSettings::default() }, []);
    let mut buffer = [0; MAX_NODE_WIRE_BYTES];
    let mut input = link.transmit(1, &mut buffer).unwrap().unwrap();
    assert!(matches!(host.next(&mut input, &NOW), Some(Happening::Hello(_))));
    let mut answer = Vec::new();
    host.transmit(&NOW, &mut answer);
    link.receive(1, &answer);
    for count in 0..SAMPLES {
        let values = [Value::Single(20.1), Value::Single(55.5), Value::Int(i64::try_from(count).unwrap())];
        let _ = link.sample(count * 1_000, &values).unwrap();
    }
    let mut line = Vec::new();
    while let Some(frame) = link.transmit(1, &mut buffer).unwrap() {
        line.extend_from_slice(frame);
    }
    (host, line)
}

#[divan::bench]
fn frames(bencher: Bencher<'_, '_>) {
    let (_, line) = line();
    bencher.counter(ItemsCount::new(SAMPLES)).counter(BytesCount::of_slice(&line)).bench(|| {
        let mut decoder = Decoder::<HOST_DECODER_BYTES>::new();
        let mut input = line.as_slice();
        let mut bodies = 0_u64;
        while let Some(decoded) = decoder.next(&mut input) {
            bodies += u64::from(matches!(decoded, Decoded::Body(_)));
        }
        assert!(bodies >= SAMPLES);
    });
}

#[divan::bench]
fn samples(bencher: Bencher<'_, '_>) {
    bencher.counter(ItemsCount::new(SAMPLES)).with_inputs(line).bench_values(|(mut host, line)| {
        let mut input = line.as_slice();
        let mut samples = 0;
        while let Some(happening) = host.next(&mut input, &NOW) {
            samples += u64::from(matches!(happening, Happening::Sample(_)));
        }
        assert_eq!(samples, SAMPLES);
    });
}
