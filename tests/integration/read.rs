//! PRESENCE.READ: the events of many spaces in one call, and waiting for any of them.

use crate::harness::*;
use crate::history::{Told, waiting};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};

/// What PRESENCE.READ says: a space each and what is told of it; none is null.
#[track_caller]
fn parse(reply: &Value) -> Option<Vec<(String, Told)>> {
    if *reply == Value::Nil {
        return None;
    }
    let told = |entry: &Value| {
        let [space, ..] = fields(entry, ["space", "id", "gap", "events"]);
        let rest: Vec<Value> = match entry {
            Value::Array(flat) => flat[2..].to_vec(),
            Value::Map(pairs) => {
                pairs[1..].iter().flat_map(|(k, v)| [k.clone(), v.clone()]).collect()
            }
            other => panic!("{other:?}"),
        };
        (text(space), Told::parse(&Value::Array(rest)))
    };
    let all: Vec<_> = items(reply).iter().map(told).collect();
    assert!(!all.is_empty(), "an empty array instead of null");
    for (space, told) in &all {
        assert!(!told.is_nothing(), "{space} has no news: {told:?}");
    }
    Some(all)
}

#[track_caller]
fn read(c: &mut Conn, words: &str) -> Option<Vec<(String, Told)>> {
    parse(&c.ok(format!("PRESENCE.READ {words}")))
}

/// The same as one line: `space[!]: event, event`, where `!` is a gap.
#[track_caller]
fn brief(told: Option<Vec<(String, Told)>>) -> String {
    let one = |(space, told): (String, Told)| {
        let gap = if told.gap { "!" } else { "" };
        format!("{space}{gap}: {}", told.briefs().join(", "))
    };
    told.map_or("null".into(), |all| all.into_iter().map(one).collect::<Vec<_>>().join(" | "))
}

#[track_caller]
fn answer(c: &mut Conn) -> String {
    brief(parse(&c.recv().unwrap()))
}

fn id(c: &mut Conn, space: &str) -> String {
    c.space(space).id
}

