//! What clients are sent. See README.md, "Protocol".

use super::event::{Event, EventId, Kind};
use super::room::Member;
use serde_json::Value as Json;
use std::fmt::Write;

pub const PING: &str = r#"{"ping":true}"#;
pub const EXPIRED: &str = r#"{"event":"expired"}"#;
pub const CLOSED: &str = r#"{"event":"closed"}"#;

pub fn error(text: &str) -> String {
    serde_json::json!({ "error": text }).to_string()
}

/// The first message. `list` is the JSON of the members, separated by commas. `token` proves later that the id is this
/// client's. A client that came back without the token does not get it.
pub fn welcome(id: &str, token: Option<&str>, list: &str, detail: Option<&Detail>) -> String {
    let mut out = format!("{{\"id\":{},\"clients\":[{list}]", Json::from(id));
    if let Some(token) = token {
        let _ = write!(out, ",\"token\":{}", Json::from(token));
    }
    if let Some(Detail { space, last, ttl, crowd }) = detail {
        let space = Json::from(*space);
        let _ =
            write!(out, ",\"space\":{space},\"last\":\"{last}\",\"ttl\":{ttl},\"crowd\":{crowd}");
    }
    out.push('}');
    out
}

/// What the first message has beyond Longhouse's, for clients that ask for events.
pub struct Detail<'a> {
    /// The key of the space.
    pub space: &'a str,
    pub last: EventId,
    pub ttl: u64,
    /// How many simulated users the client may ask for.
    pub crowd: usize,
}

pub fn remote_join(member: &Member) -> String {
    format!(r#"{{"event":"remote join","client":{}}}"#, member.json)
}

pub fn remote_leave(member: &Member) -> String {
    format!(r#"{{"event":"remote leave","client":{}}}"#, member.json)
}

/// The whole list, for clients that get every event, after some events were lost.
pub fn resync(list: &str, last: EventId) -> String {
    format!(r#"{{"event":"resync","last":"{last}","clients":[{list}]}}"#)
}

/// An event of the space, for clients that get every event. It has only those parts of the metadata that are meant for
/// everybody.
pub fn space_event(event: &Event) -> String {
    let mut data = serde_json::Map::new();
    let mut add = |name: &str, value: Json| drop(data.insert(name.into(), value));
    add("id", event.id.to_string().into());
    add("type", kind(event.kind).into());
    add("users", event.users.into());
    add("at", event.at.into());
    if event.kind != Kind::Close {
        add("user", event.user.as_str().into());
        add("session", event.session.as_str().into());
    }
    if matches!(event.kind, Kind::Join | Kind::Add | Kind::Update | Kind::Remove | Kind::Leave) {
        let member = Member::new(&event.user, &event.session, event.joined_at, event.meta.clone());
        add("client", serde_json::from_str(&member.json_with_status).unwrap_or_default());
    }
    if let Some(reason) = &event.reason {
        add("reason", reason.as_str().into());
    }
    if let Some(message) = &event.message {
        add("message", message.as_str().into());
    }
    serde_json::json!({ "event": "space", "data": data }).to_string()
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Join => "join",
        Kind::Add => "add",
        Kind::Update => "update",
        Kind::Remove => "remove",
        Kind::Leave => "leave",
        Kind::Message => "message",
        Kind::Close => "close",
        Kind::Other => "other",
    }
}

/// The list of members, as the first message and `resync` take it.
pub fn list<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut out = String::new();
    for text in texts {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(text);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_to_clients() {
        assert_eq!(error("a \"b\""), r#"{"error":"a \"b\""}"#);
        assert_eq!(welcome("i", None, "{},{}", None), r#"{"id":"i","clients":[{},{}]}"#);
        let detail = Detail { space: "s", last: EventId { epoch: 1, seq: 2 }, ttl: 5, crowd: 0 };
        assert_eq!(
            welcome("i", Some("t"), "", Some(&detail)),
            r#"{"id":"i","clients":[],"token":"t","space":"s","last":"1-2","ttl":5,"crowd":0}"#
        );
        let leave = r#"{"id":"7-3","space":"s","type":"leave","user":"a","session":"i","joined_at":9,
            "meta":{"owner":"SECRET","username":"A","other":"PRIVATE"},"reason":"timeout","users":2,"at":10}"#;
        let told = space_event(&Event::parse(leave.as_bytes()).unwrap());
        assert!(!told.contains("SECRET") && !told.contains("PRIVATE"), "{told}");
        let told: Json = serde_json::from_str(&told).unwrap();
        assert_eq!(told["data"]["client"]["id"], "i");
        assert_eq!(told["data"]["reason"], "timeout");
    }
}
