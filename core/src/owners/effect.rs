//! What a primary says of owners, for those who must know the same: replicas, the AOF, an RDB.
//!
//! An owner changes apart from the spaces of its sessions, so it has effects of its own. They travel
//! in batches, framed as those of spaces: see [`crate::codec`].
//!
//! A renewal need not be told each time. What is told is a lease and an upper bound for the leases to
//! come ([`bound`]); a renewal within the bound says nothing ([`must_tell`]). Until the bound, no
//! session of the owner is hidden where the effects are applied, unless the primary says that the owner
//! has ended.

use super::MAX_OWNER_BYTES;
use crate::space::{MAX_TIMESTAMP, Reason, Timestamp};
use serde::{Deserialize, Serialize};

/// One change of an owner. Times are unix ms.
///
/// The order of the variants is part of the wire form: add at the end only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnerEffect<'a> {
    /// The owner is live, and was not before: it has no sessions. Its lease may be renewed up to
    /// `bound` without further effects.
    Begin { owner: &'a str, lease: Timestamp, bound: Timestamp },
    /// The lease of a live owner is now so.
    Lease { owner: &'a str, lease: Timestamp, bound: Timestamp },
    /// The lease ends then, for this reason, unless it is renewed.
    Cut { owner: &'a str, lease: Timestamp, reason: Reason },
    /// The owner ended at this time, for this reason. Its sessions are over, though each leave
    /// is still to come.
    End { owner: &'a str, at: Timestamp, reason: Reason },
}

impl<'a> OwnerEffect<'a> {
    pub fn owner(&self) -> &'a str {
        use OwnerEffect::*;
        match self {
            Begin { owner, .. } | Lease { owner, .. } | Cut { owner, .. } | End { owner, .. } => {
                owner
            }
        }
    }

    /// Whether it is one that a primary makes: the codec refuses others.
    pub fn is_valid(&self) -> bool {
        use OwnerEffect::*;
        let times = match *self {
            Begin { lease, bound, .. } | Lease { lease, bound, .. } => {
                lease <= bound && bound <= MAX_TIMESTAMP
            }
            Cut { lease: at, .. } | End { at, .. } => at <= MAX_TIMESTAMP,
        };
        times && (1..=MAX_OWNER_BYTES).contains(&self.owner().len())
    }
}

/// Up to when leases need not be told, given a lease that begins now, and `grace`, the least time
/// (ms) that a lease gets after a restart.
pub fn bound(lease: Timestamp, now: Timestamp, grace: u64) -> Timestamp {
    let slack = lease.saturating_sub(now).max(grace);
    lease.saturating_add(slack).min(MAX_TIMESTAMP)
}

/// Whether a lease that begins now must be told to those who were told `told`; 0 is nothing.
pub fn must_tell(lease: Timestamp, now: Timestamp, grace: u64, told: Timestamp) -> bool {
    lease > told || told > bound(lease, now, grace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn steady_renewals_are_told_once_in_a_lease() {
        // A lease of 30 s, renewed each 10 s.
        let (mut told, mut times) = (0, 0);
        for n in 0..30 {
            let now = 1_000_000 + n * 10_000;
            let lease = now + 30_000;
            if must_tell(lease, now, 30_000, told) {
                told = bound(lease, now, 30_000);
                times += 1;
            }
        }
        assert_eq!(times, 8);
    }

    proptest! {
        /// Whoever was told last never believes in a shorter lease than the real one, nor in one
        /// that is longer by more than the slack.
        #[test]
        fn what_was_told_is_a_bound(
            renewals in prop::collection::vec((0..50_000u64, 1..100_000u64), 1..40),
            grace in 0..40_000u64,
        ) {
            let (mut now, mut told) = (1_000_000, 0);
            for (wait, length) in renewals {
                now += wait;
                let lease = now + length;
                if must_tell(lease, now, grace, told) {
                    told = bound(lease, now, grace);
                }
                prop_assert!(lease <= told && told <= lease + length.max(grace));
            }
        }
    }
}
