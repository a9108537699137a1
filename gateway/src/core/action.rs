//! What clients send.

use super::hello::{MAX_STATUS, check_length};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;
use serde_json::value::RawValue;
use std::fmt;
use std::fmt::Write;

pub const MAX_TEXT: usize = 4096;

#[derive(Debug, PartialEq)]
pub enum Action {
    Ping,
    /// For the others, as text that already has the sender's id.
    Cursor(String),
    Message(String),
    Status(String),
    Leave,
    Simulate(Simulate),
}

/// What the page of the demo asks of the simulator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Simulate {
    Join,
    Crash,
}

/// `sender` is the id of the client that sent it. An error is a text for the client.
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
        check_length(name, &text, 0, max)?;
        Ok::<_, String>(text)
    };
    match action.as_str() {
        "ping" => Ok(Action::Ping),
        "cursor" => Ok(Action::Cursor(cursor(&fields, sender))),
        "message" => Ok(Action::Message(text("text", MAX_TEXT)?)),
        "status" => Ok(Action::Status(text("status", MAX_STATUS)?)),
        "leave" => Ok(Action::Leave),
        "crowd" => match string("do").as_deref() {
            Some("come") => Ok(Action::Simulate(Simulate::Join)),
            Some("crash") => Ok(Action::Simulate(Simulate::Crash)),
            _ => Err("do is \"come\" or \"crash\"".into()),
        },
        _ => {
            let shown: String = action.chars().take(64).collect();
            Err(format!("unknown action: {shown}"))
        }
    }
}

/// Every field byte for byte and in its order, and then `clientId`. If the client sent a `clientId` itself, it is left
/// out, because it could name another client.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions() {
        let parse = |text: &str| parse_action(text.as_bytes(), "me");
        assert_eq!(parse(r#"{"action":"ping"}"#), Ok(Action::Ping));
        assert_eq!(parse(r#" {"action":"ping","more":[1,{}]} "#), Ok(Action::Ping));
        assert_eq!(parse(r#"{"action":"message","text":"hi"}"#), Ok(Action::Message("hi".into())));
        assert_eq!(parse(r#"{"action":"leave"}"#), Ok(Action::Leave));
        let come = parse(r#"{"action":"crowd","do":"come"}"#);
        assert_eq!(come, Ok(Action::Simulate(Simulate::Join)));
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
    fn cursors_keep_their_fields() {
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
}
