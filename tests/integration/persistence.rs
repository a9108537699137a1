//! What is there after the server was not: RDB, AOF, rewrites, crashes, and the grace after a restart.

use crate::harness::*;
use rand::Rng;
use rand::seq::IndexedRandom;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Added to upper bounds on time; lower bounds have no tolerance.
const LATE: i64 = 700;

const ROOMS: [&str; 5] = ["rich", "other", "*", "emp\tty", "closed"];

/// Keeps its events for as long as a test takes.
fn keeper() -> Builder {
    Server::builder().config("presence.history-ttl-ms", "3600000")
}

/// Spaces with everything that has to survive, in two databases.
fn scene(c: &mut Conn) {
    for db in [0, 9] {
        c.ok(args!["SELECT", db]);
        furnish(c, "rich");
        furnish(c, "*");
        for i in 0..300 {
            c.ok(args![
                "PRESENCE.ONLINE",
                "other",
                format!("u{i}"),
                "PX",
                5_000_000 + i,
                "META",
                i
            ]);
        }
        c.ok(["PRESENCE.ONLINE", "emp\tty", "a"]);
        c.ok(["PRESENCE.OFFLINE", "emp\tty", "a"]);
        c.ok(["PRESENCE.MESSAGE", "rich", "alice", "h\u{e9}\0\r\n\"", "SESSION", "phone"]);
        furnish(c, "closed");
        c.ok("PRESENCE.CLOSE closed EX 3600");
    }
    c.ok("SELECT 0");
}

/// All that can be read of the scene.
fn picture(c: &mut Conn) -> Vec<(String, Space)> {
    let mut all = Vec::new();
    for db in [0, 9] {
        c.ok(args!["SELECT", db]);
        assert!(c.err("PRESENCE.ONLINE closed somebody").starts_with("CLOSED "));
        for room in ROOMS {
            let space = sorted(c.space(room));
            let users = space.members.iter();
            let joined: Vec<_> =
                users.map(|(user, _)| c.user(room, user).unwrap().joined_at).collect();
            let events = c.ok(["PRESENCE.EVENTS", room]);
            assert!(!items(fields(&events, ["id", "gap", "events"])[2]).is_empty());
            all.push((format!("{db} {room} {} {joined:?} {events:?}", c.digest(room)), space));
        }
    }
    c.ok("SELECT 0");
    all
}

/// The scene is as it was, and its spaces live on: ids continue and leases end.
#[track_caller]
fn lives_on(server: &Server, before: &[(String, Space)]) {
    let mut c = server.connect();
    same(&picture(&mut c), before, "brought back");
    assert_eq!(c.stat("spaces"), 10);
    let mut sub = server.subscribe(&["presence:rich", "presence:emp\tty"]);
    for room in ["rich", "emp\tty"] {
        let (epoch, seq) = parse_id(&c.space(room).id);
        c.ok(args!["PRESENCE.ONLINE", room, "later", "PX", 100]);
        let join = sub.event(SOON);
        // A new line of history: the epoch is a later one.
        assert_eq!((join.kind(), join.id().1), ("join", seq + 1));
        assert!(join.id().0 > epoch, "{join:?} after {epoch}-{seq}");
        let (epoch, _) = join.id();
        let leave = sub.event(SOON);
        assert_eq!(
            (leave.brief().as_str(), leave.id()),
            ("leave later (timeout)", (epoch, seq + 2))
        );
    }
}

/// Equal, one by one, so that a failure shows the one that differs.
#[track_caller]
fn same<T: PartialEq + std::fmt::Debug>(got: &[T], expected: &[T], what: &str) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got, expected, "number {i} of what was {what}");
    }
}

fn wait_for_rewrite(c: &mut Conn) {
    wait_until("the rewrite", SOON * 4, || {
        let info = c.info("persistence");
        info["aof_rewrite_in_progress"] == "0" && info["aof_rewrite_scheduled"] == "0"
    });
    assert_eq!(c.info("persistence")["aof_last_bgrewrite_status"], "ok");
}

fn wait_for_save(c: &mut Conn) {
    wait_until("the save", SOON * 4, || c.info("persistence")["rdb_bgsave_in_progress"] == "0");
    assert_eq!(c.info("persistence")["rdb_last_bgsave_status"], "ok");
}

// --- each way to persist, at rest ------------------------------------------------------------------------------------