#[test]
fn read_replies_with_the_spaces_that_have_news_in_the_order_asked() {
    let server = Server::start();
    for mut c in [server.connect(), server.connect3()] {
        c.ok("FLUSHALL");
        for line in ["ONLINE a u", "ONLINE b u", "ONLINE b v", "ONLINE c u", "MESSAGE c u hi"] {
            c.ok(format!("PRESENCE.{line}"));
        }
        let (a, b) = (id(&mut c, "a"), id(&mut c, "b"));
        let told = brief(read(&mut c, "SPACES c b a none 0 0 0 0"));
        assert_eq!(told, "c: join u, message u | b: join u, join v | a: join u");
        let told = read(&mut c, &format!("SPACES a b c {a} {b} 0-0")).unwrap();
        assert_eq!(told[0].1.id, id(&mut c, "c"));
        assert_eq!(brief(Some(told)), "c: join u, message u");
        // COUNT is per space, words in any case and order.
        let told = brief(read(&mut c, "block 1 count 1 spaces b c 0 0"));
        assert_eq!(told, "b: join u | c: join u");
        // A space that is asked for twice is told twice.
        assert_eq!(brief(read(&mut c, "SPACES a a 0 $")), "a: join u");
        assert_eq!(brief(read(&mut c, "SPACES a a 0 0")), "a: join u | a: join u");
        // The words are names behind SPACES.
        c.ok("PRESENCE.ONLINE SPACES u");
        assert_eq!(brief(read(&mut c, "SPACES SPACES BLOCK 0 0")), "SPACES: join u");
        assert_eq!(read(&mut c, &format!("SPACES a none {a} 0")).map(|_| ()), None);
        assert_eq!(read(&mut c, "SPACES a b none $ $ $").map(|_| ()), None);
    }
    // The null of XREAD in both protocols.
    let mut plain = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
    plain.set_read_timeout(Some(SOON)).unwrap();
    for (hello, null) in [("", "*-1\r\n"), ("HELLO 3\r\n", "_\r\n")] {
        write!(plain, "{hello}PRESENCE.READ SPACES none $\r\nPING\r\n").unwrap();
        let (mut heard, mut buffer) = (String::new(), [0; 1024]);
        while !heard.ends_with("+PONG\r\n") {
            let n = plain.read(&mut buffer).unwrap();
            heard.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
        assert!(heard.ends_with(&format!("{null}+PONG\r\n")), "{heard:?}");
    }
}

/// Each event is told as EVENTS tells it, and a lost one is a gap.
#[test]
fn read_says_what_events_says() {
    let server = Server::with(&[("presence.history-length", "2")]);
    let mut c = server.connect();
    (0..5).for_each(|n| drop(c.ok(format!("PRESENCE.MESSAGE s u {n}"))));
    c.ok("PRESENCE.MESSAGE t u 0");
    let epoch = parse_id(&id(&mut c, "s")).0;
    for after in ["0", "1-1", &format!("{epoch}-2"), &format!("{epoch}-3"), &format!("{epoch}-9")] {
        let wanted = crate::history::ask(&mut c, &format!("s AFTER {after}"));
        let told = read(&mut c, &format!("SPACES s none {after} $")).unwrap();
        assert_eq!((told.len(), told[0].0.as_str()), (1, "s"));
        let told = &told[0].1;
        assert_eq!(
            (told.gap, &told.id, told.raws()),
            (wanted.gap, &wanted.id, wanted.raws()),
            "{after}"
        );
    }
    let (last, t) = (id(&mut c, "s"), id(&mut c, "t"));
    assert!(read(&mut c, &format!("SPACES s t {last} {t}")).is_none());
    // A space that is not there, of which somebody has seen events, is news.
    let told = read(&mut c, "SPACES none s 7-7 $").unwrap();
    assert_eq!((told.len(), &*told[0].1.id, told[0].1.gap), (1, "0-0", true));
    // Without history there is nothing but the gap.
    c.ok("CONFIG SET presence.history-length 0");
    c.ok("PRESENCE.ONLINE bare u");
    assert_eq!(brief(read(&mut c, "SPACES bare 0")), "bare!: ");
    assert_eq!(brief(read(&mut c, "SPACES bare $")), "null");
}

#[test]
fn read_refuses_what_does_not_fit() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("SET text x");
    c.ok("PRESENCE.ONLINE s u");
    let long = "x".repeat(4097);
    for (words, about) in [
        ("SPACES s", "wrong number"),
        ("COUNT 1 SPACES", "needs an id"),
        ("SPACES s 0 1", "needs an id"),
        ("SPACES a b c 0 0", "needs an id"),
        ("COUNT 0 SPACES s 0", "COUNT"),
        ("COUNT x SPACES s 0", "integer"),
        ("COUNT 1 COUNT 1 SPACES s 0", "twice"),
        ("BLOCK -1 SPACES s $", "negative"),
        ("BLOCK 1.5 SPACES s $", "integer"),
        ("BLOCK 9223372036854775807 SPACES s $", "out of range"),
        ("BLOCK 1 BLOCK 1 SPACES s $", "twice"),
        ("AFTER 0 SPACES s $", "unknown option"),
        ("s 0 0", "unknown option"),
        ("COUNT 1 BLOCK 1", "SPACES is missing"),
        ("SPACES s x", "invalid event id"),
        ("SPACES s t 0 -1", "invalid event id"),
        ("SPACES s t $ 1-x", "invalid event id"),
        (&format!("SPACES s {long} 0 0"), "longer than 4096"),
        // At once, also with BLOCK, whatever else there is to tell.
        ("SPACES text $", "WRONGTYPE"),
        ("BLOCK 0 SPACES s text $ $", "WRONGTYPE"),
        ("BLOCK 0 SPACES text s $ 0", "WRONGTYPE"),
        ("BLOCK 0 SPACES s text 0 $", "WRONGTYPE"),
    ] {
        let error = c.err(format!("PRESENCE.READ {words}"));
        assert!(error.contains(about), "{words}: {error}");
    }
    assert_eq!(c.info("clients")["blocked_clients"], "0");
}

