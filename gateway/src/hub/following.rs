//! Following the space: the room becomes what the space is.

use super::task::{CHECK_EVERY, Conn, Hub};
use super::{Claimed, CloseReason};
use crate::core::event::{Event, EventId};
use crate::core::protocol;
use crate::core::room::{Key, Offer};
use std::sync::Arc;
use std::time::Instant;

/// How much to read from the server.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Read {
    /// The events since the last one, and a snapshot only if they do not continue.
    Events,
    /// A snapshot too.
    Snapshot,
}

impl Hub {
    pub async fn subscribed(&mut self, server: Option<Arc<str>>) {
        self.subscribed = true;
        if server.is_none() || self.server != server {
            self.verified = false;
        }
        self.server = server;
        self.catch_up(Read::Events).await;
        // Messages of other gateways about our sessions were missed.
        self.to_recheck = self.conns.keys().copied().collect();
        self.recheck_pending();
    }

    pub fn unsubscribed(&mut self) {
        self.subscribed = false;
        self.ready = false;
        self.trouble = None;
        self.ask_again_when_ready();
    }

    pub async fn event(&mut self, text: &[u8]) {
        if !self.ready {
            return; // The snapshot is not read yet, and will contain it.
        }
        let Some(event) = Event::parse(text) else { return };
        match self.room.offer(&event) {
            Offer::Old => {}
            Offer::Ask => {
                self.catch_up(Read::Events).await;
                if self.ready {
                    self.room.note_ended_epoch(event.id.epoch);
                }
            }
            Offer::Applied(changes) => self.deliver_event(&event, &changes),
        }
        self.attach_waiting();
    }

    /// A client is active. Finds out soon whether the room is out of date.
    pub async fn check(&mut self) {
        if self.ready && self.audited.elapsed() > CHECK_EVERY {
            self.audit().await;
        } else {
            self.check = true;
        }
    }

    /// Reads the last id of the space. If it is another one than the room's, events were missed.
    pub async fn audit(&mut self) {
        self.audited = Instant::now();
        self.check = false;
        let known = self.room.last;
        if self.shared.presence.last_id(&self.space).await.is_ok_and(|last| last != known) {
            self.catch_up(Read::Events).await;
        }
    }

    /// Reads what happened since the room's last event: the events, or a snapshot if they are no longer kept.
    pub async fn catch_up(&mut self, read: Read) {
        match self.try_catch_up(read).await {
            Ok(()) => {
                self.ready = true;
                self.verified = true;
                self.trouble = None;
                for (claim, reply) in std::mem::take(&mut self.early) {
                    self.claim(claim, reply);
                }
                self.attach_waiting();
            }
            Err(error) => {
                eprintln!("gateway: {}: {error}", self.space.escape_debug());
                self.ready = false;
                // Clients get the server's error. A lost connection is made again, so they wait for it.
                if let Some(code) = error.code() {
                    let why = format!("this space is not available: {code}");
                    for (_, reply) in std::mem::take(&mut self.early) {
                        let _ = reply.send(Claimed::Refused(why.clone()));
                    }
                    self.trouble = Some(why);
                }
            }
        }
    }

    async fn try_catch_up(&mut self, read: Read) -> redis::RedisResult<()> {
        let presence = self.shared.presence.clone();
        let mut continues = false;
        if self.room.last != EventId::default() {
            let reply = presence.events_after(&self.space, self.room.last).await?;
            continues = reply.continues(self.room.last);
            if continues {
                for event in reply.events {
                    let changes = self.room.apply(&event);
                    self.deliver_event(&event, &changes);
                }
            }
        }
        if continues && self.verified && read == Read::Events {
            return Ok(());
        }
        let requested = Instant::now();
        let fresh = presence.snapshot(&self.space).await?;
        self.snapshot_at = Some(requested);
        let changes = self.room.become_room(fresh);
        self.deliver_changes(&changes);
        let lost = !continues || !changes.is_empty();
        if lost && self.conns.values().any(|c| c.detail) {
            let text = protocol::resync(&self.list(true), self.room.last).into();
            self.send(&text, |conn| conn.detail);
        }
        self.close_conns_without_session();
        Ok(())
    }

    fn close_conns_without_session(&mut self) {
        let lost = |c: &Conn| !c.returning && self.room.get(&c.key).is_none();
        let without = self.conns.iter().filter(|(_, c)| lost(c));
        let conns: Vec<u64> = without.map(|(conn, _)| *conn).collect();
        conns.into_iter().for_each(|conn| self.close(conn, CloseReason::Expired));
    }

    /// The server has said at `said` whether this session is live. Makes the room right.
    pub async fn correct(&mut self, key: &Key, live: bool, said: Instant) {
        let right = |hub: &Hub| hub.room.get(key).is_some() == live;
        if !self.ready || right(self) {
            return;
        }
        self.catch_up(Read::Events).await;
        let read_since = self.snapshot_at.is_some_and(|at| at > said);
        if self.ready && !right(self) && !read_since {
            self.catch_up(Read::Snapshot).await;
        }
    }
}
