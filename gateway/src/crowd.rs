//! Simulated users, so that one person alone can see a full room, and a mass exit.
//!
//! They are sessions without sockets: they come in small groups, renew, and crash, which is to stop renewing. Bounded:
//! one crowd a space, few of them at a time, and each crashes by itself after a while.

use crate::core::protocol::{Crowd, error};
use crate::store::Store;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

pub const LEASE: Duration = Duration::from_secs(4);
const RENEW_EVERY: Duration = Duration::from_millis(1200);
const LIFE: Duration = Duration::from_secs(180);
const AT_A_TIME: usize = 4;
const GROUP: usize = 25;
const BETWEEN_GROUPS: Duration = Duration::from_millis(40);

pub struct Crowds {
    store: Store,
    /// Users in each.
    size: usize,
    running: Mutex<HashMap<String, AbortHandle>>,
}

impl Crowds {
    pub fn new(store: Store, size: usize) -> Crowds {
        Crowds { store, size, running: Mutex::default() }
    }

    /// Does it, and says what became of it.
    pub fn ask(&self, space: &str, what: Crowd) -> String {
        let mut running = self.running.lock().unwrap_or_else(|e| e.into_inner());
        running.retain(|_, crowd| !crowd.is_finished());
        match what {
            Crowd::Come if self.size == 0 => error("this gateway simulates nobody"),
            Crowd::Come if running.contains_key(space) => told("here"),
            Crowd::Come if running.len() >= AT_A_TIME => {
                error("enough simulated users in other rooms, try later")
            }
            Crowd::Come => {
                let crowd = live(self.store.clone(), space.to_string(), self.size);
                running.insert(space.to_string(), tokio::spawn(crowd).abort_handle());
                told("here")
            }
            Crowd::Crash => {
                if let Some(crowd) = running.remove(space) {
                    crowd.abort();
                }
                told("crashed")
            }
        }
    }
}

fn told(state: &str) -> String {
    serde_json::json!({"event": "crowd", "state": state, "lease": LEASE.as_millis() as u64})
        .to_string()
}

async fn live(store: Store, space: String, size: usize) {
    let ends = Instant::now() + LIFE;
    let users: Vec<String> = (1..=size).map(|n| format!("sim-{n:04}")).collect();
    let lease = LEASE.as_millis() as u64;
    let mut tick = tokio::time::interval(BETWEEN_GROUPS);
    let mut renewed = Instant::now();
    let mut here = 0;
    while Instant::now() < ends {
        tick.tick().await;
        if here < users.len() {
            let group = &users[here..users.len().min(here + GROUP)];
            // A server that is away for a moment is tried again, as a real client would.
            if store.crowd(&space, group, lease).await.is_ok() {
                here += group.len();
            }
        }
        // All in one call, so that all of them crash at once.
        if here > 0 && (renewed.elapsed() >= RENEW_EVERY) {
            renewed = Instant::now();
            let _ = store.crowd(&space, &users[..here], lease).await;
        }
    }
}
