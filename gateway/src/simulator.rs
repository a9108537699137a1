//! Simulated users of the demo, so that one person alone can see a full room, and many leaves at once.
//!
//! They are sessions without sockets. They join in small groups, renew their leases, and crash: they stop renewing.
//! There is at most one simulation per space and a few at a time, and each ends by itself after a while.

use crate::core::action::Simulate;
use crate::core::protocol::error;
use crate::presence::PresenceClient;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

pub const LEASE: Duration = Duration::from_secs(4);
const RENEW_EVERY: Duration = Duration::from_millis(1200);
const LIFE: Duration = Duration::from_secs(180);
const AT_A_TIME: usize = 4;
const GROUP: usize = 25;
const BETWEEN_GROUPS: Duration = Duration::from_millis(40);

pub struct Simulator {
    presence: PresenceClient,
    /// Users per space; 0: there are no simulations.
    size: usize,
    /// By space.
    running: Mutex<HashMap<String, AbortHandle>>,
}

impl Simulator {
    pub fn new(presence: PresenceClient, size: usize) -> Simulator {
        Simulator { presence, size, running: Mutex::default() }
    }

    /// Starts or ends the simulation in a space. Returns the message for the client.
    pub fn handle(&self, space: &str, what: Simulate) -> String {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, simulation| !simulation.is_finished());
        match what {
            Simulate::Join if self.size == 0 => error("this gateway simulates no users"),
            Simulate::Join if running.contains_key(space) => state("here"),
            Simulate::Join if running.len() >= AT_A_TIME => {
                error("enough simulated users in other rooms, try later")
            }
            Simulate::Join => {
                let users = simulate(self.presence.clone(), space.to_string(), self.size);
                running.insert(space.to_string(), tokio::spawn(users).abort_handle());
                state("here")
            }
            Simulate::Crash => {
                if let Some(simulation) = running.remove(space) {
                    simulation.abort();
                }
                state("crashed")
            }
        }
    }
}

fn state(state: &str) -> String {
    serde_json::json!({"event": "crowd", "state": state, "lease": LEASE.as_millis() as u64})
        .to_string()
}

async fn simulate(presence: PresenceClient, space: String, size: usize) {
    let ends = Instant::now() + LIFE;
    let users: Vec<String> = (1..=size).map(|n| format!("sim-{n:04}")).collect();
    let lease = LEASE.as_millis() as u64;
    let mut tick = tokio::time::interval(BETWEEN_GROUPS);
    let mut renewed = Instant::now();
    let mut present = 0;
    while Instant::now() < ends {
        tick.tick().await;
        let (here, missing) = users.split_at(present.min(users.len()));
        // All in one call, so that all of them crash at once.
        if !here.is_empty() && renewed.elapsed() >= RENEW_EVERY {
            renewed = Instant::now();
            let _ = presence.renew_many(&space, here, lease).await;
        }
        // If the server is not available for a moment, the group is tried again, as a real client does.
        let group = missing.chunks(GROUP).next().unwrap_or_default();
        if !group.is_empty() && presence.renew_many(&space, group, lease).await.is_ok() {
            present += group.len();
        }
    }
}
