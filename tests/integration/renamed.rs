//! `rename-command` takes nothing away from what replicas, the AOF and subscribers get.

use crate::harness::*;
use crate::replication::sync;

/// Commands of the server that the module would use.
const USED: [&str; 4] = ["UNLINK", "DEL", "PUBLISH", "SPUBLISH"];

/// Lines that rename some of them or take them away.
fn renamed(mode: &str) -> Vec<Vec<String>> {
    let publish = if mode == "global" { "PUBLISH" } else { "SPUBLISH" };
    let one = |name: &str| vec![format!("rename-command {name} other-{name}")];
    let all = |to: &str| USED.iter().map(|name| format!("rename-command {name} {to}")).collect();
    let others = USED.iter().map(|name| format!("rename-command {name} other-{name}")).collect();
    vec![one("UNLINK"), one(publish), all("\"\""), others]
}

fn server(mode: &str, lines: &[String]) -> Builder {
    let server = Server::builder()
        .aof()
        .config("aof-use-rdb-preamble", "no")
        .config("presence.channel-mode", mode)
        .config("presence.history-ttl-ms", "3600000");
    lines.iter().fold(server, |server, line| server.line(line))
}

/// A subscriber to the channel of the space `s`.
fn listener(server: &Server, mode: &str) -> Subscriber {
    match mode {
        "global" => server.subscribe(&["presence:s"]),
        _ => server.ssubscribe(&["presence:{s}"]),
    }
}

/// The events up to the message "end", which is sent by this connection.
#[track_caller]
fn up_to_the_end(c: &mut Conn, listeners: &mut [Subscriber]) -> Vec<Vec<String>> {
    c.ok("PRESENCE.MESSAGE s system end");
    let up_to_end = |sub: &mut Subscriber| {
        let mut events = Vec::new();
        loop {
            let event = sub.event(SOON);
            let is_end = event.str("message") == "end";
            events.push(event.raw);
            if is_end {
                return events;
            }
        }
    };
    listeners.iter_mut().map(up_to_end).collect()
}

fn log_tells(server: &Server, lines: &[String]) {
    let log = server.log();
    for name in USED {
        let is_renamed =
            lines.iter().any(|line| line.starts_with(&format!("rename-command {name} ")));
        let told = log.contains(&format!("presence: {name} is renamed"));
        assert_eq!(told, is_renamed, "{name}: {log}");
    }
}

