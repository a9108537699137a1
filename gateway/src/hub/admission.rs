//! How clients get in: they claim an id, and attach when their session is live.

use super::task::{Asking, Conn, Hub, Waiting};
use super::{Attach, Attached, Claim, Claimed, CloseReason, HubCommand};
use crate::core::claim::{Asked, Verdict, decide};
use crate::core::event::Meta;
use crate::core::peer::PeerMessage;
use crate::core::protocol::{self, Detail};
use crate::core::room::Key;
use crate::random;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long other gateways have to answer that they hold a socket.
const ASK_FOR: Duration = Duration::from_millis(300);
/// If the event of a session has not arrived by then, the hub reads the events.
const EVENT_WITHIN: Duration = Duration::from_millis(100);

impl Hub {
    pub fn claim_when_ready(&mut self, claim: Claim, reply: oneshot::Sender<Claimed>) {
        match &self.trouble {
            _ if self.ready => self.claim(claim, reply),
            Some(why) => drop(reply.send(Claimed::Refused(why.clone()))),
            None => self.early.push((claim, reply)),
        }
    }

    pub fn claim(&mut self, claim: Claim, reply: oneshot::Sender<Claimed>) {
        let Some(id) = claim.id else {
            let _ = reply.send(Claimed::New);
            return;
        };
        let key = (claim.identity, id);
        let (verdict, meta) = self.decide(&key, claim.token.as_deref());
        self.grant(verdict, key, meta, reply);
    }

    /// Whether the client gets the id, and the metadata of the session that is there.
    fn decide(&self, key: &Key, token: Option<&str>) -> (Verdict, Meta) {
        let found = self.room.by_id(&key.1).or_else(|| self.room.get(key));
        let asked = Asked { identity: &key.0, token };
        let held = self.is_held(key);
        let verdict = decide(&asked, found.map(|m| &**m), held, self.shared.by_identity);
        (verdict, found.map(|m| m.meta.clone()).unwrap_or_default())
    }

    /// A socket of this gateway has the session, or is about to.
    pub fn is_held(&self, key: &Key) -> bool {
        self.by_key.contains_key(key) || self.claimed.contains_key(key)
    }

    fn grant(&mut self, verdict: Verdict, key: Key, meta: Meta, reply: oneshot::Sender<Claimed>) {
        match verdict {
            Verdict::New => drop(reply.send(Claimed::New)),
            Verdict::Free => {
                self.claimed.entry(key).or_default().count += 1;
                let _ = reply.send(Claimed::Free);
            }
            Verdict::Resume => {
                self.claimed.entry(key).or_default().count += 1;
                let _ = reply.send(Claimed::Resume(meta));
            }
            Verdict::ResumeIfUnheld => self.ask_others(key, reply),
        }
    }

    fn ask_others(&mut self, key: Key, reply: oneshot::Sender<Claimed>) {
        let Ok(nonce) = random::number() else {
            let _ = reply.send(Claimed::New);
            return;
        };
        let (user, session) = key.clone();
        let question = PeerMessage::Ask { user, session, nonce }.json();
        self.asking.insert(nonce, Asking { key, asked: false, reply });
        let (presence, me) = (self.shared.presence.clone(), self.me.clone());
        let channel = self.peer_channel.clone();
        tokio::spawn(async move {
            // This gateway itself is one of the subscribers.
            let alone = presence.publish(&channel, &question).await.is_ok_and(|n| n <= 1);
            if !alone {
                tokio::time::sleep(ASK_FOR).await;
            }
            let _ = me.send(HubCommand::AskOver { nonce });
        });
    }

    /// No other gateway holds a socket of the session.
    pub fn nobody_answered(&mut self, nonce: u64) {
        let Some(Asking { key, reply, .. }) = self.asking.remove(&nonce) else { return };
        // Decided again: a client with the token may have come in the meantime.
        let (verdict, meta) = self.decide(&key, None);
        let verdict = match verdict {
            Verdict::ResumeIfUnheld => Verdict::Resume,
            other => other,
        };
        self.grant(verdict, key, meta, reply);
    }

    /// The answers of other gateways are lost.
    pub fn ask_again_when_ready(&mut self) {
        for (_, Asking { key: (identity, id), reply, .. }) in self.asking.drain() {
            self.early.push((Claim { identity, id: Some(id), token: None }, reply));
        }
    }

    /// Removes one claim. Returns whether another gateway sent a message about the session in the meantime.
    pub fn unclaim(&mut self, key: &Key) -> bool {
        let Some(claims) = self.claimed.get_mut(key) else { return false };
        claims.count = claims.count.saturating_sub(1);
        let recheck = claims.recheck;
        if claims.count == 0 {
            self.claimed.remove(key);
        }
        recheck
    }

    pub fn attach_when_reached(&mut self, attach: Attach, reply: oneshot::Sender<Attached>) {
        self.waiting.push(Waiting { since: Instant::now(), attach, reply });
        self.attach_waiting();
        if !self.waiting.is_empty() {
            let me = self.me.clone();
            tokio::spawn(async move {
                tokio::time::sleep(EVENT_WITHIN).await;
                let _ = me.send(HubCommand::Overdue);
            });
        }
    }

    pub async fn catch_up_if_overdue(&mut self) {
        if self.ready && self.waiting.iter().any(|w| w.since.elapsed() >= EVENT_WITHIN) {
            self.catch_up(super::following::Read::Events).await;
        }
    }

    /// Attaches the sockets whose event the room has reached.
    pub fn attach_waiting(&mut self) {
        if !self.ready {
            return;
        }
        let last = self.room.last;
        let waiting = std::mem::take(&mut self.waiting);
        let (reached, early): (Vec<_>, _) = waiting.into_iter().partition(|w| w.attach.at <= last);
        self.waiting = early;
        for Waiting { attach, reply, .. } in reached {
            if reply.is_closed() {
                // The socket has waited too long, and is gone.
                self.unclaim(attach.session.key());
                continue;
            }
            let attached = self.attach(attach);
            let _ = reply.send(attached);
        }
    }

    fn attach(&mut self, attach: Attach) -> Attached {
        let (conn, key) = (attach.session.conn, attach.session.key().clone());
        let recheck = self.unclaim(&key);
        if self.room.get(&key).is_none() {
            return Attached::Gone;
        }
        if !attach.resumed && self.room.count_id(&key.1) > 1 {
            return Attached::Conflict;
        }
        if let Some(former) = self.by_key.get(&key).copied() {
            // The session went to the later connection, in whichever order the two arrive here.
            if former > conn {
                return Attached::Replaced;
            }
            self.close(former, CloseReason::Replaced);
        }
        if attach.resumed {
            let (user, session) = key.clone();
            self.publish(PeerMessage::Replaced { user, session, conn });
        }
        let first = self.first_message(&attach);
        let Attach { session, detail, out, close, .. } = attach;
        let _ = out.try_send(first.into());
        self.by_key.insert(key.clone(), conn);
        self.conns.insert(conn, Conn { key, detail, out, close, session, returning: false });
        if recheck {
            self.recheck(vec![conn], true);
        }
        Attached::Yes
    }

    fn first_message(&self, attach: &Attach) -> String {
        let detail = Detail {
            space: &self.space,
            last: self.room.last,
            ttl: self.shared.ttl,
            crowd: self.shared.simulated_users,
        };
        let list = self.list(attach.detail);
        let detail = attach.detail.then_some(&detail);
        protocol::welcome(&attach.session.key().1, attach.token.as_deref(), &list, detail)
    }
}
