//! The sessions of a space: a snapshot, and the events since then.

use super::event::{Event, EventId, Kind, Meta};
use super::follow::{Step, step};
use super::time::iso;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A session's name in the space: user and session.
pub type Key = (String, String);

/// One session, with the texts that clients are shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub user: String,
    pub session: String,
    pub joined_at: u64,
    pub meta: Meta,
    /// The id that clients are shown.
    pub id: String,
    /// `{"id":…,"identity":…,"joinedAt":…,"username":…}`
    pub json: String,
    /// The same with `status`.
    pub json_with_status: String,
}

impl Member {
    pub fn new(user: &str, session: &str, joined_at: u64, meta: Meta) -> Member {
        let id = shown_id(user, session, &meta);
        let quoted = |s: &str| serde_json::Value::from(s).to_string();
        let fields = format!(
            r#""id":{},"identity":{},"joinedAt":"{}","username":{}"#,
            quoted(&id),
            quoted(user),
            iso(joined_at),
            quoted(&meta.username)
        );
        Member {
            user: user.into(),
            session: session.into(),
            joined_at,
            id,
            json: format!("{{{fields}}}"),
            json_with_status: format!(r#"{{{fields},"status":{}}}"#, quoted(&meta.status)),
            meta,
        }
    }

    pub fn key(&self) -> Key {
        (self.user.clone(), self.session.clone())
    }
}

/// A session of a gateway is shown by its name. The names of other sessions are not unique in the space (each user's
/// "phone"), so they are shown by user and session. An id of a gateway's session has no slash, so the two never collide.
fn shown_id(user: &str, session: &str, meta: &Meta) -> String {
    if meta.token_hash.is_some() {
        return session.into();
    }
    format!("{}/{session}", user.replace('%', "%25").replace('/', "%2F"))
}

/// A change of what clients are shown.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Joined(Arc<Member>),
    Left(Arc<Member>),
    Updated(Arc<Member>),
}

/// What the room did with an event.
#[derive(Debug, PartialEq)]
pub enum Offer {
    /// It was known already.
    Old,
    /// Events before it may be missing. Nothing was done: ask the server.
    Ask,
    Applied(Vec<Change>),
}

#[derive(Clone, Debug, Default)]
pub struct Room {
    /// The last event that is in it.
    pub last: EventId,
    /// An epoch that has ended, see `follow::step`.
    ended_epoch: Option<u64>,
    members: HashMap<Key, Arc<Member>>,
    /// Sessions by shown id, oldest first. Only the oldest is shown: if two gateways give the same id to two users at
    /// the same moment, clients do not see an id twice.
    by_id: HashMap<String, Vec<Key>>,
    shown: BTreeMap<(u64, Key), Arc<Member>>,
}

impl Room {
    pub fn new(last: EventId, members: impl IntoIterator<Item = Member>) -> Room {
        let mut room = Room { last, ..Room::default() };
        for member in members {
            room.put(member, &mut Vec::new());
        }
        room
    }

    pub fn get(&self, key: &Key) -> Option<&Arc<Member>> {
        self.members.get(key)
    }

    /// The member that clients know by this id.
    pub fn by_id(&self, id: &str) -> Option<&Arc<Member>> {
        self.members.get(self.by_id.get(id)?.first()?)
    }

    /// The number of sessions with this id. It is more than one only for a moment, until the gateways correct it.
    pub fn count_id(&self, id: &str) -> usize {
        self.by_id.get(id).map_or(0, Vec::len)
    }

    /// The members that are shown, in the order of their joins.
    pub fn shown(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.shown.values()
    }

    pub fn offer(&mut self, event: &Event) -> Offer {
        match step(self.last, self.ended_epoch, event.id) {
            Step::Skip => Offer::Old,
            Step::Ask => Offer::Ask,
            Step::Apply => Offer::Applied(self.apply(event)),
        }
    }

    /// The server was asked after an event of this epoch arrived. If the room is not in this epoch now, it has ended.
    pub fn note_ended_epoch(&mut self, epoch: u64) {
        if self.last.epoch != epoch {
            self.ended_epoch = Some(epoch);
        }
    }

