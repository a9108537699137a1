//! The registry against a list of owners.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

#[derive(Clone, Debug)]
enum Op {
    Renew(u8, u64),
    Cut(u8, u64, bool),
    Arrive(u8, u64),
    Refer(u8, u64),
    Assign(u8, u64),
    End(u8),
    Attach(u8, u8),
    Detach(u8, u8),
    Sweep(usize),
    Grace(u64),
    Wait(u64),
    Back(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let name = || 0..6u8;
    prop_oneof![
        6 => (name(), 1..60u64).prop_map(|(name, ttl)| Op::Renew(name, ttl)),
        2 => (name(), 0..30u64, any::<bool>()).prop_map(|(name, ttl, by)| Op::Cut(name, ttl, by)),
        2 => (name(), 0..60u64).prop_map(|(name, until)| Op::Arrive(name, until)),
        2 => (name(), 0..60u64).prop_map(|(name, until)| Op::Refer(name, until)),
        2 => (name(), 0..60u64).prop_map(|(name, until)| Op::Assign(name, until)),
        1 => name().prop_map(Op::End),
        6 => (name(), 0..20u8).prop_map(|(name, space)| Op::Attach(name, space)),
        2 => (name(), 0..20u8).prop_map(|(name, space)| Op::Detach(name, space)),
        2 => (0..9usize).prop_map(Op::Sweep),
        1 => (0..60u64).prop_map(Op::Grace),
        6 => (0..30u64).prop_map(Op::Wait),
        1 => (0..30u64).prop_map(Op::Back),
    ]
}

struct Known {
    owner: Arc<Owner>,
    until: u64,
    reason: Reason,
    spaces: BTreeSet<Vec<u8>>,
}

fn known(owner: Arc<Owner>, lease: OwnerLease) -> Known {
    Known { owner, until: lease.until, reason: lease.reason, spaces: BTreeSet::new() }
}

/// A space as the clock is used: it knows which owners have expired, from the changes since it looked last.
struct Reader {
    owners: Vec<(Arc<Owner>, bool)>,
    seen: u64,
}

impl Reader {
    fn advance(&mut self, clock: &OwnerClock, now: u64, limit: usize) {
        let change = clock.advance(now);
        if change == self.seen {
            return;
        }
        match clock.changed_since(self.seen, limit) {
            Some(changed) => {
                for (owner, is_expired) in &mut self.owners {
                    if let Some((_, now)) = changed.iter().find(|(id, _)| *id == owner.id()) {
                        *is_expired = *now;
                    }
                }
            }
            None => {
                let all = clock.expired_of(self.owners.iter().map(|(owner, _)| owner.id()));
                self.owners.iter_mut().zip(all).for_each(|((_, old), new)| *old = new);
            }
        }
        self.seen = change;
    }
}

proptest! {
    #[test]
    fn behaves_like_a_list(ops in prop::collection::vec(op(), 0..200), limit in 0..8usize) {
        let mut owners = Owners::default();
        let mut model: BTreeMap<String, Known> = BTreeMap::new();
        let mut waiting: BTreeSet<Vec<u8>> = BTreeSet::new();
        let mut reader = Reader { owners: Vec::new(), seen: 0 };
        let mut now = 1000;
        let text = |number: u8| format!("gateway-{number}");
        for op in ops {
            match op {
                Op::Wait(by) => now += by,
                Op::Back(by) => now -= by.min(now - 1000),
                Op::Renew(number, ttl) => {
                    let (name, lease) = (text(number), OwnerLease::until(now + ttl));
                    let owner = owners.renew(&name, now + ttl, now);
                    match model.get_mut(&name).filter(|known| known.until > now) {
                        Some(known) => {
                            prop_assert_eq!(known.owner.id(), owner.id());
                            (known.until, known.reason) = (lease.until, lease.reason);
                        }
                        None => {
                            let old = model.insert(name, known(owner, lease));
                            waiting.extend(old.into_iter().flat_map(|old| old.spaces));
                        }
                    }
                }
                Op::Arrive(number, until) => {
                    let (name, lease) = (text(number), OwnerLease::until(970 + until));
                    let owner = owners.arrive(&name, lease, now);
                    match model.get(&name).filter(|known| known.until > now) {
                        Some(known) => prop_assert_eq!(known.owner.id(), owner.id()),
                        None => {
                            let old = model.insert(name, known(owner, lease));
                            waiting.extend(old.into_iter().flat_map(|old| old.spaces));
                        }
                    }
                }
                Op::Refer(number, until) | Op::Assign(number, until) => {
                    let (name, lease) = (text(number), OwnerLease::until(970 + until));
                    let refers = matches!(op, Op::Refer(..));
                    let owner = match refers {
                        true => owners.refer(&name, lease, now),
                        false => owners.assign(&name, lease, now),
                    };
                    let known = model.entry(name).or_insert_with(|| known(owner.clone(), lease));
                    prop_assert_eq!(known.owner.id(), owner.id());
                    if !refers || known.until < lease.until {
                        (known.until, known.reason) = (lease.until, lease.reason);
                    }
                }
                Op::Cut(number, ttl, by_request) => {
                    let name = text(number);
                    let reason = if by_request { Reason::Offline } else { Reason::Timeout };
                    let cut = owners.cut(&name, now + ttl, now, reason);
                    let live = model.get_mut(&name).filter(|known| known.until > now);
                    prop_assert_eq!(cut.is_some(), live.is_some());
                    if let Some(known) = live {
                        if now + ttl < known.until || by_request {
                            (known.until, known.reason) = (known.until.min(now + ttl), reason);
                        }
                        if known.until <= now {
                            prop_assert_eq!(known.owner.reason(), reason);
                            waiting.extend(model.remove(&name).unwrap().spaces);
                        }
                    }
                }
                Op::End(number) => {
                    let gone = model.remove(&text(number));
                    prop_assert_eq!(owners.end(&text(number)), gone.is_some());
                    waiting.extend(gone.into_iter().flat_map(|gone| gone.spaces));
                }
                Op::Attach(number, space) => {
                    if let Some(known) = model.get_mut(&text(number)) {
                        prop_assert!(owners.attach(&known.owner, &[space]));
                        known.spaces.insert(vec![space]);
                    }
                }
                Op::Detach(number, space) => {
                    if let Some(known) = model.get_mut(&text(number)) {
                        owners.detach(&known.owner, &[space]);
                        known.spaces.remove(&vec![space]);
                    }
                }
                Op::Grace(by) => {
                    owners.begin_to_decide(now + by, now);
                    for known in model.values_mut() {
                        known.until = known.until.max(now + by);
                    }
                }
                Op::Sweep(steps) => {
                    prop_assert!(owners.end_expired(now, &mut || true));
                    model.retain(|_, known| {
                        if known.until <= now {
                            waiting.append(&mut known.spaces);
                        }
                        known.until > now
                    });
                    for _ in 0..steps {
                        match owners.next_space() {
                            Some(name) => { waiting.remove(&*name); }
                            None => prop_assert!(waiting.is_empty()),
                        }
                    }
                }
            }
            for known in model.values() {
                let lease = OwnerLease { until: known.until, reason: known.reason };
                prop_assert_eq!(known.owner.lease(), lease);
                if !reader.owners.iter().any(|(owner, _)| owner.id() == known.owner.id()) {
                    let is_expired = owners.clock().is_expired(known.owner.id());
                    reader.owners.push((known.owner.clone(), is_expired));
                }
            }
            // A space that knew nothing of what happened knows it now, and knows it of a clock that is set back.
            for moment in [now, now - 7, now] {
                reader.advance(owners.clock(), moment, limit);
                for (owner, is_expired) in &reader.owners {
                    prop_assert_eq!(*is_expired, !owner.is_live(moment), "{} at {}", owner.name(), moment);
                }
            }
            reader.owners.retain(|(owner, _)| !owner.is_over() || owner.id() % 3 > 0);
            let live: Vec<&str> = owners.list(now).map(|owner| owner.name()).collect();
            let expected: Vec<&str> =
                model.iter().filter(|(_, known)| known.until > now).map(|(name, _)| &**name).collect();
            prop_assert_eq!(live, expected);
            prop_assert_eq!(owners.len(), model.len());
            for (name, known) in &model {
                let (mut from, mut spaces) = (Some(0), BTreeSet::new());
                while let Some(begin) = from {
                    let (some, next) = owners.spaces(name, begin);
                    spaces.extend(some.into_iter().map(|(_, space)| space.to_vec()));
                    from = next;
                }
                prop_assert_eq!(&spaces, &known.spaces);
            }
            let due = model.values().map(|known| known.until).min();
            prop_assert!(due.is_none_or(|due| owners.next_due().is_some_and(|bound| bound <= due)));
        }
        while let Some(name) = owners.next_space() {
            waiting.remove(&*name);
        }
        prop_assert!(waiting.is_empty(), "each space of an owner that has ended was given out");
        now += 10_000;
        prop_assert!(owners.end_expired(now, &mut || true));
        while owners.next_space().is_some() {}
        prop_assert_eq!((owners.len(), owners.heap_bytes(), owners.next_due()), (0, 0, None));
    }
}

/// Owners that have ended are forgotten once no space refers to them.
#[test]
fn owners_that_are_over_are_forgotten() {
    let mut owners = Owners::default();
    let held = owners.renew("held", 1, 0);
    for n in 0..10_000 {
        owners.renew(&format!("owner{n}"), 20, 10);
        assert_eq!(owners.cut(&format!("owner{n}"), 0, 10, Reason::Offline), Some(0));
    }
    assert!(owners.end_expired(10, &mut || true));
    assert!(held.is_over() && owners.clock().is_expired(held.id()));
    let changed = owners.clock().changed_since(0, usize::MAX).unwrap();
    assert!(changed.len() < 300, "{}", changed.len());
    assert!(changed.contains(&(held.id(), true)));
}

/// What an owner is on a node that was told of it, and on one that loads it.
#[test]
fn a_bound_is_kept_until_a_server_decides() {
    let mut owners = Owners::default();
    let begin = OwnerEffect::Begin { owner: "o", lease: 130, bound: 160 };
    owners.apply(&begin, 100);
    assert!(owners.live("o", 159).is_some() && owners.live("o", 160).is_none());
    let dump = |owners: &Owners| {
        let mut told = Vec::new();
        owners.dump(|effect| told.push(format!("{effect:?}")));
        told
    };
    assert_eq!(dump(&owners), [format!("{begin:?}")]);
    // It is promoted at 140: a grace of 30, or none.
    for (grace, until) in [(30, 170), (0, 130)] {
        let mut promoted = Owners::default();
        promoted.apply(&begin, 140);
        promoted.begin_to_decide(if grace > 0 { 140 + grace } else { 0 }, 140);
        assert_eq!(promoted.get("o").unwrap().until(), until);
        assert_eq!(promoted.live("o", 140).is_some(), until > 140);
    }
    // A cut ends the bound, with its reason.
    owners.apply(&OwnerEffect::Cut { owner: "o", lease: 120, reason: Reason::Offline }, 100);
    let cut = OwnerLease { until: 120, reason: Reason::Offline };
    assert_eq!(owners.get("o").unwrap().lease(), cut);
    let mut loaded = Owners::default();
    owners.dump(|effect| loaded.apply(effect, 0));
    assert_eq!(loaded.get("o").unwrap().lease(), cut);
    // A cut of an owner that is not there makes none; an end ends what is live.
    owners.apply(&OwnerEffect::Cut { owner: "p", lease: 120, reason: Reason::Timeout }, 100);
    owners.apply(&OwnerEffect::End { owner: "o", at: 101, reason: Reason::Offline }, 101);
    assert!(owners.is_empty());
    // The same name begins again: the first one has ended.
    owners.apply(&begin, 100);
    let first = owners.get("o").unwrap().clone();
    owners.apply(&begin, 110);
    assert!(first.is_over() && owners.get("o").is_some_and(|now| now.id() != first.id()));
}
