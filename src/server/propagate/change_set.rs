//! From what a space says happened to those who must hear of it.
//!
//! A [`ChangeSet`] gathers what a space tells while it is changed; [`crate::server::keyspace::key::SpaceWriteGuard::commit`]
//! hands it on: effects to replicas and the AOF, events to subscribers, counts to INFO. Commands,
//! the sweep and replayed effects all go this way. A call can make thousands of events, so their
//! texts are published and freed as soon as they take [`PUBLISHED_AT`] bytes.

use crate::server::expiry::owners;
use crate::server::ffi::args::Arg;
use crate::server::ffi::clock::server_time;
use crate::server::ffi::context::Context;
use crate::server::module::stats;
use crate::server::propagate::channels::Publisher;
use crate::server::propagate::feed;
use crate::server::propagate::propagation_targets;
use presence_core::codec;
use presence_core::digest::{Counts, EventId, NetChanges};
use presence_core::owners::{Owner, OwnerLease};
use presence_core::rules::{SpaceSettings, UserChannels};
use presence_core::space::{Effect, Event, Gone, Kind, Reason, Retention, SeenLimits, Sink};
use std::cell::Cell;
use std::ffi::CStr;
use std::sync::Arc;

/// The command by which effects travel.
pub const APPLY: &CStr = c"PRESENCE._APPLY";

/// So many sessions are freed at once without being felt; more are freed in the background.
const FREED_HERE: usize = 1000;

/// Events are published when their texts take this many bytes, and at the end of the call.
const PUBLISHED_AT: usize = 256 << 10;

/// What took no more than this keeps its memory for the next change_set.
const SPARE_BYTES: usize = 4096;

