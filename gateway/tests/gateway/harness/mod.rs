//! A server with the module, gateways in front of it, and WebSocket clients.
//!
//! Each test has its own processes, on free loopback ports, which end when they are dropped. A test waits for a condition
//! with a generous deadline. To show that something does not happen, it waits for something that comes after it.
//!
//! `PRESENCE_SERVER` names the server's program (default `redis-server`), `PRESENCE_MODULE` the module (default
//! `target/release/presence.so` of this project).

mod client;
mod gateway;
mod server;

pub use client::Client;
pub use gateway::Gateway;
pub use presence_testkit::{Proxy, Signal, ms, not_tested, signal};
pub use serde_json::{Value as Json, json};
pub use server::Server;
use std::time::{Duration, Instant};
pub use tokio_tungstenite::tungstenite::Message;

/// Enough time for anything that must happen immediately, on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// The address of the server behind a proxy.
pub fn url_of(proxy: &Proxy) -> String {
    format!("redis://127.0.0.1:{}", proxy.port)
}

/// Polls a condition. Fails the test after `SOON`.
pub async fn eventually<F: std::future::Future<Output = bool>>(
    what: &str,
    mut holds: impl FnMut() -> F,
) {
    let end = Instant::now() + SOON;
    while !holds().await {
        assert!(Instant::now() < end, "timed out: {what}");
        tokio::time::sleep(ms(20)).await;
    }
}

pub fn text_of(value: &Json) -> String {
    value.as_str().unwrap_or_default().to_string()
}

pub fn rand() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() as u32
}
