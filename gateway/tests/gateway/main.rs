//! Black-box tests: real servers with the module, real gateways, real sockets, a real browser.

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
mod protocol;
