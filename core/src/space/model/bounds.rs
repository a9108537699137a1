//! Replicas that are told bounds, against a list of what must hold of each session at each moment.

use super::super::*;
use super::{RETENTION, dump};
use crate::codec;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// The slack of the primary, and the grace of a replica that is promoted.
const SLACK: u64 = 3000;

#[derive(Clone, Debug)]
enum Op {
    /// Users `from..from + count`, in one list or one by one.
    Online {
        from: usize,
        count: usize,
        tab: usize,
        ttl: u64,
        as_list: bool,
    },
    Renew {
        from: usize,
        count: usize,
        tab: usize,
        ttl: u64,
    },
    Update {
        user: usize,
        tab: usize,
        ttl: u64,
    },
    Offline {
        user: usize,
        tab: Option<usize>,
        linger: u64,
    },
    Wait(u64),
    Sweep,
    /// The slack is another from now on.
    Slack(u64),
    Close,
    /// The primary is saved and loaded, with a grace or without: it decides as one that was promoted.
    Restart {
        grace: u64,
    },
    /// DUMP and RESTORE on the primary, which the replica does too.
    Restore,
    /// A replica that gets the whole dataset.
    FullSync {
        by_a_replica: bool,
    },
    /// The replica decides from now on, and the primary follows it.
    Failover {
        grace: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let ttl = || prop_oneof![6 => Just(3000u64), 2 => 1..6000u64, 1 => 100_000..200_000u64];
    let grace = || prop_oneof![2 => Just(SLACK), 1 => Just(0u64)];
    let range = || (0..30usize, 1..30usize, 0..2usize);
    prop_oneof![
        4 => (range(), ttl(), any::<bool>()).prop_map(|((from, count, tab), ttl, as_list)| {
            Op::Online { from, count, tab, ttl, as_list }
        }),
        4 => (range(), ttl())
            .prop_map(|((from, count, tab), ttl)| Op::Renew { from, count, tab, ttl }),
        1 => (0..40usize, 0..2usize, ttl())
            .prop_map(|(user, tab, ttl)| Op::Update { user, tab, ttl }),
        1 => (0..40usize, prop::option::of(0..2usize), prop_oneof![Just(0u64), 1..2000u64])
            .prop_map(|(user, tab, linger)| Op::Offline { user, tab, linger }),
        8 => prop_oneof![4 => 900..1100u64, 1 => 0..4000u64].prop_map(Op::Wait),
        3 => Just(Op::Sweep),
        1 => prop_oneof![2 => Just(SLACK), 1 => 0..5000u64].prop_map(Op::Slack),
        1 => grace().prop_map(|grace| Op::Restart { grace }),
        1 => Just(Op::Restore),
        1 => any::<bool>().prop_map(|by_a_replica| Op::FullSync { by_a_replica }),
        1 => grace().prop_map(|grace| Op::Failover { grace }),
        1 => prop::bool::weighted(0.05)
            .prop_map(|close| if close { Op::Close } else { Op::Sweep }),
    ]
}

#[derive(Default)]
struct Stream(Vec<u8>);

impl Sink for Stream {
    fn effect(&mut self, effect: &Effect<'_>) {
        if self.0.is_empty() {
            codec::begin(&mut self.0);
        }
        codec::encode(&mut self.0, effect);
    }

