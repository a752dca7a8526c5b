//! The link between sensor nodes and Holdfast.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::expect_used, clippy::panic, clippy::unreachable)
)]

#[cfg(any(test, feature = "std"))]
extern crate std;

/// Tells the debugger what the link does, if there is one.
macro_rules! event {
    ($text:literal) => {
        #[cfg(feature = "defmt")]
        defmt::debug!($text);
    };
}

pub mod bounded;
pub mod codec;
mod crc;
pub mod frame;
#[cfg(feature = "std")]
pub mod host;
pub mod link;
mod ring;
pub mod sampler;
pub mod sensors;
pub mod value;
mod wire;