#[test]
fn rdb_keeps_everything() {
    let server = keeper().start();
    let mut c = server.connect();
    scene(&mut c);
    let before = picture(&mut c);
    server.restart(Stop::Save);
    assert_eq!(picture(&mut server.connect()), before);
    // A second time, without a change between; and without compression and checksums.
    let mut c = server.connect();
    c.ok("CONFIG SET rdbcompression no");
    server.restart(Stop::Save);
    lives_on(&server, &before);
}

#[test]
fn bgsave_and_a_crash_keep_what_was_saved() {
    let server = keeper().start();
    let mut c = server.connect();
    scene(&mut c);
    let before = picture(&mut c);
    c.ok("BGSAVE");
    wait_for_save(&mut c);
    c.ok("PRESENCE.ONLINE rich after-the-save");
    server.restart(Stop::Kill);
    lives_on(&server, &before);
}

#[test]
fn the_servers_own_tools_find_no_fault_with_the_files() {
    let server = keeper().aof().config("aof-use-rdb-preamble", "no").start();
    let mut c = server.connect();
    scene(&mut c);
    c.ok("SAVE");
    // Those that came with the server, because those of an older one do not know its files.
    let server_path = server_path();
    let name = server_path.file_name().unwrap().to_string_lossy();
    let Some(name) = name.strip_suffix("-server") else {
        return not_tested("this server comes without redis-check-rdb and redis-check-aof");
    };
    for (tool, file) in [("rdb", server.dir().join("dump.rdb")), ("aof", aof_increment(&server))] {
        let tool = server_path.with_file_name(format!("{name}-check-{tool}"));
        let Ok(run) = std::process::Command::new(&tool).arg(&file).output() else {
            return not_tested(&format!("there is no {}", tool.display()));
        };
        let output = String::from_utf8_lossy(&run.stdout).into_owned();
        assert!(run.status.success(), "{} {}: {output}", tool.display(), file.display());
    }
}

#[test]
fn aof_keeps_everything() {
    for preamble in ["yes", "no"] {
        let server = keeper().aof().config("aof-use-rdb-preamble", preamble).start();
        scene(&mut server.connect());
        let before = picture(&mut server.connect());
        for how in [Stop::NoSave, Stop::Kill] {
            server.restart(how);
            assert_eq!(picture(&mut server.connect()), before, "preamble {preamble}, {how:?}");
        }
        lives_on(&server, &before);
    }
}

#[test]
fn a_rewritten_aof_keeps_everything() {
    for preamble in ["yes", "no"] {
        let server = keeper().aof().config("aof-use-rdb-preamble", preamble).start();
        let mut c = server.connect();
        scene(&mut c);
        let before = picture(&mut c);
        c.ok("BGREWRITEAOF");
        wait_for_rewrite(&mut c);
        server.restart(Stop::Kill);
        assert_eq!(picture(&mut server.connect()), before, "preamble {preamble}");
        // Rewritten from what was loaded, and with changes behind it.
        let mut c = server.connect();
        c.ok("BGREWRITEAOF");
        wait_for_rewrite(&mut c);
        c.ok("PRESENCE.ONLINE rich new PX 4000000 META 1");
        c.ok("PRESENCE.OFFLINE rich new");
        let before = picture(&mut c);
        server.restart(Stop::Kill);
        lives_on(&server, &before);
    }
}

#[test]
fn appendonly_switched_on_at_run_time() {
    let server = keeper().start();
    let mut c = server.connect();
    scene(&mut c);
    c.ok("CONFIG SET appendfsync always");
    c.ok("CONFIG SET appendonly yes");
    wait_for_rewrite(&mut c);
    wait_until("the AOF", SOON, || c.info("persistence")["aof_enabled"] == "1");
    c.ok("CONFIG REWRITE");
    c.ok("PRESENCE.ONLINE rich new PX 4000000 META 1");
    let before = picture(&mut c);
    server.restart(Stop::Kill);
    lives_on(&server, &before);
}

#[test]
fn debug_reload_and_loadaof_keep_everything() {
    let server = keeper().aof().start();
    let mut c = server.connect();
    scene(&mut c);
    let before = picture(&mut c);
    c.ok("DEBUG RELOAD");
    assert_eq!(picture(&mut c), before);
    c.ok("DEBUG RELOAD NOSAVE");
    assert_eq!(picture(&mut c), before);
    c.ok("DEBUG LOADAOF");
    lives_on(&server, &before);
}

