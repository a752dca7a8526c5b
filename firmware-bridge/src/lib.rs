//! The link between sensor nodes and Holdfast.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::expect_used, clippy::panic, clippy::unreachable)
)]

#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod bounded;
pub mod codec;
mod crc;
pub mod frame;
pub mod value;
