//! One owner: a process that keeps sessions alive for others, with one lease for all of them.

use super::OwnerClock;
use crate::space::{Reason, Timestamp};
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Until when an owner lives, and the reason of the leaves of its sessions if it ends then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerLease {
    pub until: Timestamp,
    pub reason: Reason,
}

impl OwnerLease {
    /// One that ends by timeout.
    pub fn until(until: Timestamp) -> Self {
        OwnerLease { until, reason: Reason::Timeout }
    }
}

/// The lease ends because this was asked for.
const OFFLINE: u64 = 1 << 63;
/// The owner does not come back, whatever the clock says.
const OVER: u64 = 1 << 62;
const _: () = assert!(crate::space::MAX_TIMESTAMP < OVER);

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// An owner, shared by its registry and by the spaces that hold sessions of it. All that changes is atomic:
/// a space may be freed in another thread.
#[derive(Debug)]
pub struct Owner {
    /// Unique in this process.
    id: u64,
    name: Box<str>,
    lease: AtomicU64,
    sessions: AtomicUsize,
    /// The lease and the bound that others were told last, or that the primary told: see `effect`. 0 is
    /// nothing.
    told_lease: AtomicU64,
    told_bound: AtomicU64,
    clock: Weak<OwnerClock>,
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Owner {}

impl Owner {
    /// An owner that this clock is about to note.
    pub(super) fn new(name: &str, lease: OwnerLease, clock: Weak<OwnerClock>) -> Self {
        let owner = Owner {
            id: NEXT_ID.fetch_add(1, Relaxed),
            name: name.into(),
            lease: AtomicU64::new(0),
            sessions: AtomicUsize::new(0),
            told_lease: AtomicU64::new(0),
            told_bound: AtomicU64::new(0),
            clock,
        };
        owner.set_lease(lease);
        owner
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The clock of its registry.
    pub(crate) fn clock(&self) -> &Weak<OwnerClock> {
        &self.clock
    }

    pub fn until(&self) -> Timestamp {
        self.lease.load(Relaxed) & !(OFFLINE | OVER)
    }

    pub fn lease(&self) -> OwnerLease {
        OwnerLease { until: self.until(), reason: self.reason() }
    }

    /// The reason of the leaves when the lease ends.
    pub fn reason(&self) -> Reason {
        if self.lease.load(Relaxed) & OFFLINE != 0 { Reason::Offline } else { Reason::Timeout }
    }

    /// Live at `now`: the lease ends later than that.
    pub fn is_live(&self, now: Timestamp) -> bool {
        let lease = self.lease.load(Relaxed);
        lease & OVER == 0 && lease & !OFFLINE > now
    }

    /// Whether it was decided that the owner has ended: its sessions end, and it is not renewed.
    pub fn is_over(&self) -> bool {
        self.lease.load(Relaxed) & OVER != 0
    }

    pub(super) fn set_over(&self) {
        self.lease.fetch_or(OVER, Relaxed);
    }

    pub(super) fn set_lease(&self, lease: OwnerLease) {
        let offline = if lease.reason == Reason::Offline { OFFLINE } else { 0 };
        self.lease.store(lease.until & !(OFFLINE | OVER) | offline, Relaxed);
    }

    /// Up to when replicas and the AOF believe in the owner without further effects; 0 if they were told
    /// nothing.
    pub fn told_bound(&self) -> Timestamp {
        self.told_bound.load(Relaxed)
    }

    /// Others were told this lease and this bound, or the primary told them.
    pub fn set_told(&self, lease: Timestamp, bound: Timestamp) {
        self.told_lease.store(lease, Relaxed);
        self.told_bound.store(bound, Relaxed);
    }

    /// The latest lease that is known for certain. Where the lease is a bound that the primary told, it is the
    /// lease that was told with it.
    pub fn known_until(&self) -> Timestamp {
        let until = self.until();
        if until == self.told_bound() { self.told_lease.load(Relaxed) } else { until }
    }

    /// How many sessions spaces hold of it.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Relaxed)
    }

    /// A space holds so many sessions more.
    pub fn add_sessions(&self, count: usize) {
        self.sessions.fetch_add(count, Relaxed);
    }

    /// A space holds so many sessions less.
    pub fn take_sessions(&self, count: usize) {
        self.sessions.fetch_sub(count, Relaxed);
    }
}