    fn event(&mut self, _: &Event<'_>, _: &[u8]) {}
}

fn snapshot(space: &Space, own: bool) -> Space {
    let mut bytes = Vec::new();
    codec::begin(&mut bytes);
    space.dump(|effect| codec::encode(&mut bytes, effect));
    let mut back = Space::new(0);
    for effect in codec::decode(&bytes) {
        let effect = effect.unwrap();
        if own { back.restore_own(&effect) } else { back.restore(&effect) }.unwrap();
    }
    back
}

/// Lease and slack of each session, as they are stored, and whether it lingers.
fn leases(space: &Space) -> BTreeMap<(String, String), (u64, u64, bool)> {
    let stored = space.members.all().map(|(record, _)| {
        let lease = record.lease();
        let who = (text(record.user()).to_owned(), text(record.session()).to_owned());
        (who, (lease.until(), lease.slack(), lease.is_lingering()))
    });
    stored.collect()
}

/// Both without the leases.
fn same(one: &Space, other: &Space) -> bool {
    let without = |space: &Space| {
        let mut all = Vec::new();
        space.dump(|effect| all.push(format!("{:?}", effect.without_lease())));
        all.sort();
        all
    };
    without(one) == without(other)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn a_replica_shows_every_live_session_and_no_ghost_for_long(
        ops in prop::collection::vec(op(), 1..100),
    ) {
        let name = |user: usize| format!("user{}", user % 40);
        let tabs = ["", "tab"];
        let (mut now, mut slack) = (1_000_000u64, SLACK);
        let mut primary = Space::new(1);
        let mut replica = primary.clone();
        // The most that a bound may be later than its lease: the greatest slack since it was told.
        let mut most = SLACK;
        for op in ops {
            let limits = Limits { sessions_per_user: 9, users: 0, retention: RETENTION, slack };
            let at = ChangeCtx { space: b"s", now, limits };
            let mut stream = Stream::default();
            match op {
                Op::Wait(by) => now += by,
                Op::Slack(to) => {
                    slack = to;
                    most = most.max(to);
                }
                Op::Online { from, count, tab, ttl, as_list } => {
                    let names: Vec<String> = (from..from + count).map(name).collect();
                    let list: Vec<(&str, &str)> =
                        names.iter().map(|name| (&**name, tabs[tab])).collect();
                    let lease = now + ttl;
                    if as_list {
                        let _ = primary.online_many(at, &list, lease, |_| true, |_| {}, &mut stream);
                    } else {
                        for who in list {
                            let lookup = Lookup::default();
                            // As the server does it: if nobody must be told, nobody is.
                            if primary.renew(now, &lookup, who, lease, slack).is_none() {
                                let request = super::always(who, lease);
                                let _ = primary.online(at, &lookup, request, |_| true, &mut stream);
                            }
                        }
                    }
                }
                Op::Renew { from, count, tab, ttl } => {
                    let names: Vec<String> = (from..from + count).map(name).collect();
                    let list: Vec<(&str, &str)> =
                        names.iter().map(|name| (&**name, tabs[tab])).collect();
                    let _ = primary.renew_many(at, &list, now + ttl, |_| {}, &mut stream);
                }
                Op::Update { user, tab, ttl } => {
                    let user = name(user);
                    let (long, short) = (format!("\"{}\"", "x".repeat(700)), "1");
                    let meta = if now % 2 == 0 { &long } else { short };
                    let request = OnlineRequest {
                        meta: MetaChange::To(Some(meta)),
                        ..super::always((&user, tabs[tab]), now + ttl)
                    };
                    let _ = primary.online(at, &Lookup::default(), request, |_| true, &mut stream);
                }
                Op::Offline { user, tab, linger } => {
                    let tab = tab.map(|tab| tabs[tab]);
                    primary.offline(at, &name(user), tab, linger, &mut stream);
                }
                Op::Sweep => {
                    primary.sweep(at, &mut stream, &mut || true);
                }
                Op::Close => {
                    primary.close(at, now + 5, &mut stream);
                }
                Op::Restart { grace } => {
                    let before = leases(&primary);
                    primary = snapshot(&primary, false);
                    let until = if grace > 0 { now + grace } else { 0 };
                    // Without a grace, others are not told.
                    let mut silent = Stream::default();
                    primary.grant_grace(until, if grace > 0 { &mut stream } else { &mut silent });
                    for (who, (lease, slack, _)) in leases(&primary) {
                        prop_assert_eq!((lease, slack), (before[&who].0.max(until), 0), "{:?}", who);
                    }
                }
                Op::Restore => {
                    replica = snapshot(&primary, false);
                    primary = snapshot(&primary, true);
                }
                Op::FullSync { by_a_replica } => {
                    let from = if by_a_replica { &replica } else { &primary };
                    replica = snapshot(from, false);
                }
                Op::Failover { grace } => {
                    let before = leases(&replica);
                    let told: BTreeMap<(String, String), LeaseBound> = replica
                        .members
                        .all()
                        .map(|(record, _)| {
                            let who = (text(record.user()), text(record.session()));
                            ((who.0.to_owned(), who.1.to_owned()), record.lease().told())
                        })
                        .collect();
                    std::mem::swap(&mut primary, &mut replica);
                    replica.cease_to_decide(most);
                    let until = if grace > 0 { now + grace } else { 0 };
                    let mut silent = Stream::default();
                    primary.grant_grace(until, if grace > 0 { &mut stream } else { &mut silent });
                    for (who, (lease, slack, _)) in leases(&primary) {
                        let (bound, told) = (before[&who].0, told[&who]);
                        prop_assert_eq!((lease, slack), (told.lease.max(until), 0), "{:?}", who);
                        // Nobody lost more than the grace gives.
                        let is_covered = grace >= told.slack && bound > now;
                        prop_assert!(!is_covered || lease >= bound.min(now + grace));
                    }
                }
            }
            if !stream.0.is_empty() {
                let mut echo = Stream::default();
                let mut retention = RETENTION;
                for effect in codec::decode(&stream.0) {
                    replica.apply(b"s", &effect.unwrap(), &mut retention, &mut echo).unwrap();
                }
                prop_assert_eq!(&echo.0, &stream.0);
            }
            prop_assert!(same(&primary, &replica));
            let (here, there) = (leases(&primary), leases(&replica));
            prop_assert_eq!(here.len(), there.len());
            for (who, (lease, slack, lingers)) in &here {
                let (bound, _, also) = there[who];
                prop_assert!(bound >= *lease, "{:?} is hidden: {} {}", who, bound, lease);
                prop_assert!(bound >= lease + slack, "{:?}: it knows less than it is taken to", who);
                prop_assert!(bound <= lease + most, "{:?} is a ghost: {} {}", who, bound, lease);
                prop_assert_eq!(lingers, &also);
            }
            for at in [now, now + 1500, now] {
                for (space, leases) in [(&mut primary, &here), (&mut replica, &there)] {
                    space.advance(at);
                    let live = leases.values().filter(|(until, ..)| *until > at).count();
                    prop_assert_eq!(space.counts(at).1, live);
                    prop_assert_eq!(space.users(at).flat_map(|user| user.sessions()).count(), live);
                    space.tidy(at, &mut || true);
                }
            }
            let _ = dump(&primary);
        }
    }
}

/// A crowd that renews three times per lease: how often each session is told, and in how many batches.
#[test]
fn a_renewal_is_told_once_in_two_or_three() {
    for (users, batches_per_user) in [(1, 0.4), (3, 0.3), (100, 0.02), (3000, 0.02)] {
        let limits = Limits { sessions_per_user: 9, users: 0, retention: RETENTION, slack: 30_000 };
        let mut space = Space::new(1);
        let names: Vec<String> = (0..users).map(|user| format!("user:{user:05}")).collect();
        let (mut batches, mut told, mut bytes, mut renewals) = (0u64, 0u64, 0, 0u64);
        for step in 0..30 * users as u64 {
            // One after the other, each every 10 s and up to 50 ms late.
            let now = 1_000_000_000_000 + step * 10_000 / users as u64 + step * 7 % 50;
            let user = &names[step as usize % users];
            let at = ChangeCtx { space: b"s", now, limits };
            let (who, lease) = ((&**user, ""), now + 30_000);
            if space.renew(now, &Lookup::default(), who, lease, limits.slack).is_none() {
                let mut stream = Stream::default();
                let request = super::always(who, lease);
                space.online(at, &Lookup::default(), request, |_| true, &mut stream).unwrap();
                if step >= 10 * users as u64 {
                    batches += 1;
                    bytes += stream.0.len();
                    told += codec::decode(&stream.0).count() as u64;
                }
            }
            renewals += u64::from(step >= 10 * users as u64);
        }
        let share = |count: u64| count as f64 / renewals as f64;
        println!(
            "{users} users: told {:.2}, batches {:.3}, {} bytes",
            share(told),
            share(batches),
            bytes as u64 / renewals
        );
        assert!(share(told) < 0.55, "{users}: {}", share(told));
        assert!(share(batches) < batches_per_user, "{users}: {}", share(batches));
    }
}