#[test]
fn the_aof_tells_effects_with_absolute_times() {
    steady(|| {
        for preamble in ["yes", "no"] {
            let server = Server::builder()
                .aof()
                .config("aof-use-rdb-preamble", preamble)
                .config("presence.restart-grace-ms", "0")
                .start();
            let mut c = server.connect();
            c.ok("PRESENCE.ONLINE s a EX 60 META 1");
            c.ok("PRESENCE.ONLINE s USERS 2 b c PX 70000");
            c.ok("PRESENCE.ONLINE s SESSIONS 2 b x c y EX 80");
            c.ok("PRESENCE.ONLINE s a EX 90");
            c.ok("PRESENCE.ONLINE s d");
            c.ok("PRESENCE.OFFLINE s d LINGER 20000");
            c.ok("MULTI");
            c.ok("PRESENCE.ONLINE s e PX 60000");
            c.ok("PRESENCE.ONLINE s e PX 50000 META 2");
            c.ok("EXEC");
            c.ok(args![
                "EVAL",
                "return redis.call('PRESENCE.ONLINE', KEYS[1], 'f', 'PX', 60000)",
                1,
                "s"
            ]);
            c.ok("PRESENCE.ONLINE s gone PX 60000");
            c.ok("PRESENCE.OFFLINE s gone");
            // The sweep's and a write's own leaves are in it, too.
            let mut sub = server.subscribe(&["presence:s"]);
            c.ok("PRESENCE.ONLINE s lapses PX 50");
            assert_eq!(sub.event(SOON).kind(), "join");
            assert_eq!(sub.event(SOON).brief(), "leave lapses (timeout)");
            let again = [
                "PRESENCE.ONLINE s again PX 50",
                "DEBUG SLEEP 0.1",
                "PRESENCE.ONLINE s again PX 60000",
            ];
            assert!(c.batch(again).iter().all(Result::is_ok));
            assert_eq!(sub.events_so_far(&mut c).len(), 3);
            let (before, digest) = (sorted(c.space("s")), c.digest("s"));
            server.stop(Stop::Kill);
            let at = now_ms();
            sleep_until(at + 400); // nothing is relative to the time of loading
            server.start_again();
            let mut c = server.connect();
            assert_eq!(sorted(c.space("s")), before, "preamble {preamble}");
            assert_eq!(c.digest("s"), digest);
            c.ok("BGREWRITEAOF");
            wait_for_rewrite(&mut c);
            server.restart(Stop::Kill);
            let mut c = server.connect();
            assert_eq!(
                (sorted(c.space("s")), c.digest("s")),
                (before, digest),
                "rewritten, preamble {preamble}"
            );
        }
    });
}

#[test]
fn what_happens_to_keys_is_in_the_aof() {
    let server = Server::builder().aof().config("aof-use-rdb-preamble", "no").start();
    let mut c = server.connect();
    for s in ["deleted", "renamed", "copied", "moved", "restored", "mortal", "flushed"] {
        furnish(&mut c, s);
    }
    let Value::BulkString(dump) = c.ok("DUMP restored") else { panic!("no dump") };
    c.ok("DEL deleted restored");
    c.ok("RENAME renamed new");
    c.ok("COPY copied copy");
    c.ok("PRESENCE.OFFLINE copied alice");
    c.ok("MOVE moved 3");
    c.ok("SELECT 0"); // Valkey 8.1, see `key_lifecycle::a_connection_stays_in_its_database`
    c.ok(args!["RESTORE", "restored", 0, dump]);
    c.ok("PEXPIRE mortal 3000000");
    c.ok("SELECT 5");
    furnish(&mut c, "swapped");
    c.ok("SWAPDB 5 6");
    furnish(&mut c, "gone");
    c.ok("FLUSHDB");
    furnish(&mut c, "gone");
    c.ok("PRESENCE.ONLINE gone x PX 4000000");
    let look =
        |c: &mut Conn| {
            let mut all = Vec::new();
            for (db, rooms) in [
                (0, &["deleted", "new", "copied", "copy", "restored", "mortal"][..]),
                (3, &["moved"]),
                (5, &["gone"]),
                (6, &["swapped"]),
            ] {
                c.ok(args!["SELECT", db]);
                all.extend(rooms.iter().map(|room| {
                    (sorted(c.space(room)), c.digest(room), c.int(["PEXPIRETIME", room]))
                }));
            }
            all
        };
    let before = look(&mut c);
    server.restart(Stop::Kill);
    let mut c = server.connect();
    same(&look(&mut c), &before, "loaded");
    c.ok("BGREWRITEAOF");
    wait_for_rewrite(&mut c);
    server.restart(Stop::Kill);
    same(&look(&mut server.connect()), &before, "rewritten and loaded");
}