/// A primary, a replica of it with the same names, and a replica of that. Each of the three publishes each event once,
/// and a key that goes on the first goes on all and is in no AOF afterwards.
#[test]
fn replicas_and_the_aof_do_not_need_the_names() {
    for mode in ["global", "sharded"] {
        for lines in renamed(mode) {
            let primary = server(mode, &lines).start();
            let behind = |port: u16| {
                server(mode, &lines).line(&format!("replicaof 127.0.0.1 {port}")).start()
            };
            let replica = behind(primary.port);
            let last = behind(replica.port);
            let nodes = [&primary, &replica, &last];
            nodes.iter().for_each(|node| log_tells(node, &lines));
            let [mut p, mut r, mut l] = nodes.map(|node| node.connect());
            sync(&mut p, &mut r);
            sync(&mut r, &mut l);
            // A replica begins its AOF anew with what it got, by a fork.
            wait_until("the AOFs to begin", SOON * 4, || {
                [&mut r, &mut l].into_iter().all(|c| {
                    let aof = c.info("persistence");
                    ["aof_rewrite_in_progress", "aof_rewrite_scheduled"]
                        .iter()
                        .all(|field| aof[*field] == "0")
                })
            });
            let mut listeners = nodes.map(|node| listener(node, mode));

            // Events by a command, a transaction, a script and the sweep.
            p.ok("PRESENCE.ONLINE s USERS 2 a b EX 3600");
            for line in ["MULTI", "PRESENCE.OFFLINE s b", "PRESENCE.MESSAGE s a hi", "EXEC"] {
                p.ok(line);
            }
            p.ok(args!["EVAL", "return redis.call('PRESENCE.ONLINE', KEYS[1], 'c')", 1, "s"]);
            p.ok("PRESENCE.ONLINE s short PX 1");
            wait_until("the sweep", SOON, || p.stat("timeouts") == 1);
            let heard = up_to_the_end(&mut p, &mut listeners);
            let kept = texts(fields(&p.ok("PRESENCE.EVENTS s"), ["id", "gap", "events"])[2]);
            assert_eq!(kept.len(), 8, "{kept:?}");
            for heard in heard {
                assert_eq!(heard, kept, "{mode}, {lines:?}");
            }
            assert_eq!(p.stat("events_published"), 8);
            sync(&mut p, &mut r);
            sync(&mut r, &mut l);
            let digests = [&mut p, &mut r, &mut l].map(|c| c.digest("s"));
            assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");

            // A space that goes by itself, by the sweep and in the way of a new one.
            p.ok("CONFIG SET presence.history-ttl-ms 0");
            p.ok("PRESENCE.ONLINE gone a PX 1");
            p.ok("PRESENCE.ONLINE shut a");
            p.ok("PRESENCE.CLOSE shut PX 1");
            p.ok("PRESENCE.ONLINE left a");
            p.ok("PRESENCE.OFFLINE left a");
            wait_until("the spaces to go", SOON, || p.int("EXISTS gone shut left") == 0);
            sync(&mut p, &mut r);
            sync(&mut r, &mut l);
            for c in [&mut p, &mut r, &mut l] {
                assert_eq!(texts(&c.ok("KEYS *")), ["s"], "{mode}, {lines:?}");
            }

            for node in nodes {
                let log = node.log();
                assert!(!log.contains("CRITICAL"), "{mode}, {lines:?}: {log}");
                let aof = aof(node);
                assert!(!aof.contains("PUBLISH"), "{mode}, {lines:?}: {aof}");
            }
            // The AOF loads, and the keys are gone in it too.
            for node in [&primary, &last] {
                node.stop(Stop::Kill);
                // What was a replica comes back as a primary, with what its own AOF holds.
                let conf = node.dir().join("redis.conf");
                let lines = std::fs::read_to_string(&conf).unwrap();
                let alone = lines.lines().filter(|line| !line.starts_with("replicaof"));
                std::fs::write(&conf, alone.map(|line| format!("{line}\n")).collect::<String>())
                    .unwrap();
                node.start_again();
                assert_eq!(texts(&node.connect().ok("KEYS *")), ["s"], "{mode}, {lines}");
            }
        }
    }
}

/// The text of an AOF.
fn aof(server: &Server) -> String {
    let files = std::fs::read_dir(server.dir().join("appendonlydir")).unwrap();
    let read = |file: std::io::Result<std::fs::DirEntry>| {
        String::from_utf8_lossy(&std::fs::read(file.unwrap().path()).unwrap()).into_owned()
    };
    files.map(read).collect()
}

/// A primary without the names, and a replica that has them all.
#[test]
fn a_replica_may_have_names_that_its_primary_lacks() {
    for mode in ["global", "sharded"] {
        let lines = USED.map(|name| format!("rename-command {name} \"\""));
        let primary = server(mode, &lines).start();
        let replica =
            server(mode, &[]).line(&format!("replicaof 127.0.0.1 {}", primary.port)).start();
        let (mut p, mut r) = (primary.connect(), replica.connect());
        sync(&mut p, &mut r);
        let mut listeners = [listener(&primary, mode), listener(&replica, mode)];
        p.ok("PRESENCE.ONLINE s a");
        let heard = up_to_the_end(&mut p, &mut listeners);
        assert_eq!((heard[0].len(), &heard[0]), (2, &heard[1]));
        p.ok("CONFIG SET presence.history-ttl-ms 0");
        p.ok("PRESENCE.OFFLINE s a");
        wait_until("the space to go", SOON, || p.int("EXISTS s") == 0);
        sync(&mut p, &mut r);
        assert_eq!(r.int("DBSIZE"), 0);
    }
}

