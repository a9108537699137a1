//! What an enemy can send: RESTORE payloads with a right checksum and wrong content, and calls of any kind. Each gets
//! an error or a space that is whole; the server lives and its memory stays within bounds.

use crate::harness::*;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use std::collections::BTreeMap;

// --- DUMP payloads ---------------------------------------------------------------------------------------------------

/// The two bytes of RDB version and the checksum at the end of a payload.
const FOOTER: usize = 10;

#[track_caller]
fn dump(c: &mut Conn, key: &str) -> Vec<u8> {
    match c.ok(["DUMP", key]) {
        Value::BulkString(dump) => dump,
        other => panic!("no dump of {key}: {other:?}"),
    }
}

/// `body` with the footer that makes RESTORE believe it. `like`: a payload of the same server.
fn seal(mut body: Vec<u8>, like: &[u8]) -> Vec<u8> {
    const CRC: crc::Crc<u64> = crc::Crc::<u64>::new(&crc::CRC_64_REDIS);
    body.extend_from_slice(&like[like.len() - FOOTER..][..2]);
    let sum = CRC.checksum(&body);
    body.extend_from_slice(&sum.to_le_bytes());
    body
}

/// What a module writes into a payload.
#[derive(Clone, Debug, PartialEq)]
enum Item {
    /// 1 is signed, 2 unsigned; the number as it is stored.
    Number(u64, u64),
    /// 3 is a float, 4 a double.
    Float(u64, Vec<u8>),
    Text(Vec<u8>),
    /// A string in one of the compressed encodings, as it is stored.
    Packed(Vec<u8>),
}

/// A payload taken apart: type and module, and the items.
struct Parts {
    head: Vec<u8>,
    items: Vec<Item>,
}

fn read_len(bytes: &[u8], at: &mut usize) -> u64 {
    let number = |from: usize, n: usize| {
        bytes[from..from + n].iter().fold(0, |sum, b| sum << 8 | u64::from(*b))
    };
    let first = bytes[*at];
    let (value, size) = match first {
        0..64 => (u64::from(first), 1),
        64..128 => (number(*at, 2) & 0x3fff, 2),
        0x80 => (number(*at + 1, 4), 5),
        0x81 => (number(*at + 1, 8), 9),
        other => panic!("no length: {other}"),
    };
    *at += size;
    value
}

fn write_len(out: &mut Vec<u8>, n: u64) {
    match n {
        0..64 => out.push(n as u8),
        64..16384 => out.extend_from_slice(&(n as u16 | 0x4000).to_be_bytes()),
        16384..=0xffff_ffff => {
            out.push(0x80);
            out.extend_from_slice(&(n as u32).to_be_bytes());
        }
        _ => {
            out.push(0x81);
            out.extend_from_slice(&n.to_be_bytes());
        }
    }
}

impl Parts {
    fn of(payload: &[u8]) -> Parts {
        let body = &payload[..payload.len() - FOOTER];
        assert_eq!(body[0], 7, "a module's value");
        let mut at = 1;
        read_len(body, &mut at);
        let head = body[..at].to_vec();
        let mut items = Vec::new();
        loop {
            match read_len(body, &mut at) {
                0 => break,
                kind @ (1 | 2) => items.push(Item::Number(kind, read_len(body, &mut at))),
                kind @ (3 | 4) => {
                    let size = if kind == 3 { 4 } else { 8 };
                    items.push(Item::Float(kind, body[at..at + size].to_vec()));
                    at += size;
                }
                5 if body[at] >= 0xc0 => {
                    let from = at;
                    at += 1;
                    match body[from] {
                        0xc0 => at += 1,
                        0xc1 => at += 2,
                        0xc2 => at += 4,
                        _ => {
                            let packed = read_len(body, &mut at);
                            read_len(body, &mut at);
                            at += packed as usize;
                        }
                    }
                    items.push(Item::Packed(body[from..at].to_vec()));
                }
                5 => {
                    let size = read_len(body, &mut at) as usize;
                    items.push(Item::Text(body[at..at + size].to_vec()));
                    at += size;
                }
                other => panic!("no opcode: {other}"),
            }
        }
        assert_eq!(at, body.len());
        Parts { head, items }
    }

    fn build(&self, items: &[Item]) -> Vec<u8> {
        let mut out = self.head.clone();
        for item in items {
            match item {
                Item::Number(kind, n) => {
                    out.push(*kind as u8);
                    write_len(&mut out, *n);
                }
                Item::Float(kind, bytes) => {
                    out.push(*kind as u8);
                    out.extend_from_slice(bytes);
                }
                Item::Text(text) => {
                    out.push(5);
                    write_len(&mut out, text.len() as u64);
                    out.extend_from_slice(text);
                }
                Item::Packed(bytes) => {
                    out.push(5);
                    out.extend_from_slice(bytes);
                }
            }
        }
        out.push(0);
        out
    }

    /// With another item in the place of one.
    fn with(&self, i: usize, item: Item) -> Vec<u8> {
        let mut items = self.items.clone();
        items[i] = item;
        self.build(&items)
    }
}

// --- a victim --------------------------------------------------------------------------------------------------------

/// A server that gets what an enemy sends, and what is expected of it.
struct Victim {
    server: Server,
    c: Conn,
    genuine: Vec<u8>,
    refused: usize,
    loaded: usize,
    used: u64,
}

impl Victim {
    fn new(compression: bool) -> Victim {
        let compression = if compression { "yes" } else { "no" };
        // A short history, because there is a payload to each bit of it; and one that does not expire, however long
        // the test runs: the genuine payload is loaded again at the end and must be as long as it was.
        let server = Server::with(&[
            ("rdbcompression", compression),
            ("presence.history-length", "4"),
            ("presence.history-ttl-ms", "31536000000"),
        ]);
        let mut c = server.connect();
        // Whatever else can be in a payload, the server itself checks.
        let _ = c.try_cmd("CONFIG SET sanitize-dump-payload yes"); // not a setting of every server
        furnish(&mut c, "h");
        let genuine = dump(&mut c, "h");
        assert_eq!(seal(genuine[..genuine.len() - FOOTER].to_vec(), &genuine), genuine);
        let used = memory(&mut c, "used_memory");
        c.ok("CONFIG RESETSTAT");
        Victim { server, c, genuine, refused: 0, loaded: 0, used }
    }

