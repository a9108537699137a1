//! Published events.

use crate::{Message, Roster};
use serde_json::Value as Json;
use std::fmt;

/// One published event: its keys in order, each once, and the raw text.
#[derive(Clone)]
pub struct Event {
    pub raw: String,
    pub channel: Vec<u8>,
    pub arrived: i64,
    fields: Vec<(String, Json)>,
}

impl Event {
    #[track_caller]
    pub fn parse(m: Message) -> Event {
        let raw = String::from_utf8(m.payload).expect("an event is UTF-8");
        let Ordered(fields) = serde_json::from_str(&raw).unwrap_or_else(|e| panic!("{e} in {raw}"));
        Event { raw, channel: m.channel, arrived: m.arrived, fields }
    }

    pub fn keys(&self) -> Vec<&str> {
        self.fields.iter().map(|(k, _)| k.as_str()).collect()
    }

    /// The value of a key; null where absent.
    pub fn get(&self, key: &str) -> &Json {
        self.fields.iter().find(|(k, _)| k == key).map_or(&Json::Null, |(_, v)| v)
    }

    /// The text of a key; "" where absent.
    pub fn str(&self, key: &str) -> &str {
        self.get(key).as_str().unwrap_or("")
    }

    /// The number of a key; fails the test where absent.
    #[track_caller]
    pub fn int(&self, key: &str) -> i64 {
        self.get(key).as_i64().unwrap_or_else(|| panic!("no number {key} in {}", self.raw))
    }

    pub fn kind(&self) -> &str {
        self.str("type")
    }

    pub fn user(&self) -> &str {
        self.str("user")
    }

    /// (epoch, seq) of the id.
    #[track_caller]
    pub fn id(&self) -> (i64, u64) {
        parse_id(self.str("id"))
    }

    /// "join alice", "add alice/phone", "leave alice (timeout)": for comparing sequences of events.
    pub fn brief(&self) -> String {
        let mut brief = format!("{} {}", self.kind(), self.user());
        if !self.get("session").is_null() {
            brief += &format!("/{}", self.str("session"));
        }
        if !self.get("reason").is_null() {
            brief += &format!(" ({})", self.str("reason"));
        }
        brief
    }

    /// Applies it to a roster, and checks that it fits: a user who joins was not there, a leave is of the last session.
    #[track_caller]
    pub fn fold(&self, roster: &mut Roster) {
        let (user, session) = (self.user().to_string(), self.str("session").to_string());
        let had = roster.get(&user).map_or(0, |s| s.len());
        let known = roster.get(&user).is_some_and(|s| s.contains(&session));
        let fits = match self.kind() {
            "join" => had == 0,
            "add" => had > 0 && !known,
            "update" => known,
            "remove" => had > 1 && known,
            "leave" => had == 1 && known,
            kind => panic!("no event of presence: {kind}"),
        };
        assert!(fits, "does not fit {:?}: {}", roster.get(&user), self.raw);
        match self.kind() {
            "join" | "add" => {
                roster.entry(user).or_default().insert(session);
            }
            "remove" => {
                roster.get_mut(&user).unwrap().remove(&session);
            }
            "leave" => {
                roster.remove(&user);
            }
            _ => {}
        }
        assert_eq!(self.int("users"), roster.len() as i64, "users after {}", self.raw);
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.raw)
    }
}

/// `<epoch>-<seq>` as numbers, written the one right way.
#[track_caller]
pub fn parse_id(id: &str) -> (i64, u64) {
    let parse = || {
        let (epoch, seq) = id.split_once('-')?;
        Some((epoch.parse().ok()?, seq.parse().ok()?))
    };
    let (epoch, seq): (i64, u64) = parse().unwrap_or_else(|| panic!("no event id: {id:?}"));
    assert_eq!(id, format!("{epoch}-{seq}"));
    (epoch, seq)
}

/// A JSON object whose keys keep their order; a key twice is an error.
struct Ordered(Vec<(String, Json)>);

impl<'de> serde::Deserialize<'de> for Ordered {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Ordered;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: serde::de::MapAccess<'de>>(
                self,
                mut map: M,
            ) -> Result<Ordered, M::Error> {
                let mut fields: Vec<(String, Json)> = Vec::new();
                while let Some((key, value)) = map.next_entry()? {
                    if fields.iter().any(|(k, _)| *k == key) {
                        return Err(serde::de::Error::custom(format!("{key} twice")));
                    }
                    fields.push((key, value));
                }
                Ok(Ordered(fields))
            }
        }
        d.deserialize_map(Visitor)
    }
}
