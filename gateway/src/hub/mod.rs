//! A hub is a task per space. It follows the space, knows the sockets of this gateway that are in it, and sends them
//! what happens.
//!
//! Only the hub has the room and the list of sockets. So the list in a client's first message and the joins after it
//! fit together: the client is added in the step that makes the list.

mod admission;
mod command;
mod delivery;
mod following;
mod peers;
mod recheck;
mod task;

pub use command::{Attach, Attached, Claim, Claimed, CloseReason, HubCommand};

use crate::presence::PresenceClient;
use crate::sessions::Name;
use crate::subscriber::{Channels, SubscriberCommand};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use task::Hub;
use tokio::sync::mpsc::{self, UnboundedSender};

/// What the hubs of a gateway share.
pub struct Shared {
    pub presence: PresenceClient,
    pub ttl: u64,
    pub by_identity: bool,
    pub simulated_users: usize,
}

/// The hubs of a gateway.
pub struct Hubs {
    shared: Arc<Shared>,
    subscriber: UnboundedSender<SubscriberCommand>,
    channel_prefix: String,
    /// By space, with the number of handles.
    running: Mutex<HashMap<String, (UnboundedSender<HubCommand>, usize)>>,
}

/// A handle of a space's hub. The hub ends with its last handle.
pub struct HubHandle {
    hubs: Arc<Hubs>,
    pub space: String,
    pub hub: UnboundedSender<HubCommand>,
}

impl Hubs {
    pub fn new(
        shared: Arc<Shared>,
        subscriber: UnboundedSender<SubscriberCommand>,
        channel_prefix: String,
    ) -> Hubs {
        Hubs { shared, subscriber, channel_prefix, running: Mutex::default() }
    }

    pub fn channels(&self, space: &str) -> Channels {
        Channels {
            events: format!("{}{space}", self.channel_prefix),
            peers: format!("presence-gateway:{space}"),
        }
    }

    /// The owner does not have these sessions: their hubs find out why.
    pub fn recheck(&self, names: Vec<Name>) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        for (space, key) in names {
            if let Some((hub, _)) = running.get(&space) {
                let _ = hub.send(HubCommand::Recheck { key });
            }
        }
    }

    pub fn handle(self: &Arc<Self>, space: &str) -> HubHandle {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let (hub, handles) = running.entry(space.to_string()).or_insert_with(|| {
            let (sender, inbox) = mpsc::unbounded_channel();
            let channels = self.channels(space);
            let hub = Hub::new(self.shared.clone(), space, &channels.peers, sender.clone());
            tokio::spawn(hub.run(inbox));
            let hub = sender.clone();
            let _ = self.subscriber.send(SubscriberCommand::Subscribe { channels, hub });
            (sender, 0)
        });
        *handles += 1;
        HubHandle { hubs: self.clone(), space: space.to_string(), hub: hub.clone() }
    }
}

impl Drop for HubHandle {
    fn drop(&mut self) {
        let mut running = self.hubs.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((hub, handles)) = running.get_mut(&self.space) else { return };
        *handles -= 1;
        if *handles == 0 {
            let _ = hub.send(HubCommand::Stop);
            let channels = self.hubs.channels(&self.space);
            let _ = self.hubs.subscriber.send(SubscriberCommand::Unsubscribe { channels });
            running.remove(&self.space);
        }
    }
}
