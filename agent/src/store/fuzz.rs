//! Any bytes as a chunk: as they are, and under a header and a checksum that are right.

use super::chunk::{Chunk, Packed};
use super::codec;
use super::note::Note;
use crate::reading::Timestamp;
use crate::stream::{Seq, Stream};

pub(crate) fn chunk(bytes: &[u8]) {
    if let Ok(chunk) = Chunk::parse(bytes) {
        read(&chunk);
    }
    let Some((stream, body)) = bytes.split_first() else { return };
    let stream = Stream::ALL[usize::from(*stream) % Stream::ALL.len()];
    let packed = Packed::new(body.to_vec()).write(stream, Seq(7), 3, Timestamp(0), body);
    let chunk = Chunk::parse(&packed).expect("it was just written");
    assert_eq!(chunk.body().expect("it was just compressed"), body, "a body comes back as it was");
    read(&chunk);
    let compressed = Packed::hostile(body);
    let written = compressed.write(stream, Seq(7), 3, Timestamp(0), &[]);
    read(&Chunk::parse(&written).expect("it was just written"));
}

/// A well-formed chunk of readings, its stream and body as [`chunk`] takes them.
#[cfg(test)]
pub(crate) fn sample() -> Vec<u8> {
    use crate::reading::{Origin, Reading, Shape, Value};
    let tags = vec![("line".into(), "a".into())];
    let reading = Reading {
        time: Timestamp(5),
        received: Timestamp(7),
        line: None,
        origin: Origin { source: "plant".into(), device: "press".into(), tags }.into(),
        shape: Shape { names: vec!["t".into(), "mode".into()] }.into(),
        values: vec![Value::Float(21.5), Value::Text("auto".into())],
        remarks: None,
    };
    let mut bytes = vec![0];
    codec::encode_readings(&[reading.clone(), reading], &mut bytes);
    bytes
}

fn read(chunk: &Chunk<'_>) {
    if let Ok(body) = chunk.body() {
        if let Ok(readings) = codec::decode_readings(&body) {
            let mut again = Vec::new();
            codec::encode_readings(&readings, &mut again);
            let again = codec::decode_readings(&again).expect("it was just written");
            // By their text: a NaN, which no reading has but these bytes may hold, is unequal to itself.
            assert_eq!(format!("{again:?}"), format!("{readings:?}"), "readings come back as they were");
        }
        if let Ok((position, note, records)) = codec::decode_windows(&body) {
            let mut again = Vec::new();
            codec::encode_windows(position, &note, &records, &mut again);
            let again = codec::decode_windows(&again).expect("it was just written");
            assert_eq!(format!("{again:?}"), format!("{:?}", (position, note, records)), "so do results");
        }
    }
    drop(Note::decode(chunk.note));
}
