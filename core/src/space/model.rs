//! The space against a model too simple to be wrong: a map from names to leases and a clock.

mod bounds;

use super::*;
use crate::codec;
use crate::owners::{OwnerLease, Owners};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
enum Op {
    Online {
        who: (usize, usize),
        ttl: u64,
        meta: Option<Option<u8>>,
        condition: u8,
    },
    OnlineMany {
        who: Vec<(usize, usize)>,
        ttl: u64,
    },
    Offline {
        user: usize,
        session: Option<usize>,
        linger: u64,
        /// Only what this owner has.
        owner: Option<usize>,
    },
    /// Sessions of an owner.
    Owned {
        who: Vec<(usize, usize)>,
        owner: usize,
    },
    /// Makes or renews an owner.
    Renew {
        owner: usize,
        ttl: u64,
    },
    /// Ends an owner, now or after a linger.
    End {
        owner: usize,
        linger: u64,
        by_request: bool,
    },
    /// What the timer does about owners that have expired.
    EndExpired,
    Message {
        user: usize,
    },
    Wait(u64),
    Sweep {
        steps: usize,
    },
    Grace {
        by: u64,
    },
    Close,
    /// Save and load, by way of bytes, as RESTORE does: no new line of history.
    Reload,
    /// Write a snapshot, to come back to.
    Save,
    /// Lose what came after the last snapshot: a server that is killed and loads it.
    Crash,
    /// Begin to decide without a loss: a promotion, a reload.
    Promote,
}

fn who() -> impl Strategy<Value = (usize, usize)> {
    (0..12usize, 0..4usize)
}

/// A request for a session that is not to change in another way than by its lease.
fn always<'a>(who: (&'a str, &'a str), lease: u64) -> OnlineRequest<'a> {
    OnlineRequest {
        who,
        keeper: lease.into(),
        meta: MetaChange::Keep,
        condition: Condition::Always,
    }
}

/// Leases that end soon, and leases that end after the time that is looked ahead.
fn ttl() -> impl Strategy<Value = u64> {
    prop_oneof![5 => 1..50u64, 1 => 900..2500u64]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (who(), ttl(), prop::option::of(prop::option::of(0..3u8)), 0..6u8)
            .prop_map(|(who, ttl, meta, condition)| Op::Online { who, ttl, meta, condition }),
        3 => (prop::collection::vec(who(), 1..20), ttl())
            .prop_map(|(who, ttl)| Op::OnlineMany { who, ttl }),
        3 => (0..12usize, prop::option::of(0..4usize), prop_oneof![3 => Just(0u64), 1 => 1..30u64])
            .prop_map(|(user, session, linger)| {
                Op::Offline { user, session, linger, owner: None }
            }),
        1 => (0..12usize, prop::option::of(0..4usize), prop_oneof![Just(0u64), 1..30u64], 0..3usize)
            .prop_map(|(user, session, linger, owner)| {
                Op::Offline { user, session, linger, owner: Some(owner) }
            }),
        5 => (prop::collection::vec(who(), 1..9), 0..3usize)
            .prop_map(|(who, owner)| Op::Owned { who, owner }),
        3 => (0..3usize, ttl()).prop_map(|(owner, ttl)| Op::Renew { owner, ttl }),
        1 => (0..3usize, prop_oneof![Just(0u64), 1..30u64], any::<bool>())
            .prop_map(|(owner, linger, by_request)| Op::End { owner, linger, by_request }),
        2 => Just(Op::EndExpired),
        1 => (0..12usize).prop_map(|user| Op::Message { user }),
        5 => prop_oneof![6 => 0..25u64, 1 => 500..1500u64].prop_map(Op::Wait),
        3 => (0..30usize).prop_map(|steps| Op::Sweep { steps }),
        1 => (1..40u64).prop_map(|by| Op::Grace { by }),
        1 => Just(Op::Reload),
        1 => Just(Op::Save),
        1 => Just(Op::Crash),
        1 => Just(Op::Promote),
    ]
}

#[derive(Clone, Debug, PartialEq)]
struct ModelSession {
    lease: u64,
    joined_at: u64,
    meta: Option<String>,
    lingering: bool,
    /// The number of its owner in [`Model::owners`], which has the lease.
    owner: Option<usize>,
}

/// An owner that was live once. One that comes back under the name of another is another one.
#[derive(Clone, Debug)]
struct ModelOwner {
    name: usize,
    lease: u64,
    reason: &'static str,
    /// It does not come back, whatever the clock says.
    is_over: bool,
}

#[derive(Clone, Default)]
struct Model {
    sessions: BTreeMap<(String, String), ModelSession>,
    since: BTreeMap<String, u64>,
    /// Who left and is not back, with the time and the reason; who left first comes first.
    seen: Vec<(String, u64, String)>,
    events: Vec<serde_json::Value>,
    epoch: u64,
    /// Whether the next event begins a new line of history.
    line_due: bool,
    owners: Vec<ModelOwner>,
}

impl Model {
    /// Until when a session is live.
    fn until(&self, state: &ModelSession) -> u64 {
        state
            .owner
            .and_then(|owner| self.owners.get(owner))
            .map_or(state.lease, |owner| owner.lease)
    }

    fn is_live(&self, state: &ModelSession, now: u64) -> bool {
        let is_over = state.owner.is_some_and(|owner| self.owners[owner].is_over);
        !is_over && self.until(state) > now
    }

