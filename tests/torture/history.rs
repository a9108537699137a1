//! What is recorded in a round. Times are unix ms of the one clock that servers and test share.

use serde_json::Value as Json;
use std::collections::BTreeMap;

/// A session: its user and its name.
pub type Who = (String, String);

/// What a client did, as it saw it.
#[derive(Clone, Debug)]
pub struct Op {
    pub client: usize,
    /// Whom it asked: the server that decided in this era.
    pub era: usize,
    pub space: String,
    /// The sessions it was about; of OFFLINE without a session, all that the user may have.
    pub who: Vec<Who>,
    pub what: What,
    pub sent: i64,
    /// Absent where no answer came: it was done or was not, at any time from then on.
    pub received: Option<i64>,
    pub reply: Reply,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    Online {
        lease: Lease,
        meta: Option<String>,
        conditional: bool,
    },
    /// 0 is at once.
    Offline {
        linger: i64,
    },
    Message {
        text: String,
    },
    /// PRESENCE.USER, by the one client that writes this user.
    Look,
    /// DEL: nobody else writes the space meanwhile.
    Wipe,
    /// CLOSE, likewise.
    Close,
    /// WAIT; `covers` is when the client's last write that was answered had been sent.
    Wait {
        covers: i64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lease {
    For(i64),
    Until(i64),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Lost,
    Refused(String),
    Null,
    Count(i64),
    Id(i64, u64),
    Sessions(BTreeMap<Who, SessionRead>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct SessionRead {
    pub expires_at: i64,
    pub meta: Option<String>,
}

/// What a space is called that has gone away from its name: this and the name.
pub const AWAY: &str = "away:";

/// An event as it was published.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub epoch: i64,
    pub seq: u64,
    /// The name that it had at first.
    pub space: String,
    pub kind: String,
    pub who: Who,
    pub reason: String,
    pub meta: Option<String>,
    pub message: String,
    pub joined_at: i64,
    pub users: i64,
    pub at: i64,
    pub raw: String,
}

impl Event {
    pub fn parse(raw: &str) -> Option<Event> {
        let json: Json = serde_json::from_str(raw).ok()?;
        let text = |key: &str| json[key].as_str().unwrap_or("").to_string();
        let (epoch, seq) = json["id"].as_str()?.split_once('-')?;
        Some(Event {
            epoch: epoch.parse().ok()?,
            seq: seq.parse().ok()?,
            space: text("space").trim_start_matches(AWAY).to_string(),
            kind: text("type"),
            who: (text("user"), text("session")),
            reason: text("reason"),
            meta: json.get("meta").map(Json::to_string),
            message: text("message"),
            joined_at: json["joined_at"].as_i64().unwrap_or(0),
            users: json["users"].as_i64()?,
            at: json["at"].as_i64()?,
            raw: raw.to_string(),
        })
    }

    /// Where it has to be published.
    pub fn channel(&self) -> String {
        let away = if self.raw.contains(r#""space":"away:"#) { AWAY } else { "" };
        format!("presence:{away}{}", self.space)
    }

    pub fn id(&self) -> (i64, u64) {
        (self.epoch, self.seq)
    }
}

/// Something that a recorder heard.
#[derive(Clone, Debug)]
pub enum Heard {
    Event {
        arrived: i64,
        event: Box<Event>,
    },
    /// A mark that the test published.
    Mark(usize),
    /// What is no event.
    Noise(String),
}

/// What was heard at one process of one node, in order.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    pub node: usize,
    pub heard: Vec<Heard>,
}

/// A space as PRESENCE.SPACE and PRESENCE.EVENTS showed it in one transaction.
#[derive(Clone, Debug)]
pub struct SpaceRead {
    pub space: String,
    /// (0, 0) where there is none.
    pub id: (i64, u64),
    pub users: i64,
    pub sessions: i64,
    pub members: BTreeMap<Who, SessionRead>,
    pub events: Vec<Event>,
    pub sent: i64,
    pub received: i64,
}

pub type Reading = BTreeMap<String, SpaceRead>;

/// A space as it was read somewhere while things went on.
#[derive(Clone, Debug)]
pub struct Glimpse {
    /// Where it was read from the server that decided.
    pub era: Option<usize>,
    pub read: SpaceRead,
}

/// What a change of who decides may lose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Nothing that anybody had an answer to or heard.
    Nothing,
    /// What had not reached the replica: a tail of what happened, and nothing before the last write that a WAIT covered.
    Tail,
}

/// The time in which one server decides: from its start, its promotion or its reload on.
#[derive(Clone, Debug)]
pub struct Era {
    pub how: String,
    pub decider: usize,
    /// It began not before and not after.
    pub began: (i64, i64),
    /// What was there at the beginning, before any client.
    pub start: Reading,
    /// The same on the replica, before it was promoted.
    pub inherited: Option<Reading>,
    /// How the era before it ended.
    pub loss: Loss,
    /// Which stream tells what was decided, from which mark on, and up to which.
    pub stream: usize,
    pub from: usize,
    pub to: Option<usize>,
    /// When it began to end.
    pub ended: i64,
}

/// The digests of all spaces on one node.
pub type Digests = (String, Vec<String>);

/// All that was observed in a round.
#[derive(Clone, Debug, Default)]
pub struct Round {
    pub grace: i64,
    pub ops: Vec<Op>,
    pub eras: Vec<Era>,
    pub streams: Vec<Stream>,
    pub glimpses: Vec<Glimpse>,
    /// Of each comparison the digests of each node, the one that decides first.
    pub digests: Vec<Vec<Digests>>,
    /// When which node began a full synchronisation: what was published meanwhile it does not hear.
    pub full_syncs: Vec<(usize, i64)>,
    /// When the server that decides was held up by a fault.
    pub held_up: Vec<(i64, i64)>,
    /// What each node showed in the end, the one that decides first.
    pub finals: Vec<Reading>,
    /// Servers that died, lines of their logs, what did not come back.
    pub troubles: Vec<String>,
    /// What a follower believed that was not so.
    pub misled: Vec<String>,
    /// How many events followers applied, snapshots they read, and questions had no gap.
    pub followed: [usize; 3],
    /// What was done to the servers, for the report.
    pub faults: Vec<(i64, String)>,
}