    /// Sends a body with a right footer. `what` says how it came about.
    #[track_caller]
    fn feed(&mut self, body: Vec<u8>, what: impl Fn() -> String) {
        let payload = seal(body, &self.genuine);
        match self.c.try_cmd(args!["RESTORE", "h", 0, payload, "REPLACE"]) {
            Ok(_) => {
                self.loaded += 1;
                if let Err(fault) = check(&mut self.c) {
                    panic!("{}: {fault}\npayload: {}", what(), payload.escape_ascii());
                }
            }
            Err(e) if e.starts_with("lost") => {
                panic!(
                    "{}: {e}\npayload: {}\n{}",
                    what(),
                    payload.escape_ascii(),
                    tail(&self.server.log())
                )
            }
            Err(_) => self.refused += 1,
        }
    }

    /// At the end: the server lives, a genuine payload loads, and memory was never far from where it was.
    #[track_caller]
    fn verdict(mut self, bound: u64) {
        println!("{} refused, {} loaded", self.refused, self.loaded);
        self.c.ok(args!["RESTORE", "genuine", 0, self.genuine]);
        assert_eq!(dump(&mut self.c, "genuine").len(), self.genuine.len());
        let peak = memory(&mut self.c, "used_memory_peak");
        assert!(peak < self.used + bound, "used_memory {} grew to {peak}", self.used);
        self.c.ok("FLUSHALL");
        let c = &mut self.c;
        wait_until("what was loaded to be counted out again", SOON, || {
            (c.stat("spaces"), c.stat("users"), c.stat("sessions")) == (0, 0, 0)
        });
        let used = self.used;
        wait_until("the memory to come back", SOON, || memory(c, "used_memory") < used + (4 << 20));
    }
}

fn memory(c: &mut Conn, field: &str) -> u64 {
    c.info("memory")[field].parse().unwrap()
}

/// Everything that can be asked of the space `h` is answered, and the answers fit each other; then it is used. What
/// cannot be parsed fails the test by itself.
fn check(c: &mut Conn) -> Result<(), String> {
    // The clock goes on inside a transaction: if a lease ends between two answers, ask again.
    let mut attempts = 0..5;
    let names = loop {
        match look(c) {
            Ok(names) => break names,
            Err(fault) if attempts.next().is_none() => return Err(fault),
            Err(_) => {}
        }
    };
    // Its numbers may be at their end and it may be closed: errors are fine, silence is not.
    let mut used = vec![
        args!["PRESENCE.ONLINE", "h", "alice"],
        args!["PRESENCE.ONLINE", "h", "new", "SESSION", "s", "META", "[1]", "PX", 1],
        args!["PRESENCE.ONLINE", "h", "USERS", 2, "alice", "other"],
        args!["PRESENCE.OFFLINE", "h", "alice", "LINGER", 5],
        args!["PRESENCE.OFFLINE", "h", "new"],
        args!["PRESENCE.MESSAGE", "h", "alice", "text"],
        args!["COPY", "h", "h3", "REPLACE"],
        args!["PRESENCE.CLOSE", "h3", "PX", 1],
        args!["PRESENCE.EVENTS", "h3"],
    ];
    used.extend(names.iter().map(|name| args!["PRESENCE.OFFLINE", "h", name]));
    used.extend([args!["PRESENCE.COUNT", "h"], args!["DEL", "h2"]]);
    for (command, reply) in used.clone().iter().zip(c.batch(used)) {
        match reply {
            Err(e) if e.starts_with("lost") => return Err(format!("{}: {e}", show(command))),
            _ => {}
        }
    }
    Ok(())
}

/// The reading part of `check`. Returns who is there.
fn look(c: &mut Conn) -> Result<Vec<String>, String> {
    let asked = [
        args!["MULTI"],
        args!["PRESENCE.SPACE", "h", "WITHSESSIONS"],
        args!["PRESENCE.COUNT", "h"],
        args!["PRESENCE.COUNT", "h", "SESSIONS"],
        args!["PRESENCE.SPACE", "h", "COUNT", 1],
        args!["PRESENCE.STATUS", "h", "alice", "gone", "x"],
        args!["PRESENCE.USER", "h", "alice"],
        args!["DEBUG", "DIGEST-VALUE", "h"],
        args!["DUMP", "h"],
        args!["MEMORY", "USAGE", "h"],
        args!["PRESENCE.EVENTS", "h"],
        args!["PRESENCE.EVENTS", "h", "AFTER", "1-1", "COUNT", 2],
        args!["PRESENCE.EVENTS", "h", "AFTER", "$"],
        args!["EXEC"],
    ];
    let last = c.batch(asked).pop().unwrap();
    let replies = match last {
        Ok(Value::Array(replies)) => replies,
        other => return Err(format!("EXEC: {other:?}")),
    };
    if let Some(e) = replies.iter().find(|r| matches!(r, Value::ServerError(_))) {
        return Err(format!("{e:?}"));
    }
    let space = Space::parse(&replies[0]);
    let sessions: usize = space.members.iter().map(|(_, sessions)| sessions.len()).sum();
    let counts = (Value::Int(space.users), Value::Int(space.sessions));
    if (space.users, space.sessions) != (space.members.len() as i64, sessions as i64)
        || (&counts.0, &counts.1) != (&replies[1], &replies[2])
    {
        return Err(format!("counts do not fit: {:?} {:?} {space:?}", replies[1], replies[2]));
    }
    let (roster, names) = (space.roster(), space.names());
    if roster.len() != names.len() || roster.values().map(|s| s.len()).sum::<usize>() != sessions {
        return Err(format!("somebody is there twice: {names:?}"));
    }
    if names.iter().any(|name| name.is_empty() || name.len() > 512) {
        return Err(format!("a name is empty or too long: {names:?}"));
    }
    for (_, sessions) in &space.members {
        for s in sessions {
            let json = s
                .meta
                .as_deref()
                .is_none_or(|m| serde_json::from_str::<serde_json::Value>(m).is_ok());
            if !json || s.expires_at <= 0 || s.session.len() > 512 {
                return Err(format!("a bad session: {s:?}"));
            }
        }
    }
    parse_id(&space.id);
    let alice = User::parse(&replies[5]).map_or(0, |u| u.sessions.len() as i64);
    if items(&replies[4])[0] != Value::Int(alice) {
        return Err(format!("STATUS {:?}, USER {alice}", replies[4]));
    }
    for reply in &replies[9..] {
        let [id, _gap, events] = fields(reply, ["id", "gap", "events"]);
        if text(id) != space.id {
            return Err(format!("EVENTS {id:?}, SPACE {}", space.id));
        }
        for event in texts(events) {
            if serde_json::from_str::<serde_json::Value>(&event).is_err() {
                return Err(format!("an event that is no JSON: {event}"));
            }
        }
    }
    // What is dumped can be restored and is the same.
    let copy = match &replies[7] {
        Value::BulkString(copy) => copy,
        // A space with nobody in it and no history: the sweep has been there already.
        Value::Nil if space.id == "0-0" && space.users == 0 => return Ok(vec![]),
        other => return Err(format!("DUMP: {other:?}")),
    };
    let again = [
        args!["MULTI"],
        args!["RESTORE", "h2", 0, copy, "REPLACE"],
        args!["DEBUG", "DIGEST-VALUE", "h2"],
        args!["EXEC"],
    ];
    match c.batch(again).pop().unwrap() {
        Ok(Value::Array(r)) if r[0] == Value::Okay && r[1] == replies[6] => {}
        other => {
            return Err(format!("restored from its own dump: {other:?}, before {:?}", replies[6]));
        }
    }
    Ok(names.into_iter().map(String::from).collect())
}