    /// The reason of the leave, if the session ends now.
    fn reason(&self, state: &ModelSession) -> &'static str {
        match state.owner {
            Some(owner) => self.owners[owner].reason,
            None if state.lingering => "offline",
            None => "timeout",
        }
    }

    /// A snapshot gives the sessions of owners that have ended leases of their own.
    fn disown_ended(&mut self) {
        for state in self.sessions.values_mut() {
            if let Some(owner) = state.owner.map(|owner| &self.owners[owner])
                && owner.is_over
            {
                (state.lease, state.lingering) = (owner.lease, owner.reason == "offline");
                state.owner = None;
            }
        }
    }

    /// The owner that has this name now, whether or not it is live.
    fn owner(&self, name: usize) -> Option<usize> {
        self.owners.iter().rposition(|owner| owner.name == name && !owner.is_over)
    }

    fn live_owner(&self, name: usize, now: u64) -> Option<usize> {
        self.owner(name).filter(|owner| self.owners[*owner].lease > now)
    }

    fn users(&self) -> usize {
        self.sessions.keys().map(|(user, _)| user).collect::<BTreeSet<_>>().len()
    }

    fn has(&self, user: &str) -> bool {
        self.sessions.keys().any(|(other, _)| other == user)
    }

    /// The id of the next event.
    fn next_id(&mut self, now: u64) -> String {
        if std::mem::take(&mut self.line_due) {
            self.epoch = now.max(self.epoch + 1);
        }
        format!("{}-{}", self.epoch, self.events.len() + 1)
    }

    /// The ids of all events that led here, in order.
    fn ids(&self) -> Vec<(u64, u64)> {
        self.events.iter().map(id_of).collect()
    }

    fn note(
        &mut self,
        kind: &str,
        user: &str,
        session: &str,
        now: u64,
        details: serde_json::Value,
    ) {
        let mut event = serde_json::json!({
            "id": self.next_id(now),
            "space": "lobby", "type": kind, "user": user, "users": self.users(), "at": now,
        });
        if !session.is_empty() {
            event["session"] = session.into();
        }
        for (key, value) in details.as_object().unwrap() {
            event[key] = value.clone();
        }
        self.events.push(event);
    }

    fn details(state: &ModelSession) -> serde_json::Value {
        let mut details = serde_json::json!({"joined_at": state.joined_at});
        if let Some(meta) = &state.meta {
            details["meta"] = serde_json::from_str(meta).unwrap();
        }
        details
    }

    fn enter(
        &mut self,
        user: &str,
        session: &str,
        now: u64,
        lease: u64,
        meta: Option<String>,
    ) -> usize {
        let first = !self.has(user);
        if first {
            self.since.insert(user.into(), now);
            self.seen.retain(|(other, ..)| other != user);
        }
        let state = ModelSession { lease, joined_at: now, meta, lingering: false, owner: None };
        self.sessions.insert((user.into(), session.into()), state.clone());
        self.note(if first { "join" } else { "add" }, user, session, now, Self::details(&state));
        usize::from(first)
    }

    fn end(&mut self, user: &str, session: &str, now: u64, reason: &str) {
        let state = self.sessions.remove(&(user.into(), session.into())).unwrap();
        let kind = if self.has(user) { "remove" } else { "leave" };
        if kind == "leave" {
            self.seen.push((user.into(), now, reason.into()));
            self.seen.drain(..self.seen.len().saturating_sub(RETENTION.seen.users as usize));
        }
        let mut details = Self::details(&state);
        details["reason"] = reason.into();
        self.note(kind, user, session, now, details);
    }
}

fn id_of(event: &serde_json::Value) -> (u64, u64) {
    let (epoch, seq) = event["id"].as_str().unwrap().split_once('-').unwrap();
    (epoch.parse().unwrap(), seq.parse().unwrap())
}

/// What a space tells, gathered.
#[derive(Default)]
struct Heard {
    batch: Vec<u8>,
    events: Vec<String>,
    new_line: Option<u64>,
    /// The owners of a replica.
    owners: Option<Owners>,
}

impl Sink for Heard {
    fn effect(&mut self, effect: &Effect<'_>) {
        if self.batch.is_empty() {
            codec::begin(&mut self.batch);
        }
        codec::encode(&mut self.batch, effect);
    }

    fn event(&mut self, _: &Event<'_>, text: &[u8]) {
        self.events.push(String::from_utf8(text.to_vec()).unwrap());
    }

    fn take_new_line(&mut self) -> Option<u64> {
        self.new_line.take()
    }

    fn owner(&mut self, name: &str, lease: OwnerLease) -> Option<Arc<Owner>> {
        self.owners.as_mut().map(|owners| owners.refer(name, lease, 0))
    }
}

fn limits() -> Limits {
    let retention = Retention::of_events(0, 0);
    Limits { sessions_per_user: 1024, users: 0, retention, slack: 0 }
}

const RETENTION: Retention =
    Retention { length: 20, ttl: 60, seen: SeenLimits { ttl: 40, users: 5 } };

fn dump(space: &Space) -> (String, BTreeSet<String>) {
    let (mut head, mut rest) = (String::new(), BTreeSet::new());
    space.dump_for_digest(|effect| match effect {
        // Their order counts.
        Effect::Begin { .. } | Effect::Event { .. } | Effect::Seen { .. } => {
            head += &format!("{effect:?}");
        }
        other => {
            rest.insert(format!("{other:?}"));
        }
    });
    (head, rest)
}

fn reload(space: &Space) -> Space {
    let mut bytes = Vec::new();
    codec::begin(&mut bytes);
    space.dump(|effect| codec::encode(&mut bytes, effect));
    let mut back = Space::new(0);
    for effect in codec::decode(&bytes) {
        let effect = effect.unwrap();
        back.restore(&effect).unwrap();
        if matches!(effect, Effect::Session { .. } | Effect::Seen { .. }) {
            // Nobody is there twice, whatever a file says.
            back.restore(&effect).unwrap_err();
        }
    }
    back
}

/// The space belongs to these owners from now on, as one that has been loaded.
fn bind(space: &mut Space, owners: &mut Owners) {
    let clock = owners.clock().clone();
    space.bind_owners(&clock, |name, lease| owners.refer(name, lease, 0));
}

/// The owners that the model knows, as a snapshot has them.
fn owners_of(model: &Model) -> Owners {
    let mut owners = Owners::default();
    for owner in model.owners.iter().filter(|owner| !owner.is_over) {
        let reason = if owner.reason == "offline" { Reason::Offline } else { Reason::Timeout };
        owners.assign(&owner_name(owner.name), OwnerLease { until: owner.lease, reason }, 0);
    }
    owners
}

fn owner_name(number: usize) -> String {
    format!("gateway-{number}")
}

/// Each owner counts its sessions in the space, and knows the space if it has any.
fn compare_owners(space: &mut Space, owners: &mut Owners, model: &Model) {
    for (owner, has_sessions) in space.take_owner_news() {
        if has_sessions {
            owners.attach(&owner, b"lobby");
        } else {
            owners.detach(&owner, b"lobby");
        }
    }
    for (number, owner) in model.owners.iter().enumerate().filter(|(_, owner)| !owner.is_over) {
        let name = owner_name(owner.name);
        let real = owners.get(&name).unwrap();
        let of_owner = |state: &&ModelSession| state.owner == Some(number);
        let sessions = model.sessions.values().filter(of_owner).count();
        assert_eq!((real.until(), real.sessions()), (owner.lease, sessions), "{name}");
        let listed: BTreeSet<(&str, &str)> = space.sessions_of(real).collect();
        assert_eq!(listed.len(), sessions);
        for (user, session) in listed {
            assert_eq!(model.sessions[&(user.into(), session.into())].owner, Some(number));
        }
        assert_eq!(owners.spaces(&name, 0).0.len(), usize::from(sessions > 0), "{name}");
    }
}

