//! `presence.user-channels`: the events of a user on a channel of their own.

use crate::harness::*;
use crate::replication::{primary, replica_of, sync};
use std::collections::BTreeMap;

fn payloads(messages: Vec<Message>) -> Vec<String> {
    messages.into_iter().map(|m| String::from_utf8(m.payload).unwrap()).collect()
}

fn briefs(subscriber: &mut Subscriber, c: &mut Conn) -> Vec<String> {
    subscriber.events_so_far(c).iter().map(Event::brief).collect()
}

#[test]
fn user_channels_have_the_events_that_the_setting_says() {
    let server = Server::start();
    let mut c = server.connect();
    let life = |c: &mut Conn| {
        c.ok("PRESENCE.ONLINE lobby alice");
        c.ok("PRESENCE.ONLINE lobby alice SESSION phone");
        c.ok("PRESENCE.ONLINE lobby alice SESSION phone META 1");
        c.ok("PRESENCE.MESSAGE lobby alice hello");
        c.ok("PRESENCE.ONLINE lobby bob");
        c.ok("PRESENCE.OFFLINE lobby alice");
        c.ok("PRESENCE.CLOSE lobby");
        c.ok("DEL lobby");
    };
    let all = [
        "join alice",
        "add alice/phone",
        "update alice/phone",
        "remove alice/phone",
        "leave alice (offline)",
    ];
    for (setting, expected) in
        [("no", &all[..0]), ("transitions", &[all[0], all[4]]), ("all", &all[..])]
    {
        c.ok(["CONFIG", "SET", "presence.user-channels", setting]);
        let mut watcher = server.subscribe(&["presence-user:{lobby}:alice"]);
        let mut follower = server.subscribe(&["presence:lobby"]);
        life(&mut c);
        let ours = payloads(watcher.so_far(&mut c));
        let theirs = payloads(follower.so_far(&mut c));
        assert_eq!(theirs.len(), 8, "{setting}");
        let kinds = |text: &String| {
            serde_json::from_str::<serde_json::Value>(text).unwrap()["type"]
                .as_str()
                .unwrap()
                .to_string()
        };
        let expected: Vec<_> =
            expected.iter().map(|brief| brief.split(' ').next().unwrap().to_string()).collect();
        let mut got: Vec<_> = ours.iter().map(kinds).collect();
        if setting == "all" {
            got.sort();
            let mut expected = expected.clone();
            expected.sort();
            assert_eq!(got, expected);
        } else {
            assert_eq!(got, expected, "{setting}");
        }
        // The same bytes, in the same order.
        let mut rest = theirs.iter();
        assert!(ours.iter().all(|text| rest.any(|other| other == text)), "{ours:?} of {theirs:?}");
        assert!(ours.iter().all(|text| text.contains("alice")));
    }
}

/// In both modes, with the space in its sharded form; where there is none, in braces.
#[test]
fn user_channels_have_the_name_of_the_space_in_braces() {
    for mode in ["global", "sharded"] {
        let server = Server::with(&[
            ("presence.user-channels", "transitions"),
            ("presence.channel-mode", mode),
            ("presence.user-prefix", "u/"),
        ]);
        let mut c = server.connect();
        let mut names =
            vec![("lobby", "u/{lobby}:"), ("{team}:lobby", "u/{team}:lobby:"), ("a{b", "u/{a{b}:")];
        if mode == "global" {
            names.extend([("a}b", "u/{a}b}:"), ("{x}", "u/{{x}}:"), ("{}x", "u/{{}x}:")]);
        }
        for user in ["alice", "a:b", "{u}", "\u{1F600}|*"] {
            for (space, channel) in &names {
                let channel = [format!("{channel}{user}")];
                let mut watcher = match mode {
                    "global" => server.subscribe(&channel),
                    _ => server.ssubscribe(&channel),
                };
                c.ok(["PRESENCE.ONLINE", space, user, "SESSION", "s"]);
                let event = watcher.event(SOON);
                assert_eq!(
                    (event.kind(), event.user(), event.str("space")),
                    ("join", user, *space)
                );
                c.ok(["PRESENCE.OFFLINE", space, user]);
                assert_eq!(watcher.event(SOON).kind(), "leave");
            }
        }
    }
}

#[test]
fn user_channels_have_what_the_sweep_and_lists_do() {
    let server = Server::with(&[("presence.rules", "crowd* user-channels=transitions")]);
    let mut c = server.connect();
    let mut watcher = server.psubscribe(&["presence-user:*"]);
    let users: Vec<String> = (0..5000).map(|n| format!("user-{n}")).collect();
    let mut online = args!["PRESENCE.ONLINE", "crowd", "USERS", users.len()];
    online.extend(users.iter().map(|user| user.clone().into_bytes()));
    online.extend(args!["PX", 300]);
    assert_eq!(c.int(online), 5000);
    c.ok("PRESENCE.ONLINE quiet user-1");
    let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for _ in 0..10_000 {
        let message = watcher.next(SOON);
        let channel = String::from_utf8(message.channel.clone()).unwrap();
        let event = Event::parse(message);
        assert_eq!(channel, format!("presence-user:{{crowd}}:{}", event.user()));
        seen.entry(event.user().to_string()).or_default().push(event.kind().to_string());
    }
    assert_eq!(seen.len(), 5000);
    assert!(seen.values().all(|kinds| kinds == &["join", "leave"]));
    // A rule is that of the name that the space has now, and so is the channel.
    c.ok("PRESENCE.ONLINE crowd user-1");
    assert_eq!(watcher.event(SOON).brief(), "join user-1");
    c.ok("RENAME crowd silent");
    c.ok("PRESENCE.ONLINE silent user-2");
    c.ok("RENAME silent crowd2");
    c.ok("PRESENCE.ONLINE crowd2 user-3");
    let message = watcher.next(SOON);
    assert_eq!(message.channel, b"presence-user:{crowd2}:user-3");
    assert_eq!(Event::parse(message).int("users"), 3);
    assert_eq!(briefs(&mut watcher, &mut c), [""; 0]);
}

/// The primary publishes for everybody, and a replica that is to publish too does not.
#[test]
fn user_channels_are_published_once_per_node() {
    let first = primary().config("presence.user-channels", "all").start();
    let second = replica_of(&first).config("presence.user-channels", "all").start();
    let (mut c, mut r) = (first.connect(), second.connect());
    c.ok("PRESENCE.ONLINE s x");
    sync(&mut c, &mut r);
    let channel = ["presence-user:{s}:a"];
    let (mut here, mut there) = (first.subscribe(&channel), second.subscribe(&channel));
    c.ok("PRESENCE.ONLINE s a PX 50");
    for watcher in [&mut here, &mut there] {
        assert_eq!(watcher.event(SOON).brief(), "join a");
        assert_eq!(watcher.event(SOON).brief(), "leave a (timeout)");
    }
    sync(&mut c, &mut r);
    assert_eq!(briefs(&mut there, &mut r), [""; 0]);
    assert_eq!(briefs(&mut here, &mut c), [""; 0]);
}
