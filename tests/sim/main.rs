//! The real pipeline in a simulated world: virtual time, one seed for all chance, and an independent record of what was
//! acknowledged to whom.
//!
//! ```text
//!   HOLDFAST_SEED=7 cargo test -p e2e --test sim        one seed, again
//!   HOLDFAST_SIM_SEEDS=10000 cargo test -p e2e --test sim   more of them
//!   HOLDFAST_TRACE=1                                    tells what happens
//! ```

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a world that cannot do its work fails the test"
)]

mod agent;
mod boundaries;
mod check;
mod cloud;
mod found;
mod peers;
mod plan;
mod run;
mod seeds;
mod store;
mod windows;
mod world;
