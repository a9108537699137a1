//! The systems that are compared, and what each sends to the server for the same event.
//!
//! Each has a database of its own, so that nobody's keys are in another's way.

use crate::Result;
use crate::dataset::{Shape, meta, session, user};
use crate::load::{CLOCK, Calls};
use crate::resp::{Client, Expect};
use crate::scripts;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum System {
    /// A module command that does nothing.
    Baseline,
    /// One that opens its key, asks the time and replicates itself, and does nothing else.
    Opener,
    Presence,
    /// The lease as score of a sorted set, and nothing else.
    SortedSet,
    /// The same where the new score is anywhere among the others, and not the latest of all.
    SortedSetAny,
    /// A key a session with the metadata as value.
    SetEx,
    /// The same with one byte as value: the least that a key can be.
    SetExBare,
    /// A hash a session.
    HashEx,
    /// A hash a space, a field a session, and each field with a TTL: HSETEX.
    FieldSetEx,
    /// The same, and a heartbeat only moves the TTL: HPEXPIRE.
    FieldExpire,
    Classic,
    ClassicUsers,
    Map,
    Cihangir,
    Longhouse,
}

use System::*;

pub const HEARTBEATS: [System; 15] = [
    Baseline,
    Opener,
    Presence,
    SortedSet,
    SortedSetAny,
    SetEx,
    SetExBare,
    HashEx,
    FieldSetEx,
    FieldExpire,
    Classic,
    ClassicUsers,
    Map,
    Cihangir,
    Longhouse,
];
pub const JOINS: [System; 6] = [Presence, Classic, ClassicUsers, Map, Cihangir, Longhouse];

/// Longer than any run.
const SECONDS: &[u8] = b"7200";
const MILLISECONDS: &[u8] = b"7200000";
/// What Centrifugo has where nothing is set.
const STREAM_LENGTH: &[u8] = b"100";
const STREAM_TTL: &[u8] = b"60000";