#[test]
fn payloads_cut_at_every_byte() {
    for compression in [false, true] {
        let mut victim = Victim::new(compression);
        let body = victim.genuine[..victim.genuine.len() - FOOTER].to_vec();
        for end in 0..body.len() {
            victim.feed(body[..end].to_vec(), || {
                format!("cut at {end} of {}, compression {compression}", body.len())
            });
            victim.feed([&body[..end], &[0]].concat(), || {
                format!("cut at {end} of {} and ended", body.len())
            });
        }
        victim.verdict(16 << 20);
    }
}

#[test]
fn payloads_with_each_bit_flipped() {
    for compression in [false, true] {
        let mut victim = Victim::new(compression);
        let body = victim.genuine[..victim.genuine.len() - FOOTER].to_vec();
        for at in 0..body.len() {
            // One byte inside a run of equal ones is like another.
            if at > 2 && body[at - 3..at] == [body[at]; 3] && body.get(at + 1) == Some(&body[at]) {
                continue;
            }
            for bit in 0..8 {
                let mut flipped = body.clone();
                flipped[at] ^= 1 << bit;
                victim.feed(flipped, || {
                    format!("bit {bit} of byte {at} of {}, compression {compression}", body.len())
                });
            }
        }
        // A length may have become one that the server itself reserves memory for.
        victim.verdict(512 << 20);
    }
}

