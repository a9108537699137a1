//! The tour a newcomer types, with a subscriber beside it. It lasts the half minute that it tells of.

use crate::harness::*;

#[test]
fn the_tour_is_true() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.subscribe(&["presence:lobby"]);
    let start = now_ms();
    assert_eq!(c.int("PRESENCE.ONLINE lobby alice"), 1);
    assert_eq!(c.int("PRESENCE.ONLINE lobby alice"), 0);
    assert_eq!(
        c.int([
            "PRESENCE.ONLINE",
            "lobby",
            "alice",
            "SESSION",
            "phone",
            "META",
            r#"{"device":"ios"}"#,
            "EX",
            "20"
        ]),
        0
    );
    let phone = now_ms();
    assert_eq!(c.int("PRESENCE.ONLINE lobby USERS 3 bob carol alice"), 2);
    let renewed = now_ms();
    assert_eq!(c.ints("PRESENCE.STATUS lobby alice bob nobody"), [2, 1, 0]);

    let lobby = Space::parse(&c.ok("PRESENCE.SPACE lobby"));
    assert_eq!((lobby.users, lobby.sessions, lobby.cursor.as_str()), (3, 4, "0"));
    assert_eq!(lobby.names(), ["alice", "bob", "carol"]);
    let alice = c.user("lobby", "alice").unwrap();
    assert_eq!(alice.status, "online");
    assert!((start..=renewed).contains(&alice.session("").joined_at));
    assert_eq!(alice.session("phone").meta.as_deref(), Some(r#"{"device":"ios"}"#));
    assert!((start + 20_000..=phone + 20_000).contains(&alice.session("phone").expires_at));
    assert_eq!(c.int("PRESENCE.COUNT lobby"), 3);
    assert_eq!(c.int("PRESENCE.OFFLINE lobby bob"), 1);

    let events = sub.events_so_far(&mut c);
    let briefs: Vec<_> = events.iter().map(Event::brief).collect();
    assert_eq!(
        briefs,
        ["join alice", "add alice/phone", "join bob", "join carol", "leave bob (offline)"]
    );
    assert_eq!(lobby.id, events[3].str("id"));

    // Thirty seconds later, without a command.
    let mut ends = sub.events(1, ms(25_000));
    ends.extend(sub.events(2, ms(15_000)));
    assert_eq!(ends[0].brief(), "remove alice/phone (timeout)");
    let mut leaves: Vec<_> = ends[1..].iter().map(Event::brief).collect();
    leaves.sort();
    assert_eq!(leaves, ["leave alice (timeout)", "leave carol (timeout)"]);
    assert!(
        ends[0].arrived >= alice.session("phone").expires_at && ends[1].arrived >= start + 30_000
    );
    assert!(ends[2].arrived <= renewed + 30_500);
    assert_eq!(c.int("PRESENCE.COUNT lobby"), 0);
    let ids: Vec<_> = events.iter().chain(&ends).map(|e| e.id().1).collect();
    assert_eq!(ids, (1..=8).collect::<Vec<_>>(), "each event once");
    sub.expect_none_for(ms(300));
}
