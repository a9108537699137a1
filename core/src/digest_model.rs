//! Digests against a model too simple to be wrong: the list of sessions after each event.

use super::*;
use crate::rules::{Setting, SpaceSettings};
use crate::space::{ChangeCtx, Condition, Effect, Lookup, MetaChange, OnlineRequest, Sink};
use proptest::prelude::*;
use serde_json::Value;

/// (joined_at, metadata) by (user, session).
type Sessions = BTreeMap<(String, String), (u64, Option<String>)>;

/// Gathers net changes as a change set does, and keeps what the sessions were after each event.
struct Recorder {
    changes: NetChanges,
    most: usize,
    log: Vec<(EventId, Sessions)>,
}

impl Sink for Recorder {
    fn effect(&mut self, _: &Effect<'_>) {}

    fn event(&mut self, event: &Event<'_>, _: &[u8]) {
        self.changes.record(event, self.most);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let mut sessions =
            self.log.last().map_or_else(Sessions::new, |(_, sessions)| sessions.clone());
        let who = (text(event.user.unwrap_or_default()), text(event.session));
        match event.kind {
            Kind::Join | Kind::Add | Kind::Update => {
                sessions.insert(who, (event.joined_at.unwrap(), event.meta.map(text)));
            }
            Kind::Remove | Kind::Leave => {
                sessions.remove(&who);
            }
            Kind::Close => sessions.clear(),
            Kind::Message => {}
        }
        self.log.push(((event.epoch, event.seq), sessions));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Online(u8, u8, Option<u8>),
    Offline(u8, Option<u8>),
    Message,
    /// Time passes, and what has expired is swept.
    Wait(u64),
    Close,
    /// The follower misses the next digest.
    Miss,
    /// The follower reads the snapshot.
    Snapshot,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..4u8, 0..2u8, prop::option::of(0..3u8)).prop_map(|(u, s, m)| Op::Online(u, s, m)),
        4 => (0..4u8, prop::option::of(0..2u8)).prop_map(|(u, s)| Op::Offline(u, s)),
        1 => Just(Op::Message),
        4 => (0..120u64).prop_map(Op::Wait),
        1 => Just(Op::Miss),
        1 => Just(Op::Snapshot),
    ]
}

/// A follower, by the rules of the contract.
struct Follower {
    id: EventId,
    sessions: Sessions,
    applied: usize,
}

fn id_of(text: &Value) -> EventId {
    let (epoch, seq) = text.as_str().unwrap().split_once('-').unwrap();
    (epoch.parse().unwrap(), seq.parse().unwrap())
}

impl Follower {
    fn follow(&mut self, digest: &Value, log: &[(EventId, Sessions)]) {
        let (from, to) = (id_of(&digest["from"]), id_of(&digest["to"]));
        assert!(from < to, "{digest}");
        if to <= self.id {
            return;
        }
        if digest["more"] == true || self.id < from {
            self.snapshot(log);
        } else if self.id > from {
            // EVENTS … AFTER: what has an id up to `to` is applied, which comes to the list after `to`.
            self.sessions = log.iter().rfind(|(id, _)| *id <= to).unwrap().1.clone();
            self.id = to;
        } else {
            self.apply(digest);
            self.id = to;
            self.applied += 1;
        }
    }

    fn apply(&mut self, digest: &Value) {
        if digest["closed"] == true {
            self.sessions.clear();
        }
        let who = |entry: &Value| {
            let text = |key: &str| entry[key].as_str().unwrap_or_default().to_string();
            (text("user"), text("session"))
        };
        let list = |key: &str| digest[key].as_array().cloned().unwrap_or_default();
        let meta = |entry: &Value| entry.get("meta").map(Value::to_string);
        for entry in list("left") {
            assert!(["offline", "timeout"].contains(&entry["reason"].as_str().unwrap()));
            assert!(self.sessions.remove(&who(&entry)).is_some(), "{entry} was not there");
        }
        for entry in list("joined") {
            let joined_at = entry["joined_at"].as_u64().unwrap();
            self.sessions.insert(who(&entry), (joined_at, meta(&entry)));
        }
        for entry in list("updated") {
            self.sessions.get_mut(&who(&entry)).expect("it is there").1 = meta(&entry);
        }
    }

