//! A command, a transaction and a script are one moment each.

use crate::harness::*;

/// Lua that takes longer than the leases below. A script has no clock that moves on.
const BUSY: &str = "for i = 1, 30000000 do end";

/// Runs commands in a transaction, and returns the reply to each.
#[track_caller]
fn transaction(c: &mut Conn, commands: &[&str]) -> Vec<Value> {
    c.ok("MULTI");
    for command in commands {
        assert_eq!(text(&c.ok(*command)), "QUEUED", "{command}");
    }
    items(&c.ok("EXEC")).to_vec()
}

/// `joined_at` and `expires_at` of a user's session in a reply of PRESENCE.USER.
#[track_caller]
fn times(reply: &Value) -> (i64, i64) {
    let user = User::parse(reply).expect("the user is there");
    (user.sessions[0].joined_at, user.sessions[0].expires_at)
}

fn ints(values: &[Value]) -> Vec<i64> {
    let int = |value: &Value| match value {
        Value::Int(n) => *n,
        other => panic!("no integer: {other:?}"),
    };
    values.iter().map(int).collect()
}

#[test]
fn a_transaction_is_one_moment() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.subscribe(&["presence:r"]);
    let replies = transaction(
        &mut c,
        &[
            "PRESENCE.ONLINE r u PX 50",
            "SET core v PX 50",
            "PRESENCE.COUNT r",
            "DEBUG SLEEP 0.1",
            "PRESENCE.COUNT r",
            "EXISTS core",
            "PRESENCE.STATUS r u",
            "PRESENCE.ONLINE r v PX 50",
            "PRESENCE.ONLINE other v PX 50",
            "PRESENCE.USER r u",
            "PRESENCE.USER r v",
            "PRESENCE.USER other v",
        ],
    );
    assert_eq!([&replies[2], &replies[4]], [&Value::Int(1); 2], "{replies:?}");
    assert_eq!(replies[6], Value::Array(vec![Value::Int(1)]));
    // Redis 7.0 lets its own keys expire at the moment at which EXEC begins, too.
    assert_eq!(replies[5], Value::Int(1));
    let (joined, expires) = times(&replies[9]);
    assert_eq!(expires, joined + 50);
    assert_eq!(times(&replies[10]), (joined, expires));
    assert_eq!(times(&replies[11]), (joined, expires));
    // Time has gone on behind it.
    assert_eq!(c.int("PRESENCE.COUNT r"), 0);
    let events = sub.events(4, SOON);
    assert_eq!(events[0].int("at"), events[1].int("at"));
    assert!(events[2].int("at") >= joined + 100, "{events:?}");
    let before = now_ms();
    c.ok("PRESENCE.ONLINE r w");
    within("joined_at", times(&c.ok("PRESENCE.USER r w")).0, before, now_ms());
}

/// The moment is that of the begin, and not that of the first command that asks for it.
#[test]
fn the_moment_is_that_of_the_begin() {
    let server = Server::start();
    let mut c = server.connect();
    let before = now_ms();
    let replies =
        transaction(&mut c, &["DEBUG SLEEP 0.2", "PRESENCE.ONLINE r u", "PRESENCE.USER r u"]);
    let after = now_ms();
    within("joined_at", times(&replies[2]).0, before, after - 200);
    let script = format!("{BUSY} redis.call('presence.online', KEYS[1], 'v')");
    let before = now_ms();
    c.ok(args!["EVAL", script, 1, "r"]);
    let middle = before + (now_ms() - before) / 2;
    within("joined_at", times(&c.ok("PRESENCE.USER r v")).0, before, middle);
}

