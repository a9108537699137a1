//! Owners in snapshots that cannot be, many owners, and what owned sessions cost. The rest is in the model.

use super::*;
use crate::owners::Owners;

fn restored(effects: &[Effect]) -> Result<Space, ApplyError> {
    let mut space = Space::new(0);
    effects.iter().try_for_each(|effect| space.restore(effect))?;
    space.end_restore();
    if space.owners_are_unique() { Ok(space) } else { Err(ApplyError("twice")) }
}

fn session(user: &str, owner: u32) -> Effect<'_> {
    Effect::OwnedSession { user, session: "", owner, joined_at: 1, since: 1, meta: None }
}

#[test]
fn owners_that_cannot_be_are_refused() {
    let begin = Effect::Begin { epoch: 5, seq: 0, closed_until: 0 };
    let owner = |name| Effect::Owner { name, lease: 50, offline: false };
    let long = "x".repeat(513);
    let mut space = restored(&[begin, owner("a"), owner("b"), session("u", 1)]).unwrap();
    space.advance(49);
    assert_eq!(space.counts(49), (1, 1));
    space.advance(50);
    assert_eq!(space.counts(50), (0, 0));
    let names: Vec<&str> = space.owners().map(|owner| owner.name()).collect();
    assert_eq!(names, ["b"], "one without sessions is dropped");
    for effects in [
        &[session("u", 0)][..],
        &[owner("a"), session("u", 1)],
        &[owner("a"), session("u", u32::MAX)],
        &[owner("a"), session("u", 0), session("u", 0)],
        &[owner("a"), owner("a"), session("u", 0), session("v", 1)],
        &[owner("")],
        &[owner(&long)],
        &[Effect::Owner { name: "a", lease: MAX_TIMESTAMP + 1, offline: false }],
        &[Effect::Own { user: "u", session: "", owner: "a", lease: 9 }],
    ] {
        assert!(restored(&[&[begin], effects].concat()).is_err(), "{effects:?}");
    }
}

/// A snapshot with very many owners takes no longer than one with very many sessions.
#[test]
fn many_owners_are_restored_one_by_one() {
    let names: Vec<String> = (0..100_000).map(|n| format!("o{n}")).collect();
    let mut effects = vec![Effect::Begin { epoch: 5, seq: 0, closed_until: 0 }];
    let owner = |name| Effect::Owner { name, lease: 50, offline: false };
    effects.extend(names.iter().map(|name| owner(name.as_str())));
    effects.extend(names.iter().zip(0..).map(|(name, number)| session(name, number)));
    let space = restored(&effects).unwrap();
    assert_eq!(space.stored(), (100_000, 100_000));
}

/// An owned session takes at most 16 bytes more than one with a lease.
#[test]
fn an_owned_session_takes_no_more_than_16_bytes() {
    let limits =
        Limits { sessions_per_user: 9, users: 0, retention: Retention::of_events(0, 0), slack: 0 };
    let at = ChangeCtx { space: b"s", now: 1, limits };
    for (spaces, users) in [(1, 100_000), (1000, 10)] {
        let mut owners = Owners::default();
        let owner = owners.renew("gateway", 1000, 1);
        let mut bytes = |keeper: Keeper| -> usize {
            let of_space = |number: usize| {
                let mut space = Space::new(1);
                for user in 0..users {
                    let user = format!("user{user}");
                    let list = [(user.as_str(), "")];
                    space.online_many(at, &list, keeper, |_| true, |_| {}, &mut NullSink).unwrap();
                }
                for (owner, _) in space.take_owner_news() {
                    assert!(owners.attach(&owner, format!("space-{number}").as_bytes()));
                }
                space.heap_bytes()
            };
            let of_spaces: usize = (0..spaces).map(of_space).sum();
            of_spaces + owners.heap_bytes()
        };
        let (leased, owned) = (bytes(Keeper::Lease(1000)), bytes(Keeper::Owner(&owner)));
        let more = (owned as f64 - leased as f64) / (spaces * users) as f64;
        println!("{spaces} spaces of {users}: {more:.1} bytes more per session");
        assert!(more <= 16.0, "{spaces} spaces of {users}: {more:.1}");
    }
}

/// Counts at the end of an owner are exact, and it takes a step for each set of owners, not for each user.
#[test]
fn the_end_of_an_owner_visits_no_session() {
    let limits =
        Limits { sessions_per_user: 9, users: 0, retention: Retention::of_events(0, 0), slack: 0 };
    let at = ChangeCtx { space: b"s", now: 1, limits };
    let mut owners = Owners::default();
    let one = owners.renew("one", 100, 1);
    let other = owners.renew("other", 200, 1);
    let mut space = Space::new(1);
    let names: Vec<String> = (0..30_000).map(|n| format!("user{n}")).collect();
    let list = |from: usize, session| -> Vec<(&str, &str)> {
        names[from..].iter().map(|name| (name.as_str(), session)).collect()
    };
    let mut come = |list: &[(&str, &str)], keeper: Keeper| {
        space.online_many(at, list, keeper, |_| true, |_| {}, &mut NullSink).unwrap();
    };
    come(&list(0, "a"), Keeper::Owner(&one));
    come(&list(10_000, "b"), Keeper::Owner(&other));
    come(&list(20_000, "c"), Keeper::Lease(300));
    for (now, users, sessions) in [
        (99, 30_000, 60_000),
        (100, 20_000, 30_000),
        (200, 10_000, 10_000),
        (299, 10_000, 10_000),
        (300, 0, 0),
        (199, 20_000, 30_000),
        (50, 30_000, 60_000),
    ] {
        space.advance(now);
        assert_eq!(space.counts(now), (users, sessions), "{now}");
        assert_eq!(space.users(now).count(), users, "{now}");
    }
}
