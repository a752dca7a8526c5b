//! The link between sensor nodes and Holdfast: from a microcontroller's sensor to the agent's disk, each sample once.
//!
//! Both sides of the link are here, so that they cannot disagree. A node uses, without `std`, memory of its own or
//! `unsafe`, and without anything that could panic:
//!
//! - [`sampler`] reads sensors through embedded-hal on a schedule; [`sensors`] has some that need no driver crate;
//! - [`link`] keeps the samples until the host has them durably, and sends them as often as it takes;
//! - [`frame`] says what travels, [`value`] what a sample consists of, [`codec`] how it becomes bytes on a wire.
//!
//! The host has [`host`] (feature `std`, which is on by default): firmware depends on this crate with
//! `default-features = false`.
//!
//! | feature | adds |
//! |---|---|
//! | `std` | the host's half |
//! | `async` | sensors and sampling on embedded-hal-async |
//! | `defmt` | `defmt::Format` for all types of the node; the link says what it does |
//!
//! **What it costs.** On a Cortex-M3, built for size, the link takes 7.4 KiB of flash, and 919 bytes of RAM beside the ring (of
//! which 614 are the transmit buffer for the largest schema there can be). Around the values of a small sample there are
//! 12 bytes: COBS 1, delimiter 1, checksum 4, tag 1, number 2, time 2, missing values 1. `firmware/run` measures the first and
//! runs the whole in an emulator.

#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unreachable
    )
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
#[cfg_attr(
    not(test),
    expect(
        clippy::arithmetic_side_effects,
        reason = "counters of 64 bits and times of centuries, on a host"
    )
)]
pub mod host;
pub mod link;
mod ring;
pub mod sampler;
pub mod sensors;
pub mod value;
mod wire;