#[test]
fn read_waits_for_the_first_news_of_any_space() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE a u");
    c.ok("PRESENCE.ONLINE b u");
    for (mut w, end, wanted) in [
        (server.connect(), "PRESENCE.ONLINE b v", "b: join v"),
        (server.connect3(), "PRESENCE.MESSAGE a u hi", "a: message u"),
        (server.connect(), "PRESENCE.ONLINE new u PX 600000", "new: join u"),
        (server.connect(), "PRESENCE.OFFLINE b v", "b: leave v (offline)"),
        (server.connect(), "PRESENCE.ONLINE a short PX 300", "a: join short"),
        (server.connect(), "PRESENCE.CLOSE b", "b: close "),
        (server.connect(), "DEL a", "a!: "),
        (server.connect(), "RENAME new a", "a: join u | new!: "),
    ] {
        w.send("PRESENCE.READ BLOCK 0 SPACES a new b $ $ $").unwrap();
        waiting(&mut c, 1);
        // Nobody waits for these.
        for other in ["ONLINE x u", "MESSAGE y u hi"] {
            c.ok(format!("PRESENCE.{other}"));
        }
        assert_eq!(c.info("clients")["blocked_clients"], "1", "before {end}");
        c.ok(end);
        let told = answer(&mut w);
        assert_eq!(told, wanted, "{end}");
        waiting(&mut c, 0);
        if end.ends_with("PX 300") {
            wait_until("the leave, which is news for the next one", SOON, || {
                c.stat("timeouts") == 1
            });
        }
    }
}

/// A client that waits for many spaces costs those nothing that it does not wait for, and is told once.
#[test]
fn read_waits_of_many_clients_for_many_spaces() {
    let server = Server::start();
    let mut c = server.connect();
    let name = |n: usize| format!("space:{n}");
    (0..100).for_each(|n| drop(c.ok(["PRESENCE.ONLINE", &name(n), "u"])));
    // Client i waits for space i and the 49 that follow.
    let mut clients: Vec<Conn> = (0..50)
        .map(|i| {
            let mut w = server.connect();
            let names: Vec<_> = (i..i + 50).map(name).collect();
            let ids = vec!["$"; 50];
            w.send(format!("PRESENCE.READ BLOCK 0 SPACES {} {}", names.join(" "), ids.join(" ")))
                .unwrap();
            w
        })
        .collect();
    waiting(&mut c, 50);
    c.ok("PRESENCE.MESSAGE space:0 u first");
    assert_eq!(answer(&mut clients[0]), "space:0: message u");
    waiting(&mut c, 49);
    c.ok("PRESENCE.MESSAGE space:98 u last");
    assert_eq!(answer(&mut clients[49]), "space:98: message u");
    waiting(&mut c, 48);
    // Two at once, in one transaction: one reply with both where both are awaited.
    for line in ["MULTI", "PRESENCE.MESSAGE space:10 u x", "PRESENCE.MESSAGE space:40 u x", "EXEC"]
    {
        c.ok(line);
    }
    for (i, w) in clients.iter_mut().enumerate().take(41).skip(1) {
        let wanted = ["space:10: message u", "space:40: message u"];
        assert_eq!(answer(w), wanted[usize::from(i > 10)..].join(" | "), "{i}");
    }
    waiting(&mut c, 8);
    c.ok("FLUSHALL");
    for (i, w) in clients.iter_mut().enumerate().take(49).skip(41) {
        let told = parse(&w.recv().unwrap()).unwrap();
        assert_eq!(told.len(), 50, "{i}");
        assert!(told.iter().all(|(_, told)| told.gap && told.id == "0-0"), "{told:?}");
    }
    waiting(&mut c, 0);
    // Clients that leave while they wait leave nothing behind.
    for w in &mut clients {
        w.send("PRESENCE.READ BLOCK 0 SPACES a b a $ $ $").unwrap();
    }
    waiting(&mut c, 50);
    drop(clients);
    waiting(&mut c, 0);
    c.ok("PRESENCE.ONLINE a u");
    assert!(server.alive());
}

