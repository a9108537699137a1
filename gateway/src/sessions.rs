//! The sessions that connections of this gateway have.
//!
//! Owners keep gateways from changing each other's sessions. Within the gateway all connections have the same owner, so
//! commands about one session run one after the other, and only those of its newest connection count.

use crate::core::event::{EventId, Meta};
use crate::core::room::Key;
use crate::presence::{Condition, Keeper, Online, PresenceClient};
use redis::RedisResult;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A space and a session in it.
pub type Name = (String, Key);

/// The sessions of this gateway, by name.
#[derive(Default)]
pub struct Sessions {
    slots: Mutex<HashMap<Name, Weak<Slot>>>,
}

/// A session that connections of this gateway have or begin.
struct Slot {
    sessions: Arc<Sessions>,
    name: Name,
    /// The number of the newest connection that has begun or continued it.
    newest: tokio::sync::Mutex<u64>,
}

impl Sessions {
    fn slot(self: &Arc<Self>, name: Name) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(&name).and_then(Weak::upgrade) {
            return slot;
        }
        let newest = tokio::sync::Mutex::new(0);
        let slot = Arc::new(Slot { sessions: self.clone(), name: name.clone(), newest });
        slots.insert(name, Arc::downgrade(&slot));
        slot
    }

    pub fn count(&self) -> u64 {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    /// The names of all sessions.
    pub fn names(&self) -> Vec<Name> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// A connection of this gateway has the session, or is about to.
    pub fn contains(&self, name: &Name) -> bool {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut slots = self.sessions.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.get(&self.name).is_some_and(|slot| slot.strong_count() == 0) {
            slots.remove(&self.name);
        }
    }
}

/// The state of a connection's session.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SessionState {
    Live,
    /// The session does not exist.
    Gone,
    /// Another connection has taken it over.
    Moved,
}

/// The result of beginning or continuing a session.
pub enum Begun {
    At(EventId),
    /// The condition was not met.
    Unmet,
    /// A newer connection of this gateway has it.
    Newer,
}

/// The session of one connection. If it is dropped before it has ended, it ends after the linger: a connection that is
/// lost while it joins leaves no session behind.
pub struct OwnSession {
    pub conn: u64,
    presence: PresenceClient,
    slot: Arc<Slot>,
    meta: Mutex<Meta>,
    /// In ms.
    linger: u64,
    /// There is nothing to end.
    ended: AtomicBool,
}

impl OwnSession {
    pub fn new(
        presence: PresenceClient,
        sessions: &Arc<Sessions>,
        name: Name,
        conn: u64,
        meta: Meta,
        linger: u64,
    ) -> Arc<OwnSession> {
        let slot = sessions.slot(name);
        let (meta, ended) = (Mutex::new(meta), AtomicBool::new(true));
        Arc::new(OwnSession { conn, presence, slot, meta, linger, ended })
    }

    pub fn key(&self) -> &Key {
        &self.slot.name.1
    }

    pub fn meta(&self) -> Meta {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn online(&self, condition: Condition) -> RedisResult<Online> {
        let (space, key) = &self.slot.name;
        self.presence.online(space, key, &self.meta(), condition).await
    }

    async fn keeper(&self) -> RedisResult<Keeper> {
        let (space, key) = &self.slot.name;
        let keepers = self.presence.keepers(space, std::slice::from_ref(key)).await?;
        Ok(keepers.first().copied().unwrap_or(Keeper::Absent))
    }

    /// Begins or continues the session.
    pub async fn begin(&self, condition: Condition) -> RedisResult<Begun> {
        let mut newest = self.slot.newest.lock().await;
        if *newest > self.conn {
            return Ok(Begun::Newer);
        }
        let before = std::mem::replace(&mut *newest, self.conn);
        // Until the server has replied, it may have begun.
        self.ended.store(false, Ordering::SeqCst);
        let online = self.online(condition).await;
        match &online {
            Ok(Online::At(_)) => {}
            Err(error) if error.code().is_none() => {}
            Ok(Online::Unmet) | Err(_) => {
                *newest = before;
                self.ended.store(true, Ordering::SeqCst);
            }
        }
        Ok(match online? {
            Online::At(at) => Begun::At(at),
            Online::Unmet => Begun::Unmet,
        })
    }

    /// Replaces the status.
    pub async fn set_status(&self, status: String) -> RedisResult<SessionState> {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner).status = status;
        let newest = self.slot.newest.lock().await;
        if *newest != self.conn {
            return Ok(SessionState::Moved);
        }
        match self.keeper().await? {
            Keeper::Me | Keeper::Lease => self.take().await,
            Keeper::Other => Ok(SessionState::Moved),
            Keeper::Absent => Ok(SessionState::Gone),
        }
    }

    async fn take(&self) -> RedisResult<SessionState> {
        Ok(match self.online(Condition::Present).await? {
            Online::At(_) => SessionState::Live,
            Online::Unmet => SessionState::Gone,
        })
    }

    /// Reads whether the session is still this connection's. If another program has given it a lease, the gateway takes
    /// it back, unless it is known that another connection has taken it over (`replaced`).
    pub async fn check(&self, replaced: bool) -> RedisResult<SessionState> {
        let newest = self.slot.newest.lock().await;
        if *newest != self.conn {
            return Ok(SessionState::Moved);
        }
        match self.keeper().await? {
            Keeper::Me => Ok(SessionState::Live),
            Keeper::Lease if !replaced => self.take().await,
            Keeper::Lease | Keeper::Other => Ok(SessionState::Moved),
            Keeper::Absent => Ok(SessionState::Gone),
        }
    }

    /// Begins a session again that ended with the owner's lease, though its client is still connected.
    pub async fn bring_back(&self) -> RedisResult<SessionState> {
        let newest = self.slot.newest.lock().await;
        if *newest != self.conn {
            return Ok(SessionState::Moved);
        }
        match self.online(Condition::Absent).await? {
            Online::At(_) => Ok(SessionState::Live),
            Online::Unmet => match self.keeper().await? {
                Keeper::Me => Ok(SessionState::Live),
                Keeper::Lease | Keeper::Other => Ok(SessionState::Moved),
                Keeper::Absent => Ok(SessionState::Gone),
            },
        }
    }

    /// Ends the session after a linger in ms, if it is still this connection's.
    pub async fn end(&self, linger: u64) -> RedisResult<()> {
        if self.ended.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        end(&self.presence, &self.slot, self.conn, linger).await
    }

    /// The session has ended, or is another connection's.
    pub fn release(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }
}

async fn end(presence: &PresenceClient, slot: &Slot, conn: u64, linger: u64) -> RedisResult<()> {
    let newest = slot.newest.lock().await;
    if *newest != conn {
        return Ok(());
    }
    let (space, key) = &slot.name;
    presence.offline(space, key, linger).await
}

impl Drop for OwnSession {
    fn drop(&mut self) {
        if *self.ended.get_mut() {
            return;
        }
        let (presence, slot) = (self.presence.clone(), self.slot.clone());
        let (conn, linger) = (self.conn, self.linger);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { end(&presence, &slot, conn, linger).await });
        }
    }
}