impl System {
    /// In the names of samples.
    pub fn name(self) -> &'static str {
        match self {
            Baseline => "baseline",
            Opener => "opener",
            Presence => "presence",
            SortedSet => "zadd",
            SortedSetAny => "zadd-any",
            SetEx => "setex",
            SetExBare => "setex-bare",
            HashEx => "hset",
            FieldSetEx => "hsetex",
            FieldExpire => "hpexpire",
            Classic => "classic",
            ClassicUsers => "classic-users",
            Map => "map",
            Cihangir => "cihangir",
            Longhouse => "longhouse",
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Baseline => "module command that does nothing",
            Opener => "one that opens its key, no more",
            Presence => "PRESENCE.ONLINE",
            SortedSet => "ZADD, new latest score",
            SortedSetAny => "ZADD, new score anywhere",
            SetEx => "SET … EX, the metadata",
            SetExBare => "SET … EX, one byte",
            HashEx => "HSET + EXPIRE",
            FieldSetEx => "HSETEX … FIELDS 1",
            FieldExpire => "HPEXPIRE … FIELDS 1",
            Classic => "Centrifugo classic",
            ClassicUsers => "Centrifugo classic with users",
            Map => "Centrifugo map",
            Cihangir => "cihangir/presence",
            Longhouse => "Longhouse",
        }
    }

    /// The database of its own. Ours and the baselines have no data of others beside them either, and it is
    /// our keys that are opened.
    pub fn db(self) -> usize {
        match self {
            Baseline | Opener | Presence => 0,
            SortedSet => 1,
            SortedSetAny => 10,
            SetEx => 2,
            SetExBare => 3,
            HashEx => 4,
            FieldSetEx => 12,
            FieldExpire => 13,
            Classic => 5,
            ClassicUsers => 6,
            Map => 7,
            Cihangir => 8,
            Longhouse => 9,
        }
    }

    /// The commands of a heartbeat or join whose times make up the call's in INFO.
    fn commands(self) -> &'static [&'static str] {
        match self {
            Baseline => &["benchmark.baseline"],
            Opener => &["benchmark.opens"],
            Presence => &["presence.online", "presence.offline"],
            SortedSet | SortedSetAny => &["zadd"],
            SetEx | SetExBare => &["set"],
            HashEx => &["hset", "expire"],
            FieldSetEx => &["hsetex"],
            FieldExpire => &["hpexpire"],
            Classic | ClassicUsers => &["evalsha", "publish"],
            Map => &["evalsha"],
            // EXEC counts what runs in it.
            Cihangir => &["multi", "exec"],
            Longhouse => &["set", "pexpire", "keys", "del"],
        }
    }

    /// A command that not every server has, and without which the system cannot be measured.
    pub fn needs(self) -> Option<&'static str> {
        match self {
            FieldSetEx | FieldExpire => Some("HSETEX"),
            _ => None,
        }
    }

    fn calls(self, replies: Vec<Expect>) -> Calls {
        Calls::new(self.db(), replies, self.commands())
    }

    /// Brings everybody in, if the system keeps anybody.
    pub fn fill(self, shape: &Shape, sha: &Shas) -> Option<Calls> {
        match self {
            Baseline | Opener => None,
            SortedSet | SortedSetAny => Some(self.zadd(shape, 0..shape.members, Expect::int(1))),
            Presence | Classic | ClassicUsers | Map => {
                Some(self.joins(shape, 0..shape.members, sha))
            }
            SetEx | SetExBare => Some(self.set(0..shape.members)),
            HashEx => Some(self.hset(0..shape.members, Expect::int(2))),
            FieldSetEx | FieldExpire => Some(self.hsetex(shape, 0..shape.members)),
            Cihangir => {
                let mut calls = self.calls(vec![Expect::ok()]);
                for member in 0..shape.members {
                    let id = session(member);
                    calls.request(&[
                        b"SETEX",
                        cihangir_key(&id).as_bytes(),
                        SECONDS,
                        id.as_bytes(),
                    ]);
                    calls.end();
                }
                Some(calls)
            }
            Longhouse => {
                let mut calls = self.calls(vec![Expect::ok()]);
                for member in 0..shape.members {
                    let key = longhouse_key(shape, member);
                    calls.request(&[b"SET", key.as_bytes(), user(member).as_bytes()]).end();
                }
                Some(calls)
            }
        }
    }

    /// A heartbeat of each member, all of whom are there.
    pub fn heartbeats(self, shape: &Shape, sha: &Shas) -> Calls {
        let order = shape.order();
        match self {
            Baseline | Opener | Presence => {
                let command: &[u8] = match self {
                    Baseline => b"BENCHMARK.BASELINE",
                    Opener => b"BENCHMARK.OPENS",
                    _ => b"PRESENCE.ONLINE",
                };
                let mut calls = self.calls(vec![Expect::int(0)]);
                for member in order {
                    let (space, user) = (shape.space_of(member), user(member));
                    calls.request(&[
                        command,
                        space.as_bytes(),
                        user.as_bytes(),
                        b"SESSION",
                        session(member).as_bytes(),
                    ]);
                    calls.end();
                }
                calls
            }
            SortedSet | SortedSetAny => self.zadd(shape, order, Expect::int(0)),
            SetEx | SetExBare => self.set(order),
            HashEx => self.hset(order, Expect::int(0)),
            FieldSetEx => self.hsetex(shape, order),
            FieldExpire => {
                let mut calls = self.calls(vec![Expect::Exactly(b"*1\r\n:1\r\n".to_vec())]);
                for member in order {
                    let (key, field) = (field_key(shape, member), session(member));
                    calls.request(&[
                        b"HPEXPIRE",
                        key.as_bytes(),
                        MILLISECONDS,
                        b"FIELDS",
                        b"1",
                        field.as_bytes(),
                    ]);
                    calls.end();
                }
                calls
            }
            Classic | ClassicUsers => {
                let mut calls = self.calls(vec![Expect::int(1)]);
                for member in order {
                    self.classic_add(&mut calls, shape, member, sha);
                    calls.end();
                }
                calls
            }
            Map => {
                let mut calls = self.calls(vec![Expect::ends("known")]);
                for member in order {
                    map_add(&mut calls, shape, member, sha);
                    calls.end();
                }
                calls
            }
            Cihangir => {
                let expired = Expect::Exactly(b"*1\r\n:1\r\n".to_vec());
                let mut calls = self.calls(vec![Expect::ok(), queued(), expired]);
                for member in order {
                    let key = cihangir_key(&session(member));
                    calls.request(&[b"MULTI"]);
                    calls.request(&[b"EXPIRE", key.as_bytes(), SECONDS]);
                    calls.request(&[b"EXEC"]).end();
                }
                calls
            }
            Longhouse => {
                let mut calls = self.calls(vec![Expect::int(1)]);
                for member in order {
                    let key = longhouse_key(shape, member);
                    calls.request(&[b"PEXPIRE", key.as_bytes(), MILLISECONDS]).end();
                }
                calls
            }
        }
    }

    /// New members come in. Who listens would hear of each.
    pub fn joins(self, shape: &Shape, members: std::ops::Range<usize>, sha: &Shas) -> Calls {
        match self {
            Presence => {
                let mut calls = self.calls(vec![Expect::int(1)]);
                for member in members {
                    let (space, user, session) =
                        (shape.space_of(member), user(member), session(member));
                    let mut args: Vec<&[u8]> = vec![
                        b"PRESENCE.ONLINE",
                        space.as_bytes(),
                        user.as_bytes(),
                        b"SESSION",
                        session.as_bytes(),
                    ];
                    let meta = meta(member);
                    if shape.meta {
                        args.extend([&b"META"[..], meta.as_bytes()]);
                    }
                    calls.request(&args).end();
                }
                calls
            }
            Classic | ClassicUsers => {
                let mut calls = self.calls(vec![Expect::int(1), Expect::int(0)]);
                for member in members {
                    self.classic_add(&mut calls, shape, member, sha);
                    publish(&mut calls, shape, member);
                    calls.end();
                }
                calls
            }
            Map => {
                let mut calls = self.calls(vec![Expect::ends("new")]);
                for member in members {
                    map_add(&mut calls, shape, member, sha);
                    calls.end();
                }
                calls
            }
            Cihangir => {
                let missing = Expect::Exactly(b"*1\r\n:0\r\n".to_vec());
                let set = Expect::Exactly(b"*1\r\n+OK\r\n".to_vec());
                let (ok, queued) = (Expect::ok(), queued());
                let mut calls =
                    self.calls(vec![ok.clone(), queued.clone(), missing, ok, queued, set]);
                for member in members {
                    let id = session(member);
                    let key = cihangir_key(&id);
                    calls.request(&[b"MULTI"]);
                    calls.request(&[b"EXPIRE", key.as_bytes(), SECONDS]);
                    calls.request(&[b"EXEC"]);
                    calls.request(&[b"MULTI"]);
                    calls.request(&[b"SETEX", key.as_bytes(), SECONDS, id.as_bytes()]);
                    calls.request(&[b"EXEC"]).end();
                }
                calls
            }
            Longhouse => {
                let keys = Expect::BeginsWith(b"*".to_vec());
                let mut calls = self.calls(vec![Expect::ok(), Expect::int(1), keys]);
                calls.pipeline = 1;
                for member in members {
                    let key = longhouse_key(shape, member);
                    let everybody = format!("longhouse|spaces|{}|*", shape.space_of(member));
                    calls.request(&[b"SET", key.as_bytes(), user(member).as_bytes()]);
                    calls.request(&[b"PEXPIRE", key.as_bytes(), MILLISECONDS]);
                    calls.request(&[b"KEYS", everybody.as_bytes()]).end();
                }
                calls
            }
            _ => unreachable!("tells of no joins"),
        }
    }

    /// They go again.
    pub fn leaves(self, shape: &Shape, members: std::ops::Range<usize>, sha: &Shas) -> Calls {
        match self {
            Presence => {
                let mut calls = self.calls(vec![Expect::int(1)]);
                for member in members {
                    calls.request(&[
                        b"PRESENCE.OFFLINE",
                        shape.space_of(member).as_bytes(),
                        user(member).as_bytes(),
                        b"SESSION",
                        session(member).as_bytes(),
                    ]);
                    calls.end();
                }
                calls
            }
            Classic | ClassicUsers => {
                let mut calls = self.calls(vec![Expect::int(1), Expect::int(0)]);
                for member in members {
                    let keys = classic_keys(shape, member);
                    let session = session(member);
                    calls.request(&[
                        b"EVALSHA",
                        sha.classic_remove.as_bytes(),
                        b"4",
                        keys[0].as_bytes(),
                        keys[1].as_bytes(),
                        keys[2].as_bytes(),
                        keys[3].as_bytes(),
                        session.as_bytes(),
                        user(member).as_bytes(),
                        self.users_flag(),
                    ]);
                    publish(&mut calls, shape, member);
                    calls.end();
                }
                calls
            }
            Map => {
                let mut calls = self.calls(vec![Expect::ends("gone")]);
                for member in members {
                    let keys = map_keys(shape, member);
                    let space = shape.space_of(member);
                    let mut args: Vec<&[u8]> = vec![b"EVALSHA", sha.map_remove.as_bytes(), b"6"];
                    args.extend(keys.iter().map(|key| key.as_bytes()));
                    let (session, channel) = (session(member), map_channel(&space));
                    let info = client_info(shape, member);
                    args.extend([session.as_bytes(), &info, STREAM_LENGTH, STREAM_TTL]);
                    args.extend([MILLISECONDS, channel.as_bytes(), space.as_bytes()]);
                    calls.request(&args).end();
                }
                calls
            }
            Cihangir => {
                let expired = Expect::Exactly(b"*1\r\n:1\r\n".to_vec());
                let mut calls = self.calls(vec![Expect::ok(), queued(), expired]);
                for member in members {
                    let key = cihangir_key(&session(member));
                    calls.request(&[b"MULTI"]);
                    calls.request(&[b"EXPIRE", key.as_bytes(), b"0"]);
                    calls.request(&[b"EXEC"]).end();
                }
                calls
            }
            Longhouse => {
                let mut calls = self.calls(vec![Expect::int(1)]);
                for member in members {
                    calls.request(&[b"DEL", longhouse_key(shape, member).as_bytes()]).end();
                }
                calls
            }
            _ => unreachable!("tells of no leaves"),
        }
    }

    fn zadd(self, shape: &Shape, members: impl IntoIterator<Item = usize>, reply: Expect) -> Calls {
        let mut calls = self.calls(vec![reply]);
        calls.scattered = self == SortedSetAny;
        for member in members {
            let key = format!("leases:{}", shape.space_of(member));
            calls.request(&[b"ZADD", key.as_bytes(), &CLOCK, session(member).as_bytes()]).end();
        }
        calls
    }

    fn set(self, members: impl IntoIterator<Item = usize>) -> Calls {
        let mut calls = self.calls(vec![Expect::ok()]);
        for member in members {
            let meta = meta(member);
            let value: &[u8] = if self == SetEx { meta.as_bytes() } else { b"1" };
            calls.request(&[b"SET", session(member).as_bytes(), value, b"EX", SECONDS]).end();
        }
        calls
    }

    fn hset(self, members: impl IntoIterator<Item = usize>, reply: Expect) -> Calls {
        let mut calls = self.calls(vec![reply, Expect::int(1)]);
        for member in members {
            let key = session(member);
            let (user, meta) = (user(member), meta(member));
            let fields: [&[u8]; 4] = [b"user", user.as_bytes(), b"meta", meta.as_bytes()];
            calls.request(&[&[b"HSET", key.as_bytes()][..], &fields].concat());
            calls.request(&[b"EXPIRE", key.as_bytes(), SECONDS]).end();
        }
        calls
    }

    fn hsetex(self, shape: &Shape, members: impl IntoIterator<Item = usize>) -> Calls {
        let mut calls = self.calls(vec![Expect::int(1)]);
        for member in members {
            let (key, field, meta) = (field_key(shape, member), session(member), meta(member));
            calls.request(&[
                b"HSETEX",
                key.as_bytes(),
                b"EX",
                SECONDS,
                b"FIELDS",
                b"1",
                field.as_bytes(),
                meta.as_bytes(),
            ]);
            calls.end();
        }
        calls
    }

    fn users_flag(self) -> &'static [u8] {
        if self == ClassicUsers { b"1" } else { b"0" }
    }

    fn classic_add(self, calls: &mut Calls, shape: &Shape, member: usize, sha: &Shas) {
        let keys = classic_keys(shape, member);
        calls.request(&[
            b"EVALSHA",
            sha.classic_add.as_bytes(),
            b"4",
            keys[0].as_bytes(),
            keys[1].as_bytes(),
            keys[2].as_bytes(),
            keys[3].as_bytes(),
            SECONDS,
            &CLOCK,
            session(member).as_bytes(),
            &client_info(shape, member),
            user(member).as_bytes(),
            self.users_flag(),
        ]);
    }
}

