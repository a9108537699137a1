//! What all tests of this project share, in the module's tests, the torture test and the gateway's.
//!
//! - [`signal`] sends a signal to a process. It needs no program: `kill` is part of procps, which a minimal system
//!   lacks.
//! - [`not_tested`] reports a test that cannot run on this machine. Such a test does not count as passed.
//! - [`Dump`] writes what a failed test has to show into a file, and prints the path.

mod dump;
mod not_tested;
mod process;

pub use dump::Dump;
pub use not_tested::not_tested;
pub use process::{Signal, signal, try_signal};