/// What ends a wait without news is null; what cannot wait is answered at once.
#[test]
fn read_no_news_is_null() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s u");
    let mut w = server.connect();
    for end in ["CLIENT UNBLOCK {id}", "CLIENT UNBLOCK {id} TIMEOUT"] {
        let id = w.int("CLIENT ID").to_string();
        w.send("PRESENCE.READ BLOCK 0 SPACES none s $ $").unwrap();
        waiting(&mut c, 1);
        c.ok(end.replace("{id}", &id));
        assert_eq!(answer(&mut w), "null", "{end}");
    }
    let began = std::time::Instant::now();
    assert_eq!(brief(read(&mut w, "BLOCK 50 SPACES s $")), "null");
    assert!(began.elapsed() >= ms(50));
    // A space that comes and has nothing to tell to those who saw it: still null.
    let last = id(&mut c, "s");
    w.send(format!("PRESENCE.READ BLOCK 100 SPACES s {last}")).unwrap();
    waiting(&mut c, 1);
    for line in ["MULTI", "RENAME s t", "RENAME t s", "EXEC"] {
        c.ok(line);
    }
    assert_eq!(answer(&mut w), "null");
    for line in ["MULTI", "PRESENCE.READ BLOCK 0 SPACES s none $ $", "PRESENCE.READ SPACES s 0"] {
        c.ok(line);
    }
    let replies = c.ok("EXEC");
    assert_eq!(items(&replies)[0], Value::Nil);
    assert_eq!(brief(parse(&items(&replies)[1])), "s: join u");
    let script = "return redis.call('PRESENCE.READ', 'BLOCK', '0', 'SPACES', KEYS[1], '$')";
    assert_eq!(c.ok(["EVAL", script, "1", "s"]), Value::Nil);
    // A transaction sees what itself did.
    for line in ["MULTI", "PRESENCE.ONLINE s v", "PRESENCE.READ BLOCK 0 SPACES s 0", "EXEC"] {
        if line == "EXEC" {
            let replies = c.ok(line);
            assert_eq!(brief(parse(&items(&replies)[1])), "s: join u, join v");
        } else {
            c.ok(line);
        }
    }
    // A client that waits is told when another type comes.
    w.send("PRESENCE.READ BLOCK 0 SPACES s none $ $").unwrap();
    waiting(&mut c, 1);
    c.ok("SET s text");
    assert!(w.recv().unwrap_err().starts_with("WRONGTYPE"));
}

/// Which arguments are keys, for the server and for clients.
#[test]
fn read_tells_the_server_its_keys() {
    let server = Server::start();
    let mut c = server.connect();
    for (call, keys) in [
        ("PRESENCE.READ SPACES a b 0 $", vec!["a", "b"]),
        ("PRESENCE.READ COUNT 2 BLOCK 5 spaces a 0", vec!["a"]),
        ("PRESENCE.READ SPACES SPACES x $ $", vec!["SPACES", "x"]),
    ] {
        assert_eq!(texts(&c.ok(format!("COMMAND GETKEYS {call}"))), keys, "{call}");
        let flags = c.ok(format!("COMMAND GETKEYSANDFLAGS {call}"));
        for key in items(&flags) {
            assert_eq!(texts(&items(key)[1]), ["RO", "access"], "{call}");
        }
    }
    let reply = c.ok("COMMAND INFO presence.read");
    let info = items(&items(&reply)[0]);
    assert_eq!(text(&info[1]), "-4");
    let flags = texts(&info[2]);
    for flag in ["readonly", "blocking", "movablekeys"] {
        assert!(flags.iter().any(|f| f == flag), "{flag}: {flags:?}");
    }
    assert_eq!([3, 4, 5].map(|i| text(&info[i])), ["0", "0", "0"]);
    let specs = items(&info[8]);
    let [_, begin, find] = fields(&specs[0], ["flags", "begin_search", "find_keys"]);
    let [kind, begin] = fields(begin, ["type", "spec"]);
    let [word, from] = fields(begin, ["keyword", "startfrom"]);
    assert_eq!([text(kind), text(word), text(from)], ["keyword", "SPACES", "1"]);
    let [kind, find] = fields(find, ["type", "spec"]);
    let [last, step, limit] = fields(find, ["lastkey", "keystep", "limit"]);
    assert_eq!([text(kind), text(last), text(step), text(limit)], ["range", "-1", "1", "2"]);
}

