//! What followers of large spaces receive: the net changes since the last digest, and the counts.
//!
//! - [`NetChanges`] has one entry per session that changed, however often it did. What begins and ends between two
//!   digests leaves no entry. There are at most as many entries as the setting says; if there are more, none is kept.
//! - [`Digests`] is what a space remembers for its digests: the net changes, where the last digest ended, and when it was
//!   published. Metadata is not remembered: it is read from the space when the digest is written.
//! - A digest begins where the one before ended. So a follower who applied that one has, after this one, exactly the
//!   sessions of the space.

use crate::space::{Event, Kind, Reason, Space, Timestamp, shown_name, write_number, write_text};
use std::collections::BTreeMap;

/// The changes of one digest take at most so many bytes of JSON. If they would take more, they are left out.
pub const MAX_LIST_BYTES: usize = 1 << 20;

/// Stands between user and session in a key. No UTF-8 text has this byte.
const SEPARATOR: u8 = 0xff;

/// The id of an event.
pub type EventId = (u64, u64);

/// Users and sessions.
pub type Counts = (usize, usize);

/// What became of a session since the last digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Net {
    /// It began. `was_there`: one of the same name had ended before.
    Joined {
        was_there: bool,
    },
    Left(Reason),
    Updated,
}

impl Net {
    /// What it comes to if this happens after `before`. None if it is as it was.
    fn after(self, before: Option<Net>) -> Option<Net> {
        match (before, self) {
            (Some(Net::Joined { was_there: false }), Net::Left(_)) => None,
            (Some(Net::Joined { .. }), Net::Left(reason)) => Some(Net::Left(reason)),
            (Some(joined @ Net::Joined { .. }), _) => Some(joined),
            (Some(_), Net::Joined { .. }) => Some(Net::Joined { was_there: true }),
            (_, net) => Some(net),
        }
    }
}

/// The net changes of a space from one event on.
#[derive(Debug, Default)]
pub struct NetChanges {
    /// By user, [`SEPARATOR`] and session.
    changes: BTreeMap<Box<[u8]>, Net>,
    /// There were too many.
    has_more: bool,
    is_closed: bool,
}

impl NetChanges {
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && !self.has_more && !self.is_closed
    }

    /// Takes in an event. There are at most `most` changes.
    pub fn record(&mut self, event: &Event<'_>, most: usize) {
        let net = match (event.kind, event.reason) {
            (Kind::Message, _) => return,
            (Kind::Close, _) => return self.close(),
            (Kind::Join | Kind::Add, _) => Net::Joined { was_there: false },
            (Kind::Update, _) => Net::Updated,
            (Kind::Remove | Kind::Leave, reason) => Net::Left(reason.unwrap_or(Reason::Offline)),
        };
        if self.is_full() {
            return;
        }
        let key = [event.user.unwrap_or_default(), &[SEPARATOR], event.session].concat();
        self.add(key.into(), net, most);
    }

    /// Takes in what happened afterwards.
    pub fn merge(&mut self, later: NetChanges, most: usize) {
        if later.is_closed {
            return self.close();
        }
        if self.is_full() {
            return;
        }
        if later.has_more {
            self.changes.clear();
            self.has_more = true;
            return;
        }
        for (key, net) in later.changes {
            if !self.is_full() {
                self.add(key, net, most);
            }
        }
    }

    /// Whether further changes of sessions make no difference.
    fn is_full(&self) -> bool {
        self.has_more || self.is_closed
    }

    fn close(&mut self) {
        *self = NetChanges { is_closed: true, ..NetChanges::default() };
    }

    fn add(&mut self, key: Box<[u8]>, net: Net, most: usize) {
        match net.after(self.changes.get(&key).copied()) {
            Some(net) => {
                self.changes.insert(key, net);
            }
            None => {
                self.changes.remove(&key);
            }
        }
        if self.changes.len() > most {
            self.changes.clear();
            self.has_more = true;
        }
    }

    /// The lists of a digest, each with a comma in front. None if they are too long.
    fn lists(&self, space: &Space) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let of = |is: fn(&Net) -> bool| self.changes.iter().filter(move |(_, net)| is(net));
        let lists = [
            ("joined", of(|net| matches!(net, Net::Joined { .. }))),
            ("left", of(|net| matches!(net, Net::Left(_)))),
            ("updated", of(|net| matches!(net, Net::Updated))),
        ];
        for (name, list) in lists {
            let mut is_first = true;
            for (key, net) in list {
                if is_first {
                    out.extend_from_slice(format!(",\"{name}\":[").as_bytes());
                } else {
                    out.push(b',');
                }
                is_first = false;
                write_change(&mut out, key, *net, space);
                if out.len() > MAX_LIST_BYTES {
                    return None;
                }
            }
            if !is_first {
                out.push(b']');
            }
        }
        Some(out)
    }
}

