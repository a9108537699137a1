//! What the server tells about the module: COMMAND DOCS and INFO, ACL, settings, the INFO section.

use crate::harness::*;
use std::collections::{BTreeMap, BTreeSet};

/// name, arity, writes, O(1) or O(log n) a call with one user, words its arguments are called by
type Row = (&'static str, i64, bool, bool, &'static [&'static str]);
const COMMANDS: [Row; 10] = [
    (
        "presence.online",
        -3,
        true,
        true,
        &[
            "space", "user", "SESSION", "META", "EX", "PX", "EXAT", "PXAT", "NX", "XX", "USERS",
            "SESSIONS",
        ],
    ),
    (
        "presence.offline",
        -3,
        true,
        true,
        &["space", "user", "SESSION", "LINGER", "USERS", "SESSIONS"],
    ),
    ("presence.status", -3, false, true, &["space", "user"]),
    ("presence.user", 3, false, true, &["space", "user"]),
    ("presence.space", -2, false, false, &["space", "WITHSESSIONS", "CURSOR", "COUNT"]),
    ("presence.seen", -3, false, true, &["space", "user"]),
    ("presence.count", -2, false, true, &["space", "SESSIONS"]),
    ("presence.events", -2, false, false, &["space", "AFTER", "COUNT", "BLOCK"]),
    ("presence.message", -4, true, true, &["space", "user", "message", "SESSION"]),
    ("presence.close", -2, true, false, &["space", "EX", "PX"]),
];

fn map(v: &Value) -> BTreeMap<String, &Value> {
    pairs(v).into_iter().collect()
}

/// Names and tokens of arguments, and of those inside them.
fn words(arguments: &Value, into: &mut BTreeSet<String>) {
    for argument in items(arguments) {
        let argument = map(argument);
        into.insert(text(argument["name"]));
        assert!(!text(argument["type"]).is_empty());
        if let Some(token) = argument.get("token") {
            into.insert(text(token));
        }
        if let Some(inner) = argument.get("arguments") {
            words(inner, into);
        }
    }
}

#[test]
fn every_command_is_documented() {
    let server = Server::start();
    for mut c in [server.connect(), server.connect3()] {
        for (name, _, _, _, wanted) in COMMANDS {
            let reply = c.ok(["COMMAND", "DOCS", name]);
            let docs = pairs(&reply)
                .into_iter()
                .find(|(n, _)| n == name)
                .unwrap_or_else(|| panic!("no docs of {name}"))
                .1;
            let docs = map(docs);
            assert!(text(docs["summary"]).len() > 10, "{name}: {:?}", docs["summary"]);
            assert!(!text(docs["since"]).is_empty(), "{name}");
            assert!(text(docs["complexity"]).contains("O("), "{name}: {:?}", docs["complexity"]);
            assert_eq!(text(docs["group"]), "module", "{name}");
            assert_eq!(text(docs["module"]), "presence", "{name}");
            let mut found = BTreeSet::new();
            words(docs["arguments"], &mut found);
            let missing: Vec<_> = wanted.iter().filter(|w| !found.contains(**w)).collect();
            assert!(missing.is_empty(), "{name} does not document {missing:?}, only {found:?}");
            let first = map(&items(docs["arguments"])[0]);
            assert_eq!(
                (text(first["name"]), text(first["type"])),
                ("space".into(), "key".into()),
                "{name}"
            );
        }
    }
}

#[test]
fn every_command_has_its_arity_flags_and_key() {
    let server = Server::start();
    let mut c = server.connect();
    let listed: BTreeSet<_> =
        texts(&c.ok("COMMAND LIST FILTERBY MODULE presence")).into_iter().collect();
    for (name, arity, writes, fast, _) in COMMANDS {
        assert!(listed.contains(name), "{listed:?}");
        let reply = c.ok(["COMMAND", "INFO", name]);
        let info = items(&items(&reply)[0]);
        assert_eq!((text(&info[0]).as_str(), text(&info[1])), (name, arity.to_string()));
        let flags = texts(&info[2]);
        let has = |flag: &str| flags.iter().any(|f| f == flag);
        assert_eq!((has("write"), has("readonly")), (writes, !writes), "{name}: {flags:?}");
        assert_eq!(has("fast"), fast, "{name}: {flags:?}");
        assert_eq!(has("blocking"), name == "presence.events", "{name}: {flags:?}");
        // A renewal is never refused for memory, nor is what frees some.
        assert_eq!(has("denyoom"), name == "presence.message", "{name}: {flags:?}");
        assert_eq!([3, 4, 5].map(|i| text(&info[i])), ["1", "1", "1"], "{name}: the key");
        let categories = texts(&info[6]);
        if categories.is_empty() {
            eprintln!("this server gives module commands no ACL categories");
        } else {
            let wanted = if writes { "@write" } else { "@read" };
            assert!(categories.iter().any(|c| c == wanted), "{name}: {categories:?}");
        }
        let specs = items(&info[8]);
        assert_eq!(specs.len(), 1, "{name}: one key");
        let spec = map(&specs[0]);
        let access = texts(spec["flags"]);
        let is = |flag: &str| access.iter().any(|f| f == flag);
        assert_eq!((is("RO"), is("RW")), (!writes, writes), "{name}: {access:?}");
        assert!(is("access") || writes, "{name}: {access:?}");
        let begin = map(spec["begin_search"]);
        assert_eq!(
            (text(begin["type"]), text(map(begin["spec"])["index"])),
            ("index".into(), "1".into()),
            "{name}"
        );

        let arguments =
            if arity == 3 { &["s", "a"][..] } else { &["s", "USERS", "2", "a", "b"][..] };
        assert_eq!(
            texts(&c.ok([&["COMMAND", "GETKEYS", name], arguments].concat())),
            ["s"],
            "{name}"
        );
    }
}

/// What the module does by itself is not subject to what users may do.
#[test]
fn the_sweep_and_events_need_no_user() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("ACL SETUSER admin on >p ~* &* +@all");
    c.ok("ACL SETUSER user on >p ~* resetchannels -@all +presence.online");
    c.ok("AUTH admin p");
    let mut reader = server.connect();
    reader.ok("AUTH admin p");
    let mut sub = Subscriber::by(reader, "SUBSCRIBE", &["presence:s"]).unwrap();
    c.ok("ACL SETUSER default off resetkeys resetchannels -@all");
    let mut user = server.connect();
    user.ok("AUTH user p");
    user.ok("PRESENCE.ONLINE s a PX 1");
    let briefs: Vec<_> = sub.events(2, SOON).iter().map(Event::brief).collect();
    assert_eq!(briefs, ["join a", "leave a (timeout)"]);
}

#[test]
fn acl_key_patterns_hold() {
    let server = Server::start();
    let mut admin = server.connect();
    admin.ok("PRESENCE.ONLINE s1 a");
    admin.ok("PRESENCE.ONLINE other a");
    admin.ok("ACL SETUSER reader on >p %R~s* +@all");
    admin.ok("ACL SETUSER owner on >p ~s* +@all resetchannels");
    admin.ok("ACL SETUSER stranger on >p ~x* +@all");
    admin.ok("ACL SETUSER counter on >p ~* -@all +presence.count");
    let login = |user: &str| {
        let mut c = server.connect();
        c.ok(["AUTH", user, "p"]);
        c
    };
    let reads = [
        "PRESENCE.STATUS K a",
        "PRESENCE.USER K a",
        "PRESENCE.SPACE K WITHSESSIONS COUNT 1",
        "PRESENCE.COUNT K",
        "PRESENCE.SEEN K a",
    ];
    let writes = [
        "PRESENCE.ONLINE K a",
        "PRESENCE.ONLINE K USERS 1 b",
        "PRESENCE.OFFLINE K b",
        "PRESENCE.OFFLINE K SESSIONS 1 b x LINGER 1",
    ];
    let denied = |c: &mut Conn, line: &str, key: &str| {
        let error = c.err(line.replace('K', key));
        assert!(error.starts_with("NOPERM"), "{line} on {key}: {error}");
    };
    let mut reader = login("reader");
    for line in reads {
        reader.ok(line.replace('K', "s1"));
        denied(&mut reader, line, "other");
    }
    writes.iter().for_each(|line| denied(&mut reader, line, "s1"));
    assert_eq!(admin.int("PRESENCE.COUNT s1"), 1);
    let (mut owner, mut stranger) = (login("owner"), login("stranger"));
    for line in writes.iter().chain(&reads) {
        owner.ok(line.replace('K', "s1"));
        denied(&mut owner, line, "other");
        denied(&mut stranger, line, "s1");
    }
    let mut counter = login("counter");
    assert_eq!(counter.int("PRESENCE.COUNT s1"), 1);
    denied(&mut counter, reads[0], "s1");
    denied(&mut counter, writes[0], "s1");
    // The channel follows from the key: an owner without any channel has published all the same.
    let mut sub = server.subscribe(&["presence:s1"]);
    owner.ok("PRESENCE.ONLINE s1 zoe");
    assert_eq!(sub.event(SOON).brief(), "join zoe");
    // ACL categories, where the server gives modules any.
    let categories = admin.ok("COMMAND INFO presence.count");
    if !texts(&items(&items(&categories)[0])[6]).is_empty() {
        admin.ok("ACL SETUSER readonly on >p ~* -@all +@read");
        let mut readonly = login("readonly");
        reads.iter().for_each(|line| drop(readonly.ok(line.replace('K', "s1"))));
        writes.iter().for_each(|line| denied(&mut readonly, line, "s1"));
    }
}

const SETTINGS: [(&str, &str, &str); 22] = [
    ("lease-ttl-ms", "30000", "12345"),
    ("max-lease-ttl-ms", "86400000", "7200000"),
    ("sweep-budget-us", "1000", "500"),
    ("history-length", "128", "0"),
    ("history-ttl-ms", "60000", "1500"),
    // No quotes: Valkey 8.1.1 rewrites those unescaped, and cannot read its own file.
    ("feed-bytes", "1048576", "16384"),
    ("channel-prefix", "presence:", "room 1 \u{e4}:"),
    ("channel-mode", "global", "sharded"),
    ("max-meta-bytes", "4096", "100"),
    ("max-message-bytes", "65536", "200"),
    ("max-sessions-per-user", "1024", "3"),
    ("max-users-per-space", "0", "9"),
    ("restart-grace-ms", "30000", "0"),
    ("rules", "", "a* history-length=0;  b lease-ttl-ms=5"),
    ("user-channels", "no", "transitions"),
    ("digest-prefix", "presence-digest:", "d/ "),
    ("count-prefix", "presence-count:", ""),
    ("user-prefix", "presence-user:", "u/ "),
    ("digest-interval-ms", "0", "1000"),
    ("digest-max-changes", "500", "0"),
    ("seen-ttl-ms", "0", "60000"),
    ("max-seen", "100000", "5"),
];

/// Whether a setting is a number.
fn is_number(row: &&(&str, &str, &str)) -> bool {
    row.0 != "user-channels" && row.1.parse::<u64>().is_ok()
}

/// `redis.conf.example` has a line for each setting, with its default.
#[test]
fn the_example_configuration_has_all_settings() {
    let lines = include_str!("../../redis.conf.example").lines();
    let found: BTreeMap<_, _> = lines
        .filter(|line| line.starts_with("presence."))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, value)| (name.to_string(), value.trim_matches('"').to_string()))
        .collect();
    assert_eq!(found, wanted(|row| row.1));
}