/// Renewals of `each` sessions of one space a call, in no order; with the baseline's and the sorted
/// set's way of the same.
pub fn in_lists(system: System, shape: &Shape, each: usize) -> Calls {
    let reply = Expect::int(0);
    let mut calls = system.calls(vec![reply]);
    calls.pipeline = 8;
    calls.scattered = system == SortedSetAny;
    let order = shape.order();
    for space in 0..shape.spaces {
        let members: Vec<usize> = order.iter().skip(space).step_by(shape.spaces).copied().collect();
        for members in members.chunks_exact(each) {
            let space = shape.space_of(members[0]);
            let names: Vec<(String, String)> =
                members.iter().map(|member| (user(*member), session(*member))).collect();
            let count = each.to_string();
            let key = format!("leases:{space}");
            let mut args: Vec<&[u8]> = match system {
                SortedSet | SortedSetAny => vec![b"ZADD", key.as_bytes()],
                Presence => vec![b"PRESENCE.ONLINE", space.as_bytes()],
                _ => vec![b"BENCHMARK.BASELINE", space.as_bytes()],
            };
            let is_zadd = matches!(system, SortedSet | SortedSetAny);
            if !is_zadd {
                args.extend([&b"SESSIONS"[..], count.as_bytes()]);
            }
            for (user, session) in &names {
                args.push(if is_zadd { &CLOCK } else { user.as_bytes() });
                args.push(session.as_bytes());
            }
            calls.request(&args).end();
        }
    }
    calls
}