    fn snapshot(&mut self, log: &[(EventId, Sessions)]) {
        if let Some((id, sessions)) = log.last() {
            (self.id, self.sessions) = (*id, sessions.clone());
        }
    }
}

/// Runs the operations. Returns how many digests were applied.
fn run(ops: &[Op], interval: u64, most: usize) -> usize {
    let limits = SpaceSettings::new(|setting: Setting| setting.range().0).limits(0);
    let mut space = Space::new(1000);
    let mut now = 1000;
    let mut sink = Recorder { changes: NetChanges::default(), most, log: Vec::new() };
    let mut digests = Digests::new(space.last_id(), (0, 0));
    let mut follower = Follower { id: (0, 0), sessions: Sessions::new(), applied: 0 };
    let (mut misses, mut last, mut counts, mut counts_at) = (false, None, (0, 0), None);
    for op in ops {
        let at = ChangeCtx { space: b"s\"", now, limits };
        let name = |n: u8| format!("{n}\u{e9}");
        match op {
            Op::Online(user, session, meta) => {
                let (user, session) =
                    (name(*user), if *session == 0 { String::new() } else { name(*session) });
                let meta = meta.map(|meta| meta.to_string());
                let request = OnlineRequest {
                    who: (&user, &session),
                    keeper: (now + 100).into(),
                    meta: MetaChange::To(meta.as_deref()),
                    condition: Condition::Always,
                };
                let _ = space.online(at, &Lookup::default(), request, |_| true, &mut sink);
            }
            Op::Offline(user, session) => {
                let session = session.map(|n| if n == 0 { String::new() } else { name(n) });
                space.offline(at, &name(*user), session.as_deref(), 0, &mut sink);
            }
            Op::Message => drop(space.message(at, "m", "", "text", &mut sink)),
            Op::Wait(ms) => {
                now += ms;
                space.sweep(ChangeCtx { now, ..at }, &mut sink, &mut || true);
            }
            Op::Close => drop(space.close(at, now + 1000, &mut sink)),
            Op::Miss => misses = true,
            Op::Snapshot => follower.snapshot(&sink.log),
        }
        digests.merge(std::mem::take(&mut sink.changes), most);
        let due = digests.next_due(space.stored(), interval);
        let digest = digests.digest(b"s\"", &space, now, interval, false);
        let count = digests.count(b"s\"", &space, now, interval, false);
        assert_eq!(due.is_some_and(|due| due <= now), digest.is_some() || count.is_some());
        if let Some(count) = count {
            let count: Value = serde_json::from_slice(&count).unwrap();
            let told = (
                count["users"].as_u64().unwrap() as usize,
                count["sessions"].as_u64().unwrap() as usize,
            );
            assert!(
                told == space.stored() && told != counts && id_of(&count["id"]) == space.last_id()
            );
            assert!(counts_at.is_none_or(|at| now - at >= interval) || space.is_closed());
            (counts, counts_at) = (told, Some(now));
        }
        let Some(digest) = digest else { continue };
        let digest: Value = serde_json::from_slice(&digest).unwrap();
        let (expected_from, at) = last.unwrap_or(((0, 0), None::<u64>));
        assert_eq!(id_of(&digest["from"]), expected_from, "each begins where the last one ended");
        assert_eq!(id_of(&digest["to"]), space.last_id());
        assert!(at.is_none_or(|at| now - at >= interval) || digest["closed"] == true);
        assert_eq!(digest["sessions"], space.stored().1);
        let listed: usize = ["joined", "left", "updated"]
            .iter()
            .map(|key| digest[*key].as_array().map_or(0, Vec::len))
            .sum();
        assert!(
            listed <= most && (listed > 0 || digest["more"] == true || digest["closed"] == true)
        );
        last = Some((space.last_id(), Some(now)));
        if !std::mem::take(&mut misses) {
            follower.follow(&digest, &sink.log);
        }
        let expected = sink.log.iter().rfind(|(id, _)| *id <= follower.id);
        assert_eq!(follower.sessions, expected.map_or_else(Sessions::new, |(_, s)| s.clone()));
    }
    follower.applied
}