    /// Applies an event whatever its number. One that is in the snapshot already does no harm.
    pub fn apply(&mut self, event: &Event) -> Vec<Change> {
        self.last = event.id;
        let mut changes = Vec::new();
        match event.kind {
            Kind::Join | Kind::Add | Kind::Update => {
                let meta = event.meta.clone();
                let member = Member::new(&event.user, &event.session, event.joined_at, meta);
                self.put(member, &mut changes);
            }
            Kind::Remove | Kind::Leave => {
                self.remove(&(event.user.clone(), event.session.clone()), &mut changes);
            }
            Kind::Close => {
                let shown = std::mem::take(&mut self.shown);
                changes.extend(shown.into_values().map(Change::Left));
                self.members.clear();
                self.by_id.clear();
            }
            Kind::Message | Kind::Other => {}
        }
        changes
    }

    /// Becomes `fresh`. Returns the differences.
    pub fn become_room(&mut self, fresh: Room) -> Vec<Change> {
        let old = std::mem::replace(self, fresh);
        let mut changes = Vec::new();
        for (place, member) in &old.shown {
            if self.shown.get(place).is_none_or(|now| now.id != member.id) {
                changes.push(Change::Left(member.clone()));
            }
        }
        for (place, member) in &self.shown {
            match old.shown.get(place) {
                Some(was) if was.id == member.id => {
                    if was.meta != member.meta {
                        changes.push(Change::Updated(member.clone()));
                    }
                }
                _ => changes.push(Change::Joined(member.clone())),
            }
        }
        changes
    }

    fn put(&mut self, member: Member, changes: &mut Vec<Change>) {
        let key = member.key();
        if let Some(was) = self.members.get(&key) {
            if **was == member {
                return;
            }
            if was.id != member.id || was.joined_at != member.joined_at {
                // Another session of this name, and the end of the former one was missed: an end and a beginning.
                self.remove(&key, changes);
            }
        }
        let member = Arc::new(member);
        let known = self.members.insert(key.clone(), member.clone()).is_some();
        let same_id = self.by_id.entry(member.id.clone()).or_default();
        if !same_id.contains(&key) {
            same_id.push(key.clone());
        }
        if same_id.first() == Some(&key) {
            self.shown.insert((member.joined_at, key), member.clone());
            changes.push(if known { Change::Updated(member) } else { Change::Joined(member) });
        }
    }