fn settings(c: &mut Conn) -> BTreeMap<String, String> {
    pairs(&c.ok("CONFIG GET presence.*")).into_iter().map(|(k, v)| (k, text(v))).collect()
}

fn wanted(
    pick: impl Fn(&(&'static str, &'static str, &'static str)) -> &'static str,
) -> BTreeMap<String, String> {
    SETTINGS.iter().map(|row| (format!("presence.{}", row.0), pick(row).to_string())).collect()
}

#[test]
fn settings_are_read_written_and_kept() {
    let server = Server::start();
    let mut c = server.connect();
    assert_eq!(settings(&mut c), wanted(|row| row.1), "the defaults");
    for (name, _, value) in SETTINGS {
        assert_eq!(c.text(["CONFIG", "SET", &format!("presence.{name}"), value]), "OK", "{name}");
    }
    assert_eq!(settings(&mut c), wanted(|row| row.2));
    c.ok("CONFIG REWRITE");
    server.restart(Stop::NoSave);
    let mut c = server.connect();
    assert_eq!(
        settings(&mut c),
        wanted(|row| row.2),
        "what CONFIG REWRITE wrote:\n{}",
        std::fs::read_to_string(server.dir().join("redis.conf")).unwrap()
    );
}

#[test]
fn settings_are_given_at_load() {
    let server = SETTINGS
        .iter()
        .fold(Server::builder(), |b, (name, _, value)| b.config(&format!("presence.{name}"), value))
        .start();
    assert_eq!(settings(&mut server.connect()), wanted(|row| row.2));

    // MODULE LOADEX, into a server that runs already.
    let bare = Server::builder().bare().start();
    let mut c = bare.connect();
    let module = module_path().display().to_string();
    c.ok([
        "MODULE",
        "LOADEX",
        &module,
        "CONFIG",
        "presence.lease-ttl-ms",
        "777",
        "CONFIG",
        "presence.channel-prefix",
        "p/",
    ]);
    assert_eq!(texts(&c.ok("CONFIG GET presence.lease-ttl-ms"))[1], "777");
    let mut sub = bare.subscribe(&["p/s"]);
    let before = now_ms();
    c.ok("PRESENCE.ONLINE s a");
    assert_eq!(sub.event(SOON).kind(), "join");
    assert!(
        (before + 777..=now_ms() + 777).contains(&c.user("s", "a").unwrap().session("").expires_at)
    );

    // A bad value stops the start, as it does for the server's own directives.
    assert!(Server::builder().config("presence.lease-ttl-ms", "0").try_start().is_err());
    assert!(Server::builder().config("presence.channel-mode", "loud").try_start().is_err());
    assert!(Server::builder().config("presence.no-such-setting", "1").try_start().is_err());
    // Words after the module's path have no meaning: ignored or refused, but no crash.
    if let Err(log) = Server::builder().module_args("what is this").try_start() {
        assert!(!log.contains("crashed"), "{log}");
    }
}

#[test]
fn bad_settings_are_refused() {
    let server = Server::start();
    let mut c = server.connect();
    for (name, _, _) in SETTINGS.iter().filter(is_number) {
        for value in ["-1", "junk", "", "1.5", "99999999999999999999", "-9223372036854775808"] {
            // Sizes take units, as maxmemory does, and with it the server reads no text as 0.
            if value.is_empty() && name.ends_with("bytes") {
                continue;
            }
            c.err(["CONFIG", "SET", &format!("presence.{name}"), value]);
        }
    }
    for line in [
        "lease-ttl-ms 0",
        "max-lease-ttl-ms 0",
        "sweep-budget-us 0",
        "channel-mode loud",
        "channel-mode -1",
        "user-channels some",
        "user-channels 1",
        "rules a",
    ] {
        c.err(format!("CONFIG SET presence.{line}"));
    }
    c.err("CONFIG SET presence.channel-mode sharded presence.lease-ttl-ms 0");
    assert_eq!(settings(&mut c), wanted(|row| row.1), "all as they were");
    // The largest that is taken must not overflow anything.
    for (name, _, _) in SETTINGS.iter().filter(is_number) {
        let _ = c.try_cmd(["CONFIG", "SET", &format!("presence.{name}"), "9223372036854775807"]);
    }
    assert_eq!(c.int("PRESENCE.ONLINE s a"), 1, "settings: {:?}", settings(&mut c));
    assert_eq!(c.int("PRESENCE.ONLINE s a PX 50"), 0);
    assert_eq!(c.int("PRESENCE.OFFLINE s a LINGER 5"), 0);
    wait_until("a to leave", SOON, || c.int("PRESENCE.COUNT s") == 0);
    // Settings hold from the next command on; what was written before stays legal.
    c.ok("CONFIG SET presence.max-lease-ttl-ms 1000 presence.lease-ttl-ms 500");
    assert_eq!(c.int("PRESENCE.ONLINE t a"), 1);
    c.err("PRESENCE.ONLINE t a PX 1001");
    assert_eq!(c.int("PRESENCE.ONLINE t a PX 1000"), 0);
}

#[test]
fn info_tells_the_truth() {
    let server = Server::start();
    let (mut c, mut c3) = (server.connect(), server.connect3());
    let names = [
        "spaces",
        "users",
        "sessions",
        "joins",
        "leaves",
        "timeouts",
        "renewals",
        "events_published",
        "messages",
        "sweeps",
        "sweep_backlog",
        "queue_repairs",
        "owners",
        "sweep_lag_last_ms",
        "sweep_lag_max_ms",
        "sweep_lag_p99_ms",
        "sweep_longest_us",
        "bytes_used",
        "feed_events",
        "feed_bytes",
    ];
    for c in [&mut c, &mut c3] {
        for section in ["presence", "modules", "everything"] {
            let info = c.info(section);
            let missing: Vec<_> =
                names.iter().filter(|n| !info.contains_key(&format!("presence_{n}"))).collect();
            assert!(missing.is_empty(), "INFO {section} lacks {missing:?}: {info:?}");
        }
        assert!(
            !c.info("default").contains_key("presence_users"),
            "as for other modules: only when asked for"
        );
        for name in names {
            assert_eq!((name, c.stat(name).min(0)), (name, 0), "a number");
        }
    }
    let stats = |c: &mut Conn, names: &[&str]| names.iter().map(|n| c.stat(n)).collect::<Vec<_>>();
    assert_eq!(stats(&mut c, &names[..9]), [0; 9], "a server that has seen nothing");
    let empty = c.stat("bytes_used");

    c.ok("PRESENCE.ONLINE s a");
    c.ok("PRESENCE.ONLINE s a"); // the renewal
    c.ok("PRESENCE.ONLINE s a SESSION x");
    c.ok("PRESENCE.ONLINE s b");
    c.ok("SELECT 3");
    c.ok("PRESENCE.ONLINE t b PX 60000");
    c.ok("SELECT 0");
    assert_eq!(stats(&mut c, &["spaces", "users", "sessions"]), [2, 3, 4], "over all databases");
    assert!(c.stat("bytes_used") > empty);
    assert_eq!(
        stats(&mut c, &["joins", "leaves", "timeouts", "renewals", "events_published"]),
        [3, 0, 0, 1, 4]
    );

    assert_eq!(c.stat("sweep_backlog"), 0);
    c.ok("PRESENCE.ONLINE s c PX 20");
    wait_until("c to leave", SOON, || c.stat("timeouts") == 1);
    assert_eq!(
        stats(&mut c, &["joins", "leaves", "users", "sessions", "sweep_backlog"]),
        [4, 1, 3, 4, 0]
    );
    assert!(c.stat("sweeps") >= 1);
    let lag = stats(
        &mut c,
        &["sweep_lag_last_ms", "sweep_lag_p99_ms", "sweep_lag_max_ms", "sweep_longest_us"],
    );
    assert!(lag[0] <= lag[2] && lag[1] <= lag[2] && lag[2] < 1000 && lag[3] < 1_000_000, "{lag:?}");

    c.ok("PRESENCE.OFFLINE s a");
    assert_eq!(
        stats(&mut c, &["joins", "leaves", "timeouts", "users", "sessions", "events_published"]),
        [4, 2, 1, 2, 2, 8]
    );
    c.ok("PRESENCE.STATUS s a"); // reading counts as nothing
    c.err("PRESENCE.ONLINE s");
    c.ok("PRESENCE.ONLINE s nobody XX");
    assert_eq!(
        stats(&mut c, &["joins", "leaves", "renewals", "events_published", "messages"]),
        [4, 2, 1, 8, 0]
    );

    c.ok("DEL s");
    assert_eq!(stats(&mut c, &["spaces", "users", "sessions"]), [1, 1, 1]);
    assert_eq!(c.stat("leaves"), 2, "deleting is no leave");
    c.ok("COPY t u DB 0"); // t is in database 3: nothing to copy
    c.ok("PRESENCE.ONLINE v a");
    c.ok("COPY v w");
    assert_eq!(
        stats(&mut c, &["spaces", "users", "sessions", "joins"]),
        [3, 3, 3, 5],
        "a copy is there, but nobody joined"
    );
    c.ok("FLUSHALL SYNC");
    assert_eq!(stats(&mut c, &["spaces", "users", "sessions", "sweep_backlog"]), [0; 4]);
    wait_until("the memory to come back", SOON, || c.stat("bytes_used") <= empty + 4096);
}

#[test]
fn the_module_stays_loaded_and_the_type_has_its_name() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s a");
    let list = format!("{:?}", c.ok("MODULE LIST"));
    assert!(list.contains("path") && c.err("MODULE UNLOAD presence").contains("unload"));
    let name = c.text("TYPE s");
    assert_eq!(name.len(), 9);
    assert_eq!(texts(&items(&c.ok(["SCAN", "0", "TYPE", &name, "COUNT", "100"]))[1]), ["s"]);
    assert_eq!(c.int("PRESENCE.COUNT s"), 1);
}
