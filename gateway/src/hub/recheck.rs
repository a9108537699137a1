//! Sessions that are in doubt: another gateway may have taken them over, or the owner's lease has ended.

use super::task::Hub;
use super::{CloseReason, HubCommand};
use crate::core::room::Key;
use crate::presence::{Keeper, PresenceClient};
use crate::sessions::{OwnSession, SessionState};
use redis::RedisResult;
use std::sync::Arc;
use std::time::Instant;

impl Hub {
    /// Reads whether the sessions of these connections are still their own. `replaced`: another connection has taken
    /// them over, at some time.
    pub fn recheck(&self, conns: Vec<u64>, replaced: bool) {
        let own = conns.iter().filter_map(|conn| self.conns.get(conn));
        let own: Vec<Arc<OwnSession>> = own.map(|c| c.session.clone()).collect();
        if own.is_empty() {
            return;
        }
        let (presence, me) = (self.shared.presence.clone(), self.me.clone());
        let space = self.space.clone();
        tokio::spawn(async move {
            let found = recheck(&presence, &space, &own, replaced).await.ok();
            let _ = me.send(HubCommand::Rechecked { conns, found });
        });
    }

    pub fn recheck_pending(&mut self) {
        if self.ready && !self.to_recheck.is_empty() {
            let conns = std::mem::take(&mut self.to_recheck);
            self.recheck(conns, false);
        }
    }

    pub async fn rechecked(&mut self, found: Vec<(u64, SessionState)>) {
        let said = Instant::now();
        for (conn, state) in found {
            let Some(c) = self.conns.get_mut(&conn) else { continue };
            match state {
                SessionState::Live => c.returning = false,
                SessionState::Moved => self.close(conn, CloseReason::Replaced),
                SessionState::Gone if c.returning => self.bring_back(conn),
                SessionState::Gone => {
                    let key = c.key.clone();
                    self.correct(&key, false, said).await;
                }
            }
        }
    }

    /// Begins the session of a connected client again.
    pub fn bring_back(&mut self, conn: u64) {
        let Some(c) = self.conns.get_mut(&conn) else { return };
        c.returning = true;
        let (session, me) = (c.session.clone(), self.me.clone());
        tokio::spawn(async move {
            let found = session.bring_back().await.ok().map(|state| vec![(conn, state)]);
            let _ = me.send(HubCommand::Rechecked { conns: vec![conn], found });
        });
    }
}

async fn recheck(
    presence: &PresenceClient,
    space: &str,
    own: &[Arc<OwnSession>],
    replaced: bool,
) -> RedisResult<Vec<(u64, SessionState)>> {
    let keys: Vec<Key> = own.iter().map(|session| session.key().clone()).collect();
    let keepers = presence.keepers(space, &keys).await?;
    let mut found = Vec::new();
    for (session, keeper) in own.iter().zip(keepers) {
        let state = match keeper {
            // Another connection of this gateway closes it itself.
            Keeper::Me => SessionState::Live,
            _ => session.check(replaced).await?,
        };
        found.push((session.conn, state));
    }
    Ok(found)
}
