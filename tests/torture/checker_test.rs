//! The checker is shown a history that is right, and then each kind of fault in it.

use crate::checker::check;
use crate::history::*;
use std::collections::BTreeMap;

/// When the round begins, and the epoch of its space.
const T: i64 = 1_000_000;

fn event(
    seq: u64,
    at: i64,
    kind: &str,
    (user, session): (&str, &str),
    users: i64,
    more: &str,
) -> Event {
    event_of(T, seq, at, kind, (user, session), users, more)
}

fn event_of(
    epoch: i64,
    seq: u64,
    at: i64,
    kind: &str,
    (user, session): (&str, &str),
    users: i64,
    more: &str,
) -> Event {
    let session =
        if session.is_empty() { String::new() } else { format!(r#""session":"{session}","#) };
    let raw = format!(
        r#"{{"id":"{epoch}-{seq}","space":"s","type":"{kind}","user":"{user}",{session}{more}"users":{users},"at":{}}}"#,
        T + at
    );
    Event::parse(&raw).unwrap()
}

fn joined(at: i64) -> String {
    format!(r#""joined_at":{},"#, T + at)
}

fn left(joined_at: i64, reason: &str) -> String {
    format!(r#""joined_at":{},"reason":"{reason}","#, T + joined_at)
}

fn who(user: &str, session: &str) -> Who {
    (user.to_string(), session.to_string())
}

fn op(who: &[Who], what: What, sent: i64, received: i64, reply: Reply) -> Op {
    Op {
        client: 0,
        era: 0,
        space: "s".into(),
        who: who.to_vec(),
        what,
        sent: T + sent,
        received: Some(T + received),
        reply,
    }
}

fn online(user: &str, session: &str, ttl: i64, sent: i64, received: i64, came: i64) -> Op {
    let what = What::Online { lease: Lease::For(ttl), meta: None, conditional: false };
    op(&[who(user, session)], what, sent, received, Reply::Count(came))
}

fn offline(user: &str, session: &str, linger: i64, sent: i64, received: i64) -> Op {
    op(&[who(user, session)], What::Offline { linger }, sent, received, Reply::Count(0))
}

/// A space as it was read: `seq` of the last event, who is there until when.
fn read(events: &[Event], members: &[(&str, &str, i64)], sent: i64) -> SpaceRead {
    let member = |(user, session, until): &(&str, &str, i64)| {
        (who(user, session), SessionRead { expires_at: T + until, meta: None })
    };
    let members: BTreeMap<_, _> = members.iter().map(member).collect();
    let users: std::collections::BTreeSet<_> = members.keys().map(|who| &who.0).collect();
    SpaceRead {
        space: "s".into(),
        id: events.last().map_or((0, 0), Event::id),
        users: users.len() as i64,
        sessions: members.len() as i64,
        events: events.to_vec(),
        sent: T + sent,
        received: T + sent + 1,
        members,
    }
}

fn reading(read: SpaceRead) -> Reading {
    [("s".to_string(), read)].into()
}

fn era(start: Reading, began: i64, ended: i64, loss: Loss) -> Era {
    Era {
        how: "test".into(),
        decider: 0,
        began: (T + began, T + began + 2),
        start,
        inherited: None,
        loss,
        stream: 0,
        from: 1,
        to: None,
        ended: T + ended,
    }
}

fn heard(events: &[Event]) -> Vec<Heard> {
    let event = |event: &Event| Heard::Event { arrived: event.at, event: Box::new(event.clone()) };
    [Heard::Mark(1)].into_iter().chain(events.iter().map(event)).collect()
}

/// Alice comes, renews and goes by timeout; Bob comes with two sessions, ends one, and lingers.
fn story() -> Vec<Event> {
    vec![
        event(1, 10, "join", ("alice", ""), 1, &joined(10)),
        event(2, 20, "join", ("bob", ""), 2, &joined(20)),
        event(3, 30, "add", ("bob", "a"), 2, &joined(30)),
        event(4, 40, "remove", ("bob", ""), 2, &left(20, "offline")),
        event(5, 160, "leave", ("alice", ""), 1, &left(10, "timeout")),
        event(6, 251, "leave", ("bob", "a"), 0, &left(30, "offline")),
    ]
}

/// A round of one era on a primary, node 0, and a replica, node 1.
fn good() -> Round {
    let events = story();
    let looked =
        BTreeMap::from([(who("alice", ""), SessionRead { expires_at: T + 160, meta: None })]);
    Round {
        grace: 100,
        ops: vec![
            online("alice", "", 100, 9, 11, 1),
            online("bob", "", 500, 19, 21, 1),
            online("bob", "a", 500, 29, 31, 0),
            offline("bob", "", 0, 39, 41),
            online("alice", "", 100, 59, 61, 0),
            op(&[who("alice", "")], What::Look, 70, 71, Reply::Sessions(looked)),
            offline("bob", "a", 50, 199, 201),
        ],
        eras: vec![era(BTreeMap::new(), 0, 9000, Loss::Nothing)],
        streams: vec![
            Stream { node: 0, heard: heard(&events) },
            Stream { node: 1, heard: heard(&events) },
        ],
        glimpses: vec![Glimpse {
            era: Some(0),
            read: read(&events[..4], &[("alice", "", 160), ("bob", "a", 530)], 100),
        }],
        digests: vec![vec![("0".into(), vec!["d".into()]), ("1".into(), vec!["d".into()])]],
        finals: vec![reading(read(&events, &[], 8000)), reading(read(&events, &[], 8000))],
        ..Round::default()
    }
}

/// The same, but at 100 the primary is killed and the replica, which has all but what came after event `had`, takes
/// over. The grace lasts until 305, and everybody who is there leaves by it.
fn taken_over(had: usize) -> Round {
    taken_over_in(had, T + 306)
}

/// The same, with this epoch.
fn taken_over_in(had: usize, line: i64) -> Round {
    let mut round = good();
    let before = &story()[..4];
    let there: &[(&str, &str, i64)] = match had {
        4 => &[("alice", "", 160), ("bob", "a", 530)],
        3 => &[("alice", "", 160), ("bob", "", 520), ("bob", "a", 530)],
        _ => unreachable!(),
    };
    let kept = &before[..had];
    let graced: Vec<_> =
        there.iter().map(|(user, session, until)| (*user, *session, (*until).max(305))).collect();
    let mut after = kept.to_vec();
    let mut decide = |at, kind, who, users, more: &str| {
        after.push(event_of(line, after.len() as u64 + 1, at, kind, who, users, more));
    };
    decide(306, "leave", ("alice", ""), 1, &left(10, "timeout"));
    if had == 3 {
        decide(520, "remove", ("bob", ""), 1, &left(20, "timeout"));
    }
    decide(530, "leave", ("bob", "a"), 0, &left(30, "timeout"));
    let decided = &after[had..];
    round.ops.truncate(6);
    round.eras[0].ended = T + 100;
    round.eras.push(Era {
        decider: 1,
        stream: 1,
        from: 2,
        began: (T + 204, T + 206),
        inherited: Some(reading(read(kept, there, 150))),
        ..era(reading(read(kept, &graced, 210)), 200, 9000, Loss::Tail)
    });
    let mut at_replica = heard(kept);
    at_replica.push(Heard::Mark(2));
    at_replica.extend(heard(decided).into_iter().skip(1));
    round.streams[0].heard = heard(before);
    round.streams[1].heard = at_replica;
    let finals = reading(read(&after, &[], 8000));
    round.finals = vec![finals.clone(), finals];
    round
}

#[track_caller]
fn finds(rule: &str, round: &Round) {
    let wrong = check(round);
    assert!(wrong.iter().any(|wrong| wrong.rule == rule), "not found: {rule}, but {wrong:#?}");
}

#[track_caller]
fn finds_nothing(round: &Round) {
    assert_eq!(check(round), []);
}

/// Both nodes hear other events, and end with them.
fn told(mut round: Round, events: &[Event]) -> Round {
    round.streams.iter_mut().for_each(|stream| stream.heard = heard(events));
    round.finals.iter_mut().for_each(|last| *last = reading(read(events, &[], 8000)));
    round
}

fn with(at: usize, event: Event) -> Round {
    let mut events = story();
    events[at] = event;
    told(good(), &events)
}

#[test]
fn what_is_right_is_let_pass() {
    finds_nothing(&Round::default());
    finds_nothing(&good());
    finds_nothing(&taken_over(4));
    finds_nothing(&taken_over(3));
}

#[test]
fn leaves_at_the_wrong_time_or_for_the_wrong_reason() {
    let early = "left too early, or for another reason";
    let leave = |at, reason| with(4, event(5, at, "leave", ("alice", ""), 1, &left(10, reason)));
    finds_nothing(&leave(159, "timeout"));
    finds(early, &leave(158, "timeout"));
    finds(early, &leave(160, "offline"));
    // Not by the first lease, which was renewed.
    finds(early, &leave(111, "timeout"));
    finds(early, &with(5, event(6, 251, "leave", ("bob", "a"), 0, &left(30, "timeout"))));
    finds(early, &with(5, event(6, 248, "leave", ("bob", "a"), 0, &left(30, "offline"))));
    finds("left too late", &leave(5000, "timeout"));
    // Unless the server was held up.
    let mut held_up = leave(5000, "timeout");
    held_up.held_up.push((T + 100, T + 4900));
    finds_nothing(&held_up);
    finds("never left", &told(good(), &story()[..5]));
    let mut ahead = good();
    let Heard::Event { arrived, .. } = &mut ahead.streams[1].heard[5] else { unreachable!() };
    *arrived -= 1;
    finds("heard before it happened", &ahead);
}

#[test]
fn events_that_are_missing_doubled_or_do_not_fit() {
    let twice = "heard out of order, twice or not at all";
    let mut round = good();
    let again = round.streams[1].heard[3].clone();
    round.streams[1].heard.insert(4, again);
    finds(twice, &round);
    let mut round = good();
    round.streams[1].heard.remove(3);
    finds(twice, &round);
    // Which is as it should be where the replica synchronised in full.
    round.full_syncs.push((0, T + 30));
    finds(twice, &round);
    round.full_syncs.push((1, T + 30));
    finds_nothing(&round);
    let mut round = good();
    round.streams[0].heard.remove(3);
    round.eras[0].stream = 0;
    finds("a hole in the ids", &round);
    // A seq that is given twice.
    let mut events = story();
    events[3] = event(3, 40, "remove", ("bob", ""), 2, &left(20, "offline"));
    finds("one id, two events", &told(good(), &events));
    let unfit = "a transition that does not fit";
    finds(unfit, &with(2, event(3, 30, "join", ("bob", "a"), 2, &joined(30))));
    finds(unfit, &with(4, event(5, 160, "remove", ("alice", ""), 1, &left(10, "timeout"))));
    finds(unfit, &with(4, event(5, 160, "leave", ("alice", ""), 2, &left(10, "timeout"))));
    finds(unfit, &with(4, event(5, 160, "leave", ("alice", ""), 1, &left(11, "timeout"))));
    let mut events = story();
    events.insert(5, event(6, 170, "leave", ("alice", ""), 1, &left(10, "timeout")));
    finds(unfit, &told(good(), &events[..6]));
    let mut round = good();
    round.streams[1].heard[2] =
        heard(&[event(2, 20, "join", ("eve", ""), 2, &joined(20))])[1].clone();
    finds("nobody decided this", &round);
    let mut round = good();
    round.streams[1].heard.push(Heard::Noise("x".into()));
    finds("no event", &round);
}

#[test]
fn answers_without_effect_and_effects_that_nobody_asked_for() {
    let mut round = good();
    round.ops.push(online("carol", "", 100, 300, 301, 1));
    finds("an answered ONLINE had no effect", &round);
    let mut round = good();
    round.ops.insert(4, offline("alice", "", 0, 50, 51));
    finds("an answered OFFLINE had no effect", &round);
    let mut round = good();
    round.ops.remove(2);
    finds("a session that nobody asked for", &round);
    let mut round = good();
    let message = What::Message { text: "hello".into() };
    round.ops.push(op(&[], message, 300, 301, Reply::Id(T, 7)));
    finds("an answered MESSAGE had no effect", &round);
    let differ = "the reply to ONLINE and the events differ";
    for (index, came) in [(0, 0), (2, 1)] {
        let mut round = good();
        round.ops[index].reply = Reply::Count(came);
        finds(differ, &round);
    }
    let error = "an error without a reason";
    for text in ["OOM", "CLOSED space is closed", "ERR invalid expire time"] {
        let mut round = good();
        round
            .ops
            .push(Op { reply: Reply::Refused(text.into()), ..online("dan", "", 1, 300, 301, 0) });
        finds(error, &round);
    }
    let mut round = good();
    let what = What::Online { lease: Lease::Until(T + 300), meta: None, conditional: false };
    let refused = Reply::Refused("ERR invalid expire time".into());
    round.ops.push(op(&[who("dan", "")], what.clone(), 299, 300, refused));
    finds_nothing(&round);
    round.ops.pop();
    round.ops.push(op(&[who("dan", "")], what, 300, 301, Reply::Count(1)));
    finds("a lease of the past", &round);
}

#[test]
fn reads_that_are_wrong() {
    let wrong = "a read that is wrong";
    let shown = |until| {
        BTreeMap::from([(who("alice", ""), SessionRead { expires_at: T + until, meta: None })])
    };
    for sessions in [shown(110), shown(162), BTreeMap::new()] {
        let mut round = good();
        round.ops[5].reply = Reply::Sessions(sessions);
        finds(wrong, &round);
    }
    let wrong = "a snapshot that is wrong";
    let events = story();
    for members in [
        &[("bob", "a", 530)][..],
        &[("alice", "", 160)],
        &[("alice", "", 110), ("bob", "a", 530)],
        &[("alice", "", 160), ("bob", "", 520), ("bob", "a", 530)],
    ] {
        let mut round = good();
        round.glimpses[0].read = read(&events[..4], members, 100);
        finds(wrong, &round);
    }
    let mut round = good();
    round.glimpses[0].read.users = 3;
    finds(wrong, &round);
    let mut round = good();
    round.glimpses[0].read.events.remove(1);
    finds(wrong, &round);
    // Nobody is shown whose lease is over, whether or not the leave was there yet.
    let mut round = good();
    round.glimpses[0].read = read(&events[..4], &[("bob", "a", 530)], 160);
    finds_nothing(&round);
    round.glimpses[0].read = read(&events[..4], &[("alice", "", 160), ("bob", "a", 530)], 165);
    finds(wrong, &round);
}

#[test]
fn takeovers_that_lose_what_they_may_not() {
    // OFFLINE of one of Bob's sessions is lost. That a WAIT covered something before it does not matter …
    let wait = |covers| op(&[], What::Wait { covers: T + covers }, 80, 81, Reply::Count(1));
    let mut round = taken_over(3);
    round.ops.push(wait(39));
    finds_nothing(&round);
    // … but something after it does,
    let mut round = taken_over(3);
    round.ops.push(wait(59));
    finds("an event is lost", &round);
    // and unless the WAIT was in vain.
    round.ops.last_mut().unwrap().reply = Reply::Count(0);
    finds_nothing(&round);
    // Nothing is lost where the server came back from its file.
    let mut round = taken_over(3);
    round.eras[1].loss = Loss::Nothing;
    round.eras[1].inherited = None;
    finds("an event is lost", &round);
    // What was lost may be given out again by who comes after, but not differently by the same.
    let mut round = taken_over(4);
    round.eras[1].start =
        reading(read(&story()[..2], &[("alice", "", 305), ("bob", "", 520)], 210));
    round.eras[1].inherited = None;
    round.ops.push(wait(59));
    finds("an event is lost", &round);
}

#[test]
fn leases_after_a_takeover() {
    let wrong = "a lease after a takeover";
    let start = |round: &mut Round, members: &[(&str, &str, i64)]| {
        round.eras[1].start = reading(read(&story()[..4], members, 210));
    };
    // No grace, too little, too much, another lease than the one that was inherited, nobody there.
    for members in [
        &[("alice", "", 220), ("bob", "a", 530)][..],
        &[("alice", "", 303), ("bob", "a", 530)],
        &[("alice", "", 307), ("bob", "a", 530)],
        &[("alice", "", 305), ("bob", "a", 531)],
        &[("bob", "a", 530)],
    ] {
        let mut round = taken_over(4);
        start(&mut round, members);
        finds(wrong, &round);
    }
    let mut round = taken_over(4);
    start(&mut round, &[("alice", "", 305), ("bob", "a", 306)]);
    finds("the grace after a takeover", &round);
    // A renewal that was lost gives back the lease before it, but only where it may be lost.
    let mut round = taken_over(4);
    round.ops.insert(5, online("bob", "a", 900, 69, 70, 0));
    finds_nothing(&round);
    round.ops.push(op(&[], What::Wait { covers: T + 71 }, 80, 81, Reply::Count(1)));
    finds(wrong, &round);
    // A renewal within the bound, of which the replica did not know: it may have an earlier lease, but by no more than
    // the grace.
    for (until, is_right) in [(530, true), (450, true), (440, false)] {
        let mut round = taken_over(4);
        round.ops.insert(5, online("bob", "a", 480, 69, 70, 0));
        round.ops.push(op(&[], What::Wait { covers: T + 71 }, 80, 81, Reply::Count(1)));
        start(&mut round, &[("alice", "", 305), ("bob", "a", until)]);
        let found = check(&round);
        assert_eq!(found.iter().all(|it| it.rule != wrong), is_right, "{until}: {found:#?}");
    }
    // Who left by the old lease although there was a grace.
    let mut round = taken_over(4);
    round.eras[1].loss = Loss::Nothing;
    round.eras[1].inherited = None;
    let mut events = story()[..4].to_vec();
    events.push(event(5, 207, "leave", ("alice", ""), 1, &left(10, "timeout")));
    round.eras[1].start = reading(read(&events, &[("bob", "a", 530)], 210));
    finds("left too early, or for another reason", &round);
}

#[test]
fn lives_that_begin_without_a_reason() {
    let mut events = story();
    events.push(event_of(T + 400, 1, 400, "join", ("alice", ""), 1, &joined(400)));
    events.push(event_of(T + 400, 2, 500, "leave", ("alice", ""), 0, &left(400, "timeout")));
    let mut round = told(good(), &events);
    round.ops.push(online("alice", "", 100, 399, 400, 1));
    let last = reading(read(&events[6..], &[], 8000));
    round.finals = vec![last.clone(), last];
    finds("a life without a reason", &round);
    round.ops.insert(7, op(&[], What::Wipe, 300, 301, Reply::Count(1)));
    finds_nothing(&round);
}

#[test]
fn lines_of_history_that_are_wrong() {
    // Who takes over goes on with the ids of the one before: with some that were lost, or with the next ones.
    finds("an id given twice", &taken_over_in(3, T));
    finds("no new line of history", &taken_over_in(3, T));
    finds("no new line of history", &taken_over_in(4, T));
    finds("a snapshot that is wrong", &taken_over_in(4, T - 1));
    finds("a life without a reason", &taken_over_in(4, T + 2000));
    // A new line although nobody else decides.
    let mut events = story();
    events[5] = event_of(T + 251, 6, 251, "leave", ("bob", "a"), 0, &left(30, "offline"));
    finds("a line of history without a reason", &told(good(), &events));
    // An id that is given twice by two who decide at the same time, and both are lost.
    let mut round = good();
    round.eras[0].loss = Loss::Tail;
    for (stream, user) in ["carol", "dave"].into_iter().enumerate() {
        let lost = event(7, 300, "join", (user, ""), 1, &joined(300));
        round.streams[stream].heard.extend(heard(&[lost]).into_iter().skip(1));
    }
    finds("an id given twice", &round);
    let mut round = good();
    round.misled.push("it shows carol".into());
    finds("a follower that is misled", &round);
}

#[test]
fn nodes_that_differ_or_have_died() {
    let end = "nodes in the end";
    let mut round = good();
    round.digests[0][1].1[0] = "e".into();
    finds(end, &round);
    let mut round = good();
    round.finals[1] = reading(read(&story()[..5], &[], 8000));
    finds(end, &round);
    let mut round = good();
    round.finals[0] = reading(read(&story(), &[("alice", "", 9000)], 8000));
    finds(end, &round);
    let mut round = good();
    round.troubles.push("node 0 died by itself".into());
    finds("trouble with a server", &round);
}