/// The leanest way to keep the same in core types: a sorted set of leases, and a hash of session to
/// user and metadata, a pair for each space.
pub fn plain_pair(shape: &Shape, members: std::ops::Range<usize>) -> Calls {
    let mut calls = Calls::new(PLAIN_DB, vec![Expect::int(1), Expect::int(1)], &[]);
    for member in members {
        let space = shape.space_of(member);
        let session = session(member);
        let data = format!("{} {}", user(member), meta(member));
        let (leases, sessions) = (format!("leases:{space}"), plain_hash(&space));
        calls.request(&[b"ZADD", leases.as_bytes(), &CLOCK, session.as_bytes()]);
        calls.request(&[b"HSET", sessions.as_bytes(), session.as_bytes(), data.as_bytes()]).end();
    }
    calls
}

pub const PLAIN_DB: usize = 11;

pub fn plain_hash(space: &str) -> String {
    format!("sessions:{space}")
}

/// Scripts by what the server calls them.
pub struct Shas {
    classic_add: String,
    classic_remove: String,
    map_add: String,
    map_remove: String,
}

impl Shas {
    pub fn load(client: &mut Client) -> Result<Shas> {
        let mut load =
            |script: &str| -> Result<String> { client.call(&["SCRIPT", "LOAD", script])?.text() };
        Ok(Shas {
            classic_add: load(scripts::CLASSIC_ADD)?,
            classic_remove: load(scripts::CLASSIC_REMOVE)?,
            map_add: load(scripts::MAP_ADD)?,
            map_remove: load(scripts::MAP_REMOVE)?,
        })
    }
}

