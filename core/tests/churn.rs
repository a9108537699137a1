//! Spaces of many users who come and go: walks page by page, and the memory that a space reports.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use allocation_counter::measure;
use presence_core::codec;
use presence_core::space::{
    ChangeCtx, Condition, Limits, Lookup, MetaChange, NullSink, OnlineRequest, Retention, Space,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn limits() -> Limits {
    Limits { sessions_per_user: 1024, users: 0, retention: Retention::of_events(0, 0), slack: 0 }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The same space, saved and loaded.
fn reload(space: &Space) -> Space {
    let mut bytes = Vec::new();
    codec::begin(&mut bytes);
    space.dump(|effect| codec::encode(&mut bytes, effect));
    let mut back = Space::new(0);
    for effect in codec::decode(&bytes) {
        back.restore(&effect.unwrap()).unwrap();
    }
    back
}

const LEASE: u64 = 1_000_000;

fn at(now: u64) -> ChangeCtx<'static> {
    ChangeCtx { space: b"s", now, limits: limits() }
}

fn online(space: &mut Space, user: &str, session: &str, lease: u64, meta: MetaChange) {
    let who = (user, session);
    let mut lookup = Lookup::default();
    space.enter(&mut lookup, who.0.as_bytes(), |_| {});
    space.follow(&mut lookup, |_| {});
    space
        .online(
            at(1),
            &lookup,
            OnlineRequest { who, keeper: lease.into(), meta, condition: Condition::Always },
            |_| true,
            &mut NullSink,
        )
        .unwrap();
}

fn offline(space: &mut Space, user: &str, session: Option<&str>) {
    space.offline(at(1), user, session, 0, &mut NullSink);
}

/// What happens between two pages.
#[derive(Clone, Debug)]
enum Op {
    Come(u32),
    Go(u32),
    /// Further sessions of those who stay come and go: another session becomes the anchor.
    Tabs(u32),
    /// Metadata of those who stay grows and shrinks: their sessions are kept elsewhere.
    Meta(u32),
}

fn op() -> impl Strategy<Value = Op> {
    let many = || prop_oneof![3 => 0..12u32, 2 => 0..2000u32];
    prop_oneof![
        many().prop_map(Op::Come),
        many().prop_map(Op::Go),
        (0..60u32).prop_map(Op::Tabs),
        (0..60u32).prop_map(Op::Meta),
    ]
}

/// A space in which some stay and others do not.
struct Churn {
    space: Space,
    stay: Vec<String>,
    others: Vec<String>,
    step: usize,
}

impl Churn {
    fn new(stay: u32, others: u32) -> Self {
        let mut churn =
            Churn { space: Space::new(1), stay: Vec::new(), others: Vec::new(), step: 0 };
        for n in 0..stay {
            let name = format!("stays{n}");
            online(&mut churn.space, &name, "", LEASE, MetaChange::Keep);
            churn.stay.push(name);
        }
        churn.act(Op::Come(others));
        churn
    }

    fn act(&mut self, op: Op) {
        self.step += 1;
        let step = self.step;
        let staying = |n: u32| self.stay.get((n as usize * 31 + step) % self.stay.len().max(1));
        match op {
            Op::Come(count) => {
                for n in 0..count {
                    let name = format!("{step}guest{n}");
                    online(&mut self.space, &name, "", LEASE, MetaChange::Keep);
                    self.others.push(name);
                }
            }
            Op::Go(count) => {
                for n in 0..count as usize {
                    if self.others.is_empty() {
                        break;
                    }
                    let name = self.others.swap_remove((n * 7919 + step) % self.others.len());
                    offline(&mut self.space, &name, None);
                }
            }
            Op::Tabs(count) => {
                for n in 0..count {
                    let Some(user) = staying(n) else { break };
                    let known: Vec<String> = self.space.user(user, 1).map_or(Vec::new(), |user| {
                        user.sessions().map(|record| text(record.session()).to_owned()).collect()
                    });
                    if known.len() == 3 {
                        offline(&mut self.space, user, Some(&known[0]));
                    } else {
                        let tab = format!("tab{step}-{n}");
                        online(&mut self.space, user, &tab, LEASE, MetaChange::Keep);
                    }
                }
            }
            Op::Meta(count) => {
                for n in 0..count {
                    let Some(user) = staying(n) else { break };
                    let first = self.space.user(user, 1).and_then(|user| user.sessions().next());
                    let tab = text(first.unwrap().session()).to_owned();
                    let meta = format!("\"{}\"", "x".repeat((n as usize * 37 + step) % 700));
                    online(&mut self.space, user, &tab, LEASE, MetaChange::To(Some(&meta)));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn a_walk_meets_who_stays_once(
        stay in prop_oneof![1 => 1..10u32, 1 => 1..1500u32],
        others in prop_oneof![1 => 0..10u32, 1 => 0..3000u32],
        ops in prop::collection::vec(prop::collection::vec(op(), 0..4), 1..40),
        count in prop_oneof![1..5usize, 20..200usize],
    ) {
        let mut churn = Churn::new(stay, others);
        let (mut seen, mut from, mut page) = (BTreeMap::new(), Some(0), 0);
        while let Some(place) = from {
            let (users, next) = churn.space.page(place, count, 1, |_| {});
            prop_assert!(next.is_none_or(|next| next > place));
            for user in users {
                *seen.entry(text(user.name()).to_owned()).or_insert(0) += 1;
            }
            from = next;
            for op in ops.get(page).cloned().unwrap_or_default() {
                churn.act(op);
            }
            page += 1;
        }
        for user in &churn.stay {
            prop_assert_eq!(seen.get(user), Some(&1), "{}", user);
        }
        prop_assert!(seen.values().all(|times| *times <= 1), "names do not come back");
    }
}

#[test]
fn a_page_of_a_space_that_most_have_left_has_an_end() {
    let mut space = Space::new(1);
    for n in 0..10_000 {
        let lease = if n % 1000 == 0 { LEASE } else { 10 };
        online(&mut space, &format!("user{n}"), "", lease, MetaChange::Keep);
    }
    space.advance(10);
    for count in [1, 3] {
        let (mut from, mut pages, mut seen) = (Some(0), 0, 0);
        while let Some(place) = from {
            let (users, next) = space.page(place, count, 10, |_| {});
            assert!(users.len() <= count);
            (pages, seen, from) = (pages + 1, seen + users.len(), next);
        }
        assert_eq!(seen, 10, "who is here, each once");
        let looks = 8 * count;
        assert!(pages > 10_000 / looks, "{pages} pages: one looked at more than {looks}");
        assert!(pages < 10_000 / looks + 20, "{pages} pages");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn memory_is_what_it_is_said_to_be(
        stay in prop_oneof![1 => 1..10u32, 1 => 1..1500u32],
        others in prop_oneof![1 => 0..10u32, 1 => 0..3000u32],
        ops in prop::collection::vec(op(), 0..30),
        tabs in 0..200usize, fewer in 0..200usize,
    ) {
        let mut churn = Churn::new(stay, others);
        for op in ops {
            churn.act(op);
        }
        let tab = |n: usize| format!("window{n}");
        for n in 0..tabs {
            online(&mut churn.space, "stays0", &tab(n), LEASE, MetaChange::Keep);
        }
        for n in 0..fewer {
            offline(&mut churn.space, "stays0", Some(&tab(n)));
        }
        // What is said takes into account how the allocator rounds up, here and there.
        let agree = |said: usize, counted: usize| {
            assert!(said >= counted && said <= counted + counted / 8 + 1024, "{said}, {counted}");
        };
        let mut copy = None;
        let counted = measure(|| copy = Some(churn.space.clone())).bytes_current;
        agree(copy.unwrap().heap_bytes(), counted as usize);
        let said = churn.space.heap_bytes();
        let freed = measure(|| drop(churn.space)).bytes_current;
        agree(said, -freed as usize);
    }
}

#[test]
fn a_space_that_most_have_left_is_small() {
    let name = |n: usize| format!("user{n}");
    let mut space = Space::new(1);
    for n in 0..20_000 {
        online(&mut space, &name(n), "", LEASE, MetaChange::Keep);
    }
    let full = space.heap_bytes();
    assert!(full < 20_000 * 100, "{full}");
    for n in (0..20_000).filter(|n| n % 2000 != 0) {
        offline(&mut space, &name(n), None);
    }
    assert_eq!(space.stored(), (10, 10));
    assert!(space.heap_bytes() < 5000, "{}", space.heap_bytes());
}

/// A clock that was put back: the user is here since the first session came, however many others are
/// here and whatever the space has been through.
#[test]
fn a_clock_that_goes_back_changes_nothing_about_a_user() {
    for others in [0, 5, 20] {
        for reloads in [false, true] {
            let mut space = Space::new(1);
            let mut come = |user: &str, session: &str, now| {
                let (lookup, who) = (Lookup::default(), (user, session));
                let (keep, always) = (MetaChange::Keep, Condition::Always);
                space
                    .online(
                        at(now),
                        &lookup,
                        OnlineRequest { who, keeper: LEASE.into(), meta: keep, condition: always },
                        |_| true,
                        &mut NullSink,
                    )
                    .unwrap();
            };
            come("a", "1", 100);
            come("a", "2", 50);
            (0..others).for_each(|n| come(&format!("u{n}"), "", 60));
            let reloaded = |space: &Space| if reloads { reload(space) } else { space.clone() };
            let mut space = reloaded(&space);
            assert_eq!(space.user("a", 60).unwrap().joined_at(), 100, "{others} {reloads}");
            space.offline(at(60), "a", Some("1"), 0, &mut NullSink);
            let space = reloaded(&space);
            assert_eq!(space.user("a", 60).unwrap().joined_at(), 100, "{others} {reloads} heir");
        }
    }
}
