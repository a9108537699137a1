//! The value of a key: a space, and what this process keeps about it.

use super::digests;
use crate::server::expiry::expiry_queue;
use crate::server::ffi::clock::server_time;
use crate::server::module::config;
use crate::server::module::space_settings::{self, Rule, RuleCache};
use crate::server::module::stats::{self, Size};
use presence_core::digest::Digests;
use presence_core::rules::SpaceSettings;
use presence_core::space::{NullSink, Space};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Later than anything is due.
pub(super) const NEVER: u64 = u64::MAX;

/// The value of a key: a space and what this process keeps about it.
pub struct SpaceValue {
    pub space: Space,
    pub(super) seen: Seen,
    /// Under which moment the expiry queue has it; [`NEVER`] where it has not.
    pub(super) scheduled: u64,
    pub(super) counted: Size,
    /// When this process got it: the lowest bits of the unix time (ms).
    since: u32,
    rule: RuleCache,
}

// A server may have very many of these, each an allocation: this is within the class of 112 bytes.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<SpaceValue>() == 104);

/// How often this server has begun or ceased to decide. Only the server's main thread writes these
/// three; they are looked at in each call, and a thread's own are not found as quickly.
static GENERATION: AtomicU32 = AtomicU32::new(0);
/// The generation in which this server began to decide last.
static DECIDES_SINCE: AtomicU32 = AtomicU32::new(0);
/// Until when the grace of this generation lasts; 0 where there is none.
static GRACE_UNTIL: AtomicU64 = AtomicU64::new(0);

/// The generation in which a space was made or looked at last, and in the lowest bits what it has
/// still to do: to tell replicas of a grace, to begin a new line of history with its next event.
#[derive(Clone, Copy)]
pub(super) struct Seen(u32);

impl Seen {
    const UNTOLD: u32 = 1;
    const LINE_DUE: u32 = 2;
    /// The space has net changes or counts that were published: see `digests`.
    const DIGESTS: u32 = 4;
    const FLAGS: u32 = 3;

    pub(super) fn now(flags: u32) -> Self {
        Seen(GENERATION.load(Relaxed) << Self::FLAGS | flags)
    }

    pub(super) fn generation(self) -> u32 {
        self.0 >> Self::FLAGS
    }

    pub(super) fn is_last(self) -> bool {
        self.generation() == Self::now(0).generation()
    }

    /// The end of a grace that replicas have not been told of yet; 0 is none.
    pub(super) fn untold(self) -> u64 {
        if self.is_last() && self.0 & Self::UNTOLD != 0 { GRACE_UNTIL.load(Relaxed) } else { 0 }
    }

    pub(super) fn tell(&mut self) {
        self.0 &= !Self::UNTOLD;
    }

    /// Whether this server has begun to decide since the last event: the server before it may have
    /// given out ids after that which are not known here.
    pub(super) fn is_line_due(self) -> bool {
        self.0 & Self::LINE_DUE != 0 || self.generation() < DECIDES_SINCE.load(Relaxed)
    }

    pub(super) fn set_line_due(&mut self, due: bool) {
        self.set(Self::LINE_DUE, due);
    }

    fn has_digests(self) -> bool {
        self.0 & Self::DIGESTS != 0
    }

    fn set(&mut self, flag: u32, value: bool) {
        self.0 = self.0 & !flag | if value { flag } else { 0 };
    }
}

/// This server has just begun to decide: a dataset was loaded, or it was promoted. Every session
/// that is there gets a lease until at least `grace_until`, because nobody could renew before, and
/// the next event of every space begins a new line of history. The spaces take that in one by one,
/// each before anything else is done with it.
pub fn begin_to_decide(grace_until: u64) {
    GRACE_UNTIL.store(grace_until, Relaxed);
    DECIDES_SINCE.store(GENERATION.fetch_add(1, Relaxed) + 1, Relaxed);
}

/// This server decides no longer: a space that has not taken the grace in yet must not do so by
/// itself.
pub fn withdraw_grace() {
    GRACE_UNTIL.store(0, Relaxed);
    GENERATION.fetch_add(1, Relaxed);
}

impl SpaceValue {
    pub fn new(space: Space) -> Self {
        stats::space_came();
        let mut held = SpaceValue {
            space,
            seen: Seen::now(0),
            scheduled: NEVER,
            counted: Size::default(),
            since: server_time() as u32,
            rule: RuleCache::default(),
        };
        held.count();
        held
    }

    /// Another key's value that is the same.
    pub fn copied(&self) -> Self {
        let mut copy = SpaceValue::new(self.space.clone());
        copy.seen = self.seen;
        // Digests of the copy do not go on from those of the original.
        copy.seen.set(Seen::DIGESTS, false);
        copy
    }

