//! Any bytes as what a client sends.

use bytes::BytesMut;

use super::packet::{Frame, Hello, Version, frame, read, read_connect};

/// Reads packets off `bytes` as a connection does, until more bytes are needed or it would be cut off. Says how many there were.
pub(crate) fn packets(bytes: &[u8]) -> usize {
    let mut buffer = BytesMut::from(bytes);
    let Ok(Frame::Complete(length)) = frame(&buffer) else { return 0 };
    let mut behind = buffer.clone();
    let (version, mut packets) = match read_connect(&mut behind, length) {
        Ok(Hello::Connect(connect)) => {
            buffer = behind;
            (connect.version, 1)
        }
        _ => (Version::V5, 0),
    };
    while let Ok(Frame::Complete(length)) = frame(&buffer) {
        let before = buffer.len();
        if read(version, &mut buffer, length).is_err() {
            // The other one's codec must not panic on it either.
            drop(read(Version::V4, &mut buffer, length));
            return packets;
        }
        assert_eq!(before - buffer.len(), length, "a packet is taken whole");
        packets += 1;
    }
    packets
}
