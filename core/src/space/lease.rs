//! Until when a session is live, and until when others believe it is: one word.
//!
//! ```text
//! 63         62      61    60   59     48..59          0..48
//! LINGERING  ENDING  OWNED FAR  BOUND  slack (a float) until (unix ms)
//! ```
//!
//! Replicas and the AOF do not learn of each renewal. The server that decides tells them a **bound**: a moment that
//! is later than the lease by a **slack**. It tells the next bound when a renewal passes this one. So there are two
//! forms of a lease:
//!
//! * Exact: `until` is the lease, and others know the bound `until + slack`. The server that decides has this form.
//! * [`Lease::BOUND`]: `until` is the bound, and the lease that was told with it is `until - slack`. Replicas have
//!   this form, and a server while it loads.
//!
//! A session of an owner has no lease of its own: it is [`Lease::OWNED`], and the low bits are a slot of
//! [`super::owned::OwnerTable`].
//!
//! A time of 2^48 or more (the year 10889) leaves no room for a slack: it is [`Lease::FAR`], and the slack is 0.

use super::{MAX_TIMESTAMP, Reason, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The bits of the time, of a lease that is not far.
const TIME_BITS: u32 = 48;
const TIME: u64 = (1 << TIME_BITS) - 1;
/// The bits of the slack: a mantissa and an exponent.
const MANTISSA_BITS: u32 = 7;
const MANTISSA: u64 = (1 << MANTISSA_BITS) - 1;
const EXPONENT: u64 = (1 << 4) - 1;
const SLACK: u64 = EXPONENT << MANTISSA_BITS | MANTISSA;

/// The longest slack that can be stored: about 70 minutes (ms).
pub const MAX_SLACK: u64 = (MANTISSA << 1 | 1) << (EXPONENT - 1);

/// Until when a session is live, whether it was ended with a linger, and which bound others know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease(u64);

const _: () = assert!(MAX_TIMESTAMP < Lease::FAR);

/// The slack as it is stored, rounded down. It is exact below 256 ms, and at most 1/128 less than given above.
fn pack_slack(ms: u64) -> u64 {
    let ms = ms.min(MAX_SLACK);
    let shift = (u64::BITS - ms.leading_zeros()).saturating_sub(MANTISSA_BITS + 1);
    let has_exponent = u64::from(ms > MANTISSA);
    (u64::from(shift) + has_exponent) << MANTISSA_BITS | ms >> shift & MANTISSA
}

/// The same, rounded up.
fn pack_slack_up(ms: u64) -> u64 {
    let packed = pack_slack(ms);
    let is_less = unpack_slack(packed) < ms.min(MAX_SLACK);
    // The stored numbers have the order of the slacks.
    packed + u64::from(is_less)
}

fn unpack_slack(packed: u64) -> u64 {
    let (exponent, mantissa) = (packed >> MANTISSA_BITS & EXPONENT, packed & MANTISSA);
    match exponent.checked_sub(1) {
        None => mantissa,
        Some(shift) => (mantissa | 1 << MANTISSA_BITS) << shift,
    }
}

impl Lease {
    const LINGERING: u64 = 1 << 63;
    /// The session is in a bucket of [`super::lease_order::EndingBuckets`]. A lease outside of an index
    /// never has this mark.
    const ENDING: u64 = 1 << 62;
    /// An owner keeps the session alive: the rest is a slot of [`super::owned::OwnerTable`].
    const OWNED: u64 = 1 << 61;
    const FAR: u64 = 1 << 60;
    const BOUND: u64 = 1 << 59;

    /// Exact, and others know no later bound.
    pub fn new(until: Timestamp, lingering: bool) -> Self {
        let until = until.min(MAX_TIMESTAMP);
        let far = if until > TIME { Self::FAR } else { 0 };
        Lease(until | far | if lingering { Self::LINGERING } else { 0 })
    }

    /// The session lives as long as the owner in this slot.
    pub fn owned(slot: u32) -> Self {
        Lease(Self::OWNED | u64::from(slot))
    }

    pub fn is_owned(self) -> bool {
        self.0 & Self::OWNED != 0
    }

    /// The owner's slot, of a session that has an owner.
    pub fn slot(self) -> Option<u32> {
        self.is_owned().then_some(self.0 as u32)
    }

    /// Whether a change from one to the other concerns only two times: no owner, and no bucket.
    pub fn are_pending(self, other: Self) -> bool {
        (self.0 | other.0) & (Self::OWNED | Self::ENDING) == 0
    }

    /// A lease as it was told: it is live until the bound. If the slack cannot be stored as it is, the lease that was
    /// told becomes a little earlier.
    pub fn bound(told: LeaseBound, lingering: bool) -> Self {
        let lease = Lease::new(told.bound(), lingering);
        if told.slack == 0 || lease.0 & Self::FAR != 0 {
            return lease;
        }
        Lease(lease.0 | Self::BOUND | pack_slack_up(told.slack) << TIME_BITS)
    }

    /// As it is stored.
    pub fn word(self) -> u64 {
        self.0
    }

    pub fn of_word(word: u64) -> Self {
        Lease(word)
    }

    /// The time, of a session that has no owner.
    pub fn until(self) -> Timestamp {
        debug_assert!(!self.is_owned());
        if self.0 & Self::FAR != 0 { self.0 & MAX_TIMESTAMP } else { self.0 & TIME }
    }

    /// The distance between the lease and the bound (ms).
    pub fn slack(self) -> u64 {
        if self.0 & (Self::FAR | Self::OWNED) != 0 {
            0
        } else {
            unpack_slack(self.0 >> TIME_BITS & SLACK)
        }
    }

    /// The same lease, where others know a bound that is so much later, rounded down.
    #[must_use]
    pub fn with_slack(self, slack: u64) -> Self {
        if self.0 & (Self::FAR | Self::OWNED) != 0 {
            return self;
        }
        let has_room = self.until() + slack.min(MAX_SLACK) <= TIME;
        let packed = if has_room { pack_slack(slack) } else { 0 };
        Lease(self.0 & !(Self::BOUND | SLACK << TIME_BITS) | packed << TIME_BITS)
    }

    /// The lease and the slack: what others are told, or were told.
    pub fn told(self) -> LeaseBound {
        let slack = self.slack();
        let is_bound = self.0 & Self::BOUND != 0;
        let before = if is_bound { slack } else { 0 };
        LeaseBound { lease: self.until().saturating_sub(before), slack }
    }

    /// An exact lease that is renewed until then, if the bound that others know covers that and is not later than
    /// it by more than `most`. None if they must be told. They are told of every lease that becomes shorter: so no
    /// lease ends before one that they were told.
    pub fn renewed(self, until: Timestamp, most: u64) -> Option<Self> {
        if self.is_owned() {
            return None;
        }
        let slack = (self.until() + self.slack()).checked_sub(until)?;
        let is_exact = self.0 & Self::BOUND == 0 && !self.is_lingering();
        let is_covered = until >= self.until() && slack <= most && is_exact;
        is_covered.then(|| Lease::new(until, false).with_slack(slack))
    }

    /// Whether so little is left of a slack of `most` that the next renewal will probably pass the bound. Clients
    /// renew three times per lease as a rule, so two renewals leave a third.
    pub fn is_bound_near(self, most: u64) -> bool {
        self.slack().saturating_mul(8) < most.saturating_mul(3)
    }

    /// The lease that was told last, made at least `until`. Others know no later bound.
    pub fn cut(self, until: Timestamp) -> Self {
        if self.is_owned() {
            return self;
        }
        Lease::new(self.told().lease.max(until), self.is_lingering())
    }

    /// An exact lease as another server may have it that was told bounds with a slack of `most`: live until the bound,
    /// and the lease that was told with it is the earliest that can have been.
    pub fn followed(self, most: u64) -> Self {
        if self.0 & (Self::BOUND | Self::OWNED) != 0 {
            return self;
        }
        let bound = self.told().bound();
        // Rounded as when it was told.
        let slack = unpack_slack(pack_slack(most)).max(self.slack());
        let told = LeaseBound { lease: bound.saturating_sub(slack), slack };
        Lease::bound(told, self.is_lingering())
    }

    /// The lease and the bound, made at least `until`.
    pub fn raised(self, until: Timestamp) -> Self {
        if self.is_owned() {
            return self;
        }
        let told = self.told();
        let lease = told.lease.max(until);
        let slack = told.bound().saturating_sub(lease);
        match self.0 & Self::BOUND {
            0 => Lease::new(lease, self.is_lingering()).with_slack(slack),
            _ => Lease::bound(LeaseBound { lease, slack }, self.is_lingering()),
        }
    }

    /// The same lease, marked.
    pub fn ending(self) -> Self {
        Lease(self.0 | Self::ENDING)
    }

    pub fn is_ending(self) -> bool {
        self.0 & Self::ENDING != 0
    }

    /// The same lease without the mark.
    pub fn plain(self) -> Self {
        Lease(self.0 & !Self::ENDING)
    }

    /// Live at `now`: it ends later than that. Of a session that has no owner.
    pub fn is_live(self, now: Timestamp) -> bool {
        self.until() > now
    }

    /// Why the session ends with it.
    pub fn reason(self) -> Reason {
        if self.is_lingering() { Reason::Offline } else { Reason::Timeout }
    }

    /// If it ends now, that is not a timeout but what was asked for.
    pub fn is_lingering(self) -> bool {
        self.0 & Self::LINGERING != 0
    }
}

/// A lease, and the bound that is told with it: `slack` ms later. On the wire it is one number, the word of an exact
/// `Lease`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseBound {
    pub lease: Timestamp,
    pub slack: u64,
}

