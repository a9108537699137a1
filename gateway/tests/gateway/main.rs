//! Black-box tests: real servers with the module, real gateways, real sockets, a real browser.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic fails the test and names the line"
)]

mod chromium;
mod harness;

mod abuse;
mod browser;
mod demo;
mod gateways;
mod ids;
mod load;
mod loss;
mod moves;
mod owners;
mod protocol;
mod rights;