/// Whoever is in a space that was renamed or moved leaves in time, also where a server learns of that from its AOF.
#[test]
fn a_space_that_moved_in_the_aof_is_swept_after_the_load() {
    let server = Server::builder().aof().config("presence.restart-grace-ms", "1500").start();
    let mut c = server.connect();
    let channels = ["presence:stays", "presence:there", "presence:moved"];
    for space in ["stays", "renamed", "moved"] {
        c.ok(["PRESENCE.ONLINE", space, "ghost", "PX", "400"]);
    }
    c.ok("RENAME renamed there");
    c.ok("MOVE moved 1");
    server.stop(Stop::Kill);
    server.start_again();
    let mut heard = server.subscribe(&channels);
    let mut c = server.connect();
    wait_until("all to leave", SOON, || c.stat("users") == 0);
    let mut left: Vec<_> = heard.events_so_far(&mut c);
    left.sort_by(|a, b| a.channel.cmp(&b.channel));
    let left: Vec<_> = left.iter().map(|event| event.brief()).collect();
    assert_eq!(left, ["leave ghost (timeout)"; 3]);
}

#[test]
fn the_end_of_an_empty_space_is_in_the_aof() {
    let server = Server::builder().aof().config("presence.history-ttl-ms", "200").start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s a PX 60000");
    let (epoch, _) = parse_id(&c.space("s").id);
    c.ok("PRESENCE.OFFLINE s a");
    wait_until("the key to go", SOON, || c.int("EXISTS s") == 0);
    server.restart(Stop::Kill);
    let mut c = server.connect();
    assert_eq!(c.int("EXISTS s"), 0);
    c.ok("PRESENCE.ONLINE s a");
    assert!(parse_id(&c.space("s").id).0 > epoch);
}

#[test]
fn a_closed_space_is_closed_for_as_long_as_was_said_whether_the_server_runs_or_not() {
    steady(|| {
        for way in ["rdb", "aof", "preamble"] {
            let (server, how) = with_grace(way, "30000");
            let mut c = server.connect();
            c.ok("PRESENCE.ONLINE longer a PX 60000");
            c.ok("PRESENCE.ONLINE over a PX 60000");
            let before = now_ms();
            c.ok("PRESENCE.CLOSE longer PX 3000");
            c.ok("PRESENCE.CLOSE over PX 200");
            let (id, over) = (parse_id(&c.space("longer").id), parse_id(&c.space("over").id));
            server.stop(how);
            sleep_until(before + 300);
            server.start_again();
            let mut c = server.connect();
            assert!(c.err("PRESENCE.ONLINE longer a").starts_with("CLOSED "), "{way}");
            assert_eq!(parse_id(&c.space("longer").id), id);
            assert!(now_ms() < before + 3000, "the machine was too slow for this test");
            assert_eq!(c.int("PRESENCE.ONLINE over a"), 1, "{way}: its time was over");
            assert!(parse_id(&c.space("over").id) > over);
            wait_until("the key to go", SOON, || c.int("EXISTS longer") == 0);
            within(way, now_ms(), before + 3000, before + 3000 + 2 * LATE);
        }
    });
}

// --- a file that ends too soon ---------------------------------------------------------------------------------------

fn aof_increment(server: &Server) -> PathBuf {
    let dir = std::fs::read_dir(server.dir().join("appendonlydir")).unwrap();
    let mut files: Vec<_> =
        dir.map(|f| f.unwrap().path()).filter(|p| p.to_string_lossy().contains(".incr.")).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.pop().unwrap()
}

#[test]
fn a_truncated_aof_loads_up_to_the_last_whole_change() {
    let mut rng = rng(21);
    let server = Server::builder().aof().config("aof-load-truncated", "yes").start();
    let mut c = server.connect();
    const USERS: usize = 40;
    for u in 0..USERS {
        c.ok(args!["PRESENCE.ONLINE", "s", format!("u{u:02}"), "PX", 4_000_000, "META", u]);
    }
    c.ok("PRESENCE.ONLINE s USERS 3 x y z PX 4000000");
    server.stop(Stop::NoSave);
    let file = aof_increment(&server);
    let whole = std::fs::read(&file).unwrap();
    let mut cuts: Vec<usize> = (1..8).collect();
    cuts.extend((0..8).map(|_| rng.random_range(8..whole.len() - 200)));
    let mut before = BTreeSet::new();
    for cut in cuts {
        std::fs::write(&file, &whole[..whole.len() - cut]).unwrap();
        server.start_again();
        let mut c = server.connect();
        let space = c.space("s");
        let names = space.names();
        // A list is in it as a whole or not at all.
        let n = names.len();
        assert!(n <= USERS, "{n} users after a cut of {cut} bytes: {names:?}");
        let expected: Vec<_> = (0..n).map(|u| format!("u{u:02}")).collect();
        assert_eq!(names, expected, "cut {cut}");
        assert_eq!(space.sessions, n as i64);
        for (user, sessions) in &space.members {
            assert_eq!(
                sessions[0].meta.as_deref(),
                Some(user[1..].parse::<usize>().unwrap().to_string().as_str())
            );
        }
        // Ids continue behind what is left.
        let mut sub = server.subscribe(&["presence:s"]);
        c.ok("PRESENCE.ONLINE s later");
        assert_eq!(sub.event(SOON).id().1, n as u64 + 1);
        before.insert(n);
        server.stop(Stop::Kill);
    }
    assert!(before.len() > 4, "{before:?}");
}