impl LeaseBound {
    pub fn bound(self) -> Timestamp {
        self.lease.saturating_add(self.slack)
    }

    /// Whoever decides takes a bound as the lease if nobody can say more.
    #[must_use]
    pub fn widened(self) -> Self {
        LeaseBound { lease: self.bound(), slack: 0 }
    }
}

impl Serialize for LeaseBound {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(Lease::new(self.lease, false).with_slack(self.slack).word())
    }
}

impl<'de> Deserialize<'de> for LeaseBound {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let word = u64::deserialize(from)?;
        let told = Some(Lease::of_word(word)).filter(|lease| !lease.is_owned()).map(Lease::told);
        // One number for each bound, and no mark in it.
        let is_it =
            |told: &LeaseBound| Lease::new(told.lease, false).with_slack(told.slack).word() == word;
        told.filter(is_it).ok_or_else(|| serde::de::Error::custom("no bound of a lease"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_slack_is_rounded_down_by_little() {
        for ms in
            (0..300).chain([1000, 3000, 30_000, 86_400_000, MAX_SLACK - 1, MAX_SLACK, u64::MAX])
        {
            let stored = unpack_slack(pack_slack(ms));
            let wanted = ms.min(MAX_SLACK);
            assert!(stored <= wanted && wanted - stored <= wanted / 128, "{ms} {stored}");
            assert_eq!(pack_slack(stored), pack_slack(ms));
            let up = unpack_slack(pack_slack_up(ms));
            assert!(
                up >= wanted
                    && up - wanted <= wanted / 128 + 1
                    && (up == wanted) == (stored == wanted)
            );
        }
        assert_eq!((unpack_slack(pack_slack(255)), MAX_SLACK), (255, 4_177_920));
    }

    proptest! {
        #[test]
        fn both_forms_tell_the_same(
            until in prop_oneof![0..=TIME, 0..=MAX_TIMESTAMP, TIME - 9_000_000..TIME + 9],
            slack in prop_oneof![0..60_000u64, any::<u64>()], lingering: bool,
        ) {
            let exact = Lease::new(until, lingering).with_slack(slack);
            prop_assert_eq!((exact.until(), exact.is_lingering()), (until, lingering));
            prop_assert!(exact.slack() <= slack);
            let told = exact.told();
            prop_assert_eq!((told.lease, told.slack), (until, exact.slack()));
            let bound = Lease::bound(told, lingering);
            prop_assert_eq!((bound.until(), bound.told()), (until + told.slack, told));
            prop_assert_eq!(bound.ending().plain(), bound);
            prop_assert_eq!(bound.ending().told(), told);
            prop_assert_eq!(bound.cut(0), Lease::new(until, lingering));
            let later = (until + 1).min(MAX_TIMESTAMP);
            prop_assert_eq!(bound.cut(later), Lease::new(later, lingering));
            for lease in [exact, bound] {
                for by in [0, told.slack / 2, told.slack, told.slack + 1] {
                    let to = (until + by).min(MAX_TIMESTAMP);
                    let raised = lease.raised(to);
                    prop_assert!((to - told.slack / 64..=to).contains(&raised.told().lease));
                    prop_assert!(raised.told().bound() >= to);
                    prop_assert!(raised.until() >= lease.until());
                }
            }
            let followed = exact.followed(100_000);
            prop_assert_eq!(followed.until(), bound.until());
            prop_assert!(followed.told().lease <= until && followed.followed(9) == followed);
            if told.slack > 0 {
                prop_assert_eq!(bound.renewed(until, u64::MAX), None, "it is not known here");
            }
        }

        #[test]
        fn a_renewal_is_covered_by_the_bound_or_told(
            slack in 0..60_000u64, by in 0..120_000u64, most in 0..60_000u64,
        ) {
            let before = Lease::new(1_000_000, false).with_slack(slack);
            let bound = before.told().bound();
            let until = 940_000 + by;
            match before.renewed(until, most) {
                None => {
                    let is_shorter = until < before.until();
                    prop_assert!(is_shorter || until > bound || bound - until > most);
                }
                Some(after) => {
                    prop_assert_eq!(after.until(), until);
                    prop_assert!(after.told().bound() <= bound, "others know of no later one");
                    prop_assert!(bound <= until + most);
                }
            }
        }
    }
}