/// Everything that can be read of the space is what the model says, at the present moment.
fn compare(space: &mut Space, model: &Model, now: u64) {
    space.advance(now);
    let mut live: BTreeMap<String, BTreeMap<String, &ModelSession>> = BTreeMap::new();
    for ((user, session), state) in &model.sessions {
        if model.is_live(state, now) {
            live.entry(user.clone()).or_default().insert(session.clone(), state);
        }
    }
    let sessions = live.values().map(BTreeMap::len).sum::<usize>();
    assert_eq!(space.counts(now), (live.len(), sessions), "counts at {now}");
    assert_eq!(space.stored(), (model.users(), model.sessions.len()));
    assert!(space.members.indexes_are_complete());
    let mut seen = BTreeSet::new();
    for user in space.users(now) {
        let name = text(user.name()).to_owned();
        let expected = &live[&name];
        assert_eq!(user.joined_at(), model.since[&name]);
        let mut count = 0;
        for record in user.sessions() {
            let state = expected[text(record.session())];
            assert_eq!(
                (record.lease().until(), record.joined_at()),
                (model.until(state), state.joined_at)
            );
            let owner = state.owner.map(|owner| owner_name(model.owners[owner].name));
            assert_eq!(record.owner(), owner.as_deref());
            assert_eq!(record.meta().map(text), state.meta.as_deref());
            count += 1;
        }
        assert_eq!(count, expected.len());
        assert!(seen.insert(name.clone()), "{name} twice");
        assert_eq!(space.user(&name, now).unwrap().sessions().count(), count);
    }
    assert_eq!(seen.len(), live.len());
    for count in 1..4 {
        let (mut from, mut listed) = (Some(0), Vec::new());
        while let Some(place) = from {
            let (users, next) = space.page(place, count, now, |_| {});
            assert!(users.len() <= count && next.is_none_or(|next| next > place));
            listed.extend(users.iter().map(|user| text(user.name()).to_owned()));
            from = next;
        }
        assert_eq!(listed.len(), live.len(), "each once");
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), seen);
    }
    assert!(space.user("nobody", now).is_none());
}

/// What the space says of each user, and of one whom it does not know, is what the model says.
fn compare_seen(space: &mut Space, model: &Model, now: u64) {
    space.advance(now);
    for user in (0..13).map(|n| format!("user{n}")) {
        let mine = || model.sessions.iter().filter(|((other, _), _)| *other == user);
        let live = mine().filter(|(_, state)| model.is_live(state, now)).count();
        let seen = space.seen(&user, now, RETENTION);
        if live > 0 {
            assert_eq!(seen, Some(Seen { sessions: live, at: now, reason: None }));
            continue;
        }
        let lapsed = mine().map(|(_, state)| model.until(state)).max();
        let left = model.seen.iter().find(|(other, ..)| *other == user);
        // A user who has lapsed cannot have left as well.
        assert!(lapsed.is_none() || left.is_none());
        let at = lapsed.or(left.map(|(_, at, _)| *at)).filter(|at| at + RETENTION.seen.ttl > now);
        assert_eq!(seen.map(|seen| (seen.sessions, seen.at)), at.map(|at| (0, at)), "{user}");
        let reason = seen.and_then(|seen| seen.reason).map(|reason| format!("{reason:?}"));
        let reason = reason.unwrap_or_default().to_lowercase();
        let is_right = match left {
            Some((_, _, left)) => reason == *left,
            // Of two sessions that end at one time, either is the last.
            None => mine()
                .filter(|(_, state)| Some(model.until(state)) == lapsed)
                .any(|(_, state)| reason == model.reason(state)),
        };
        assert!(seen.is_none() || is_right, "{user} {reason}");
    }
}

/// What the space says of each id that was ever given out, and of some that never were, follows
/// from the list of all events that led to it. Seqs are the places in that list.
fn compare_gaps(space: &Space, model: &Model, given: &BTreeSet<(u64, u64)>, now: u64) {
    let ids = model.ids();
    let mut epochs: Vec<u64> = ids.iter().map(|id| id.0).collect();
    epochs.dedup();
    let known_epochs = &epochs[epochs.len().saturating_sub(8)..];
    let kept = space.kept_events(now, RETENTION);
    let texts = space.history().into_iter().flat_map(|history| history.newest(kept));
    let kept_ids: Vec<_> =
        texts.map(|(_, text)| id_of(&serde_json::from_slice(text).unwrap())).collect();
    assert!(ids.ends_with(&kept_ids));
    let (epoch, seq) = space.last_id();
    let strange = [(epoch, 0), (epoch, seq + 1), (epoch + 1, 1), (epoch - 1, seq), (0, 1), (0, 0)];
    for id in given.iter().copied().chain(strange) {
        let place = ids.get((id.1 as usize).wrapping_sub(1)).is_some_and(|known| *known == id);
        let is_known = place && known_epochs.contains(&id.0) || id == (0, 0) || id == (epoch, seq);
        let (gap, events) = space.events_after(id, now, RETENTION);
        // The newest ones: so many are those that they must be.
        let events = events.count();
        if is_known {
            let rest = ids.len() - id.1 as usize;
            assert_eq!((gap, events), (rest > kept, rest.min(kept)), "{id:?}");
        } else {
            assert!(gap && events <= kept, "{id:?} was lost or never given out, {ids:?}");
        }
    }
}

