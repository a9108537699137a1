//! Events and ids as the module publishes them.

use serde::Deserialize;
use std::fmt;

/// `<epoch>-<seq>`. The default, `0-0`, is before every event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    pub epoch: u64,
    pub seq: u64,
}

impl EventId {
    pub fn parse(text: &str) -> Option<EventId> {
        let (epoch, seq) = text.split_once('-')?;
        Some(EventId { epoch: epoch.parse().ok()?, seq: seq.parse().ok()? })
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.seq)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Join,
    Add,
    Update,
    Remove,
    Leave,
    Message,
    Close,
    /// A type of a later version of the module. It is numbered like the others, and ignored.
    #[serde(other)]
    Other,
}

/// One published event.
#[derive(Clone, Debug)]
pub struct Event {
    pub id: EventId,
    pub kind: Kind,
    pub user: String,
    pub session: String,
    pub joined_at: u64,
    pub meta: Meta,
    pub reason: Option<String>,
    pub message: Option<String>,
    pub users: u64,
    pub at: u64,
}

impl Event {
    pub fn parse(text: &[u8]) -> Option<Event> {
        #[derive(Deserialize)]
        struct Wire {
            id: String,
            #[serde(rename = "type")]
            kind: Kind,
            #[serde(default)]
            user: String,
            #[serde(default)]
            session: String,
            #[serde(default)]
            joined_at: u64,
            #[serde(default)]
            meta: serde_json::Value,
            reason: Option<String>,
            message: Option<String>,
            #[serde(default)]
            users: u64,
            #[serde(default)]
            at: u64,
        }
        let wire: Wire = serde_json::from_slice(text).ok()?;
        Some(Event {
            id: EventId::parse(&wire.id)?,
            kind: wire.kind,
            user: wire.user,
            session: wire.session,
            joined_at: wire.joined_at,
            meta: Meta::of(&wire.meta),
            reason: wire.reason,
            message: wire.message,
            users: wire.users,
            at: wire.at,
        })
    }
}

/// The part of a session's metadata that the gateway reads and writes. Metadata of other programs can be any JSON value;
/// what the gateway does not know is left out, and never shown to clients.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meta {
    pub username: String,
    pub status: String,
    /// The hash of the token, in the metadata as `owner`. Only sessions of gateways have one.
    pub token_hash: Option<String>,
}

impl Meta {
    pub fn of(value: &serde_json::Value) -> Meta {
        let text = |key| value.get(key).and_then(|v| v.as_str()).map(str::to_string);
        Meta {
            username: text("username").unwrap_or_default(),
            status: text("status").unwrap_or_default(),
            token_hash: text("owner"),
        }
    }

    pub fn parse(json: &str) -> Meta {
        serde_json::from_str(json).map(|v| Meta::of(&v)).unwrap_or_default()
    }

    /// The same bytes for the same contents, because the module compares metadata byte by byte.
    pub fn json(&self) -> String {
        serde_json::json!({
            "owner": self.token_hash, "status": self.status, "username": self.username
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let id = |s| EventId::parse(s).unwrap();
        assert_eq!(id("1795354360536-8").to_string(), "1795354360536-8");
        assert!(id("5-1") < id("5-2") && id("5-9") < id("6-1"));
        for bad in ["", "5", "-", "5-", "a-1", "5-1-1", "-5-1"] {
            assert_eq!(EventId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn events() {
        let event = Event::parse(
            br#"{"id":"7-3","space":"s","type":"remove","user":"a|b","session":"*","joined_at":9,
                "meta":{"owner":"h","username":"A","status":5},"reason":"timeout","users":2,"at":10}"#,
        )
        .unwrap();
        assert_eq!((event.kind, &*event.user, &*event.session), (Kind::Remove, "a|b", "*"));
        let meta =
            Meta { username: "A".into(), status: String::new(), token_hash: Some("h".into()) };
        assert_eq!(event.meta, meta);
        let close = Event::parse(br#"{"id":"7-4","space":"s","type":"close","users":0,"at":1}"#);
        assert_eq!(close.unwrap().kind, Kind::Close);
        let new = Event::parse(br#"{"id":"7-5","space":"s","type":"zap","users":0,"at":1}"#);
        assert_eq!(new.unwrap().kind, Kind::Other);
        assert!(Event::parse(b"{").is_none() && Event::parse(b"[]").is_none());
    }

    #[test]
    fn meta_of_others() {
        for json in ["null", "[]", "5", "{}", "\"owner\"", "{\"owner\":{}}", "broken"] {
            assert_eq!(Meta::parse(json), Meta::default(), "{json}");
        }
        let meta =
            Meta { username: "\"".into(), status: "é".into(), token_hash: Some("x".into()) };
        assert_eq!(Meta::parse(&meta.json()), meta);
    }
}
