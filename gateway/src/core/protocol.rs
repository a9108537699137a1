//! The words: what clients send, and what they are sent. See README.md, "Protocol".

use super::event::{Event, EventId, Kind};
use super::room::Member;
use percent_encoding::percent_decode_str;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;
use serde_json::value::RawValue;
use std::fmt;
use std::fmt::Write;

pub const MAX_SPACE: usize = 512;
pub const MAX_IDENTITY: usize = 512;
pub const MAX_ID: usize = 128;
pub const MAX_USERNAME: usize = 256;
pub const MAX_STATUS: usize = 256;
pub const MAX_TEXT: usize = 4096;

// ---------------------------------------------------------------------------------------------------------------------
// Connecting

/// What a client asks for by the address it connects to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hello {
    pub space: String,
    pub identity: String,
    pub username: String,
    pub status: String,
    /// The former id, to go on with.
    pub id: Option<String>,
    /// The proof that it was its own.
    pub token: Option<String>,
    /// It wants each event of the space as it is, instead of joins and leaves alone.
    pub events: bool,
}

impl Hello {
    /// `/space?identity=…`. What is wrong with it comes back as a text for the client.
    pub fn parse(path: &str, query: &str) -> Result<Hello, String> {
        let mut hello = Hello {
            space: decode("space", path.strip_prefix('/').unwrap_or(path))?,
            ..Hello::default()
        };
        let mut seen = Vec::new();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // The first of two with one name counts.
            if seen.contains(&name) {
                continue;
            }
            seen.push(name);
            let value = || decode(name, &value.replace('+', " "));
            match name {
                "identity" => hello.identity = value()?,
                "username" => hello.username = value()?,
                "status" => hello.status = value()?,
                "id" => hello.id = Some(value()?).filter(|id| !id.is_empty()),
                "token" => hello.token = Some(value()?).filter(|token| !token.is_empty()),
                "events" => hello.events = value()? == "1",
                _ => {}
            }
        }
        limit("space", &hello.space, 1, MAX_SPACE)?;
        limit("identity", &hello.identity, 1, MAX_IDENTITY)?;
        limit("username", &hello.username, 0, MAX_USERNAME)?;
        limit("status", &hello.status, 0, MAX_STATUS)?;
        limit("id", hello.id.as_deref().unwrap_or("-"), 1, MAX_ID)?;
        limit("token", hello.token.as_deref().unwrap_or("-"), 1, MAX_ID)?;
        if hello.id.as_ref().is_some_and(|id| id.contains('/')) {
            return Err("id holds a slash".into());
        }
        Ok(hello)
    }
}

fn decode(name: &str, text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(|text| text.into_owned()).map_err(|_| format!("{name} is not UTF-8 text"))
}