/// The lookup of a user as a server finds it: by what was seen of the space last, right or wrong.
fn cached(space: &Space, layout: &mut SpaceLayout, user: &[u8]) -> Lookup {
    let mut lookup = layout.lookup(user, |_| {});
    if !space.update_layout(layout) {
        space.enter(&mut lookup, user, |_| {});
    }
    space.follow(&mut lookup, |_| {});
    lookup
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn behaves_like_the_model(ops in prop::collection::vec(op(), 1..120), close in any::<bool>()) {
        let name = |n: usize| format!("user{n}");
        let tab = |n: usize| if n == 0 { String::new() } else { format!("tab{n}") };
        let mut now = 1000u64;
        let limits = Limits { sessions_per_user: 3, users: 10, retention: RETENTION, slack: 0 };
        let mut space = Space::new(1000);
        let mut layout = SpaceLayout::NONE;
        let mut replica = Space::new(1000);
        let (mut owners, mut owners_there) = (Owners::default(), Owners::default());
        let mut model = Model { epoch: 1000, ..Model::default() };
        let mut published = 0usize;
        let mut saved = None;
        let mut given = BTreeSet::new();
        let last = if close { vec![Op::Close, Op::OnlineMany { who: vec![(1, 1)], ttl: 9 }] } else { vec![] };
        for op in ops.into_iter().chain(last) {
            let at = ChangeCtx { space: b"lobby", now, limits };
            let mut heard =
                Heard { new_line: model.line_due.then_some(now), ..Heard::default() };
            let closed = space.is_closed();
            match op.clone() {
                Op::Wait(by) => now += by,
                Op::Reload => {
                    (space, replica) = (reload(&space), reload(&replica));
                    bind(&mut space, &mut owners);
                    bind(&mut replica, &mut owners_there);
                    model.disown_ended();
                }
                Op::Renew { owner, ttl } => {
                    let name = owner_name(owner);
                    owners.renew(&name, now + ttl, now);
                    let lease = OwnerLease::until(now + ttl);
                    match model.live_owner(owner, now) {
                        Some(number) => {
                            let known = &mut model.owners[number];
                            (known.lease, known.reason) = (now + ttl, "timeout");
                        }
                        None => {
                            if let Some(number) = model.owner(owner) {
                                model.owners[number].is_over = true;
                                owners_there.end(&name);
                            }
                            let lease = now + ttl;
                            model.owners.push(
                                ModelOwner { name: owner, lease, reason: "timeout", is_over: false });
                        }
                    }
                    owners_there.assign(&name, lease, now);
                }
                Op::End { owner, linger, by_request } => {
                    let (reason, word) = match by_request {
                        true => (Reason::Offline, "offline"),
                        false => (Reason::Timeout, "timeout"),
                    };
                    let cut = owners.cut(&owner_name(owner), now + linger, now, reason);
                    let number = model.live_owner(owner, now);
                    let of_owner = |state: &&ModelSession| state.owner == number;
                    let sessions = model.sessions.values().filter(of_owner).count();
                    prop_assert_eq!(cut, number.map(|_| sessions));
                    if let Some(number) = number {
                        let known = &mut model.owners[number];
                        if now + linger < known.lease || by_request {
                            known.lease = known.lease.min(now + linger);
                            known.reason = word;
                            let lease = OwnerLease { until: known.lease, reason };
                            owners_there.assign(&owner_name(owner), lease, now);
                        }
                        known.is_over = linger == 0;
                        if linger == 0 {
                            owners_there.end(&owner_name(owner));
                        }
                    }
                }
                Op::EndExpired => {
                    prop_assert!(owners.end_expired(now, &mut || true));
                    let has_sessions = |number| model.sessions.values().any(|it| it.owner == Some(number));
                    let mut is_to_sweep = false;
                    for number in 0..model.owners.len() {
                        if model.owners[number].lease <= now && !model.owners[number].is_over {
                            is_to_sweep |= has_sessions(number);
                        }
                    }
                    for known in model.owners.iter_mut().filter(|it| it.lease <= now && !it.is_over) {
                        known.is_over = true;
                        owners_there.end(&owner_name(known.name));
                    }
                    let spaces: Vec<_> = std::iter::from_fn(|| owners.next_space()).collect();
                    prop_assert!(!is_to_sweep || !spaces.is_empty());
                    while owners_there.next_space().is_some() {}
                }
                Op::Owned { who, owner } => {
                    let names: Vec<(String, String)> = who.iter().map(|who| (name(who.0), tab(who.1))).collect();
                    let list: Vec<(&str, &str)> =
                        names.iter().map(|(user, session)| (user.as_str(), session.as_str())).collect();
                    let before = dump(&space);
                    let real = owners.live(&owner_name(owner), now).cloned();
                    let number = model.live_owner(owner, now);
                    prop_assert_eq!(real.is_some(), number.is_some());
                    if let Some(real) = real {
                        let keeper = Keeper::Owner(&real);
                        match space.online_many(at, &list, keeper, |_| true, |_| {}, &mut heard) {
                            Err(_) => prop_assert_eq!(before, dump(&space)),
                            Ok(came) => {
                                let mut expected = 0;
                                for key in &names {
                                    let (user, session) = key;
                                    if !model.sessions.get(key).is_some_and(|it| model.is_live(it, now)) {
                                        for (session, reason) in lapsed_in_order(&heard, user, &model, now) {
                                            model.end(user, &session, now, &reason);
                                        }
                                        expected += model.enter(user, session, now, 0, None);
                                    }
                                    let state = model.sessions.get_mut(key).unwrap();
                                    (state.owner, state.lingering) = (number, false);
                                }
                                prop_assert_eq!(came, expected);
                            }
                        }
                    }
                }
                Op::Promote => model.line_due = true,
                Op::Save => {
                    let mut model = model.clone();
                    model.disown_ended();
                    saved = Some((reload(&space), model, published));
                }
                Op::Crash => if let Some((snapshot, model_then, published_then)) = &saved {
                    (space, replica) = (reload(snapshot), reload(snapshot));
                    (model, published) = (model_then.clone(), *published_then);
                    (owners, owners_there) = (owners_of(&model), owners_of(&model));
                    bind(&mut space, &mut owners);
                    bind(&mut replica, &mut owners_there);
                    model.line_due = true;
                    // It is back later than its epochs were ahead of the clock.
                    now = given.last().map_or(now, |(epoch, _)| now.max(*epoch)) + 1;
                }
                Op::Grace { by } => {
                    space.grant_grace(now + by, &mut heard);
                    for state in model.sessions.values_mut() {
                        state.lease = state.lease.max(now + by);
                    }
                    owners.begin_to_decide(now + by, now);
                    owners_there.begin_to_decide(now + by, now);
                    for known in model.owners.iter_mut().filter(|known| !known.is_over) {
                        known.lease = known.lease.max(now + by);
                    }
                }
                Op::Close => {
                    prop_assert!(space.close(at, now + 5, &mut heard));
                    let (_, lapsed) = heard.events.split_last().unwrap();
                    for event in lapsed {
                        let event: serde_json::Value = serde_json::from_str(event).unwrap();
                        let (user, session) = (&event["user"], event["session"].as_str().unwrap_or(""));
                        model.end(user.as_str().unwrap(), session, now, event["reason"].as_str().unwrap());
                    }
                    prop_assert!(model.sessions.values().all(|state| model.is_live(state, now)));
                    model.sessions.clear();
                    model.seen.clear();
                    let id = model.next_id(now);
                    model.events.push(serde_json::json!(
                        {"id": id, "space": "lobby", "type": "close", "users": 0, "at": now}));
                }
                Op::Message { user } => {
                    let id = space.message(at, &name(user), "", "hé\"y", &mut heard);
                    let users = model.users();
                    model.note("message", &name(user), "", now,
                        serde_json::json!({"message": "hé\"y", "users": users}));
                    prop_assert_eq!(id, Some((model.epoch, model.events.len() as u64)));
                }
                Op::Sweep { steps } => {
                    let mut left = steps;
                    let swept = space.sweep(at, &mut heard, &mut || {
                        left = left.saturating_sub(1);
                        left > 0
                    });
                    // Which of the lapsed come first is open; those that were told are over.
                    for event in &heard.events {
                        let event: serde_json::Value = serde_json::from_str(event).unwrap();
                        let user = event["user"].as_str().unwrap();
                        let session = event["session"].as_str().unwrap_or("");
                        let state = &model.sessions[&(user.to_owned(), session.to_owned())];
                        prop_assert!(!model.is_live(state, now));
                        let reason = model.reason(state);
                        model.end(user, session, now, reason);
                    }
                    prop_assert_eq!(swept.ended, heard.events.len());
                    if !swept.more {
                        prop_assert!(model.sessions.values().all(|state| model.is_live(state, now)));
                    }
                }
                Op::Online { who, ttl, meta, condition } => {
                    let (user, session) = (name(who.0), tab(who.1));
                    let key = (user.clone(), session.clone());
                    // Of sizes that are kept in different places.
                    let text = meta.map(|meta| {
                        meta.map(|n| format!("{{\"n\": \"{}\"}}", "x".repeat(usize::from(n) * 150)))
                    });
                    let change = match &text {
                        None => MetaChange::Keep,
                        Some(meta) => MetaChange::To(meta.as_deref()),
                    };
                    let condition = match condition {
                        0 => Condition::IfAbsent,
                        1 => Condition::IfPresent,
                        _ => Condition::Always,
                    };
                    let lookup = cached(&space, &mut layout, user.as_bytes());
                    let reply = space.online(at, &lookup, OnlineRequest { who: (&user, &session), keeper: (now + ttl).into(), meta: change, condition }, |_| true, &mut heard);
                    let live = model.sessions.get(&key).is_some_and(|state| model.is_live(state, now));
                    let of_user = model.sessions.iter()
                        .filter(|((other, _), state)| *other == user && model.is_live(state, now)).count();
                    let online = model.sessions.iter().filter(|(_, state)| model.is_live(state, now))
                        .map(|((user, _), _)| user).collect::<BTreeSet<_>>().len();
                    match (live, condition) {
                        (true, Condition::IfAbsent) | (false, Condition::IfPresent) => {
                            prop_assert_eq!(reply, Ok(None));
                        }
                        (true, _) => {
                            prop_assert_eq!(reply, Ok(Some(0)));
                            let state = model.sessions.get_mut(&key).unwrap();
                            (state.lease, state.lingering, state.owner) = (now + ttl, false, None);
                            if let Some(meta) = text.filter(|meta| *meta != state.meta) {
                                state.meta = meta;
                                let details = Model::details(state);
                                model.note("update", &user, &session, now, details);
                            }
                        }
                        (false, _) if of_user >= 3 => prop_assert_eq!(reply, Err(OnlineError::SessionsPerUser)),
                        (false, _) if of_user == 0 && online >= 10 => prop_assert_eq!(reply, Err(OnlineError::Users)),
                        (false, _) => {
                            let lapsed = lapsed_in_order(&heard, &user, &model, now);
                            for (session, reason) in lapsed {
                                model.end(&user, &session, now, &reason);
                            }
                            let came = model.enter(&user, &session, now, now + ttl, text.flatten());
                            prop_assert_eq!(reply, Ok(Some(came)));
                        }
                    }
                }
                Op::OnlineMany { who, ttl } => {
                    let names: Vec<(String, String)> = who.iter().map(|who| (name(who.0), tab(who.1))).collect();
                    let list: Vec<(&str, &str)> =
                        names.iter().map(|(user, session)| (user.as_str(), session.as_str())).collect();
                    let before = dump(&space);
                    match space.online_many(at, &list, now + ttl, |_| true, |_| {}, &mut heard) {
                        Err(_) => prop_assert_eq!(before, dump(&space)),
                        Ok(came) => {
                            let mut expected = 0;
                            for (user, session) in &names {
                                let key = (user.clone(), session.clone());
                                let is_live = model.sessions.get(&key).is_some_and(|it| model.is_live(it, now));
                                match model.sessions.get_mut(&key) {
                                    Some(state) if is_live => {
                                        (state.lease, state.lingering, state.owner) = (now + ttl, false, None);
                                    }
                                    _ => {
                                        for (session, reason) in lapsed_in_order(&heard, user, &model, now) {
                                            model.end(user, &session, now, &reason);
                                        }
                                        expected += model.enter(user, session, now, now + ttl, None);
                                    }
                                }
                            }
                            prop_assert_eq!(came, expected);
                            prop_assert!(!closed);
                        }
                    }
                }
                // The command finds no owner.
                Op::Offline { owner: Some(owner), .. } if model.live_owner(owner, now).is_none() => {}
                Op::Offline { user, session, linger, owner } => {
                    let (user, session) = (name(user), session.map(tab));
                    let number = owner.and_then(|owner| model.live_owner(owner, now));
                    let real = owner.and_then(|owner| owners.live(&owner_name(owner), now).cloned());
                    let gone =
                        space.offline_owned(at, &user, session.as_deref(), real.as_deref(), linger, &mut heard);
                    for (session, reason) in lapsed_in_order(&heard, &user, &model, now) {
                        model.end(&user, &session, now, &reason);
                    }
                    let mine: Vec<String> = model.sessions.iter()
                        .filter(|((other, tab), state)| *other == user
                            && session.as_ref().is_none_or(|one| one == tab)
                            && (number.is_none() || state.owner == number))
                        .map(|((_, tab), _)| tab.clone()).collect();
                    if linger == 0 {
                        let told: Vec<String> = heard.events[heard.events.len() - mine.len()..].iter().map(|event| {
                            let event: serde_json::Value = serde_json::from_str(event).unwrap();
                            event["session"].as_str().unwrap_or("").to_owned()
                        }).collect();
                        prop_assert_eq!(told.iter().collect::<BTreeSet<_>>(), mine.iter().collect::<BTreeSet<_>>());
                        for tab in &told {
                            model.end(&user, tab, now, "offline");
                        }
                        prop_assert_eq!(gone, usize::from(!mine.is_empty() && !model.has(&user)));
                    } else {
                        prop_assert_eq!(gone, 0);
                        for tab in mine {
                            let key = (user.clone(), tab);
                            let until = model.until(&model.sessions[&key]);
                            let state = model.sessions.get_mut(&key).unwrap();
                            (state.lease, state.lingering, state.owner) = (until.min(now + linger), true, None);
                        }
                    }
                }
            }
            // The events are those of the model, with ids that have no holes.
            for event in &heard.events {
                let event: serde_json::Value = serde_json::from_str(event).unwrap();
                prop_assert_eq!(&event, &model.events[published]);
                published += 1;
                let id = id_of(&event);
                prop_assert!(given.last().is_none_or(|last| *last < id), "{id:?} after {given:?}");
                given.insert(id);
            }
            prop_assert_eq!(published, model.events.len());
            prop_assert_eq!(space.last_id(), (model.epoch, published as u64));
            // A replica that applies the effects is told the same events and is the same.
            if !heard.batch.is_empty() {
                let mut echo = Heard { owners: Some(owners_there), ..Heard::default() };
                let mut retention = RETENTION;
                for effect in codec::decode(&heard.batch) {
                    replica.apply(b"lobby", &effect.unwrap(), &mut retention, &mut echo).unwrap();
                }
                owners_there = echo.owners.take().unwrap();
                prop_assert_eq!(&echo.events, &heard.events);
                prop_assert_eq!(&echo.batch, &heard.batch);
            }
            prop_assert_eq!(dump(&space), dump(&replica));
            compare(&mut space, &model, now);
            compare(&mut replica, &model, now);
            // A clock that is set back by a little, and set right again.
            compare(&mut space, &model, now - 7);
            compare(&mut space, &model, now);
            compare_gaps(&space, &model, &given, now);
            compare_owners(&mut space, &mut owners, &model);
            compare_owners(&mut replica, &mut owners_there, &model);
            compare_seen(&mut space, &model, now);
            compare_seen(&mut replica, &model, now);
            // Whoever is remembered keeps the space.
            let is_remembered = model.seen.iter().any(|(_, at, _)| at + RETENTION.seen.ttl > now);
            prop_assert!(!is_remembered || !space.is_spent(now, RETENTION));
            // No lease ends before the space says that there may be something to do.
            let of_owners = model.sessions.values().filter(|state| state.owner.is_some());
            if of_owners.clone().any(|state| !model.is_live(state, now)) {
                prop_assert!(space.next_due(RETENTION) <= now);
            }
            let without_owner = model.sessions.values().filter(|state| state.owner.is_none());
            if let Some(first) = without_owner.map(|state| state.lease).min() {
                prop_assert!(space.next_due(RETENTION) <= first);
            }
            let texts: Vec<&str> = space.history().into_iter()
                .flat_map(|history| history.newest(space.kept_events(now, RETENTION))).map(|(_, t)| text(t)).collect();
            let skip = model.events.len().saturating_sub(20);
            let expected: Vec<&serde_json::Value> = model.events[skip..].iter()
                .filter(|event| event["at"].as_u64().unwrap() + 60 > now).collect();
            if space.is_closed() {
                prop_assert!(texts.len() >= expected.len().max(1));
            } else {
                prop_assert_eq!(texts.len(), expected.len());
            }
        }
        // In the end everybody lapses, and then nothing is left of the space.
        now += 3000;
        let at = ChangeCtx { space: b"lobby", now, limits };
        let swept = space.sweep(at, &mut NullSink, &mut || true);
        prop_assert!(!swept.more);
        prop_assert_eq!(space.stored(), (0, 0));
        space.take_owner_news();
        prop_assert_eq!(space.members.heap_bytes(), 0);
        // … and its history, which no sweep had trimmed in between.
        now += RETENTION.ttl;
        prop_assert!(space.next_due(RETENTION) <= now);
        space.sweep(ChangeCtx { now, ..at }, &mut NullSink, &mut || true);
        prop_assert!(space.is_spent(now, RETENTION));
    }
}

