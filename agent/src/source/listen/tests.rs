//! The listener over real sockets; the disk is played by hand.

mod access;
mod bench;
mod clients;
mod delivery;
mod endings;
