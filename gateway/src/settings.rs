//! Settings, from the environment.

use std::env;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Settings {
    pub address: String,
    pub redis_url: String,
    /// How long a client may send nothing, in ms.
    pub ttl: u64,
    /// The name of the owner; None: a random one.
    pub gateway_id: Option<String>,
    /// The owner's lease, in ms.
    pub owner_ttl: u64,
    /// How long a session stays live after its socket closes, in ms.
    pub linger: u64,
    pub ping: Duration,
    /// What is put in front of a space's name to make its key.
    pub prefix: String,
    pub by_identity: bool,
    pub max_clients: usize,
    /// Maximum number of messages that wait for one client.
    pub queue: usize,
    /// Messages per second that a client may send.
    pub rate: u32,
    /// Simulated users that the page may ask for; 0: none.
    pub simulated_users: usize,
}

impl Settings {
    pub fn from_env() -> Result<Settings, String> {
        let port = number("PORT", 5000, 0, 65535)?;
        Ok(Settings {
            address: format!("{}:{port}", text("HOST", "127.0.0.1")),
            redis_url: text("REDIS_URL", "redis://127.0.0.1:6379"),
            ttl: number("PRESENCE_TTL", 60_000, 100, 86_400_000)?,
            gateway_id: gateway_id()?,
            owner_ttl: number("OWNER_TTL", 15_000, 300, 86_400_000)?,
            linger: number("LINGER_MS", 5000, 0, 3_600_000)?,
            ping: Duration::from_millis(number("PING_MS", 30_000, 100, 3_600_000)?),
            prefix: text("SPACE_PREFIX", ""),
            by_identity: number("RESUME_BY_IDENTITY", 1, 0, 1)? == 1,
            max_clients: number("MAX_CLIENTS", 20_000, 1, 1_000_000)? as usize,
            queue: number("QUEUE", 8192, 16, 1_000_000)? as usize,
            rate: number("MESSAGE_RATE", 250, 1, 100_000)? as u32,
            simulated_users: number("CROWD", 0, 0, 10_000)? as usize,
        })
    }
}

fn text(name: &str, default: &str) -> String {
    env::var(name).ok().filter(|v| !v.is_empty()).unwrap_or_else(|| default.into())
}

/// Owners have names of 1 to 512 bytes.
fn gateway_id() -> Result<Option<String>, String> {
    let id = env::var("GATEWAY_ID").ok().filter(|v| !v.is_empty());
    match id {
        Some(id) if id.len() > 512 => Err("GATEWAY_ID is longer than 512 bytes".into()),
        id => Ok(id),
    }
}

fn number(name: &str, default: u64, min: u64, max: u64) -> Result<u64, String> {
    let Some(value) = env::var(name).ok().filter(|v| !v.is_empty()) else { return Ok(default) };
    match value.parse() {
        Ok(n) if (min..=max).contains(&n) => Ok(n),
        _ => Err(format!("{name}={value} is not a number from {min} to {max}")),
    }
}
