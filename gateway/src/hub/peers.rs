//! Messages to and from other gateways, on the peer channel of the space.

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
            Some(PeerMessage::Replaced { user, session, conn }) => {
                self.replaced(&(user, session), conn);
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
    fn replaced(&mut self, key: &Key, conn: u64) {
        if let Some(claims) = self.claimed.get_mut(key) {
            claims.recheck = true;
        }
        if let Some(held) = self.by_key.get(key).copied().filter(|held| *held != conn) {
            self.recheck(vec![held], true);
        }
    }
}