thread_local! {
    /// Memory for a batch and for the texts of events.
    static SPARE: Cell<(Vec<u8>, Vec<u8>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

/// What happened to one space in one go.
pub struct ChangeSet<'a> {
    batch: Vec<u8>,
    /// Whether nobody would get the batch.
    unheard: bool,
    /// Whether nothing is told but leases, the earliest of which ends then.
    only_leases: bool,
    earliest_lease: u64,
    /// So much of the batch is not worth handing on by itself: that the space begins, or was
    /// granted a grace.
    preface: usize,
    retention: Retention,
    keep_told: bool,
    /// The texts of events that have not been published yet.
    events: Vec<u8>,
    /// Where in `events` each ends, and on whose channel it is published too.
    ends: Vec<(usize, Option<Box<[u8]>>)>,
    user_channels: UserChannels,
    /// Whether there was an event, published or not.
    has_events: bool,
    /// Events are published and counted by who decides, not by who replays: none while replaying.
    publisher: Option<Publisher<'a>>,
    /// The database and name of the space in the feed; none for what happened before this run.
    feed: Option<(i32, &'a [u8])>,
    /// Whether the space may take more memory than before, even if the server is out of memory:
    /// the server had memory when the call asked.
    may_grow: bool,
    /// For how long this process has had the space (ms): what ended before is not late.
    held_for: u64,
    /// The epoch of the new line of history that the next event begins.
    new_line: Option<u64>,
    /// The database of effects that were decided elsewhere or earlier.
    replayed_db: i32,
    /// What is gathered for digests, where the space has any.
    net_changes: Option<Box<Gathered>>,
}

/// The net changes of one change set.
struct Gathered {
    changes: NetChanges,
    most: usize,
    /// The last id, users and sessions before the first of them.
    before: (EventId, Counts),
}

impl<'a> ChangeSet<'a> {
    /// For changes that are decided here.
    pub fn new(
        ctx: Context,
        db: i32,
        space: Arg<'a>,
        settings: &SpaceSettings,
        held_for: u64,
    ) -> Self {
        let (publisher, feed) = (Publisher::new(ctx, space), (db, space.bytes()));
        let mut change_set =
            Self::begin(Some(publisher), Some(feed), settings.retention(), held_for);
        change_set.user_channels = settings.user_channels();
        change_set
    }

    /// For effects that were decided elsewhere or earlier. Those that an AOF tells are not in the feed.
    pub fn replay(ctx: Context, db: i32, space: &'a [u8]) -> Self {
        let feed = (!ctx.is_loading()).then_some((db, space));
        let mut change_set = Self::begin(None, feed, Retention::of_events(0, 0), 0);
        change_set.replayed_db = db;
        change_set
    }

    fn begin(
        publisher: Option<Publisher<'a>>,
        feed: Option<(i32, &'a [u8])>,
        retention: Retention,
        held_for: u64,
    ) -> Self {
        let (mut batch, mut events) = SPARE.take();
        events.clear();
        codec::begin(&mut batch);
        let preface = batch.len();
        ChangeSet {
            batch,
            unheard: propagation_targets::are_none(),
            only_leases: true,
            earliest_lease: u64::MAX,
            preface,
            retention,
            keep_told: false,
            events,
            ends: Vec::new(),
            user_channels: UserChannels::No,
            has_events: false,
            publisher,
            feed,
            may_grow: false,
            held_for,
            new_line: None,
            replayed_db: 0,
            net_changes: None,
        }
    }

    /// Gathers net changes for digests, at most so many.
    pub fn gather_net_changes(&mut self, most: usize, before: (EventId, Counts)) {
        let changes = NetChanges::default();
        self.net_changes = Some(Box::new(Gathered { changes, most, before }));
    }

    /// What was gathered for digests. None where the space has none.
    pub fn take_net_changes(&mut self) -> Option<(NetChanges, (EventId, Counts))> {
        self.net_changes.take().map(|gathered| (gathered.changes, gathered.before))
    }

    /// Has the next event begin a new line of history.
    pub fn set_new_line(&mut self, epoch: u64) {
        self.new_line = Some(epoch);
    }

    /// Says that what has been told so far must be handed on, but only with something else.
    pub fn end_preface(&mut self) {
        self.preface = self.batch.len();
    }

    /// What the preface says must be handed on even if nothing else happened.
    pub fn force(&mut self) {
        self.preface = 1;
    }

    /// Whether something happened.
    pub fn is_empty(&self) -> bool {
        self.batch.len() == self.preface && !self.has_events && self.earliest_lease == u64::MAX
    }

    /// Whether there is anything at all to hand on.
    pub fn has_effects(&self) -> bool {
        self.batch.len() > 1
    }

    /// Whether a reader could see that something happened, other than that leases were renewed.
    pub fn has_events(&self) -> bool {
        self.has_events
    }

    /// Whether all that happened is that leases were given.
    pub fn is_renewal(&self) -> bool {
        self.only_leases && !self.is_replaying() && !self.has_events
    }

    /// The end of the lease that ends first, of those that were given.
    pub fn earliest_lease(&self) -> u64 {
        self.earliest_lease
    }

    pub fn is_replaying(&self) -> bool {
        self.publisher.is_none()
    }

    /// The space may take more memory than before.
    pub fn allow_growth(&mut self) {
        self.may_grow = true;
    }

    pub fn may_grow(&self) -> bool {
        self.may_grow
    }

    /// The effects, for replicas and the AOF.
    pub fn batch(&self) -> &[u8] {
        &self.batch
    }

    /// Publishes the events that have not been published yet.
    pub fn publish(&mut self) {
        let Some(publisher) = &mut self.publisher else { return };
        let (mut start, mut published) = (0, 0);
        for (end, user) in self.ends.drain(..) {
            let event = self.events.get(start..end).unwrap_or_default();
            published += u64::from(publisher.publish(self.unheard, event));
            if let Some(user) = user {
                publisher.publish_for_user(self.unheard, &user, event);
            }
            start = end;
        }
        self.events.clear();
        stats::EVENTS.add(published);
    }
}

impl Sink for ChangeSet<'_> {
    fn effect(&mut self, effect: &Effect<'_>) {
        if self.is_replaying() {
            return;
        }
        if effect.makes_event() && !self.keep_told {
            let Retention { length, ttl, seen: SeenLimits { ttl: seen_ttl, users } } =
                self.retention;
            codec::encode(&mut self.batch, &Effect::Keep { length, ttl });
            if !self.retention.seen.keeps_none() {
                codec::encode(&mut self.batch, &Effect::KeepSeen { ttl: seen_ttl, users });
            }
            self.keep_told = true;
        }
        match effect {
            Effect::Lease { lease, .. } => self.earliest_lease = self.earliest_lease.min(*lease),
            Effect::Bound { .. } => {}
            _ => self.only_leases = false,
        }
        codec::encode(&mut self.batch, effect);
    }

    fn renewed(&mut self, until: u64) {
        if !self.is_replaying() {
            self.earliest_lease = self.earliest_lease.min(until);
            stats::RENEWALS.add(1);
        }
    }

    fn event(&mut self, event: &Event<'_>, text: &[u8]) {
        self.has_events = true;
        if let Some((db, space)) = self.feed {
            feed::add(db, space, text);
        }
        if self.is_replaying() {
            return;
        }
        if let Some(gathered) = &mut self.net_changes {
            gathered.changes.record(event, gathered.most);
        }
        self.events.extend_from_slice(text);
        let is_for_user = match (self.user_channels, event.kind) {
            (UserChannels::No, _) | (_, Kind::Message | Kind::Close) => false,
            (UserChannels::Transitions, kind) => matches!(kind, Kind::Join | Kind::Leave),
            (UserChannels::All, _) => true,
        };
        let user = event.user.filter(|_| is_for_user).map(Box::from);
        self.ends.push((self.events.len(), user));
        if self.events.len() >= PUBLISHED_AT {
            self.publish();
        }
        match event.kind {
            Kind::Join => stats::JOINS.add(1),
            Kind::Leave => stats::LEAVES.add(1),
            Kind::Message => stats::MESSAGES.add(1),
            Kind::Add | Kind::Update | Kind::Remove | Kind::Close => {}
        }
        if event.reason == Some(Reason::Timeout) {
            stats::TIMEOUTS.add(1);
        }
    }

    fn discard(&mut self, gone: Gone) {
        if gone.len() >= FREED_HERE {
            // If no thread can be had, the closure is dropped here, and the sessions with it.
            let _ = std::thread::Builder::new().spawn(move || drop(gone));
        }
    }

    fn take_new_line(&mut self) -> Option<u64> {
        self.new_line.take()
    }

    fn owner(&mut self, name: &str, lease: OwnerLease) -> Option<Arc<Owner>> {
        let is_replaying = self.is_replaying();
        is_replaying.then(|| owners::refer(self.replayed_db, name, lease, server_time()))
    }

    fn lapsed(&mut self, ms_ago: u64) {
        if !self.is_replaying() {
            stats::LAGS.note(ms_ago.min(self.held_for));
        }
    }
}

impl Drop for ChangeSet<'_> {
    fn drop(&mut self) {
        if self.batch.capacity().max(self.events.capacity()) <= SPARE_BYTES {
            SPARE.set((std::mem::take(&mut self.batch), std::mem::take(&mut self.events)));
        }
    }
}
