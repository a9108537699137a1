//! What gateways tell each other on the peer channel of a space.

use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerMessage {
    /// A client's cursor, for all the others.
    Cursor { from: String, text: String },
    /// Asks whether another gateway has a socket with this session.
    Ask { user: String, session: String, nonce: u64 },
    /// Answers `Ask`: this gateway has one.
    Held { nonce: u64 },
    /// The client of this session has a new connection, `conn`. The server says which connection is the newest.
    Replaced { user: String, session: String, conn: u64 },
}

impl PeerMessage {
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    pub fn parse(text: &[u8]) -> Option<PeerMessage> {
        serde_json::from_slice(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_messages() {
        let message = PeerMessage::Cursor { from: "a".into(), text: "{}".into() };
        assert_eq!(PeerMessage::parse(message.json().as_bytes()), Some(message));
        assert_eq!(PeerMessage::parse(b"{\"what\":1}"), None);
        // As gateways with holder keys sent it.
        let old =
            br#"{"replaced":{"user":"a","session":"i","conn":18446744073709551615,"marked":true}}"#;
        let (user, session) = ("a".to_string(), "i".to_string());
        let replaced = PeerMessage::Replaced { user, session, conn: u64::MAX };
        assert_eq!(PeerMessage::parse(old), Some(replaced));
    }
}