/// The sessions of a user that a change has first ended because their leases were over, in the
/// order in which it told so. That all of them are among these, the comparison shows.
fn lapsed_in_order(heard: &Heard, user: &str, model: &Model, now: u64) -> Vec<(String, String)> {
    let mut told = Vec::new();
    for event in &heard.events {
        let event: serde_json::Value = serde_json::from_str(event).unwrap();
        let session = event["session"].as_str().unwrap_or("").to_owned();
        let state = model.sessions.get(&(user.to_owned(), session.clone()));
        let is_over = state.is_some_and(|state| !model.is_live(state, now));
        let ends = event["type"] == "remove" || event["type"] == "leave";
        if event["user"] == user
            && ends
            && is_over
            && !told.iter().any(|(other, _)| *other == session)
        {
            let reason = state.map_or("", |state| model.reason(state));
            told.push((session, reason.to_owned()));
        }
    }
    told
}

#[test]
fn a_renewal_moves_nothing_and_memory_stays() {
    let limits = Limits { sessions_per_user: 1024, users: 0, retention: RETENTION, slack: 0 };
    let mut space = Space::new(1);
    let names: Vec<String> = (0..20_000).map(|n| format!("user{n}")).collect();
    for name in &names {
        let at = ChangeCtx { space: b"s", now: 1, limits };
        space
            .online(at, &Lookup::default(), always((name, ""), 30_000), |_| true, &mut NullSink)
            .unwrap();
    }
    let before = space.heap_bytes();
    for now in 2..12 {
        for name in &names {
            let at = ChangeCtx { space: b"s", now, limits };
            let lease = 30_000 + now;
            space
                .online(at, &Lookup::default(), always((name, ""), lease), |_| false, &mut NullSink)
                .unwrap();
        }
    }
    assert_eq!(space.heap_bytes(), before);
    assert_eq!(space.next_due(RETENTION), 61, "the order has not been touched");
    let counts_at = |space: &mut Space, now| {
        space.advance(now);
        space.counts(now)
    };
    assert_eq!(counts_at(&mut space, 30_010), (20_000, 20_000));
    assert_eq!(counts_at(&mut space, 30_011), (0, 0));
    assert_eq!(counts_at(&mut space, 30_010), (20_000, 20_000), "the clock was set back");
}