// --- under load ------------------------------------------------------------------------------------------------------

/// What one writer knows: its users' sessions with their metadata and leases, as the server acknowledged them.
type Known = BTreeMap<(String, String), (Option<String>, i64)>;

#[derive(Clone, Debug)]
enum Op {
    Online { user: String, session: String, lease: i64, meta: Option<String> },
    Users { users: Vec<String>, lease: i64 },
    Offline { user: String, session: Option<String> },
}

impl Op {
    fn random(rng: &mut impl Rng, writer: usize) -> Op {
        let user = format!("w{writer}u{}", rng.random_range(0..15));
        let session = ["", "a", "b"].choose(rng).unwrap().to_string();
        let lease = now_ms() + rng.random_range(3_000_000..80_000_000);
        match rng.random_range(0..10) {
            0..6 => {
                let meta = rng.random_bool(0.5).then(|| rng.random_range(0..1000).to_string());
                Op::Online { user, session, lease, meta }
            }
            6 => {
                Op::Users { users: (0..5).map(|i| format!("w{writer}u{}", i * 3)).collect(), lease }
            }
            7..9 => Op::Offline { user, session: Some(session) },
            _ => Op::Offline { user, session: None },
        }
    }

    fn words(&self, space: &str) -> Vec<Vec<u8>> {
        match self {
            Op::Online { user, session, lease, meta } => {
                let mut words =
                    args!["PRESENCE.ONLINE", space, user, "SESSION", session, "PXAT", *lease];
                if let Some(meta) = meta {
                    words.extend(args!["META", meta]);
                }
                words
            }
            Op::Users { users, lease } => {
                let mut words = args!["PRESENCE.ONLINE", space, "USERS", users.len()];
                words.extend(users.iter().map(|u| u.clone().into_bytes()));
                words.extend(args!["PXAT", *lease]);
                words
            }
            Op::Offline { user, session: Some(session) } => {
                args!["PRESENCE.OFFLINE", space, user, "SESSION", session]
            }
            Op::Offline { user, session: None } => args!["PRESENCE.OFFLINE", space, user],
        }
    }

    fn apply(&self, known: &mut Known) {
        match self {
            Op::Online { user, session, lease, meta } => {
                let entry = known.entry((user.clone(), session.clone())).or_insert((None, *lease));
                entry.1 = *lease;
                if meta.is_some() {
                    entry.0 = meta.clone();
                }
            }
            Op::Users { users, lease } => {
                for user in users {
                    known.entry((user.clone(), String::new())).or_insert((None, *lease)).1 = *lease;
                }
            }
            Op::Offline { user, session: Some(session) } => {
                drop(known.remove(&(user.clone(), session.clone())))
            }
            Op::Offline { user, session: None } => known.retain(|(u, _), _| u != user),
        }
    }
}

fn known_of(c: &mut Conn, space: &str, writer: usize) -> Known {
    let mut known = Known::new();
    for (user, sessions) in c.space(space).members {
        if user.starts_with(&format!("w{writer}u")) {
            for s in sessions {
                known.insert((user.clone(), s.session), (s.meta, s.expires_at));
            }
        }
    }
    known
}

/// Writers that go on until the server is gone. Each returns what was acknowledged and what was under way.
fn writers(
    server: &Server,
    n: usize,
    known: Vec<Known>,
    seed: u64,
    stop: &Arc<AtomicBool>,
    acknowledged: &Arc<AtomicUsize>,
) -> Vec<thread::JoinHandle<(Known, Option<Op>, usize)>> {
    known
        .into_iter()
        .enumerate()
        .take(n)
        .map(|(writer, mut known)| {
            let mut c = server.connect();
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            let mut rng: rand::rngs::StdRng =
                rand::SeedableRng::seed_from_u64(seed * 100 + writer as u64);
            thread::spawn(move || {
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    let op = Op::random(&mut rng, writer);
                    let space = "s";
                    match c.try_cmd(op.words(space)) {
                        Ok(_) => op.apply(&mut known),
                        Err(e) => {
                            assert!(e.starts_with("lost"), "{e}");
                            return (known, Some(op), done);
                        }
                    }
                    done += 1;
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                (known, None, done)
            })
        })
        .collect()
}