/// Numbers that overflow something.
const HUGE: [u64; 12] = [
    0,
    1,
    250,
    251,
    0xffff,
    0xffff_ffff,
    1 << 40,
    (1 << 62) - 1,
    1 << 62,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

#[test]
fn payloads_with_numbers_and_lengths_of_any_size() {
    let mut victim = Victim::new(false);
    let parts = Parts::of(&victim.genuine);
    assert_eq!(parts.build(&parts.items), victim.genuine[..victim.genuine.len() - FOOTER]);
    for (i, item) in parts.items.iter().enumerate() {
        match item {
            Item::Number(kind, n) => {
                for huge in
                    HUGE.into_iter().chain([n.wrapping_add(1), n.wrapping_sub(1), n << 8, n >> 1])
                {
                    victim.feed(parts.with(i, Item::Number(*kind, huge)), || {
                        format!("item {i}: {n} became {huge}")
                    });
                    // Also where a number of the other kind, or a text, is expected.
                    victim.feed(parts.with(i, Item::Number(3 - kind, huge)), || {
                        format!("item {i}: {n} became signed or not")
                    });
                }
                victim.feed(parts.with(i, Item::Text(b"text".to_vec())), || {
                    format!("item {i}: {n} became text")
                });
            }
            Item::Text(text) => {
                for huge in HUGE {
                    victim.feed(parts.with(i, Item::Number(2, huge)), || {
                        format!("item {i}: a text became {huge}")
                    });
                    for at in 0..text.len() {
                        // In the form that the codec writes: a mark and eight bytes, instead of one; and eight bytes as
                        // they are, over what is there.
                        let long =
                            [&text[..at], &[253], &huge.to_le_bytes(), &text[at + 1..]].concat();
                        victim.feed(parts.with(i, Item::Text(long)), || {
                            format!("item {i}: {huge} at {at}, inserted")
                        });
                        let mut over = text.clone();
                        let n = (text.len() - at).min(8);
                        over[at..at + n].copy_from_slice(&huge.to_le_bytes()[..n]);
                        victim.feed(parts.with(i, Item::Text(over)), || {
                            format!("item {i}: {huge} at {at}, over it")
                        });
                    }
                }
            }
            Item::Float(..) | Item::Packed(_) => {}
        }
    }
    victim.verdict(16 << 20);
}

#[test]
fn payloads_put_together_wrongly() {
    let mut rng = rng(31);
    let mut victim = Victim::new(false);
    let parts = Parts::of(&victim.genuine);
    // A space large enough to be written in several pieces, and one with a history of messages of its own.
    for u in 0..3000 {
        victim.c.ok(args![
            "PRESENCE.ONLINE",
            "large",
            format!("u{u}"),
            "PX",
            5_000_000,
            "META",
            format!("\"{}\"", "m".repeat(60))
        ]);
    }
    let large = Parts::of(&dump(&mut victim.c, "large"));
    victim.c.ok("DEL large");
    println!("{} items, the large space has {}", parts.items.len(), large.items.len());
    for (i, item) in parts.items.iter().enumerate() {
        if let Item::Text(text) = item {
            for end in 0..text.len() {
                victim.feed(parts.with(i, Item::Text(text[..end].to_vec())), || {
                    format!("item {i} cut at {end}")
                });
                victim.feed(parts.with(i, Item::Text(text[end..].to_vec())), || {
                    format!("item {i} begins at {end}")
                });
                let junk: Vec<u8> = (0..rng.random_range(1..20)).map(|_| rng.random()).collect();
                let stuffed = [&text[..end], &junk, &text[end..]].concat();
                victim.feed(parts.with(i, Item::Text(stuffed)), || {
                    format!("item {i}: junk at {end}")
                });
                let gap = (end + rng.random_range(1..20)).min(text.len());
                victim
                    .feed(parts.with(i, Item::Text([&text[..end], &text[gap..]].concat())), || {
                        format!("item {i}: {end}..{gap} taken out")
                    });
                let from = rng.random_range(0..=end);
                victim.feed(
                    parts.with(i, Item::Text([&text[..end], &text[from..]].concat())),
                    || format!("item {i}: {from}..{end} doubled"),
                );
            }
        }
    }
    for of in [&parts, &large] {
        for _ in 0..400 {
            let mut items = of.items.clone();
            for _ in 0..rng.random_range(1..4) {
                if items.is_empty() {
                    break;
                }
                let (i, j) = (rng.random_range(0..items.len()), rng.random_range(0..items.len()));
                match rng.random_range(0..4) {
                    0 => drop(items.remove(i)),
                    1 => items.insert(j, items[i].clone()),
                    2 => items.swap(i, j),
                    _ => items.truncate(i),
                }
            }
            victim.feed(of.build(&items), || format!("items shuffled: {} left", items.len()));
        }
    }
    victim.verdict(64 << 20);
}

#[test]
fn payloads_of_noise() {
    let mut rng = rng(41);
    let mut victim = Victim::new(false);
    let parts = Parts::of(&victim.genuine);
    let genuine: Vec<u8> = victim.genuine[..victim.genuine.len() - FOOTER].to_vec();
    let noise = |rng: &mut StdRng, n: usize| (0..n).map(|_| rng.random()).collect::<Vec<u8>>();
    for round in 0..6000 {
        let n = rng.random_range(0..300);
        let body = match round % 4 {
            // behind the right type and module
            0 => [parts.head.clone(), noise(&mut rng, n)].concat(),
            // as items of the right kinds
            1 => {
                let items: Vec<_> = (0..rng.random_range(0..10))
                    .map(|_| match rng.random_range(0..4) {
                        0 => Item::Number(rng.random_range(1..3), *HUGE.choose(&mut rng).unwrap()),
                        1 => Item::Number(2, rng.random_range(0..300)),
                        _ => {
                            let n = rng.random_range(0..200);
                            let mut text = noise(&mut rng, n);
                            if rng.random_bool(0.7) && n > 0 {
                                text[0] = 1; // a version that is known
                            }
                            Item::Text(text)
                        }
                    })
                    .collect();
                parts.build(&items)
            }
            // several bytes of a genuine one changed
            2 => {
                let mut body = genuine.clone();
                for _ in 0..rng.random_range(2..12) {
                    let at = rng.random_range(0..body.len());
                    body[at] = *[rng.random(), 0, 255, 1, 251, 252, 253].choose(&mut rng).unwrap();
                }
                body
            }
            // nothing right at all, though no other type: what the server makes of those is its own affair
            _ => [vec![7], noise(&mut rng, n)].concat(),
        };
        victim.feed(body, || format!("round {round}"));
    }
    victim.verdict(512 << 20);
}

#[test]
fn small_payloads_that_ask_for_much_memory_do_not_get_it() {
    // What a payload makes of the server's memory is in proportion to its length, also where each is restored under a
    // name of its own and stays.
    let mut victim = Victim::new(false);
    let parts = Parts::of(&victim.genuine);
    let mut rng = rng(51);
    let before = memory(&mut victim.c, "used_memory");
    let (mut bytes, mut kept) = (0, 0u64);
    for i in 0..3000 {
        let mut items = parts.items.clone();
        for item in &mut items {
            match item {
                Item::Number(_, n) if rng.random_bool(0.3) => *n = *HUGE.choose(&mut rng).unwrap(),
                Item::Text(text) if !text.is_empty() && rng.random_bool(0.5) => {
                    let at = rng.random_range(0..text.len());
                    let huge = HUGE.choose(&mut rng).unwrap().to_le_bytes();
                    text.splice(at..at + 1, [&[253], &huge[..]].concat());
                }
                _ => {}
            }
        }
        let payload = seal(parts.build(&items), &victim.genuine);
        bytes += payload.len() as u64;
        match victim.c.try_cmd(args!["RESTORE", format!("kept{i}"), 0, payload]) {
            Ok(_) => kept += 1,
            Err(e) => assert!(!e.starts_with("lost"), "{e}"),
        }
    }
    let after = memory(&mut victim.c, "used_memory");
    println!("{kept} kept of 3000, {bytes} bytes sent, memory grew by {}", after - before);
    assert!(after < before + 4 * bytes + (4 << 20));
    victim.verdict(4 * bytes + (16 << 20));
}

// --- payloads of our own ---------------------------------------------------------------------------------------------

/// A batch of effects: what a space is saved as.
struct Batch(Vec<u8>);

impl Batch {
    fn new(seq: u64) -> Batch {
        let mut batch = Batch(vec![1]);
        batch.effect(0, |out| [7, seq, 0].into_iter().for_each(|n| number(out, n)));
        batch
    }

    fn effect(&mut self, kind: u64, fields: impl FnOnce(&mut Vec<u8>)) {
        let mut effect = Vec::new();
        number(&mut effect, kind);
        fields(&mut effect);
        number(&mut self.0, effect.len() as u64);
        self.0.extend_from_slice(&effect);
    }

    fn session(mut self, user: &str, meta: &[u8]) -> Batch {
        let lease = now_ms() as u64 + 3_600_000;
        self.effect(10, |out| {
            bytes(out, user.as_bytes());
            bytes(out, b"");
            [lease, 5, 5].into_iter().for_each(|n| number(out, n));
            out.extend_from_slice(&[0, 1]);
            bytes(out, meta);
        });
        self
    }

    fn event(mut self, at: u64, text: &[u8]) -> Batch {
        self.effect(11, |out| {
            number(out, at);
            bytes(out, text);
        });
        self
    }
}

fn number(out: &mut Vec<u8>, n: u64) {
    match n {
        0..=250 => out.push(n as u8),
        251..=0xffff => out.extend([&[251][..], &(n as u16).to_le_bytes()].concat()),
        0x1_0000..=0xffff_ffff => out.extend([&[252][..], &(n as u32).to_le_bytes()].concat()),
        _ => out.extend([&[253][..], &n.to_le_bytes()].concat()),
    }
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn join(seq: u64, user: &str, meta: &str) -> String {
    format!(
        r#"{{"id":"7-{seq}","space":"s","type":"join","user":"{user}","joined_at":5,"meta":{meta},"users":1,"at":5}}"#
    )
}

impl Victim {
    /// Restores a space that is saved as this batch.
    fn restore(&mut self, key: &str, batch: Batch) -> Result<Value, String> {
        let parts = Parts::of(&self.genuine);
        let body = parts.build(&[Item::Text(batch.0), Item::Text(Vec::new())]);
        self.c.try_cmd(args!["RESTORE", key, 0, seal(body, &self.genuine), "REPLACE"])
    }
}

/// Metadata has one check, whichever way it comes.
#[test]
fn restore_takes_the_metadata_that_online_takes() {
    let mut victim = Victim::new(false);
    let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
    let metas: Vec<(Vec<u8>, bool)> = vec![
        (b"{\"a\": [1, 2.5e3, \"\\ud83d\\ude00\", null]}".to_vec(), true),
        (nested(100).into(), true),
        (b"18446744073709551616".to_vec(), true),
        (nested(129).into(), false),
        (nested(100_000).into(), false),
        (b"\"\\ud800\"".to_vec(), false),
        (b"{\"\\udc00\":1}".to_vec(), false),
        (b"1e999".to_vec(), false),
        (b"[-1e999]".to_vec(), false),
        (b"".to_vec(), false),
        (b"{}{}".to_vec(), false),
        (b"nul".to_vec(), false),
        (b"\"\xff\"".to_vec(), false),
    ];
    victim.c.ok("CONFIG SET presence.max-meta-bytes 1mb");
    for (meta, right) in metas {
        let shown = meta.escape_ascii().to_string();
        let online = victim.c.try_cmd(args!["PRESENCE.ONLINE", "o", "u", "META", &meta]);
        let restored = victim.restore("r", Batch::new(9).session("u", &meta));
        assert_eq!((online.is_ok(), restored.is_ok()), (right, right), "{shown:.200}");
        if right {
            let [online, restored] =
                ["o", "r"].map(|key| victim.c.user(key, "u").unwrap().sessions[0].meta.clone());
            assert_eq!(online, restored);
        }
    }
    // `null` is no metadata: ONLINE clears it, and a snapshot does not have it.
    victim.restore("r", Batch::new(9).session("u", b" null")).unwrap_err();
    assert!(victim.server.alive());
}

/// Events are read by followers: only what this module writes is restored.
#[test]
fn restore_takes_events_that_a_follower_can_read() {
    let mut victim = Victim::new(false);
    let fine = join(3, "u", "[1]");
    let close = r#"{"id":"7-3","space":"s","type":"close","users":0,"at":5}"#;
    for text in [&fine, close] {
        victim.restore("r", Batch::new(3).event(now_ms() as u64, text.as_bytes())).unwrap();
        assert_eq!(crate::history::ask(&mut victim.c, "r").raws(), [text]);
    }
    let deep = "[".repeat(1000) + &"]".repeat(1000);
    for (from, to) in [
        ("7-3", "7-2"),
        ("7-3", "7-4"),
        ("7-3", "7"),
        ("\"7-3\"", "7"),
        ("\"s\"", "\"\\ud800\""),
        ("join", "jion"),
        ("join", "leave"),
        ("\"user\":\"u\",", ""),
        ("\"u\"", "\"\""),
        ("[1]", "null"),
        ("[1]", "1e999"),
        ("[1]", &deep),
        (",\"at\":5", ""),
        (",\"at\":5", ",\"at\":5,\"at\":6"),
        (",\"at\":5", ",\"at\":5,\"x\":6"),
        (",\"at\":5", ",\"at\":\"5\""),
        ("{", "[{"),
        ("}", "}]"),
    ] {
        let text = fine.replacen(from, to, 1);
        assert_ne!(text, fine);
        let batch = Batch::new(3).event(now_ms() as u64, text.as_bytes());
        victim.restore("r", batch).expect_err(&text);
    }
    // The last events, without a hole.
    let events = |seqs: &[u64]| {
        seqs.iter().fold(Batch::new(3), |batch, seq| {
            batch.event(now_ms() as u64, join(*seq, "u", "1").as_bytes())
        })
    };
    for (seqs, right) in [
        (&[1, 2, 3][..], true),
        (&[2, 3], true),
        (&[1, 2], false),
        (&[1, 3], false),
        (&[3, 3], false),
        (&[3, 2], false),
        (&[0], false),
    ] {
        assert_eq!(victim.restore("r", events(seqs)).is_ok(), right, "{seqs:?}");
    }
    assert!(victim.server.alive());
}

/// The times of a history may be in any order: the clock was set back, or a payload says so. The sweep is done with it
/// when it is done, and does not look again at once.
#[test]
fn histories_with_times_in_any_order_leave_the_server_idle() {
    let mut victim = Victim::new(false);
    victim.c.ok("CONFIG SET presence.history-ttl-ms 2000");
    victim.c.ok("CONFIG SET presence.history-length 100");
    let now = now_ms() as u64;
    let far = now + 3_600_000;
    for (n, times) in [
        [far, far, now],
        [now, far, now],
        [far, now, far],
        [far, now - 5000, now],
        [now - 5000, far, now - 5000],
        [far, 0, 0],
    ]
    .into_iter()
    .cycle()
    .take(60)
    .enumerate()
    {
        let mut batch = Batch::new(3).session("u", b"1");
        for (at, seq) in times.into_iter().zip(1..) {
            batch = batch.event(at, join(seq, "u", "1").as_bytes());
        }
        victim.restore(&format!("r{n}"), batch).unwrap();
    }
    let c = &mut victim.c;
    wait_until("the times of the last events to be over", SOON, || {
        crate::history::ask(c, "r0").events.is_empty()
    });
    let looked = |c: &mut Conn| c.stat("sweeps");
    wait_until("the timer to rest", SOON * 2, || {
        let before = looked(c);
        sleep_until(now_ms() + 1000);
        looked(c) - before < 20
    });
}

// --- calls of any kind -----------------------------------------------------------------------------------------------

/// The module's commands; those for internal use, with an underscore, apart.
fn commands(c: &mut Conn) -> (Vec<String>, Vec<String>) {
    let mut names = texts(&c.ok("COMMAND LIST FILTERBY MODULE presence"));
    names.sort();
    assert!(names.len() >= 6, "{names:?}");
    names.into_iter().partition(|name| !name.to_lowercase().starts_with("presence._"))
}

const KEYS: [&[u8]; 8] = [b"s1", b"s2", b"s3", b"*", b"s\0x", b"a string", b"a list", b""];

/// One word that has been trouble somewhere.
fn word(rng: &mut StdRng) -> Vec<u8> {
    const WORDS: &[&[u8]] = &[
        b"",
        b"0",
        b"1",
        b"2",
        b"3",
        b"-1",
        b"+1",
        b"01",
        b"1.5",
        b"1e3",
        b"0x10",
        b" 1",
        b"1 ",
        b"1\0",
        b"nan",
        b"inf",
        b"100",
        b"1000",
        b"5000",
        b"999999999999",
        b"4611686018427387904",
        b"9223372036854775807",
        b"9223372036854775808",
        b"-9223372036854775808",
        b"18446744073709551615",
        b"18446744073709551616",
        b"99999999999999999999999999999999999999999999",
        b"EX",
        b"PX",
        b"EXAT",
        b"PXAT",
        b"px",
        b"NX",
        b"XX",
        b"Nx",
        b"META",
        b"USERS",
        b"SESSIONS",
        b"SESSION",
        b"session",
        b"LINGER",
        b"BIND",
        b"OWNER",
        b"RENEW",
        b"END",
        b"LIST",
        b"CURSOR",
        b"COUNT",
        b"WITHSESSIONS",
        b"AFTER",
        b"SPACES",
        b"MATCH",
        b"$",
        b"1-1",
        b"0-0",
        b"-",
        b"+",
        b"null",
        b"{}",
        b"[]",
        b"\"x\"",
        b"{\"a\":",
        b"{\"a\":1}",
        b"{'a':1}",
        b"1 2",
        b"\"\\ud800\"",
        b"\"\xff\"",
        b"true",
        b"nul",
        b"a",
        b"b",
        b"c",
        b"alice",
        b"bob",
        b"\0",
        b"a\0b",
        b"\r\n",
        b"%s%n%d%99999999d",
        b"\xff\xfe",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98\x80",
        b"*",
        b"|",
        b"\"",
        b"\\",
        b"{a}",
        b"s1",
        b"s2",
        b"~",
        b"KEEPTTL",
        b"EVENTS",
        b"HELP",
    ];
    match rng.random_range(0..100) {
        0 => vec![b'x'; [511, 512, 513, 4096, 70_000][rng.random_range(0..5)]],
        1 => vec![b'['; rng.random_range(100..20_000)],
        2 => b"{\"a\":".repeat(rng.random_range(10..300)),
        3 => format!("\"{}\"", "y".repeat([4093, 4094, 4095, 100_000][rng.random_range(0..4)]))
            .into_bytes(),
        4 => (now_ms() + rng.random_range(-1000..2000)).to_string().into_bytes(),
        5 => (now_ms() / 1000 + rng.random_range(-2..3)).to_string().into_bytes(),
        6 => (0..rng.random_range(1..30)).map(|_| rng.random()).collect(),
        7 => rng.random_range(0..3000).to_string().into_bytes(),
        _ => WORDS.choose(rng).unwrap().to_vec(),
    }
}

/// A call that makes sense, mostly.
fn sensible(rng: &mut StdRng, key: &[u8]) -> Vec<Vec<u8>> {
    let user = format!("u{}", rng.random_range(0..20));
    let session = ["", "a", "b", "c"].choose(rng).unwrap();
    let ttl = [1, 10, 100, 1000, 60_000].choose(rng).copied().unwrap();
    let id = format!("{}-{}", now_ms() - rng.random_range(0..1000), rng.random_range(0..30));
    match rng.random_range(0..14) {
        9 => args!["PRESENCE.MESSAGE", key, user, "text", "SESSION", session],
        10 => args!["PRESENCE.EVENTS", key, "AFTER", id, "COUNT", rng.random_range(0..9)],
        11 => args!["PRESENCE.EVENTS", key],
        13 => args!["PRESENCE.READ", "COUNT", 3, "SPACES", key, "s1", id, "0"],
        12 if rng.random_bool(0.1) => args!["PRESENCE.CLOSE", key, "PX", ttl / 10 + 1],
        0..3 => args![
            "PRESENCE.ONLINE",
            key,
            user,
            "SESSION",
            session,
            "PX",
            ttl,
            "META",
            rng.random_range(0..3)
        ],
        3 => args!["PRESENCE.ONLINE", key, "USERS", 3, user, "u1", "u2", "PX", ttl],
        4 => args!["PRESENCE.ONLINE", key, "SESSIONS", 2, user, session, "u1", "b", "PX", ttl],
        5 => args!["PRESENCE.OFFLINE", key, user, "LINGER", ttl],
        6 => args!["PRESENCE.OFFLINE", key, "SESSIONS", 1, user, session],
        7 => args![
            "PRESENCE.SPACE",
            key,
            "WITHSESSIONS",
            "CURSOR",
            rng.random_range(0..30),
            "COUNT",
            rng.random_range(1..9)
        ],
        _ => args!["PRESENCE.USER", key, user],
    }
}

/// A call of one of these commands: of sense, of nonsense, or the one with a little of the other.
fn call(rng: &mut StdRng, names: &[String]) -> Vec<Vec<u8>> {
    let key = KEYS.choose(rng).unwrap();
    if rng.random_bool(0.5) {
        let mut words = sensible(rng, key);
        if rng.random_bool(0.5) {
            for _ in 0..rng.random_range(1..3) {
                let at = rng.random_range(2..=words.len());
                match rng.random_range(0..3) {
                    0 => words.insert(at, word(rng)),
                    1 if at < words.len() => words[at] = word(rng),
                    _ if at < words.len() => drop(words.remove(at)),
                    _ => {}
                }
            }
        }
        return words;
    }
    // A subcommand is listed as `command|subcommand`, and called with a word for each.
    let name = names.choose(rng).unwrap().split('|');
    let mut words: Vec<Vec<u8>> = name.map(|word| word.as_bytes().to_vec()).collect();
    words.push(key.to_vec());
    let n = rng.random_range(0..9);
    words.extend((0..n).map(|_| word(rng)));
    if rng.random_bool(0.02) {
        words.truncate(rng.random_range(1..=words.len()));
    }
    words
}

/// Sends calls in pipelines and counts those that got no error.
#[track_caller]
fn barrage(
    server: &Server,
    c: &mut Conn,
    rng: &mut StdRng,
    names: &[String],
    calls: usize,
) -> usize {
    let mut accepted = 0;
    for _ in 0..calls / 200 {
        let batch: Vec<_> = (0..200).map(|_| call(rng, names)).collect();
        let replies = c.batch(batch.iter().map(|words| &words[..]));
        for (words, reply) in batch.iter().zip(replies) {
            match reply {
                Ok(_) => accepted += 1,
                Err(e) if e.starts_with("lost") => {
                    let all: Vec<_> = batch.iter().map(|w| show(w)).collect();
                    panic!(
                        "{}: {e}; the batch was\n{}\n{}",
                        show(words),
                        all.join("\n"),
                        tail(&server.log())
                    );
                }
                Err(_) => {}
            }
        }
    }
    accepted
}

#[test]
fn tens_of_thousands_of_random_calls() {
    let mut rng = rng(61);
    let server = Server::with(&[("presence.history-ttl-ms", "300")]);
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["presence:*"]);
    c.ok(args!["SET", "a string", "x"]);
    c.ok(args!["RPUSH", "a list", "x"]);
    let (names, _) = commands(&mut c);
    let (mut rosters, mut ids) =
        (BTreeMap::<String, Roster>::new(), BTreeMap::<String, (i64, u64)>::new());
    let mut follow = |c: &mut Conn, sub: &mut Subscriber| {
        for e in sub.events_so_far(c) {
            let roster = rosters.entry(e.str("space").into()).or_default();
            match e.kind() {
                "message" => {}
                "close" => roster.clear(),
                _ => e.fold(roster),
            }
            let id = ids.entry(e.str("space").into()).or_default();
            let next = if e.id().0 == id.0 { id.1 + 1 } else { 1 };
            assert!(e.id().0 >= id.0 && e.id().1 == next, "after {id:?}: {}", e.raw);
            *id = e.id();
        }
        (rosters.clone(), ids.clone())
    };
    let mut accepted = 0;
    for _ in 0..40 {
        accepted += barrage(&server, &mut c, &mut rng, &names, 1000);
        // Reads hide what is over, events tell it a moment later: in a quiet moment both say the same.
        let deadline = now_ms() + 5000;
        loop {
            let (rosters, ids) = follow(&mut c, &mut sub);
            let differs = KEYS.iter().filter(|key| !key.starts_with(b"a ")).find_map(|key| {
                let space = c.space(key);
                let name = String::from_utf8_lossy(key).into_owned();
                let roster = rosters.get(&name).cloned().unwrap_or_default();
                let last = ids.get(&name).copied().unwrap_or_default();
                let same =
                    space.roster() == roster && [(0, 0), last].contains(&parse_id(&space.id));
                (!same).then(|| format!("{name:?}: {space:?} against {roster:?} {last:?}"))
            });
            match differs {
                None => break,
                Some(differs) => assert!(now_ms() < deadline, "events and SPACE differ: {differs}"),
            }
        }
    }
    println!("{accepted} of 40000 calls accepted");
    assert!(accepted > 5000);
    assert_eq!(c.text(["GET", "a string"]), "x");
    wait_until("all to leave", SOON * 20, || c.stat("sweep_backlog") == 0);
}

#[test]
fn random_calls_of_all_commands_also_the_internal_ones() {
    let mut rng = rng(71);
    let server = Server::with(&[("presence.history-ttl-ms", "300")]);
    let mut c = server.connect();
    c.ok(args!["SET", "a string", "x"]);
    c.ok(args!["RPUSH", "a list", "x"]);
    let (names, internal) = commands(&mut c);
    let all: Vec<String> = names.iter().chain(&internal).cloned().collect();
    println!("internal: {internal:?}");
    // What the internal ones really carry, as the AOF shows it; then with bytes changed.
    let carried = carried(&internal);
    println!("{} genuine internal calls", carried.len());
    for round in 0..100 {
        barrage(&server, &mut c, &mut rng, if round % 2 == 0 { &all } else { &internal }, 200);
        let batch: Vec<Vec<Vec<u8>>> = (0..200)
            .filter_map(|_| {
                let mut words = carried.choose(&mut rng)?.clone();
                if rng.random_bool(0.5) && words.len() > 1 {
                    words[1] = KEYS.choose(&mut rng).unwrap().to_vec();
                }
                for _ in 0..rng.random_range(0..4) {
                    let i = rng.random_range(1..words.len());
                    let w = &mut words[i];
                    if i > 1 && !w.is_empty() {
                        let at = rng.random_range(0..w.len());
                        match rng.random_range(0..4) {
                            0 => w[at] ^= 1 << rng.random_range(0..8),
                            1 => w[at] = rng.random(),
                            2 => w.truncate(at),
                            _ => {
                                w.splice(
                                    at..at,
                                    [&[253], &HUGE.choose(&mut rng).unwrap().to_le_bytes()[..]]
                                        .concat(),
                                );
                            }
                        }
                    }
                }
                Some(words)
            })
            .collect();
        for (words, reply) in batch.iter().zip(c.batch(batch.iter().map(|w| &w[..]))) {
            if let Err(e) = reply {
                assert!(
                    !e.starts_with("lost"),
                    "{}: {e}\n{}",
                    words
                        .iter()
                        .map(|w| w.escape_ascii().to_string())
                        .collect::<Vec<_>>()
                        .join(" "),
                    tail(&server.log())
                );
            }
        }
        for key in [&b"s1"[..], b"s2", b"s3", b"*", b"s\0x", b"rich"] {
            if c.try_cmd(args!["COPY", key, "h", "REPLACE"]) == Ok(Value::Int(1)) {
                check(&mut c).unwrap_or_else(|fault| panic!("{}: {fault}", key.escape_ascii()));
            }
        }
    }
    c.ok("FLUSHALL");
    wait_until("INFO to count nothing", SOON, || (c.stat("spaces"), c.stat("sessions")) == (0, 0));
}

/// The internal calls that an AOF holds after a bit of everything.
fn carried(internal: &[String]) -> Vec<Vec<Vec<u8>>> {
    let server = Server::builder()
        .aof()
        .config("aof-use-rdb-preamble", "no")
        .config("presence.history-ttl-ms", "200")
        .start();
    let mut c = server.connect();
    furnish(&mut c, "rich");
    c.ok("PRESENCE.ONLINE s1 a PX 10");
    wait_until("the key to go", SOON, || c.int("EXISTS s1") == 0);
    c.ok("BGREWRITEAOF");
    wait_until("the rewrite", SOON * 2, || c.info("persistence")["aof_rewrite_in_progress"] == "0");
    furnish(&mut c, "s2");
    server.stop(Stop::NoSave);
    let mut calls = Vec::new();
    for file in std::fs::read_dir(server.dir().join("appendonlydir")).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let mut at = 0;
        while at < bytes.len() && bytes[at] == b'*' {
            let number = |at: &mut usize| {
                let end = *at + bytes[*at..].iter().position(|b| *b == b'\r').unwrap();
                let n: usize = std::str::from_utf8(&bytes[*at + 1..end]).unwrap().parse().unwrap();
                *at = end + 2;
                n
            };
            let n = number(&mut at);
            let mut words = Vec::new();
            for _ in 0..n {
                let size = number(&mut at);
                words.push(bytes[at..at + size].to_vec());
                at += size + 2;
            }
            let name = String::from_utf8_lossy(&words[0]).to_lowercase();
            if internal.iter().any(|i| i.to_lowercase() == name) {
                calls.push(words);
            }
        }
    }
    calls
}

