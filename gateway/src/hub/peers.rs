//! Messages to and from other gateways, on the peer channel of the space.

use super::CloseReason;
use super::task::Hub;
use crate::core::peer::PeerMessage;
use crate::core::room::Key;

impl Hub {
    pub fn publish(&self, message: PeerMessage) {
        let (presence, channel) = (self.shared.presence.clone(), self.peer_channel.clone());
        tokio::spawn(async move { presence.publish(&channel, &message.json()).await });
    }

    pub fn peer_message(&mut self, text: &[u8]) {
        match PeerMessage::parse(text) {
            Some(PeerMessage::Cursor { from, text }) => {
                let text = text.into();
                self.send(&text, |conn| conn.key.1 != from);
            }
            Some(PeerMessage::Ask { user, session, nonce }) => {
                self.answer(&(user, session), nonce);
            }
            Some(PeerMessage::Held { nonce }) => {
                if let Some(asking) = self.asking.remove(&nonce) {
                    let _ = asking.reply.send(super::Claimed::New);
                }
            }
            Some(PeerMessage::Replaced { user, session, conn, marked }) => {
                self.replaced(&(user, session), conn, marked);
            }
            Some(PeerMessage::Closed { user, session }) => {
                let key = (user, session);
                self.recheck_claims(&key);
                if let Some(conn) = self.by_key.get(&key).copied() {
                    self.recheck(vec![conn]);
                }
            }
            None => {}
        }
    }

    fn answer(&mut self, key: &Key, nonce: u64) {
        if let Some(own) = self.asking.get_mut(&nonce) {
            own.asked = true;
            return;
        }
        let asked_before = self.asking.values().any(|a| a.asked && a.key == *key);
        if asked_before || self.is_held(key) {
            self.publish(PeerMessage::Held { nonce });
        }
    }

    /// Connection `conn`, here or at another gateway, has taken over the session.
    fn replaced(&mut self, key: &Key, conn: u64, marked: bool) {
        self.recheck_claims(key);
        let Some(held) = self.by_key.get(key).copied() else { return };
        let Some(holder) = self.conns.get_mut(&held) else { return };
        if held == conn {
            holder.announcing = false;
        } else if marked && self.shared.presence.fenced {
            self.recheck(vec![held]);
        } else if !holder.announcing {
            self.close(held, CloseReason::Replaced);
        }
    }

    fn recheck_claims(&mut self, key: &Key) {
        if let Some(claims) = self.claimed.get_mut(key) {
            claims.recheck = true;
        }
    }
}