    /// The number of the rule that holds under this name.
    pub fn rule(&self, name: &[u8]) -> Rule {
        self.rule.rule(name)
    }

    /// The settings that hold under this name.
    pub fn settings(&self, name: &[u8]) -> SpaceSettings {
        space_settings::settings(self.rule(name))
    }

    /// The space is no longer at the key at which it was.
    pub fn left_name(&self) {
        self.rule.forget();
    }

    /// For how long this process has had it (ms), if that is less than 49 days: then it begins again.
    pub(super) fn held_for(&self, now: u64) -> u64 {
        u64::from((now as u32).wrapping_sub(self.since))
    }

    /// Takes in that this server has begun or ceased to decide since the last look: leases get their grace, or they
    /// become the bounds that others know.
    pub(super) fn catch_up(&mut self) {
        if !self.seen.is_last() {
            // A digest after a promotion does not go on from one before it.
            self.forget_digests();
            let last = GENERATION.load(Relaxed);
            let (until, decides) = (GRACE_UNTIL.load(Relaxed), DECIDES_SINCE.load(Relaxed) == last);
            // Both, if another server decided in between.
            if !decides || self.seen.generation() + 1 < last {
                self.space.cease_to_decide(config::restart_grace_ms());
            }
            if decides {
                self.space.grant_grace(until, &mut NullSink);
            }
            let is_line_due = self.seen.is_line_due();
            self.seen = Seen::now(if until > 0 { Seen::UNTOLD } else { 0 });
            self.seen.set_line_due(is_line_due);
        }
    }

    /// Whether the next event begins a new line of history.
    pub fn is_line_due(&self) -> bool {
        self.seen.is_line_due()
    }

    /// Sets that; a space that is made or restored begins none by itself.
    pub fn set_line_due(&mut self) {
        self.seen.set_line_due(true);
    }

    /// Bytes of memory, in constant time.
    pub fn bytes(&self) -> usize {
        size_of::<SpaceValue>() + self.space.heap_bytes()
    }

    /// Brings the totals up to date with this space.
    pub(super) fn count(&mut self) {
        let (users, sessions) = self.space.stored();
        let size = Size::new(users, sessions, self.bytes());
        stats::resized(self.counted, size);
        self.counted = size;
    }

    /// The moment from which the timer may find something to do; 0 is at once.
    pub fn next_due(&self, name: &[u8]) -> u64 {
        let settings = self.settings(name);
        let due = self.space.next_due(settings.retention());
        if !self.seen.has_digests() {
            return due;
        }
        let (counts, interval) = (self.space.stored(), settings.digest_interval_ms());
        let digest = digests::with(self.address(), |digests| digests.next_due(counts, interval));
        digest.flatten().map_or(due, |digest| digest.min(due))
    }

    /// By which [`digests`] knows it: it does not move as long as it is the value of a key.
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// What the space remembers for its digests, if it does.
    pub(super) fn with_digests<T>(
        &self,
        use_it: impl FnOnce(&mut Digests, &Space) -> T,
    ) -> Option<T> {
        let has_digests = self.seen.has_digests();
        let use_it = |digests: &mut Digests| use_it(digests, &self.space);
        has_digests.then(|| digests::with(self.address(), use_it)).flatten()
    }

    /// Has the space remember something for its digests, if it does not yet.
    pub(super) fn begin_digests(&mut self, digests: impl FnOnce() -> Digests) {
        if !self.seen.has_digests() {
            digests::insert(self.address(), digests());
            self.seen.set(Seen::DIGESTS, true);
        }
    }

    pub(super) fn forget_digests(&mut self) {
        if self.seen.has_digests() {
            digests::remove(self.address());
            self.seen.set(Seen::DIGESTS, false);
        }
    }

    /// Files the space in the expiry queue where it is due earlier than the expiry queue knows.
    pub fn schedule(&mut self, db: i32, name: &[u8]) {
        let due = self.next_due(name);
        if due < self.scheduled {
            self.schedule_at(db, name, due);
        }
    }

    /// Whether the expiry queue must be told of a lease that ends at this moment.
    pub(super) fn may_be_due_before(&self, lease: u64) -> bool {
        lease < self.scheduled
    }

    pub(super) fn schedule_at(&mut self, db: i32, name: &[u8], due: u64) {
        expiry_queue::schedule(db, name, due);
        self.scheduled = due;
    }

    /// The key has come under this name in another way than by a command of ours.
    pub fn arrived(&mut self, db: i32, name: &[u8]) {
        self.scheduled = NEVER;
        self.schedule(db, name);
    }
}

impl Drop for SpaceValue {
    /// May run in a thread of the server that frees in the background: touches only what threads share.
    fn drop(&mut self) {
        if self.seen.has_digests() {
            digests::freed(self.address());
        }
        stats::space_went();
        stats::resized(self.counted, Size::default());
    }
}