fn limit(name: &str, text: &str, min: usize, max: usize) -> Result<(), String> {
    match text.len() {
        n if n < min => Err(format!("{name} is missing")),
        n if n > max => Err(format!("{name} is longer than {max} bytes")),
        _ => Ok(()),
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What clients send

#[derive(Debug, PartialEq)]
pub enum Action {
    Ping,
    /// For the others, as text that carries the sender's id already.
    Cursor(String),
    Message(String),
    Status(String),
    Leave,
    Crowd(Crowd),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Crowd {
    Come,
    Crash,
}

/// `sender` is the id of the client that sent it. What is wrong comes back as a text for the client.
pub fn parse_action(text: &[u8], sender: &str) -> Result<Action, String> {
    let Ok(Object(fields)) = serde_json::from_slice(text) else {
        return Err("message is not a JSON object".into());
    };
    let get = |name: &str| fields.iter().rev().find(|(key, _)| key == name).map(|(_, v)| v.get());
    let string = |name: &str| get(name).and_then(|v| serde_json::from_str::<String>(v).ok());
    let Some(action) = string("action") else {
        return Err("action is missing".into());
    };
    let text = |name: &str, max| {
        let text = string(name).ok_or(format!("{name} is missing"))?;
        limit(name, &text, 0, max)?;
        Ok::<_, String>(text)
    };
    match action.as_str() {
        "ping" => Ok(Action::Ping),
        "cursor" => Ok(Action::Cursor(cursor(&fields, sender))),
        "message" => Ok(Action::Message(text("text", MAX_TEXT)?)),
        "status" => Ok(Action::Status(text("status", MAX_STATUS)?)),
        "leave" => Ok(Action::Leave),
        "crowd" => match string("do").as_deref() {
            Some("come") => Ok(Action::Crowd(Crowd::Come)),
            Some("crash") => Ok(Action::Crowd(Crowd::Crash)),
            _ => Err("do is \"come\" or \"crash\"".into()),
        },
        _ => {
            let shown: String = action.chars().take(64).collect();
            Err(format!("unknown action: {shown}"))
        }
    }
}

/// Every field as it came, byte for byte and in its order, and `clientId` behind them. One that the client sent itself
/// is left out: it would speak for somebody else.
fn cursor(fields: &[(String, Box<RawValue>)], sender: &str) -> String {
    let mut out = String::from("{");
    for (name, value) in fields.iter().filter(|(name, _)| name != "clientId") {
        let _ = write!(out, "{}:{},", Json::from(name.as_str()), value.get());
    }
    let _ = write!(out, "\"clientId\":{}}}", Json::from(sender));
    out
}

/// A JSON object with its fields in order and their values as they were written.
struct Object(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Object, M::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What clients are sent

pub const PING: &str = r#"{"ping":true}"#;
pub const EXPIRED: &str = r#"{"event":"expired"}"#;

pub fn error(text: &str) -> String {
    serde_json::json!({ "error": text }).to_string()
}

/// The first message. `list` is the members' JSON, with commas between. `token` is what proves the id later; who came
/// back without it is not told.
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

/// What the first message says beyond Longhouse's to those who ask for events.
pub struct Detail<'a> {
    /// The key of the space.
    pub space: &'a str,
    pub last: EventId,
    pub ttl: u64,
    /// How many simulated users it may ask for.
    pub crowd: usize,
}

pub fn remote_join(member: &Member) -> String {
    format!(r#"{{"event":"remote join","client":{}}}"#, member.json)
}

pub fn remote_leave(member: &Member) -> String {
    format!(r#"{{"event":"remote leave","client":{}}}"#, member.json)
}

/// The whole list once more, for those who get events and for whom some are lost.
pub fn resync(list: &str, last: EventId) -> String {
    format!(r#"{{"event":"resync","last":"{last}","clients":[{list}]}}"#)
}

/// An event of the space, for those who want each. Of the metadata it tells what is meant for everybody.
pub fn space_event(event: &Event) -> String {
    let mut data = serde_json::json!({
        "id": event.id.to_string(), "type": kind(event.kind), "users": event.users, "at": event.at,
    });
    if event.kind != Kind::Close {
        data["user"] = event.user.as_str().into();
        data["session"] = event.session.as_str().into();
    }
    if matches!(event.kind, Kind::Join | Kind::Add | Kind::Update | Kind::Remove | Kind::Leave) {
        let member = Member::new(&event.user, &event.session, event.joined_at, event.meta.clone());
        data["client"] = serde_json::from_str(&member.json_with_status).unwrap_or_default();
    }
    if let Some(reason) = &event.reason {
        data["reason"] = reason.as_str().into();
    }
    if let Some(message) = &event.message {
        data["message"] = message.as_str().into();
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

/// `list` of members as the first message and `resync` take it.
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

// ---------------------------------------------------------------------------------------------------------------------
// Between gateways

/// What gateways tell each other on the side channel of a space.
#[derive(Debug, PartialEq, serde::Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// A client's cursor, for all the others.
    Cursor { from: String, text: String },
    /// Does anybody hold a socket of this session?
    Ask { user: String, session: String, nonce: u64 },
    /// Yes.
    Held { nonce: u64 },
    /// The owner of this session has a new connection, `conn`: end any other. `marked`: the holder key says which
    /// connection is the newest.
    Replaced {
        user: String,
        session: String,
        conn: u64,
        #[serde(default)]
        marked: bool,
    },
    /// A socket of this session closed, and its lease was cut to the linger.
    Closed { user: String, session: String },
}

impl Side {
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    pub fn parse(text: &[u8]) -> Option<Side> {
        serde_json::from_slice(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(path: &str, query: &str) -> Hello {
        Hello::parse(path, query).unwrap()
    }

    #[test]
    fn addresses() {
        let h = hello("/lobby", "identity=a%40b.c&username=Al+B&id=x-1&token=t&events=1");
        assert_eq!((&*h.space, &*h.identity, &*h.username), ("lobby", "a@b.c", "Al B"));
        assert_eq!((h.id.as_deref(), h.token.as_deref(), h.events), (Some("x-1"), Some("t"), true));
        let h = hello("/a/b%2Fc%20*|", "identity=%F0%9F%98%80&id=&events=0");
        assert_eq!((&*h.space, &*h.identity), ("a/b/c *|", "\u{1F600}"));
        assert_eq!((h.id, h.events), (None, false));
        assert_eq!(hello("/s", "identity=first&identity=second").identity, "first");
        assert_eq!(hello("/s+t", "identity=a=b").identity, "a=b");
        assert_eq!(hello("/s+t", "identity=a").space, "s+t");
    }

    #[test]
    fn bad_addresses() {
        let long = |n| format!("identity={}", "x".repeat(n));
        assert!(Hello::parse("/s", &long(512)).is_ok());
        for (path, query, why) in [
            ("/s", "", "identity is missing"),
            ("/s", "identity=", "identity is missing"),
            ("/", "identity=a", "space is missing"),
            ("/s", &long(513), "identity is longer than 512 bytes"),
            ("/s", "identity=%FF", "identity is not UTF-8 text"),
            ("/%FF", "identity=a", "space is not UTF-8 text"),
            ("/s", "identity=a&id=b%2Fc", "id holds a slash"),
        ] {
            assert_eq!(Hello::parse(path, query).unwrap_err(), why);
        }
    }

    #[test]
    fn actions() {
        let parse = |text: &str| parse_action(text.as_bytes(), "me");
        assert_eq!(parse(r#"{"action":"ping"}"#), Ok(Action::Ping));
        assert_eq!(parse(r#" {"action":"ping","more":[1,{}]} "#), Ok(Action::Ping));
        assert_eq!(parse(r#"{"action":"message","text":"hi"}"#), Ok(Action::Message("hi".into())));
        assert_eq!(parse(r#"{"action":"leave"}"#), Ok(Action::Leave));
        assert_eq!(parse(r#"{"action":"crowd","do":"come"}"#), Ok(Action::Crowd(Crowd::Come)));
        for bad in
            ["", "nonsense", "null", "5", "[]", "\"ping\"", "{", "{\"a\":}", "{} {}", "\u{0}"]
        {
            assert_eq!(parse(bad), Err("message is not a JSON object".into()), "{bad}");
        }
        assert!(parse_action(b"{\"action\":\"\xff\"}", "me").is_err());
        assert_eq!(parse("{}"), Err("action is missing".into()));
        assert_eq!(parse(r#"{"action":{"x":1}}"#), Err("action is missing".into()));
        assert_eq!(parse(r#"{"action":"fly"}"#), Err("unknown action: fly".into()));
        let long = format!(r#"{{"action":"{}"}}"#, "x".repeat(1000));
        assert!(parse(&long).unwrap_err().len() < 100);
        let deep = format!(r#"{{"action":"ping","x":{}"#, "[".repeat(60_000));
        assert!(parse(&deep).is_err());
    }

    #[test]
    fn cursors_go_on_as_they_came() {
        let parse = |text: &str| match parse_action(text.as_bytes(), "me\"") {
            Ok(Action::Cursor(text)) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            parse(
                r#"{"b": 1.50, "action":"cursor","a":{"x": [1, null]},"n":12345678901234567890123,"s":"a|b=c"}"#
            ),
            r#"{"b":1.50,"action":"cursor","a":{"x": [1, null]},"n":12345678901234567890123,"s":"a|b=c","clientId":"me\""}"#
        );
        assert_eq!(
            parse(r#"{"action":"cursor","clientId":"you","client\u0049d":"you"}"#),
            r#"{"action":"cursor","clientId":"me\""}"#
        );
    }

    #[test]
    fn what_clients_are_told() {
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

    #[test]
    fn side_channel() {
        let side = Side::Cursor { from: "a".into(), text: "{}".into() };
        assert_eq!(Side::parse(side.json().as_bytes()), Some(side));
        assert_eq!(Side::parse(b"{\"what\":1}"), None);
        // As gateways before holder keys say it.
        let old = br#"{"replaced":{"user":"a","session":"i","conn":18446744073709551615}}"#;
        let (user, session) = ("a".to_string(), "i".to_string());
        let replaced = Side::Replaced { user, session, conn: u64::MAX, marked: false };
        assert_eq!(Side::parse(old), Some(replaced));
    }
}
