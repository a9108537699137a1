//! PRESENCE.SPACE … JSON: the reply that is a map, as one JSON text.

use crate::harness::*;
use crate::replication::{primary, replica_of, sync};
use rand::Rng;
use rand::seq::IndexedRandom;
use serde_json::{Value as Json, json};

/// The text that belongs to a reply that is a map.
fn json_of(map: &Space, with_sessions: bool) -> Json {
    let session = |session: &Session| {
        let mut entry = json!({ "joined_at": session.joined_at, "expires_at": session.expires_at });
        if !session.session.is_empty() {
            entry["session"] = json!(session.session);
        }
        if let Some(meta) = &session.meta {
            entry["meta"] = serde_json::from_str(meta).unwrap();
        }
        entry
    };
    let member = |(user, sessions): &(String, Vec<Session>)| match with_sessions {
        false => json!(user),
        true => {
            json!({ "user": user, "sessions": sessions.iter().map(session).collect::<Vec<_>>() })
        }
    };
    json!({
        "id": map.id, "users": map.users, "sessions": map.sessions, "cursor": map.cursor,
        "members": map.members.iter().map(member).collect::<Vec<_>>(),
    })
}

/// Asks for the same twice, as a map and as JSON, at one moment. Returns the text.
#[track_caller]
fn both(c: &mut Conn, space: &str, options: &[&str]) -> String {
    let call = |json: bool| {
        let mut call = args!["PRESENCE.SPACE", space];
        call.extend(options.iter().map(|option| option.as_bytes().to_vec()));
        if json {
            call.insert(2, b"json".to_vec());
        }
        call
    };
    c.ok("MULTI");
    c.ok(call(false));
    c.ok(call(true));
    let replies = c.ok("EXEC");
    let (map, text) = (Space::parse(&items(&replies)[0]), text(&items(&replies)[1]));
    let json: Json = serde_json::from_str(&text).unwrap();
    assert_eq!(json, json_of(&map, options.contains(&"WITHSESSIONS")), "{options:?}");
    text
}

#[test]
fn space_json_says_what_the_map_says() {
    let server = Server::start();
    for mut c in [server.connect(), server.connect3()] {
        c.ok("FLUSHALL");
        for options in [&[][..], &["WITHSESSIONS"], &["COUNT", "2"]] {
            let empty = r#"{"id":"0-0","users":0,"sessions":0,"cursor":"0","members":[]}"#;
            assert_eq!(both(&mut c, "none", options), empty);
        }
        furnish(&mut c, "s");
        c.ok("PRESENCE.ONLINE s short PX 1");
        wait_until("a lease to end", SOON, || c.ints("PRESENCE.STATUS s short") == [0]);
        both(&mut c, "s", &[]);
        let text = both(&mut c, "s", &["WITHSESSIONS"]);
        // Metadata is not written anew, the unnamed session has no name, and what is absent is no null.
        assert!(text.contains(r#""meta":{"é":"😀 \" \\ \u0000"}"#), "{text}");
        assert!(text.contains(r#"{"user":"alice","sessions":[{"joined_at":"#), "{text}");
        assert!(!text.contains(":null"), "{text}");
        for count in ["1", "3", "1000", "9223372036854775807"] {
            both(&mut c, "s", &["COUNT", count]);
            both(&mut c, "s", &["WITHSESSIONS", "CURSOR", "0", "COUNT", count]);
        }
        c.ok("PRESENCE.CLOSE s");
        assert!(both(&mut c, "s", &["WITHSESSIONS"]).contains(r#""members":[]"#));
    }
}

#[test]
fn space_json_has_every_member_in_its_pages() {
    let server = Server::start();
    let mut c = server.connect();
    let mut rng = rng(71);
    let parts = ["a", "\"", "\\", "\0", "\u{7f}", "\r\n", "é", "\u{1F600}", "\u{2028}", "{}"];
    let name = |rng: &mut rand::rngs::StdRng, least: usize| -> String {
        (0..rng.random_range(least..8)).map(|_| *parts.choose(rng).unwrap()).collect()
    };
    for n in 0..2000 {
        let (user, session) = (format!("{n}{}", name(&mut rng, 0)), name(&mut rng, 0));
        let meta = json!({ "text": name(&mut rng, 0) }).to_string();
        c.ok(["PRESENCE.ONLINE", "s", &user, "SESSION", &session, "META", &meta, "EX", "600"]);
    }
    let mut whole: Vec<Json> = serde_json::from_str::<Json>(&both(&mut c, "s", &["WITHSESSIONS"]))
        .unwrap()["members"]
        .as_array()
        .unwrap()
        .clone();
    let (mut paged, mut cursor) = (Vec::new(), "0".to_string());
    loop {
        let options = ["COUNT", "100", "WITHSESSIONS", "CURSOR", &cursor];
        let page: Json = serde_json::from_str(&both(&mut c, "s", &options)).unwrap();
        assert_eq!((&page["users"], &page["sessions"]), (&json!(2000), &json!(2000)));
        paged.extend(page["members"].as_array().unwrap().iter().cloned());
        cursor = page["cursor"].as_str().unwrap().to_string();
        if cursor == "0" {
            break;
        }
    }
    let by_name = |member: &Json| member["user"].as_str().unwrap().to_string();
    whole.sort_by_key(by_name);
    paged.sort_by_key(by_name);
    assert_eq!(whole, paged);
}

#[test]
fn space_json_is_served_everywhere() {
    let p = primary().start();
    let r = replica_of(&p).start();
    let (mut c, mut of_replica) = (p.connect(), r.connect());
    furnish(&mut c, "s");
    sync(&mut c, &mut of_replica);
    let text = both(&mut c, "s", &["WITHSESSIONS"]);
    assert_eq!(both(&mut of_replica, "s", &["WITHSESSIONS"]).len(), text.len());
    let script = "return redis.call('PRESENCE.SPACE', KEYS[1], 'JSON', 'WITHSESSIONS')";
    assert_eq!(c.text(["EVAL", script, "1", "s"]), text);
    c.ok("SET text x");
    assert!(c.err("PRESENCE.SPACE text JSON").starts_with("WRONGTYPE"));
    // A read is served when memory is out.
    c.ok("CONFIG SET maxmemory 1");
    assert_eq!(c.text("PRESENCE.SPACE s WITHSESSIONS JSON"), text);
    c.ok("CONFIG SET maxmemory 0");
}

/// A reply beyond what a request may have: proto-max-bulk-len is a limit of requests only.
#[test]
fn space_json_can_be_longer_than_a_request() {
    let server = Server::with(&[
        ("proto-max-bulk-len", "1mb"),
        ("presence.max-meta-bytes", "100kb"),
        ("presence.history-length", "0"),
    ]);
    let mut c = server.connect();
    let meta = format!("\"{}\"", "m".repeat(100_000));
    for n in 0..200 {
        c.ok(["PRESENCE.ONLINE", "s", &n.to_string(), "META", &meta, "EX", "600"]);
    }
    let used = |c: &mut Conn| c.info("memory")["used_memory"].parse::<i64>().unwrap();
    let before = used(&mut c);
    let text = c.text("PRESENCE.SPACE s WITHSESSIONS JSON");
    assert!(text.len() > 20_000_000, "{}", text.len());
    let json: Json = serde_json::from_str(&text).unwrap();
    assert_eq!(json["members"].as_array().unwrap().len(), 200);
    wait_until("the memory to be given back", SOON, || used(&mut c) < before + 2_000_000);
}