#[test]
fn admission_is_all_or_none() {
    let limits = Limits { sessions_per_user: 2, users: 2, retention: RETENTION, slack: 0 };
    let at = ChangeCtx { space: b"s", now: 1, limits };
    let mut space = Space::new(1);
    let many = |space: &mut Space, list: &[(&str, &str)], memory| {
        space.online_many(at, list, 100, |_| memory, |_| {}, &mut NullSink)
    };
    assert_eq!(many(&mut space, &[("a", "1"), ("a", "1"), ("b", "")], true), Ok(2));
    assert_eq!(many(&mut space, &[("a", "2"), ("c", "")], true), Err(OnlineError::Users));
    assert_eq!(
        many(&mut space, &[("a", "2"), ("a", "3")], true),
        Err(OnlineError::SessionsPerUser)
    );
    assert_eq!(many(&mut space, &[("a", "1"), ("a", "2")], false), Err(OnlineError::NoMemory));
    assert_eq!(space.stored(), (2, 2));
    assert_eq!(many(&mut space, &[("a", "1"), ("b", "")], false), Ok(0), "renewals need no memory");
    assert!(space.close(at, 10, &mut NullSink));
    assert!(!space.close(at, 10, &mut NullSink));
    assert_eq!(many(&mut space, &[("a", "1")], true), Err(OnlineError::Closed));
    assert_eq!(space.message(at, "a", "", "x", &mut NullSink), None);
}

#[test]
fn the_events_of_a_snapshot_have_the_last_ids_without_a_hole() {
    let event =
        |seq: &str| format!(r#"{{"id":"7-{seq}","space":"s","type":"close","users":0,"at":1}}"#);
    let restore = |seqs: &[&str]| {
        let mut space = Space::new(0);
        space.restore(&Effect::Begin { epoch: 7, seq: 3, closed_until: 0 }).unwrap();
        let error = seqs
            .iter()
            .find_map(|seq| space.restore(&Effect::Event { at: 1, text: &event(seq) }).err());
        error.map(|error| Err(error.0)).unwrap_or(Ok(space.end_restore()))
    };
    for seqs in [&["1", "2", "3"][..], &["2", "3"], &["3"], &[]] {
        assert_eq!(restore(seqs), Ok(true), "{seqs:?}");
    }
    for seqs in [&["1", "2"][..], &["1"]] {
        assert_eq!(restore(seqs), Ok(false), "{seqs:?}");
    }
    for seqs in [&["1", "3"][..], &["4"], &["0"], &["3", "3"], &["3", "4"], &["3", "2"], &["x"]] {
        assert!(restore(seqs).is_err(), "{seqs:?}");
    }
}

/// Lists that are longer than what is looked up at once, in spaces of a few and of many.
#[test]
fn long_lists_find_everybody() {
    let limits = Limits { sessions_per_user: 1024, users: 0, retention: RETENTION, slack: 0 };
    for stays in [3, 200] {
        let mut space = Space::new(1);
        let names: Vec<String> = (0..stays + 70).map(|n| format!("user{n}")).collect();
        let pairs: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "s")).collect();
        let users: Vec<&str> = names.iter().map(|name| &**name).collect();
        let bring = |space: &mut Space, now: u64, list: &[(&str, &str)]| {
            let at = ChangeCtx { space: b"s", now, limits };
            space.online_many(at, list, now + 1000, |_| true, |_| {}, &mut NullSink).unwrap()
        };
        assert_eq!(bring(&mut space, 1, &pairs[..stays]), stays);
        let here = |n: usize| usize::from(n < stays);
        let counts = |space: &mut Space, now: u64| {
            space.advance(now);
            space.statuses(&users, now, |_| {})
        };
        assert!(counts(&mut space, 1).into_iter().eq((0..users.len()).map(here)));
        // Nobody is taken for somebody else: each one's lease is renewed, and nobody comes.
        assert_eq!(bring(&mut space, 500, &pairs[..stays]), 0);
        assert!(counts(&mut space, 1400).into_iter().eq((0..users.len()).map(here)));
        assert_eq!(space.counts(1400), (stays, stays));
        // Half of them, and some who are new.
        assert_eq!(bring(&mut space, 600, &pairs[stays / 2..]), 70);
        assert_eq!(space.stored(), (stays + 70, stays + 70));
        space.advance(1550);
        assert_eq!(space.counts(1550), (stays + 70 - stays / 2, stays + 70 - stays / 2));
    }
}