/// A number as it stands in a batch of effects.
fn varint(n: u64) -> Vec<u8> {
    match n {
        0..251 => vec![n as u8],
        _ => [&[253], &n.to_le_bytes()[..]].concat(),
    }
}

/// A payload whose space has this id.
fn forged(genuine: &[u8], epoch: u64, seq: u64) -> Vec<u8> {
    let parts = Parts::of(genuine);
    let Item::Text(batch) = &parts.items[0] else { panic!("no batch") };
    // The version, then each effect behind its length: the first begins the space.
    let (version, length) = (batch[0], usize::from(batch[1]));
    let begin = [vec![0], varint(epoch), varint(seq), vec![0]].concat();
    let length_of_begin = begin.len() as u8;
    let batch = [&[version, length_of_begin], &begin[..], &batch[2 + length..]].concat();
    seal(parts.with(0, Item::Text(batch)), genuine)
}

/// Ids go on from every number that RESTORE takes: no id is given twice, and what the server saves it can load.
#[test]
fn ids_of_the_far_future() {
    const MOST: u64 = 1 << 52;
    let server = Server::builder()
        .config("presence.history-ttl-ms", "3600000")
        .config("rdbcompression", "no")
        .start();
    let mut c = server.connect();
    // Somebody is there and no event is kept: events would have to fit the ids.
    c.ok("CONFIG SET presence.history-length 0");
    c.ok("PRESENCE.ONLINE genuine a EX 6000");
    c.ok("CONFIG SET presence.history-length 128");
    let genuine = dump(&mut c, "genuine");
    let message = |c: &mut Conn, space: &str| {
        let (epoch, seq) = parse_id(&c.text(["PRESENCE.MESSAGE", space, "a", "x"]));
        (epoch as u64, seq)
    };
    for (epoch, seq) in [
        (MOST + 1, 1),
        (1, MOST + 1),
        (1 << 53, 1),
        ((1 << 53) + 1, 1),
        (1, (1 << 53) + 1),
        (1 << 62, 1 << 62),
        (u64::MAX, 1),
        (1, u64::MAX),
    ] {
        let e = c.err(args!["RESTORE", "h", 0, forged(&genuine, epoch, seq)]);
        assert!(e.contains("Bad data format"), "{epoch}-{seq}: {e}");
    }
    // More names than are remembered one by one.
    let restored: Vec<String> = (0..2500).map(|n| format!("h{n}")).collect();
    for name in &restored {
        c.ok(args!["RESTORE", name, 0, forged(&genuine, MOST, 1)]);
        c.ok(["DEL", name]);
    }
    for name in &restored {
        let id = message(&mut c, name);
        assert!(id > (MOST, 1), "{name}: {id:?}");
    }
    c.ok("DEBUG RELOAD");
    assert_eq!(c.int("DBSIZE"), restored.len() as i64 + 1);
    c.ok("PRESENCE.MESSAGE h0 a x");
    c.ok("FLUSHALL");
    for (epoch, seq) in [(MOST, 1), (1, MOST), (MOST, MOST)] {
        c.ok(args!["RESTORE", "h", 0, forged(&genuine, epoch, seq), "REPLACE"]);
        let mut last = (epoch, seq);
        for step in 0..12 {
            match step {
                3 | 8 => drop(c.ok("DEBUG RELOAD")),
                5 => drop(c.ok("DEL h")),
                6 => drop(c.ok("FLUSHALL")),
                _ => {}
            }
            let id = message(&mut c, "h");
            // A flush cannot know of each space what epoch it had.
            assert!(id > last || step == 6, "{id:?} after {last:?}, step {step}");
            last = id;
        }
        c.ok("DEL h");
    }
}