proptest! {
    /// A follower who applies digests has exactly the sessions of the space, whatever it misses.
    #[test]
    fn a_follower_of_digests_has_the_snapshot(
        ops in prop::collection::vec(op(), 0..80),
        ends in any::<bool>(),
        interval in prop_oneof![Just(1u64), Just(50), Just(300)],
        most in 0..6usize,
    ) {
        let mut ops = ops;
        if ends {
            ops.push(Op::Close);
        }
        run(&ops, interval, most);
    }
}

#[test]
fn net_changes_are_by_session() {
    let join = Op::Online(1, 0, Some(1));
    let ops = [
        // The first change at once, the others together after the interval.
        join.clone(),
        Op::Online(2, 0, None),
        Op::Online(1, 0, Some(2)),
        Op::Offline(2, None),
        Op::Online(3, 1, None),
        Op::Wait(60),
        Op::Offline(1, None),
        join,
        Op::Close,
    ];
    assert_eq!(run(&ops, 50, 10), 3);
    let event =
        |kind, reason| Event { user: Some(b"u"), reason, ..Event::new(1, b"s", kind, 1, 1) };
    let mut net = NetChanges::default();
    net.record(&event(Kind::Join, None), 5);
    net.record(&event(Kind::Update, None), 5);
    net.record(&event(Kind::Message, None), 5);
    assert!(!net.is_empty());
    net.record(&event(Kind::Leave, Some(Reason::Timeout)), 5);
    assert!(net.is_empty(), "nothing net");
    net.record(&event(Kind::Leave, Some(Reason::Timeout)), 5);
    net.record(&event(Kind::Join, None), 5);
    net.record(&event(Kind::Leave, Some(Reason::Offline)), 5);
    assert_eq!(net.changes.values().collect::<Vec<_>>(), [&Net::Left(Reason::Offline)]);
    net.record(&event(Kind::Update, None), 0);
    assert!(net.has_more && net.changes.is_empty());
    net.record(&event(Kind::Close, None), 5);
    assert!(net.is_closed && !net.has_more);
}

/// Long lists are left out, whatever the setting says.
#[test]
fn a_digest_is_of_bounded_size() {
    let limits = SpaceSettings::new(|setting: Setting| setting.range().0).limits(0);
    let mut space = Space::new(1);
    let mut sink = Recorder { changes: NetChanges::default(), most: 100_000, log: Vec::new() };
    let users: Vec<String> = (0..3000).map(|n| format!("{n:0500}")).collect();
    for some in users.chunks(100) {
        sink.log.clear();
        let some: Vec<_> = some.iter().map(|user| (user.as_str(), "")).collect();
        let at = ChangeCtx { space: b"s", now: 1, limits };
        space.online_many(at, &some, 9, |_| true, |_| {}, &mut sink).unwrap();
    }
    let mut digests = Digests::new((1, 0), (0, 0));
    digests.merge(sink.changes, 100_000);
    let text = digests.digest(b"s", &space, 1, 10, false).unwrap();
    let expected = "{\"space\":\"s\",\"type\":\"digest\",\"from\":\"0-0\",\"to\":\"1-3000\",\"users\":3000,\"sessions\":3000,\"more\":true,\"at\":1}";
    assert_eq!(String::from_utf8(text).unwrap(), expected);
    let count = digests.count(b"s", &space, 1, 10, false).unwrap();
    let expected = "{\"space\":\"s\",\"users\":3000,\"sessions\":3000,\"id\":\"1-3000\",\"at\":1}";
    assert_eq!(String::from_utf8(count).unwrap(), expected);
}
