//! CRC-32C (Castagnoli): finds every error of up to five bits in a frame of our size, and lets one in four thousand
//! million random ones through. CRC-16 would take line noise for a frame several times a day at 115 200 baud.

/// The polynomial, its bits reversed.
const POLYNOMIAL: u32 = 0x82F6_3B78;
/// Bytes of a checksum; little-endian on the wire.
pub(crate) const CRC_BYTES: usize = 4;

/// What `value` becomes after `bits` steps.
#[cfg_attr(not(test), expect(clippy::arithmetic_side_effects, reason = "checked when it is compiled"))]
const fn steps(mut value: u32, bits: u32) -> u32 {
    let mut step = 0;
    while step < bits {
        value = (value >> 1) ^ (POLYNOMIAL & (value & 1).wrapping_neg());
        step += 1;
    }
    value
}

/// The remainders of all numbers of `bits` bits.
#[cfg_attr(
    not(test),
    expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "checked when it is compiled"
    )
)]
#[expect(clippy::cast_possible_truncation, reason = "at most 256")]
const fn table<const LENGTH: usize>(bits: u32) -> [u32; LENGTH] {
    let mut table = [0; LENGTH];
    let mut index = 0;
    while index < LENGTH {
        table[index] = steps(index as u32, bits);
        index += 1;
    }
    table
}

/// A checksum over what comes piece by piece.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crc(u32);

impl Crc {
    /// Of nothing yet.
    pub(crate) const fn new() -> Self {
        Self(u32::MAX)
    }

    /// Takes in `bytes`. A table of 64 bytes, where flash is scarce and the line is slower than any processor.
    #[cfg(not(feature = "std"))]
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        const TABLE: [u32; 16] = table(4);
        let step =
            |crc: u32, bits: u32| (crc >> 4) ^ TABLE.get(((crc ^ bits) & 15) as usize).copied().unwrap_or(0);
        for byte in bytes {
            self.0 = step(step(self.0, u32::from(*byte)), u32::from(*byte >> 4));
        }
    }

    /// Takes in `bytes`. A table of 1 KiB.
    #[cfg(feature = "std")]
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        const TABLE: [u32; 256] = table(8);
        for byte in bytes {
            let index = usize::from(self.0.to_le_bytes()[0] ^ byte);
            self.0 = (self.0 >> 8) ^ TABLE.get(index).copied().unwrap_or(0);
        }
    }

    /// The checksum of all that was taken in.
    pub(crate) const fn value(self) -> u32 {
        !self.0
    }
}

/// The checksum of `parts`, as if they were one.
pub(crate) fn crc_of(parts: &[&[u8]]) -> u32 {
    let mut crc = Crc::new();
    parts.iter().for_each(|part| crc.update(part));
    crc.value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_one_of_the_catalogue() {
        assert_eq!(crc_of(&[b"123456789"]), 0xE306_9283, "CRC-32/ISCSI, its check value");
        assert_eq!(crc_of(&[b"1234", b"", b"56789"]), 0xE306_9283);
    }

    #[test]
    fn half_a_byte_at_a_time_gives_the_same() {
        let mut crc = u32::MAX;
        for byte in b"123456789" {
            crc = steps(crc ^ u32::from(*byte), 8);
        }
        assert_eq!(!crc, 0xE306_9283);
        let small: [u32; 16] = table(4);
        let large: [u32; 256] = table(8);
        for byte in 0..=255_u32 {
            let once = (byte >> 4) ^ small[(byte & 15) as usize];
            assert_eq!((once >> 4) ^ small[(once & 15) as usize], large[byte as usize]);
        }
    }
}