#[test]
fn kill_nine_under_load_loses_nothing_acknowledged() {
    const WRITERS: usize = 3;
    for preamble in ["yes", "no"] {
        let server = Server::builder().aof().config("aof-use-rdb-preamble", preamble).start();
        let mut known = vec![Known::new(); WRITERS];
        let mut last = (0, 0);
        let mut roster = Roster::new();
        for round in 0..4 {
            println!("preamble {preamble}, round {round}");
            let mut sub = server.subscribe(&["presence:s"]);
            let stop = Arc::new(AtomicBool::new(false));
            let acknowledged = Arc::default();
            let threads = writers(&server, WRITERS, known, round, &stop, &acknowledged);
            let (mut c, start) = (server.connect(), now_ms());
            // Short leases end meanwhile, and in some rounds the AOF is rewritten while all that goes on.
            let mut i = 0;
            while now_ms() < start + 600 || acknowledged.load(Ordering::Relaxed) < 150 {
                c.ok(args!["PRESENCE.ONLINE", "short", format!("u{i}"), "PX", 20]);
                if i == 30 && round % 2 == 1 {
                    c.ok("BGREWRITEAOF");
                }
                i += 1;
                thread::sleep(ms(2));
            }
            server.stop(Stop::Kill);
            let ended: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
            server.start_again();
            let mut c = server.connect();
            let id = parse_id(&c.space("s").id);
            known = Vec::new();
            for (writer, (mut expected, under_way, done)) in ended.into_iter().enumerate() {
                println!("writer {writer}: {done} calls, then {under_way:?}");
                let got = known_of(&mut c, "s", writer);
                if got != expected {
                    let op = under_way.expect("something was under way");
                    op.apply(&mut expected);
                    assert_eq!(
                        got, expected,
                        "writer {writer} of round {round}, with and without {op:?}"
                    );
                }
                known.push(got);
            }
            // Whatever a subscriber has seen has happened, and the ids go on behind it.
            while let Some(m) = sub.try_next(ms(50)) {
                if m.channel != b"presence:s" {
                    continue;
                }
                let e = Event::parse(m);
                let (epoch, seq) = e.id();
                assert!(epoch >= last.0 && seq == last.1 + 1, "after {last:?}: {}", e.raw);
                last = e.id();
                e.fold(&mut roster);
            }
            assert!(
                id.0 == last.0 && id.1 >= last.1,
                "{id:?} after a crash, {last:?} was published"
            );
            assert!(
                id.1 <= last.1 + (6 * WRITERS) as u64,
                "{id:?} after a crash, {last:?} was published"
            );
            roster = c.space("s").roster();
            last = id;
            assert_eq!(c.space("s").users, roster.len() as i64);
        }
    }
}

#[test]
fn a_snapshot_under_load_is_one_moment() {
    let server = Server::start();
    let mut sub = server.subscribe(&["presence:s"]);
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::default();
    let threads = writers(&server, 3, vec![Known::new(); 3], 77, &stop, &acknowledged);
    let mut c = server.connect();
    wait_until("the first writes", SOON, || acknowledged.load(Ordering::Relaxed) > 100);
    for i in 0..2000 {
        c.ok(args![
            "PRESENCE.ONLINE",
            "ballast",
            format!("u{i}"),
            "PX",
            4_000_000,
            "META",
            format!("\"{}\"", "x".repeat(200))
        ]);
    }
    c.ok("BGSAVE");
    wait_for_save(&mut c);
    c.ok("PRESENCE.ONLINE s after-the-save PX 4000000");
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|t| drop(t.join().unwrap()));
    let events = sub.events_so_far(&mut c);
    assert!(events.iter().all(|e| e.id().0 == events[0].id().0), "one life of the space");
    server.restart(Stop::Kill);
    let mut c = server.connect();
    let space = c.space("s");
    let id = parse_id(&space.id);
    let mut roster = Roster::new();
    let mut found = false;
    for e in &events {
        e.fold(&mut roster);
        if e.id() == id {
            found = true;
            break;
        }
    }
    assert!(found && id.1 < events.len() as u64, "{id:?} among {}", events.len());
    assert_eq!(space.roster(), roster);
    assert_eq!(c.space("ballast").users, 2000);
}