    fn remove(&mut self, key: &Key, changes: &mut Vec<Change>) {
        let Some(member) = self.members.remove(key) else { return };
        if self.shown.remove(&(member.joined_at, key.clone())).is_some() {
            changes.push(Change::Left(member.clone()));
        }
        let Some(same_id) = self.by_id.get_mut(&member.id) else { return };
        same_id.retain(|k| k != key);
        let Some(next) = same_id.first().cloned() else {
            self.by_id.remove(&member.id);
            return;
        };
        if let Some(next_member) = self.members.get(&next) {
            let place = (next_member.joined_at, next);
            if self.shown.insert(place, next_member.clone()).is_none() {
                changes.push(Change::Joined(next_member.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64, kind: Kind, user: &str, session: &str) -> Event {
        Event {
            id: EventId { epoch: 1, seq },
            kind,
            user: user.into(),
            session: session.into(),
            joined_at: 100,
            meta: Meta { token_hash: Some("h".into()), ..Meta::default() },
            reason: None,
            message: None,
            users: 0,
            at: 0,
        }
    }

    /// A room in which nothing has happened yet.
    fn empty() -> Room {
        Room::new(EventId { epoch: 1, seq: 0 }, [])
    }

    fn brief(changes: &[Change]) -> Vec<String> {
        let text = |c: &Change| match c {
            Change::Joined(m) => format!("+{}:{}", m.user, m.id),
            Change::Left(m) => format!("-{}:{}", m.user, m.id),
            Change::Updated(m) => format!("~{}:{}", m.user, m.id),
        };
        changes.iter().map(text).collect()
    }

    #[track_caller]
    fn offer(room: &mut Room, event: Event) -> Vec<String> {
        match room.offer(&event) {
            Offer::Applied(changes) => brief(&changes),
            other => panic!("{other:?}"),
        }
    }

    fn ids(room: &Room) -> Vec<&str> {
        room.shown().map(|m| &*m.id).collect()
    }

    #[test]
    fn deltas() {
        let mut room = empty();
        assert_eq!(offer(&mut room, event(1, Kind::Join, "a", "1")), ["+a:1"]);
        assert_eq!(offer(&mut room, event(2, Kind::Add, "a", "2")), ["+a:2"]);
        assert_eq!(offer(&mut room, event(3, Kind::Message, "a", "2")), [""; 0]);
        assert_eq!(room.offer(&event(3, Kind::Leave, "a", "1")), Offer::Old);
        assert_eq!(room.offer(&event(5, Kind::Leave, "a", "1")), Offer::Ask);
        let mut update = event(4, Kind::Update, "a", "1");
        update.meta.status = "busy".into();
        assert_eq!(offer(&mut room, update), ["~a:1"]);
        assert_eq!(offer(&mut room, event(5, Kind::Remove, "a", "1")), ["-a:1"]);
        assert_eq!(ids(&room), ["2"]);
        assert_eq!(offer(&mut room, event(6, Kind::Close, "", "")), ["-a:2"]);
        assert_eq!(room.shown().count(), 0);
        assert!(room.by_id("2").is_none());
    }

    #[test]
    fn events_that_a_snapshot_contains_are_no_changes() {
        let owner = Meta { token_hash: Some("h".into()), ..Meta::default() };
        let mut room = Room::new(EventId { epoch: 1, seq: 4 }, [Member::new("a", "1", 100, owner)]);
        assert_eq!(room.offer(&event(4, Kind::Join, "a", "1")), Offer::Old);
        assert_eq!(offer(&mut room, event(5, Kind::Join, "a", "1")), [""; 0]);
        assert_eq!(offer(&mut room, event(6, Kind::Leave, "b", "9")), [""; 0]);
        let mut again = event(7, Kind::Join, "a", "1");
        again.joined_at = 200;
        assert_eq!(offer(&mut room, again), ["-a:1", "+a:1"]);
        assert_eq!(room.shown().count(), 1);
    }

    #[test]
    fn no_id_is_shown_twice() {
        let mut room = empty();
        assert_eq!(offer(&mut room, event(1, Kind::Join, "a", "x")), ["+a:x"]);
        assert_eq!(offer(&mut room, event(2, Kind::Join, "b", "x")), [""; 0]);
        assert_eq!((room.count_id("x"), room.by_id("x").unwrap().user.as_str()), (2, "a"));
        assert_eq!(offer(&mut room, event(3, Kind::Leave, "a", "x")), ["-a:x", "+b:x"]);
        assert_eq!(offer(&mut room, event(4, Kind::Leave, "b", "x")), ["-b:x"]);
        assert_eq!(room.count_id("x"), 0);
    }

    #[test]
    fn sessions_of_other_programs_have_ids_of_their_own() {
        let mut room = empty();
        for (seq, user, session) in
            [(1, "a", "phone"), (2, "b", "phone"), (3, "c", ""), (4, "d/e", "f"), (5, "d", "e/f")]
        {
            let mut join = event(seq, Kind::Join, user, session);
            join.meta = Meta::default();
            offer(&mut room, join);
        }
        assert_eq!(ids(&room), ["a/phone", "b/phone", "c/", "d/e/f", "d%2Fe/f"]);
    }

    #[test]
    fn a_new_snapshot_gives_the_differences() {
        let owner = |status: &str| Meta {
            token_hash: Some("h".into()),
            status: status.into(),
            ..Meta::default()
        };
        let member = |user: &str, at, status: &str| Member::new(user, user, at, owner(status));
        let id = |seq| EventId { epoch: 1, seq };
        let mut room = Room::new(
            id(3),
            [member("a", 1, ""), member("b", 2, ""), member("c", 3, ""), member("d", 4, "")],
        );
        let fresh = Room::new(
            id(9),
            [member("a", 1, ""), member("b", 2, "busy"), member("c", 8, ""), member("e", 9, "")],
        );
        let changes = room.become_room(fresh);
        assert_eq!(brief(&changes), ["-c:c", "-d:d", "~b:b", "+c:c", "+e:e"]);
        assert_eq!(room.last, id(9));
    }

    #[test]
    fn shown_as_json() {
        let meta =
            Meta { username: "Al \"x\"".into(), status: "hi".into(), token_hash: Some("h".into()) };
        let member = Member::new("al|*", "id", 1_433_538_566_480, meta);
        assert_eq!(
            member.json,
            r#"{"id":"id","identity":"al|*","joinedAt":"2015-06-05T21:09:26.480Z","username":"Al \"x\""}"#
        );
        assert!(member.json_with_status.ends_with(r#","status":"hi"}"#));
        serde_json::from_str::<serde_json::Value>(&member.json_with_status).unwrap();
    }
}