/// Users with hundreds of sessions against a map from sessions to leases: what a group counts is what a look
/// at all of them would count, in whatever order they come, are renewed, expire and go.
mod many_sessions {
    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Online { user: usize, from: usize, count: usize, ttl: u64 },
        Renew { user: usize, from: usize, count: usize, ttl: u64 },
        Offline { user: usize, session: Option<usize>, linger: u64 },
        Wait(u64),
        Sweep(usize),
        Grace(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let list = || (0..3usize, 0..90usize, 1..60usize, super::ttl());
        prop_oneof![
            4 => list().prop_map(|(user, from, count, ttl)| Step::Online { user, from, count, ttl }),
            2 => list().prop_map(|(user, from, count, ttl)| Step::Renew { user, from, count, ttl }),
            1 => (0..3usize, prop::option::weighted(0.8, 0..150usize), prop_oneof![Just(0u64), 1..40u64])
                .prop_map(|(user, session, linger)| Step::Offline { user, session, linger }),
            3 => prop_oneof![6 => 0..25u64, 1 => 500..1500u64].prop_map(Step::Wait),
            2 => (0..200usize).prop_map(Step::Sweep),
            1 => (1..40u64).prop_map(Step::Grace),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]
        #[test]
        fn are_counted_as_a_look_at_all_would(steps in prop::collection::vec(step(), 1..60)) {
            let mut now = 1000u64;
            let mut space = Space::new(1000);
            let mut model: BTreeMap<(usize, usize), u64> = BTreeMap::new();
            let names: Vec<String> = (0..150).map(|n| format!("tab{n}")).collect();
            let users = ["ann", "bob", "cleo"];
            for step in steps {
                let at = ChangeCtx { space: b"s", now, limits: limits() };
                match step {
                    Step::Wait(by) => now += by,
                    Step::Online { user, from, count, ttl } => {
                        let tabs = from..from + count;
                        let list: Vec<(&str, &str)> =
                            tabs.clone().map(|tab| (users[user], &*names[tab])).collect();
                        let came = space.online_many(at, &list, now + ttl, |_| true, |_| {}, &mut NullSink);
                        let was_here = model.iter().any(|((of, _), lease)| *of == user && *lease > now);
                        prop_assert_eq!(came, Ok(usize::from(!was_here)));
                        let is_new = |tab: &usize| model.get(&(user, *tab)).is_none_or(|lease| *lease <= now);
                        if tabs.clone().any(|tab| is_new(&tab)) {
                            model.retain(|(of, _), lease| *of != user || *lease > now);
                        }
                        model.extend(tabs.map(|tab| ((user, tab), now + ttl)));
                    }
                    Step::Renew { user, from, count, ttl } => {
                        let tabs = from..from + count;
                        let list: Vec<(&str, &str)> =
                            tabs.clone().map(|tab| (users[user], &*names[tab])).collect();
                        let left_out = space.renew_many(at, &list, now + ttl, |_| {}, &mut NullSink);
                        let mut expected = Vec::new();
                        for (position, tab) in tabs.enumerate() {
                            match model.get_mut(&(user, tab)).filter(|lease| **lease > now) {
                                Some(lease) => *lease = now + ttl,
                                None => expected.push(position),
                            }
                        }
                        prop_assert_eq!(left_out, Ok(expected));
                    }
                    Step::Offline { user, session, linger } => {
                        let tab = session.map(|tab| &*names[tab]);
                        space.offline(at, users[user], tab, linger, &mut NullSink);
                        model.retain(|(of, _), lease| *of != user || *lease > now);
                        let is_meant = |(of, tab): &(usize, usize)| {
                            *of == user && session.is_none_or(|session| session == *tab)
                        };
                        if linger == 0 {
                            model.retain(|key, _| !is_meant(key));
                        } else {
                            for (_, lease) in model.iter_mut().filter(|(key, _)| is_meant(key)) {
                                *lease = (*lease).min(now + linger);
                            }
                        }
                    }
                    Step::Sweep(mut steps) => {
                        let mut events = Heard::default();
                        space.sweep(at, &mut events, &mut || {
                            steps = steps.saturating_sub(1);
                            steps > 0
                        });
                        let mut left = BTreeSet::new();
                        space.dump(|effect| {
                            if let Effect::Session { user, session, .. } = effect {
                                left.insert((user.to_string(), session.to_string()));
                            }
                        });
                        model.retain(|(user, tab), lease| {
                            *lease > now || left.contains(&(users[*user].to_owned(), names[*tab].clone()))
                        });
                    }
                    Step::Grace(by) => {
                        space.grant_grace(now + by, &mut NullSink);
                        model.values_mut().for_each(|lease| *lease = (*lease).max(now + by));
                    }
                }
                prop_assert!(space.members.indexes_are_complete());
                for now in [now, now - 5, now] {
                    space.advance(now);
                    let live = |user| {
                        model.iter().filter(|((of, _), lease)| *of == user && **lease > now).count()
                    };
                    let counts: Vec<usize> = (0..3).map(live).collect();
                    prop_assert_eq!(space.statuses(&users, now, |_| {}), counts.clone());
                    let online = counts.iter().filter(|count| **count > 0).count();
                    prop_assert_eq!(space.counts(now), (online, counts.iter().sum()));
                    prop_assert_eq!(space.users(now).count(), online);
                    for user in space.users(now) {
                        let at = users.iter().position(|name| name.as_bytes() == user.name()).unwrap();
                        prop_assert_eq!(user.sessions().count(), counts[at]);
                    }
                }
                prop_assert_eq!(space.stored().1, model.len());
                let copy = space.clone();
                prop_assert_eq!(dump(&copy), dump(&space));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    /// Wherever the clock is set and whatever a snapshot says: once a sweep is through, nothing is
    /// due, or the key is to be deleted. And a replica that applies its effects is the same.
    #[test]
    fn after_a_sweep_nothing_is_due(
        restored in prop::collection::vec(0..200u64, 0..120),
        steps in prop::collection::vec((0..200u64, 0..7u8, 0..300u64, 0..150u64), 1..40),
    ) {
        let mut heard = Heard::default();
        let mut space = Space::new(1);
        let begin = Effect::Begin { epoch: 1, seq: restored.len() as u64, closed_until: 0 };
        space.restore(&begin).unwrap();
        for (n, at) in restored.iter().enumerate() {
            let text = format!(
                r#"{{"id":"1-{}","space":"s","type":"close","users":0,"at":{at}}}"#, n + 1
            );
            space.restore(&Effect::Event { at: *at, text: &text }).unwrap();
        }
        let mut replica = space.clone();
        for (now, what, length, ttl) in steps {
            // Who is remembered changes as well.
            let seen = SeenLimits { ttl: ttl % 7 * 5, users: length % 3 };
            let retention = Retention { length, ttl, seen };
            let limits = Limits { sessions_per_user: 9, users: 0, retention, slack: 0 };
            let at = ChangeCtx { space: b"s", now, limits };
            heard.effect(&Effect::Keep { length, ttl });
            heard.effect(&Effect::KeepSeen { ttl: seen.ttl, users: seen.users });
            match what {
                0 => {
                    let list = [("a", ""), ("b", ""), ("c", "")];
                    let _ = space.online_many(at, &list, now + 50, |_| true, |_| {}, &mut heard);
                }
                1 => { space.offline(at, "a", None, 0, &mut heard); }
                2 if now % 10 == 0 => { space.close(at, now + 5, &mut heard); }
                _ => { space.message(at, "a", "", "hello", &mut heard); }
            }
            let is_left = space.history().is_some_and(|history| history.len() > history.live());
            prop_assert!(!is_left || space.next_due(retention) == 0, "nobody frees what is left");
            if what > 3 {
                let mut steps = 0;
                let mut few = || { steps += 1; steps < 3 };
                if !space.sweep(at, &mut heard, &mut few).more {
                    let settled = space.is_spent(now, retention) || space.next_due(retention) > now;
                    prop_assert!(settled, "due again at once");
                }
            }
            if space.next_due(retention) <= now {
                prop_assert!(!space.sweep(at, &mut heard, &mut || true).more);
                let settled = space.is_spent(now, retention) || space.next_due(retention) > now;
                prop_assert!(settled, "due again at once");
                let left = space.history().map_or(0, History::len);
                let kept = space.kept_events(now, retention);
                prop_assert!(kept > 0 || left == 0 || space.is_spent(now, retention));
            }
            let mut retention = retention;
            for effect in codec::decode(&std::mem::take(&mut heard.batch)) {
                replica.apply(b"s", &effect.unwrap(), &mut retention, &mut NullSink).unwrap();
            }
            prop_assert_eq!(dump(&space), dump(&replica));
            prop_assert_eq!(dump(&space), dump(&reload(&space)));
        }
    }
}

/// Metadata that is replayed without a renewal, of a session that is in a bucket: the session is kept elsewhere
/// by that, and still in its bucket.
#[test]
fn metadata_of_a_session_that_ends_soon_moves_it_with_its_mark() {
    let mut space = Space::new(1);
    let names: Vec<String> = (0..20).map(|n| format!("user{n}")).collect();
    let list: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "")).collect();
    let at = ChangeCtx { space: b"s", now: 1000, limits: limits() };
    space.online_many(at, &list, 1500, |_| true, |_| {}, &mut NullSink).unwrap();
    assert!(space.tidy(1000, &mut || true));
    let long = format!("\"{}\"", "x".repeat(2000));
    for meta in [Some("1"), Some(&*long), None] {
        let update = Effect::Update { user: "user7", session: "", at: 1100, meta };
        space.apply(b"s", &update, &mut Retention::of_events(0, 0), &mut NullSink).unwrap();
        space.advance(1499);
        assert_eq!(space.counts(1499), (20, 20));
        space.advance(1500);
        assert_eq!(space.counts(1500), (0, 0));
    }
    let swept = space.sweep(ChangeCtx { now: 1500, ..at }, &mut NullSink, &mut || true);
    assert_eq!((swept.ended, swept.more, space.stored()), (20, false, (0, 0)));
}

/// A snapshot, or a stream of effects, whose lines of history cannot be.
#[test]
fn lines_that_cannot_be_are_refused() {
    let begin = Effect::Begin { epoch: 50, seq: 20, closed_until: 0 };
    let line = |epoch, first, last| Effect::PastLine { epoch, first, last };
    let restored = |effects: &[Effect]| {
        let mut space = Space::new(0);
        effects.iter().try_for_each(|effect| space.restore(effect)).map(|()| space)
    };
    assert!(restored(&[begin, line(10, 1, 4), line(20, 5, 5), line(49, 6, 19)]).is_ok());
    assert!(restored(&[begin, line(10, 17, 19)]).is_ok(), "those before it are forgotten");
    for lines in [
        &[line(10, 0, 4)][..],
        &[line(10, 5, 4)],
        &[line(10, 1, 20)],
        &[line(50, 1, 4)],
        &[line(MAX_ID_NUMBER + 1, 1, 4)],
        &[line(10, 1, u64::MAX)],
        &[line(10, 1, 4), line(20, 6, 7)],
        &[line(10, 1, 4), line(20, 4, 7)],
        &[line(20, 1, 4), line(20, 5, 7)],
        &[line(20, 1, 4), line(10, 5, 7)],
    ] {
        assert!(restored(&[&[begin], lines].concat()).is_err(), "{lines:?}");
    }
    assert!(restored(&[begin, Effect::NewLine { epoch: 60 }]).is_err(), "no part of a snapshot");
    for (epoch, seq) in [(MAX_ID_NUMBER + 1, 1), (1, MAX_ID_NUMBER + 1)] {
        assert!(restored(&[Effect::Begin { epoch, seq, closed_until: 0 }]).is_err());
    }
    let mut space = restored(&[begin]).unwrap();
    let mut retention = RETENTION;
    for epoch in [0, 49, 50, MAX_ID_NUMBER + 1] {
        let line = Effect::NewLine { epoch };
        assert!(space.apply(b"s", &line, &mut retention, &mut NullSink).is_err(), "{epoch}");
    }
    let line = Effect::NewLine { epoch: 51 };
    assert_eq!(space.apply(b"s", &line, &mut retention, &mut NullSink), Ok(()));
    assert_eq!(space.last_id(), (51, 20));
}

/// Whoever keeps totals of memory is told when the order by lease can have changed its size.
#[test]
fn a_change_of_the_order_by_lease_is_reported() {
    let limits = Limits { slack: 10_000, ..limits() };
    let at = ChangeCtx { space: b"s", now: 1000, limits };
    let names: Vec<String> = (0..20).map(|n| format!("user{n}")).collect();
    let list: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "")).collect();
    let mut space = Space::new(1);
    for lease in [1400, 1500] {
        space.online_many(at, &list, lease, |_| true, |_| {}, &mut NullSink).unwrap();
    }
    space.advance(1499);
    assert!(!space.advance(1499), "nothing ends yet");
    assert!(space.advance(1500), "all move to their bucket");
    assert!(!space.advance(1500), "once");
    let mut renew =
        |user: &str| space.renew(1400, &Lookup::default(), (user, ""), 5000, limits.slack);
    assert_eq!(renew("user7"), Some(true), "it leaves its bucket");
    assert_eq!(renew("user7"), Some(false));
    assert_eq!(renew("nobody"), None);
}
