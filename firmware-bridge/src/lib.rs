//! The link between sensor nodes and Holdfast: what a node's firmware and the agent have to agree on.
//!
//! This is the beginning: the types that travel ([`frame`]), and two containers of bounded size ([`bounded`]) to build
//! them from. `no_std`, no allocation, no `unsafe`. What turns frames into bytes on a wire (delimiters, checksums), what
//! keeps and resends them until they are acknowledged, and the agent's serial source are not here yet; nothing in the
//! agent uses this crate so far.

#![no_std]
#![forbid(unsafe_code)]

pub mod bounded;
pub mod frame;
