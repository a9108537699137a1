//! What all tests of this project share: the module's tests, the torture test and the gateway's tests.
//!
//! - [`Server`] is a server of the test's own, [`Builder`] its configuration.
//! - [`Conn`] is a connection to it; [`args!`], [`text`], [`fields`], [`Space`], [`User`] are for commands and replies.
//! - [`Subscriber`] misses no message, and [`Event`] reads the events among them.
//! - [`Proxy`] is a link between two processes that a test can cut or hold.
//! - [`wait_until`], [`steady`] and [`within`] are for conditions and moments.
//! - [`signal`] sends a signal to a process. It needs no program: `kill` is part of procps, which a minimal system
//!   lacks.
//! - [`not_tested`] reports a test that cannot run on this machine. Such a test does not count as passed.
//! - [`Dump`] writes what a failed test has to show into a file, and prints the path.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic fails the test and names the line"
)]

mod args;
mod builder;
mod conn;
mod dump;
mod event;
mod launch;
mod not_tested;
mod process;
mod proxy;
mod replies;
mod server;
mod shapes;
mod spaces;
mod subscriber;
mod time;

pub use args::{Arg, Args, show};
pub use builder::Builder;
pub use conn::Conn;
pub use dump::Dump;
pub use event::{Event, parse_id};
pub use launch::{free_port, module_path, server_path, tail};
pub use not_tested::not_tested;
pub use process::{Signal, signal, try_signal};
pub use proxy::{Cut, Proxy};
pub use redis::Value;
pub use replies::{fields, items, pairs, text, texts};
pub use server::{Server, Stop};
pub use shapes::{Roster, Session, Space, User, sorted};
pub use spaces::{furnish, pages};
pub use subscriber::{Message, Subscriber};
pub use time::{SOON, ms, now_ms, rng, sleep_until, steady, wait_until, within};