#[test]
fn saving_again_and_again_while_leases_end() {
    let server = Server::builder().aof().config("aof-use-rdb-preamble", "no").start();
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["presence:*"]);
    let mut roster = Roster::new();
    let mut rng = rng(9);
    for round in 0..6 {
        c.ok(if round % 2 == 0 { "BGREWRITEAOF" } else { "BGSAVE" });
        for _ in 0..400 {
            c.ok(args![
                "PRESENCE.ONLINE",
                "s",
                format!("u{}", rng.random_range(0..200)),
                "PX",
                rng.random_range(1..60)
            ]);
        }
        wait_for_rewrite(&mut c);
        wait_for_save(&mut c);
    }
    wait_until("all to leave", SOON, || c.stat("users") == 0);
    let events = sub.events_so_far(&mut c);
    events.iter().for_each(|e| e.fold(&mut roster));
    assert!(roster.is_empty());
    server.restart(Stop::Kill);
    let space = server.connect().space("s");
    assert_eq!(parse_id(&space.id).1, events.len() as u64);
    assert_eq!(space.users, 0);
}

// --- the grace after a restart ---------------------------------------------------------------------------------------

/// A server that keeps its data in this way, with this grace.
fn with_grace(way: &str, grace: &str) -> (Server, Stop) {
    let server = Server::builder().config("presence.restart-grace-ms", grace);
    match way {
        "rdb" => (server.start(), Stop::Save),
        "aof" => (server.aof().config("aof-use-rdb-preamble", "no").start(), Stop::Kill),
        _ => (server.aof().start(), Stop::NoSave),
    }
}

#[test]
fn who_was_live_when_the_server_went_down_gets_the_grace() {
    steady(|| {
        for way in ["rdb", "aof", "preamble"] {
            let (server, how) = with_grace(way, "1500");
            let mut c = server.connect();
            let far = now_ms() + 5_000_000;
            c.ok(args!["PRESENCE.ONLINE", "s", "far", "PXAT", far]);
            c.ok("PRESENCE.ONLINE s short PX 800 META 1");
            c.ok("PRESENCE.ONLINE s renewed PX 800");
            c.ok("PRESENCE.ONLINE s shortened PX 800");
            c.ok("PRESENCE.ONLINE s goes PX 800");
            c.ok("PRESENCE.ONLINE s lingers PX 60000");
            let down = now_ms();
            c.ok("PRESENCE.OFFLINE s lingers LINGER 800");
            let id = parse_id(&c.space("s").id);
            let joined_at = c.user("s", "short").unwrap().joined_at;
            if way == "preamble" {
                c.ok("BGREWRITEAOF");
                wait_for_rewrite(&mut c);
            }
            server.stop(how);
            assert!(now_ms() < down + 800, "the machine was too slow for this test");
            sleep_until(down + 900);
            let start = now_ms();
            server.start_again();
            let up = now_ms();
            let mut c = server.connect();
            let mut sub = server.subscribe(&["presence:s"]);
            // All are still there, with ids and joined_at as they were.
            assert_eq!(
                c.space("s").names(),
                ["far", "goes", "lingers", "renewed", "short", "shortened"],
                "{way}"
            );
            assert_eq!(parse_id(&c.space("s").id), id);
            let short = c.user("s", "short").unwrap();
            assert_eq!(short.joined_at, joined_at);
            let lease = short.session("").expires_at;
            within(way, lease, start + 1500, up + 1500);
            assert_eq!(c.user("s", "far").unwrap().session("").expires_at, far);
            // Leases given now are exact, longer or shorter than the grace.
            let before = now_ms();
            assert_eq!(c.int("PRESENCE.ONLINE s renewed PX 4000000"), 0);
            assert_eq!(c.int("PRESENCE.ONLINE s shortened PX 200"), 0);
            let after = now_ms();
            assert_eq!(c.int("PRESENCE.OFFLINE s goes"), 1);
            let renewed = c.user("s", "renewed").unwrap().session("").expires_at;
            within(way, renewed, before + 4_000_000, after + 4_000_000);
            assert_eq!(sub.event(SOON).brief(), "leave goes (offline)");
            let e = sub.event(SOON);
            assert_eq!(e.brief(), "leave shortened (timeout)");
            within(way, e.arrived, before + 200, after + 200 + LATE);
            let mut ends = sub.events(2, SOON);
            ends.sort_by_key(|e| e.user().to_string());
            assert_eq!(
                (ends[0].user(), ends[1].brief().as_str()),
                ("lingers", "leave short (timeout)")
            );
            assert_eq!(ends[0].brief(), "leave lingers (offline)");
            for e in &ends {
                within(way, e.arrived, start + 1500, up + 1500 + LATE);
                assert!(e.arrived >= e.int("at"), "too early: {}", e.raw);
            }
            assert_eq!(c.space("s").names(), ["far", "renewed"]);
            sub.expect_none_for(ms(100));
        }
    });
}

