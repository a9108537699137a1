//! The task of a hub: its state, and where its commands go.

use super::{Attach, Attached, Claim, Claimed, CloseReason, HubCommand, Shared};
use crate::core::room::{Key, Room};
use crate::sessions::OwnSession;
use axum::extract::ws::Utf8Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

const TICK: Duration = Duration::from_millis(500);
/// How often the last id of the space is read. This finds a space that was deleted, and a last event that got lost.
const AUDIT_EVERY: Duration = Duration::from_secs(5);
/// The same, if clients are active. They are not asked one by one, so this is once for all clients in the space.
pub(super) const CHECK_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Hub {
    pub shared: Arc<Shared>,
    pub space: String,
    pub peer_channel: String,
    /// Sends commands to this hub.
    pub me: UnboundedSender<HubCommand>,
    pub room: Room,
    /// The space is subscribed, and the room is up to date.
    pub ready: bool,
    /// Why the room cannot be read, if the server said so.
    pub trouble: Option<String>,
    /// Claims that wait until the hub is ready.
    pub early: Vec<(Claim, oneshot::Sender<Claimed>)>,
    pub conns: HashMap<u64, Conn>,
    pub by_key: HashMap<Key, u64>,
    /// Sessions that are claimed and not attached yet. For other clients they are held.
    pub claimed: HashMap<Key, Claims>,
    /// Sockets that wait until the room has reached their session's event.
    pub waiting: Vec<Waiting>,
    /// Questions to other gateways, by nonce.
    pub asking: HashMap<u64, Asking>,
    pub subscribed: bool,
    /// The run of the server.
    pub server: Option<Arc<str>>,
    /// The room is of this run. Another run may have given ids of lost events to other events.
    pub verified: bool,
    /// When the last snapshot was requested.
    pub snapshot_at: Option<Instant>,
    /// Connections whose sessions are rechecked at the next tick.
    pub to_recheck: Vec<u64>,
    pub audited: Instant,
    /// A client was active since then.
    pub check: bool,
}

/// A socket in the space.
pub(super) struct Conn {
    pub key: Key,
    pub detail: bool,
    pub out: mpsc::Sender<Utf8Bytes>,
    pub close: oneshot::Sender<CloseReason>,
    pub session: Arc<OwnSession>,
    /// Its session ended with the owner's lease, and is brought back.
    pub returning: bool,
}

pub(super) struct Waiting {
    pub since: Instant,
    pub attach: Attach,
    pub reply: oneshot::Sender<Attached>,
}

#[derive(Default)]
pub(super) struct Claims {
    pub count: usize,
    /// Another gateway sent a message about the session in the meantime.
    pub recheck: bool,
}

pub(super) struct Asking {
    pub key: Key,
    /// The question has arrived on the channel: the same question of another gateway after it is later.
    pub asked: bool,
    pub reply: oneshot::Sender<Claimed>,
}

impl Hub {
    pub fn new(
        shared: Arc<Shared>,
        space: &str,
        peer_channel: &str,
        me: UnboundedSender<HubCommand>,
    ) -> Hub {
        Hub {
            shared,
            space: space.into(),
            peer_channel: peer_channel.into(),
            me,
            room: Room::default(),
            ready: false,
            trouble: None,
            early: Vec::new(),
            conns: HashMap::new(),
            by_key: HashMap::new(),
            claimed: HashMap::new(),
            waiting: Vec::new(),
            asking: HashMap::new(),
            subscribed: false,
            server: None,
            verified: false,
            snapshot_at: None,
            to_recheck: Vec::new(),
            audited: Instant::now(),
            check: false,
        }
    }

    pub async fn run(mut self, mut inbox: UnboundedReceiver<HubCommand>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(HubCommand::Stop) | None => return,
                    Some(command) => self.handle(command).await,
                },
                _ = tick.tick() => self.tick().await,
            }
        }
    }

    async fn handle(&mut self, command: HubCommand) {
        match command {
            HubCommand::Subscribed { server } => self.subscribed(server).await,
            HubCommand::Unsubscribed => self.unsubscribed(),
            HubCommand::Event(text) => self.event(&text).await,
            HubCommand::PeerMessage(text) => self.peer_message(&text),
            HubCommand::Claim { claim, reply } => self.claim_when_ready(claim, reply),
            HubCommand::Abandon { key } => drop(self.unclaim(&key)),
            HubCommand::Attach { attach, reply } => self.attach_when_reached(attach, reply),
            HubCommand::Overdue => self.catch_up_if_overdue().await,
            HubCommand::Correct { key, live, said, reply } => {
                self.correct(&key, live, said).await;
                let _ = reply.send(());
            }
            HubCommand::Rechecked { conns, found: None } => self.to_recheck.extend(conns),
            HubCommand::Rechecked { found: Some(found), .. } => self.rechecked(found).await,
            HubCommand::Detach { conn, reply } => {
                self.drop_conn(conn);
                let _ = reply.send(());
            }
            HubCommand::Check => self.check().await,
            HubCommand::Recheck { key } => self.to_recheck.extend(self.by_key.get(&key)),
            HubCommand::AskOver { nonce } => self.nobody_answered(nonce),
            HubCommand::Stop => {}
        }
    }

    async fn tick(&mut self) {
        if self.subscribed && !self.ready {
            self.catch_up(super::following::Read::Events).await;
        }
        self.catch_up_if_overdue().await;
        self.recheck_pending();
        let every = if self.check { CHECK_EVERY } else { AUDIT_EVERY };
        if self.ready && self.audited.elapsed() > every {
            self.audit().await;
        }
    }
}