fn write_change(out: &mut Vec<u8>, key: &[u8], net: Net, space: &Space) {
    let at = key.iter().position(|byte| *byte == SEPARATOR).unwrap_or(key.len());
    let (user, session) = (key.get(..at).unwrap_or(key), key.get(at + 1..).unwrap_or_default());
    out.extend_from_slice(b"{\"user\":");
    write_text(out, user);
    if !session.is_empty() {
        out.extend_from_slice(b",\"session\":");
        write_text(out, session);
    }
    if let Net::Left(reason) = net {
        out.extend_from_slice(b",\"reason\":");
        write_text(out, reason.name().as_bytes());
    } else if let Some(record) = space.stored_session(user, session) {
        if matches!(net, Net::Joined { .. }) {
            out.extend_from_slice(b",\"joined_at\":");
            write_number(out, record.joined_at());
        }
        if let Some(meta) = record.meta() {
            out.extend_from_slice(b",\"meta\":");
            out.extend_from_slice(meta);
        }
    }
    out.push(b'}');
}

/// What a space remembers for its digests and counts.
#[derive(Debug)]
pub struct Digests {
    changes: NetChanges,
    /// The id at which the last digest ended.
    from: EventId,
    /// When the last digest was published.
    digest_at: Option<Timestamp>,
    /// The counts that were published last, and when.
    counts: Counts,
    counts_at: Option<Timestamp>,
}

impl Digests {
    /// For a space as it is now: its last event has `id`. A follower of a space that is not there has the id 0-0, so this
    /// is where a new space begins.
    pub fn new(id: EventId, counts: Counts) -> Self {
        let from = if id.1 == 0 { (0, 0) } else { id };
        let changes = NetChanges::default();
        Digests { changes, from, digest_at: None, counts, counts_at: None }
    }

    /// Takes in what happened.
    pub fn merge(&mut self, changes: NetChanges, most: usize) {
        self.changes.merge(changes, most);
    }

    /// When there is something to publish. None: not before something happens. `counts` are those of the space now.
    pub fn next_due(&self, counts: Counts, interval: u64) -> Option<Timestamp> {
        if self.changes.is_closed {
            return Some(0);
        }
        let after = |last: Option<Timestamp>| last.map_or(0, |at| at.saturating_add(interval));
        let digest = (!self.changes.is_empty()).then(|| after(self.digest_at));
        let count = (counts != self.counts).then(|| after(self.counts_at));
        digest.into_iter().chain(count).min()
    }

    /// The digest that is due at `now`. `is_end`: whatever is left is due, as nothing follows.
    pub fn digest(
        &mut self,
        name: &[u8],
        space: &Space,
        now: Timestamp,
        interval: u64,
        is_end: bool,
    ) -> Option<Vec<u8>> {
        let is_end = is_end || self.changes.is_closed;
        if self.changes.is_empty() || !(is_end || is_over(self.digest_at, now, interval)) {
            return None;
        }
        let changes = std::mem::take(&mut self.changes);
        let (from, to) = (self.from, space.last_id());
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(b"{\"space\":");
        write_text(&mut out, shown_name(name));
        out.extend_from_slice(b",\"type\":\"digest\"");
        for (key, (epoch, seq)) in [("from", from), ("to", to)] {
            out.extend_from_slice(format!(",\"{key}\":\"{epoch}-{seq}\"").as_bytes());
        }
        write_counts(&mut out, space.stored());
        if !changes.is_closed {
            match changes.lists(space).filter(|_| !changes.has_more) {
                Some(lists) => out.extend_from_slice(&lists),
                None => out.extend_from_slice(b",\"more\":true"),
            }
        } else {
            out.extend_from_slice(b",\"closed\":true");
        }
        out.extend_from_slice(b",\"at\":");
        write_number(&mut out, now);
        out.push(b'}');
        (self.from, self.digest_at) = (to, Some(now));
        Some(out)
    }

    /// The counts that are due at `now`.
    pub fn count(
        &mut self,
        name: &[u8],
        space: &Space,
        now: Timestamp,
        interval: u64,
        is_end: bool,
    ) -> Option<Vec<u8>> {
        let counts = space.stored();
        let is_end = is_end || space.is_closed();
        if counts == self.counts || !(is_end || is_over(self.counts_at, now, interval)) {
            return None;
        }
        let (epoch, seq) = space.last_id();
        let mut out = Vec::with_capacity(128);
        out.extend_from_slice(b"{\"space\":");
        write_text(&mut out, shown_name(name));
        write_counts(&mut out, counts);
        out.extend_from_slice(format!(",\"id\":\"{epoch}-{seq}\",\"at\":").as_bytes());
        write_number(&mut out, now);
        out.push(b'}');
        (self.counts, self.counts_at) = (counts, Some(now));
        Some(out)
    }
}

/// Whether the interval after the last time is over. Also if the clock was set back.
fn is_over(last: Option<Timestamp>, now: Timestamp, interval: u64) -> bool {
    last.is_none_or(|last| now < last || now - last >= interval)
}

fn write_counts(out: &mut Vec<u8>, (users, sessions): Counts) {
    out.extend_from_slice(b",\"users\":");
    write_number(out, users as u64);
    out.extend_from_slice(b",\"sessions\":");
    write_number(out, sessions as u64);
}

#[cfg(test)]
#[path = "digest_model.rs"]
mod model;