#[test]
fn without_grace_leases_end_at_once_after_a_restart() {
    steady(|| {
        for way in ["rdb", "aof", "preamble"] {
            let (server, how) = with_grace(way, "0");
            let mut c = server.connect();
            c.ok("PRESENCE.ONLINE s stays PX 60000");
            let down = now_ms();
            c.ok("PRESENCE.ONLINE s short PX 600");
            let later = c.user("s", "stays").unwrap().session("").expires_at;
            let id = parse_id(&c.space("s").id);
            server.stop(how);
            assert!(now_ms() < down + 600, "the machine was too slow for this test");
            sleep_until(down + 610);
            server.start_again();
            let mut c = server.connect();
            assert_eq!(c.ints("PRESENCE.STATUS s stays short"), [1, 0], "{way}");
            assert_eq!(c.user("s", "stays").unwrap().session("").expires_at, later);
            // It left, once, and that took one id.
            wait_until("the leave", SOON, || parse_id(&c.space("s").id).1 == id.1 + 1);
            let line = parse_id(&c.space("s").id).0;
            assert!(line > id.0, "{line} after {id:?}");
            assert_eq!(c.stat("timeouts"), 1);
            c.ok("PRESENCE.ONLINE s short");
            assert_eq!(parse_id(&c.space("s").id), (line, id.1 + 2));
        }
    });
}

#[test]
fn a_grace_shorter_than_what_is_left_of_a_lease_changes_nothing() {
    steady(|| {
        for way in ["rdb", "aof"] {
            let (server, how) = with_grace(way, "200");
            let mut c = server.connect();
            let lease = now_ms() + 3000;
            c.ok(args!["PRESENCE.ONLINE", "s", "a", "PXAT", lease]);
            server.restart(how);
            let mut sub = server.subscribe(&["presence:s"]);
            let mut c = server.connect();
            assert_eq!(c.user("s", "a").unwrap().session("").expires_at, lease, "{way}");
            let leave = sub.event(SOON);
            assert_eq!(leave.brief(), "leave a (timeout)");
            within(way, leave.arrived, lease, lease + LATE);
        }
    });
}

#[test]
fn who_lapsed_before_the_end_does_not_come_back() {
    steady(|| {
        for way in ["rdb", "aof"] {
            let (server, how) = with_grace(way, "30000");
            let mut c = server.connect();
            let mut sub = server.subscribe(&["presence:s"]);
            c.ok("PRESENCE.ONLINE s stays PX 60000");
            c.ok("PRESENCE.ONLINE s lapses PX 30");
            c.ok("PRESENCE.ONLINE s said PX 60000");
            c.ok("PRESENCE.OFFLINE s said");
            assert_eq!(sub.events(5, SOON).last().unwrap().kind(), "leave");
            let id = c.space("s").id;
            server.restart(how);
            let mut c = server.connect();
            assert_eq!(c.space("s").names(), ["stays"], "{way}");
            assert_eq!(c.space("s").id, id);
        }
    });
}

#[test]
fn a_grace_granted_once_is_not_granted_again_by_the_same_lease_being_read() {
    steady(|| {
        // Twice in a row: the second restart counts from the second load.
        let (server, how) = with_grace("aof", "1200");
        let mut c = server.connect();
        c.ok("PRESENCE.ONLINE s a PX 300");
        server.restart(how);
        let mut c = server.connect();
        let first = c.user("s", "a").unwrap().session("").expires_at;
        sleep_until(first - 800);
        let start = now_ms();
        server.restart(how);
        let up = now_ms();
        let mut sub = server.subscribe(&["presence:s"]);
        let mut c = server.connect();
        let second = c.user("s", "a").unwrap().session("").expires_at;
        within("the second grace", second, start + 1200, up + 1200);
        let leave = sub.event(SOON);
        assert_eq!(leave.id().1, 2);
        within("the leave", leave.arrived, second, second + LATE);
        // And gone for good.
        server.restart(how);
        assert_eq!(server.connect().space("s").users, 0);
        assert_eq!(parse_id(&server.connect().space("s").id).1, 2);
    });
}