#[test]
fn a_script_is_one_moment() {
    let server = Server::start();
    let mut c = server.connect();
    let body = format!(
        "local r = {{}}
         redis.call('presence.online', KEYS[1], 'u', 'PX', 50)
         r[1] = redis.call('presence.count', KEYS[1])
         {BUSY}
         r[2] = redis.call('presence.count', KEYS[1])
         redis.call('presence.online', KEYS[1], 'v', 'PX', 50)
         r[3] = redis.call('presence.count', KEYS[1])
         return r"
    );
    assert_eq!(c.ints(args!["EVAL", &body, 1, "r"]), [1, 1, 2]);
    wait_until("both to leave", SOON, || c.int("PRESENCE.COUNT r") == 0);
    // Each of several scripts in one pipeline is a moment of its own.
    let scripts = (0..3).map(|_| args!["EVAL", &body, 1, "r"]).collect::<Vec<_>>();
    for reply in c.batch(scripts) {
        assert_eq!(ints(items(&reply.unwrap())), [1, 1, 2]);
    }
    // And of several transactions; between them a plain command.
    let pipeline = [
        "MULTI",
        "PRESENCE.ONLINE a u",
        "DEBUG SLEEP 0.05",
        "PRESENCE.ONLINE a v",
        "EXEC",
        "PRESENCE.ONLINE a w",
        "MULTI",
        "DEBUG SLEEP 0.05",
        "PRESENCE.ONLINE a x",
        "EXEC",
    ];
    for reply in c.batch(pipeline) {
        reply.unwrap();
    }
    let mut joined = |user: &str| times(&c.ok(["PRESENCE.USER", "a", user])).0;
    let (u, v, w, x) = (joined("u"), joined("v"), joined("w"), joined("x"));
    assert_eq!(u, v);
    assert!(w >= v + 50 && (w..w + 50).contains(&x), "{u} {v} {w} {x}");
    // A function, and both in a transaction.
    let library =
        format!("#!lua name=lib\nredis.register_function('f', function(KEYS) {body} end)");
    c.ok(["FUNCTION", "LOAD", &library]);
    wait_until("all to leave", SOON, || c.int("PRESENCE.COUNT r") == 0);
    assert_eq!(c.ints("FCALL f 1 r"), [1, 1, 2]);
    wait_until("all to leave", SOON, || c.int("PRESENCE.COUNT r") == 0);
    c.ok("MULTI");
    c.ok(args!["EVAL", &body, 1, "r"]);
    c.ok("FCALL f 1 s");
    c.ok("PRESENCE.COUNT r");
    c.ok("PRESENCE.USER r u");
    c.ok("PRESENCE.USER s u");
    let replies = items(&c.ok("EXEC")).to_vec();
    assert_eq!(ints(items(&replies[0])), [1, 1, 2]);
    assert_eq!(ints(items(&replies[1])), [1, 1, 2]);
    assert_eq!(replies[2], Value::Int(2));
    assert_eq!(times(&replies[3]), times(&replies[4]));
}

/// A server can give its commands other names.
#[test]
fn renamed_commands_are_one_moment_too() {
    let server = Server::builder()
        .line("rename-command EVAL RUN")
        .line("rename-command EXEC COMMIT")
        .start();
    let mut c = server.connect();
    let body = format!(
        "redis.call('presence.online', KEYS[1], 'u', 'PX', 50)
         {BUSY}
         return redis.call('presence.count', KEYS[1])"
    );
    for _ in 0..2 {
        assert_eq!(c.int(args!["RUN", &body, 1, "r"]), 1);
        c.ok("PRESENCE.COUNT r");
    }
    c.ok("MULTI");
    for command in ["PRESENCE.ONLINE s u PX 50", "DEBUG SLEEP 0.1", "PRESENCE.COUNT s"] {
        c.ok(command);
    }
    assert_eq!(items(&c.ok("COMMIT"))[2], Value::Int(1));
    assert_eq!(c.int("PRESENCE.COUNT s"), 0);
    let before = now_ms();
    c.ok("PRESENCE.ONLINE r w");
    within("joined_at", times(&c.ok("PRESENCE.USER r w")).0, before, now_ms());
}

/// Time stands still, but no id is given twice.
#[test]
fn a_space_that_is_made_again_in_a_transaction_has_a_later_epoch() {
    let server = Server::with(&[("presence.history-length", "0")]);
    let mut c = server.connect();
    let mut sub = server.subscribe(&["presence:s"]);
    for _ in 0..3 {
        let made = ["PRESENCE.ONLINE s a", "DEBUG SLEEP 0.01", "DEL s", "PRESENCE.ONLINE s a"];
        transaction(&mut c, &made);
        let script = format!(
            "redis.call('presence.offline', KEYS[1], 'a')
             redis.call('presence.online', KEYS[1], 'a')
             {BUSY}
             redis.call('presence.offline', KEYS[1], 'a')
             redis.call('presence.online', KEYS[1], 'a')"
        );
        c.ok(args!["EVAL", script, 1, "s"]);
        c.ok("PRESENCE.OFFLINE s a");
    }
    let events = sub.events_so_far(&mut c);
    let joins: Vec<_> = events.iter().filter(|e| e.kind() == "join").map(Event::id).collect();
    assert_eq!(joins.len(), 12);
    assert!(joins.is_sorted_by(|a, b| a < b), "{joins:?}");
}