#[test]
fn read_needs_the_right_to_read_each_space() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("ACL SETUSER reader on >p %R~s* +@all");
    c.ok("ACL SETUSER writer on >p %W~s* +@all");
    let mut reader = server.connect();
    reader.ok("AUTH reader p");
    c.ok("PRESENCE.ONLINE s1 u");
    assert_eq!(brief(read(&mut reader, "SPACES s1 s2 0 $")), "s1: join u");
    for words in ["SPACES s1 t 0 $", "BLOCK 0 SPACES t s1 $ $", "COUNT 1 SPACES t 0"] {
        let error = reader.err(format!("PRESENCE.READ {words}"));
        assert!(error.starts_with("NOPERM"), "{words}: {error}");
    }
    reader.ok("AUTH writer p");
    assert!(reader.err("PRESENCE.READ SPACES s1 0").starts_with("NOPERM"));
}

/// All spaces of a call are in one slot.
#[test]
fn read_in_a_cluster_stays_in_one_slot() {
    let server = Server::with(&[("cluster-enabled", "yes")]);
    let mut c = server.connect();
    c.ok("CLUSTER ADDSLOTSRANGE 0 16383");
    wait_until("a cluster of one", SOON, || c.text("CLUSTER INFO").contains("cluster_state:ok"));
    c.ok("PRESENCE.ONLINE {r}1 u");
    assert_eq!(brief(read(&mut c, "SPACES {r}1 {r}2 0 $")), "{r}1: join u");
    for words in ["SPACES {r}1 {t}1 0 0", "COUNT 1 BLOCK 0 SPACES a b $ $"] {
        let error = c.err(format!("PRESENCE.READ {words}"));
        assert!(error.starts_with("CROSSSLOT"), "{words}: {error}");
    }
    c.ok("CLUSTER DELSLOTSRANGE 0 16383");
    wait_until("no cluster", SOON, || c.text("CLUSTER INFO").contains("cluster_state:fail"));
    assert!(c.err("PRESENCE.READ BLOCK 0 SPACES {r}1 $").starts_with("CLUSTERDOWN"));
}

/// On a replica it reads and waits as anywhere.
#[test]
fn read_works_on_a_replica() {
    let primary = Server::start();
    let replica =
        Server::builder().config("replicaof", &format!("127.0.0.1 {}", primary.port)).start();
    let (mut p, mut r) = (primary.connect(), replica.connect());
    p.ok("PRESENCE.ONLINE s u");
    wait_until("the replica", SOON, || r.int("PRESENCE.COUNT s") == 1);
    assert_eq!(brief(read(&mut r, "SPACES none s $ 0")), "s: join u");
    let mut w = replica.connect();
    for (end, wanted) in [
        ("PRESENCE.MESSAGE t u hi", "t: message u"),
        ("PRESENCE.ONLINE s v", "s: join v"),
        ("DEL s", "s!: "),
    ] {
        w.send("PRESENCE.READ BLOCK 0 SPACES s t $ $").unwrap();
        waiting(&mut r, 1);
        p.ok(end);
        assert_eq!(answer(&mut w), wanted, "{end}");
    }
}
