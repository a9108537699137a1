//! A space: who is in it, with which sessions, until when, and what happened.
//!
//! The space is plain data. It knows no server and reads no clock. The caller of a change passes the time, and
//! receives through a [`Sink`] what was done: [`Effect`]s, which make the same change on other nodes, and events,
//! which are for the subscribers. Every change ends in a function of `transitions.rs`. Commands, the sweep and
//! replayed effects differ only in how they get there.

mod effect;
mod error;
mod event;
mod group;
mod history;
mod lease;
mod lease_order;
mod lines;
mod members;
#[cfg(test)]
mod model;
mod owned;
#[cfg(test)]
mod owned_tests;
mod owners_of_space;
mod past;
mod read;
mod record;
mod replay;
mod requests;
mod seen;
mod session_store;
mod space_json;
mod sweep;
mod transitions;

pub use effect::{Effect, NullSink, Sink};
pub use error::{ApplyError, OnlineError};
pub use event::{Event, Kind, Reason, shown as shown_name};
pub(crate) use event::{write_number, write_text};
pub use history::{History, Retention};
pub use lease::LeaseBound;
pub use members::{Lookup, OutOfTime, SpaceLayout, User};
pub use past::Seen;
pub use record::SessionRecord;
pub use seen::SeenLimits;
pub use space_json::SpaceHead;

use crate::collections::allocated;
use crate::owners::Owner;
use members::Members;
use past::Past;
use seen::SeenUsers;
use std::sync::Arc;

/// Unix time in milliseconds.
pub type Timestamp = u64;
/// Asks for memory that will be looked at soon, if whoever runs this can: a hint, which reads nothing.
pub type Prefetch = fn(at: *const u8);
/// A JSON text, or none.
pub type Meta<'a> = Option<&'a str>;

/// The longest name of a user or a session, in bytes.
pub const MAX_NAME_BYTES: usize = 512;
/// The longest name of a space that a command takes, and the most that events carry of one, in
/// bytes: each event repeats it.
pub const MAX_SPACE_BYTES: usize = 4096;
/// No time and no sequence number is later than this: sums of two cannot overflow, and both fit
/// the signed integers of replies. A lease has flags in the bits above it.
pub const MAX_TIMESTAMP: u64 = (1 << 60) - 1;

/// No epoch and no seq is greater than this: readers of JSON hold such numbers exactly.
pub const MAX_ID_NUMBER: u64 = 1 << 53;

/// What a session takes beside its names and metadata, and an event beside its texts: estimates.
const SESSION_BYTES: usize = 128;
const EVENT_BYTES: usize = 224;

/// An estimate of the bytes that a message takes in the history.
pub fn message_bytes(message: &str) -> usize {
    // Only of a long one it matters that characters may be escaped.
    let is_long = message.len() > 4096;
    EVENT_BYTES + if is_long { event::text_len(message.as_bytes()) } else { message.len() }
}

/// The members of a space that has ended, and the users that it remembered, to be freed.
pub struct Gone {
    members: Members,
    seen: Option<Box<SeenUsers>>,
}

impl Gone {
    /// How many sessions and users there are to free.
    pub fn len(&self) -> usize {
        self.members.sessions() + self.seen.as_ref().map_or(0, |seen| seen.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What bounds a space.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub sessions_per_user: u64,
    /// 0: no limit.
    pub users: u64,
    pub retention: Retention,
    /// How much later than a lease the bound is that replicas and the AOF are told (ms). A load or a promotion extends
    /// leases by at least this, so no session that they have a bound for ends too early. 0: they are told each lease.
    pub slack: u64,
}

/// When `online` is to do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Always,
    /// NX
    IfAbsent,
    /// XX
    IfPresent,
}

/// What `online` is to do with a session's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaChange<'a> {
    Keep,
    /// To a JSON text, or to none.
    To(Meta<'a>),
}

/// What keeps a session alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper<'a> {
    /// A lease of its own, until then.
    Lease(Timestamp),
    /// An owner, which is live.
    Owner(&'a Arc<Owner>),
}

impl From<Timestamp> for Keeper<'_> {
    fn from(until: Timestamp) -> Self {
        Keeper::Lease(until)
    }
}

/// What [`Space::online`] is to do with one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnlineRequest<'a> {
    /// The user and the session; the unnamed session is the empty string.
    pub who: (&'a str, &'a str),
    /// What keeps the session alive from now on.
    pub keeper: Keeper<'a>,
    pub meta: MetaChange<'a>,
    pub condition: Condition,
}

/// What a sweep of a space has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepProgress {
    pub ended: usize,
    /// Time was up before everything was done.
    pub more: bool,
}

/// The circumstances of a change: the key's name, the time, the bounds.
#[derive(Clone, Copy)]
pub struct ChangeCtx<'a> {
    pub space: &'a [u8],
    pub now: Timestamp,
    pub limits: Limits,
}

#[derive(Clone)]
pub struct Space {
    epoch: u64,
    seq: u64,
    /// 0: the space is open.
    closed_until: Timestamp,
    members: Members,
    /// Absent while it is empty, as it is in most spaces most of the time.
    past: Option<Box<Past>>,
}

/// A stored name as text. Names are checked when they come in.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// The seq of an event by its text.
fn event_seq(event: &[u8]) -> Option<u64> {
    event::id(event).map(|(_, seq)| seq)
}

impl Space {
    /// An empty space whose ids begin with `epoch`.
    pub fn new(epoch: u64) -> Self {
        Space { epoch, seq: 0, closed_until: 0, members: Members::default(), past: None }
    }

    /// Tells `sink` that the space began; the first thing it hears of a new space.
    pub fn announce<S: Sink>(&self, sink: &mut S) {
        sink.effect(&Effect::Begin {
            epoch: self.epoch,
            seq: self.seq,
            closed_until: self.closed_until,
        });
    }
}
