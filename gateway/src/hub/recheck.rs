//! Sessions that are in doubt: another gateway may have taken them over, or cut their lease.

use super::task::Hub;
use super::{CloseReason, HubCommand};
use crate::presence::{OwnSession, SessionState};
use std::time::Instant;

impl Hub {
    /// Reads whether the sessions of these connections are still their own. If another client has cut a lease, it gets
    /// the length that the gateway's client was given.
    pub fn recheck(&self, conns: Vec<u64>) {
        let own: Vec<OwnSession> = conns
            .iter()
            .filter_map(|conn| self.conns.get(conn).map(|c| (*conn, c)))
            .map(|(conn, c)| OwnSession { conn, key: c.key.clone(), renewed: c.renewed.clone() })
            .collect();
        if own.is_empty() {
            return;
        }
        let (presence, me) = (self.shared.presence.clone(), self.me.clone());
        let space = self.space.clone();
        tokio::spawn(async move {
            let found = presence.recheck(&space, &own).await.ok();
            let _ = me.send(HubCommand::Rechecked { conns, found });
        });
    }

    pub fn recheck_pending(&mut self) {
        if self.ready && !self.to_recheck.is_empty() {
            let conns = std::mem::take(&mut self.to_recheck);
            self.recheck(conns);
        }
    }

    pub async fn rechecked(&mut self, found: Vec<(u64, SessionState)>) {
        let said = Instant::now();
        for (conn, state) in found {
            match state {
                SessionState::Live => {}
                SessionState::Moved => self.close(conn, CloseReason::Replaced),
                SessionState::Gone => {
                    if let Some(key) = self.conns.get(&conn).map(|c| c.key.clone()) {
                        self.correct(&key, false, said).await;
                    }
                }
            }
        }
    }
}