/// In a cluster the bus carries what is published, and each node hears it once.
#[test]
fn a_cluster_does_not_need_the_names() {
    for mode in ["global", "sharded"] {
        let lines = USED.map(|name| format!("rename-command {name} \"\""));
        let node = || server(mode, &lines).config("cluster-enabled", "yes").start();
        let (primary, replica, other) = (node(), node(), node());
        let [mut p, mut r, mut o] = [&primary, &replica, &other].map(Server::connect);
        for (i, c) in [&mut p, &mut r, &mut o].into_iter().enumerate() {
            c.ok(args!["CLUSTER", "SET-CONFIG-EPOCH", i + 1]);
            c.ok(args!["CLUSTER", "MEET", "127.0.0.1", i64::from(primary.port)]);
        }
        p.ok("CLUSTER ADDSLOTSRANGE 0 16383");
        let id = p.text("CLUSTER MYID");
        wait_until("the primary to be known", SOON * 4, || {
            r.try_cmd(["CLUSTER", "REPLICATE", &id]).is_ok()
        });
        wait_until("the cluster", SOON * 4, || {
            [&mut p, &mut r, &mut o]
                .into_iter()
                .all(|c| c.text("CLUSTER INFO").contains("cluster_state:ok"))
        });
        sync(&mut p, &mut r);
        // Links between nodes come up one by one.
        let hears = if mode == "global" {
            vec![&primary, &replica, &other]
        } else {
            vec![&primary, &replica]
        };
        let mut listeners: Vec<_> = hears.iter().map(|node| listener(node, mode)).collect();
        wait_until("all nodes to hear", SOON * 4, || {
            p.ok("PRESENCE.MESSAGE s system warm");
            listeners.iter_mut().map(|sub| sub.try_next(ms(100))).all(|heard| heard.is_some())
        });
        up_to_the_end(&mut p, &mut listeners);
        p.ok("PRESENCE.ONLINE s USERS 2 a b");
        p.ok("PRESENCE.ONLINE s short PX 1");
        wait_until("the sweep", SOON, || p.stat("timeouts") == 1);
        for heard in up_to_the_end(&mut p, &mut listeners) {
            assert_eq!(heard.len(), 5, "{mode}: {heard:?}");
        }
    }
}

/// The module's own names cannot be taken away: the server does not start with such a line.
#[test]
fn commands_of_the_module_are_not_renamed() {
    for name in ["PRESENCE.ONLINE", "PRESENCE._SWEEP", "PRESENCE._APPLY"] {
        let line = format!("rename-command {name} other");
        let log = Server::builder().line(&line).try_start().err().expect("no start");
        assert!(log.contains("No such command"), "{log}");
    }
}

/// What travels between nodes is not for clients.
#[test]
fn clients_get_an_error_for_internal_commands() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.subscribe(&["presence:s"]);
    c.ok("PRESENCE.ONLINE s a");
    for call in [
        "PRESENCE._UNLINK s",
        "PRESENCE._PUBLISH presence:s forged GLOBAL",
        "PRESENCE._PUBLISH presence:s forged SHARDED",
        "PRESENCE._APPLY s x",
    ] {
        assert!(c.err(call).contains("is for replication"), "{call}");
    }
    assert_eq!(c.int("EXISTS s"), 1);
    assert_eq!(sub.events_so_far(&mut c).len(), 1);
}

/// Where nothing is renamed, replicas and the AOF get the server's own commands, as those of an older module expect.
#[test]
fn names_that_are_there_are_used() {
    let primary = server("global", &[]).config("presence.history-ttl-ms", "0").start();
    let replica =
        server("global", &[]).line(&format!("replicaof 127.0.0.1 {}", primary.port)).start();
    let (mut p, mut r) = (primary.connect(), replica.connect());
    sync(&mut p, &mut r);
    p.ok("PRESENCE.ONLINE s a");
    p.ok("PRESENCE.OFFLINE s a");
    sync(&mut p, &mut r);
    let calls = r.info("commandstats");
    let had = |name: &str| calls.contains_key(&format!("cmdstat_{name}"));
    assert!(had("unlink") && had("publish"), "{calls:?}");
    assert!(!had("presence._unlink") && !had("presence._publish"), "{calls:?}");
    assert!(!primary.log().contains("is renamed"));
}