fn queued() -> Expect {
    Expect::Exactly(b"+QUEUED\r\n".to_vec())
}

fn classic_keys(shape: &Shape, member: usize) -> [String; 4] {
    let space = shape.space_of(member);
    ["presence.expire", "presence.data", "presence.user.expire", "presence.user.clients"]
        .map(|kind| format!("centrifugo.{kind}.{space}"))
}

fn map_keys(shape: &Shape, member: usize) -> [String; 6] {
    let space = shape.space_of(member);
    [
        format!("centrifugo:stream:{space}"),
        format!("centrifugo:meta:{space}"),
        format!("centrifugo:state:{space}"),
        format!("centrifugo:state:expire:{space}"),
        format!("centrifugo:state:meta:{space}"),
        "centrifugo:cleanup:channels".into(),
    ]
}

fn map_channel(space: &str) -> String {
    format!("centrifugo.client.{space}")
}

fn map_add(calls: &mut Calls, shape: &Shape, member: usize, sha: &Shas) {
    let keys = map_keys(shape, member);
    let space = shape.space_of(member);
    let (session, channel, info) =
        (session(member), map_channel(&space), client_info(shape, member));
    let mut args: Vec<&[u8]> = vec![b"EVALSHA", sha.map_add.as_bytes(), b"6"];
    args.extend(keys.iter().map(|key| key.as_bytes()));
    args.extend([session.as_bytes(), &info, STREAM_LENGTH, STREAM_TTL, MILLISECONDS]);
    args.extend([channel.as_bytes(), b"abcdefgh", MILLISECONDS, &CLOCK, space.as_bytes()]);
    calls.request(&args);
}

fn publish(calls: &mut Calls, shape: &Shape, member: usize) {
    let channel = map_channel(&shape.space_of(member));
    calls.request(&[b"PUBLISH", channel.as_bytes(), &client_info(shape, member)]);
}

/// What Centrifugo keeps of a client: user, client and metadata, each with its tag and length.
fn client_info(shape: &Shape, member: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let meta = if shape.meta { meta(member) } else { String::new() };
    for (tag, text) in [(0x0a, user(member)), (0x12, session(member)), (0x1a, meta)] {
        bytes.extend([tag, text.len() as u8]);
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// The hash of a space whose fields are sessions.
fn field_key(shape: &Shape, member: usize) -> String {
    format!("fields:{}", shape.space_of(member))
}

fn cihangir_key(session: &str) -> String {
    format!("presence:{session}")
}

fn longhouse_key(shape: &Shape, member: usize) -> String {
    let (space, session) = (shape.space_of(member), session(member));
    format!("longhouse|spaces|{space}|{session}|{}|2026-01-01T00:00:00.000Z", user(member))
}
