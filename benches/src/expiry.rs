//! The end of leases: how late a subscriber hears of it, and who else has to wait meanwhile.
//!
//! Beside it the same with a key per session, its TTL, and keyspace notifications; and, where the server has
//! them, with a hash field per session.

use crate::dataset::{Shape, meta, session, user};
use crate::growth::parts;
use crate::load::{Calls, Load, Until};
use crate::resp::{Client, Expect, Skipper};
use crate::samples::{Samples, percentile};
use crate::server::{Server, now_ms, now_us};
use crate::{Options, Result};
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Who is compared.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Presence,
    /// Sessions of one owner, which all end with it.
    Owner,
    /// A key a session.
    Keys,
    /// A hash a space, a field a session. The notification names the hash and not the field.
    Fields,
}

const KINDS: [(Kind, &str); 4] = [
    (Kind::Presence, "presence"),
    (Kind::Owner, "owner"),
    (Kind::Keys, "keys"),
    (Kind::Fields, "fields"),
];
/// The owner whose sessions end at once.
const OWNER: &str = "gateway-1";

fn kinds(options: &Options) -> impl Iterator<Item = (Kind, &'static str)> + use<> {
    let has_fields = options.knows("HSETEX");
    KINDS.into_iter().filter(move |(kind, _)| *kind != Kind::Fields || has_fields)
}

/// When the lease of each member ends (unix ms).
#[derive(Clone, Copy)]
enum Ends {
    /// [`PACE`] a millisecond, from this one on.
    Evenly(i64),
    At(i64),
}

impl Ends {
    fn of(self, member: usize) -> i64 {
        match self {
            Ends::Evenly(first) => first + (member / PACE) as i64,
            Ends::At(end) => end,
        }
    }
}

const SPACES: usize = 1000;
/// Leases that end a millisecond.
const PACE: usize = 20;
/// What a lease in the far future is.
const FAR_MS: i64 = 7_200_000;

fn people(members: usize) -> Shape {
    Shape { name: "", prefix: "room", spaces: SPACES, members, meta: true }
}

/// A message: whose lease ended, when that was by the event itself (ms), when it arrived here (us).
struct Leave {
    member: usize,
    at_ms: Option<i64>,
    arrived_us: i64,
}

impl Kind {
    /// These members come, each with the lease that is said.
    fn joins(self, shape: &Shape, members: std::ops::Range<usize>, ends: Ends) -> Calls {
        let reply = match self {
            Kind::Presence | Kind::Owner | Kind::Fields => Expect::int(1),
            Kind::Keys => Expect::ok(),
        };
        self.renewals(shape, members, ends, reply)
    }

    fn renewals(
        self,
        shape: &Shape,
        members: std::ops::Range<usize>,
        ends: Ends,
        reply: Expect,
    ) -> Calls {
        let mut calls = Calls::new(0, vec![reply], &[]);
        for member in members {
            let (meta, lease) = (meta(member), ends.of(member).to_string());
            match self {
                // Only the crowd has the owner.
                Kind::Owner if shape.prefix == "room" => calls.request(&[
                    b"PRESENCE.ONLINE",
                    shape.space_of(member).as_bytes(),
                    user(member).as_bytes(),
                    b"SESSION",
                    session(member).as_bytes(),
                    b"META",
                    meta.as_bytes(),
                    b"OWNER",
                    OWNER.as_bytes(),
                ]),
                Kind::Presence | Kind::Owner => calls.request(&[
                    b"PRESENCE.ONLINE",
                    shape.space_of(member).as_bytes(),
                    user(member).as_bytes(),
                    b"SESSION",
                    session(member).as_bytes(),
                    b"META",
                    meta.as_bytes(),
                    b"PXAT",
                    lease.as_bytes(),
                ]),
                Kind::Keys => {
                    let key = format!("{}:{}", session(member), user(member));
                    let key = key.as_bytes();
                    calls.request(&[b"SET", key, meta.as_bytes(), b"PXAT", lease.as_bytes()])
                }
                Kind::Fields => calls.request(&[
                    b"HSETEX",
                    format!("{FIELDS}{}", shape.space_of(member)).as_bytes(),
                    b"PXAT",
                    lease.as_bytes(),
                    b"FIELDS",
                    b"1",
                    session(member).as_bytes(),
                    meta.as_bytes(),
                ]),
            }
            .end();
        }
        calls
    }

    fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Kind::Presence | Kind::Owner => &[],
            Kind::Keys => &[("notify-keyspace-events", "Ex")],
            Kind::Fields => &[("notify-keyspace-events", "Eh")],
        }
    }

    fn pattern(self) -> &'static str {
        match self {
            Kind::Presence | Kind::Owner => "presence:room:*",
            Kind::Keys => "__keyevent@0__:expired",
            Kind::Fields => "__keyevent@0__:hexpired",
        }
    }

    /// What a message of a session says; None where it is not the end of a lease.
    fn leave(self, message: &[u8], arrived_us: i64) -> Option<Leave> {
        match self {
            Kind::Presence | Kind::Owner => {
                let begin = b"\"type\":\"leave\",\"user\":\"u";
                let at = message.windows(begin.len()).position(|window| window == begin)?;
                let member = digits(message, at + begin.len(), 9)?;
                let end = message.len().checked_sub(b"}\r\n".len() + 13)?;
                let at_ms = digits(message, end, 13)? as i64;
                Some(Leave { member, at_ms: Some(at_ms), arrived_us })
            }
            Kind::Keys => {
                let end = message.len().checked_sub(b"\r\n".len() + 9)?;
                Some(Leave { member: digits(message, end, 9)?, at_ms: None, arrived_us })
            }
            Kind::Fields => None,
        }
    }
}

/// What the names of hashes begin with.
const FIELDS: &str = "fields:";

/// Of each hash, how many of its fields are known to have expired.
struct ExpiredFields(Vec<usize>);

impl ExpiredFields {
    /// The notification does not say how many fields have expired, nor which. In favour of the server, it is
    /// taken to be about all of that hash that are due when it arrives.
    fn leaves(&mut self, message: &[u8], ends: Ends, members: usize, leaves: &mut Vec<Leave>) {
        let arrived_us = now_us();
        let Some(at) = message.len().checked_sub(b"\r\n".len() + 6) else { return };
        let Some(space) = digits(message, at, 6) else { return };
        let Some(known) = self.0.get_mut(space) else { return };
        let mut member = space + *known * SPACES;
        while member < members && ends.of(member) * 1000 <= arrived_us {
            leaves.push(Leave { member, at_ms: None, arrived_us });
            *known += 1;
            member += SPACES;
        }
    }
}

fn digits(text: &[u8], from: usize, count: usize) -> Option<usize> {
    std::str::from_utf8(text.get(from..from + count)?).ok()?.parse().ok()
}

/// Listens until it has heard of so many ends, or until `deadline`.
fn listen(
    kind: Kind,
    server: &Server,
    count: usize,
    ends: Ends,
    deadline: Instant,
) -> Result<JoinHandle<std::result::Result<Vec<Leave>, String>>> {
    let mut client = Client::connect(server.port)?;
    client.call(&["PSUBSCRIBE", kind.pattern()])?;
    let mut stream = client.stream().try_clone()?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    Ok(std::thread::spawn(move || {
        crate::server::prefer(0);
        let _open = client;
        heard(kind, &mut stream, count, ends, deadline).map_err(|e| e.to_string())
    }))
}

fn heard(
    kind: Kind,
    stream: &mut std::net::TcpStream,
    count: usize,
    ends: Ends,
    deadline: Instant,
) -> Result<Vec<Leave>> {
    let mut fields = ExpiredFields(vec![0; SPACES]);
    let mut leaves = Vec::with_capacity(count);
    let mut buf = vec![0; 1 << 22];
    let (mut filled, mut begin, mut pos) = (0, 0, 0);
    let mut skipper = Skipper::default();
    while leaves.len() < count && Instant::now() < deadline {
        match stream.read(&mut buf[filled..]) {
            Ok(0) => return Err("the subscriber was cut off".into()),
            Ok(read) => filled += read,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock) => continue,
            Err(e) => return Err(e.into()),
        }
        let arrived_us = now_us();
        while pos < filled && skipper.skip(&buf[..filled], &mut pos)? {
            let message = &buf[begin..pos];
            if kind == Kind::Fields {
                fields.leaves(message, ends, count, &mut leaves);
            } else {
                leaves.extend(kind.leave(message, arrived_us));
            }
            begin = pos;
        }
        buf.copy_within(begin..filled, 0);
        (filled, pos, begin) = (filled - begin, pos - begin, 0);
    }
    Ok(leaves)
}

/// How long the machine itself, busy with other things, left a thread on the server's core waiting that
/// wanted to run: what is measured by the clock cannot be better than this.
struct Stalls {
    stop: std::sync::Arc<AtomicBool>,
    thread: JoinHandle<u128>,
}

impl Stalls {
    fn watch(core: Option<usize>) -> Stalls {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            const NAP: Duration = Duration::from_millis(1);
            if let Some(core) = core {
                crate::server::pin(core);
            }
            crate::server::prefer(0);
            let mut longest = 0;
            while !stopped.load(Ordering::Relaxed) {
                let begin = Instant::now();
                std::thread::sleep(NAP);
                longest = longest.max((begin.elapsed().saturating_sub(NAP)).as_micros());
            }
            longest
        });
        Stalls { stop, thread }
    }

    /// The longest, in ms.
    fn end(self) -> Result<f64> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.thread.join().map_err(|_| "panic")? as f64 / 1000.0)
    }
}

/// Leases are said before anybody is brought in: tries with more time for that where it was too short.
fn with_time(least: Duration, mut attempt: impl FnMut(Duration) -> Result<bool>) -> Result<()> {
    for factor in [1, 2, 4, 8] {
        if attempt(least * factor)? {
            return Ok(());
        }
    }
    Err("the machine is too slow to bring everybody in".into())
}

/// Everybody's lease ends, evenly, 20,000 a second.
pub fn lapse(options: &Options, samples: &mut Samples) -> Result<()> {
    let members = if options.quick { 40_000 } else { 1_000_000 };
    let least = Duration::from_secs(2) + Duration::from_micros(16 * members as u64);
    for (kind, name) in kinds(options).filter(|(kind, _)| *kind != Kind::Owner) {
        with_time(least, |fill| {
            one_lapse(options, samples, kind, &format!("lapse.{name}"), members, fill)
        })?;
    }
    Ok(())
}

/// False where the time to bring them in was too short.
fn one_lapse(
    options: &Options,
    samples: &mut Samples,
    kind: Kind,
    name: &str,
    members: usize,
    fill: Duration,
) -> Result<bool> {
    let mut server = Server::start(options, kind.settings())?;
    server.prefer();
    server.client.call(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 0 0 0"])?;
    let shape = people(members);
    let first = now_ms() + fill.as_millis() as i64;
    let ends = Ends::Evenly(first);
    let mut load = Load::connect(&server)?;
    for part in parts(members) {
        load.all(&mut kind.joins(&shape, part, ends))?;
    }
    if now_ms() >= first {
        return Ok(false);
    }
    let last = Duration::from_millis((members / PACE) as u64);
    let patience = Duration::from_secs(if options.quick { 5 } else { 30 });
    let deadline = Instant::now() + fill + last + patience;
    // From now on: nobody wants to hear of the joins.
    let stalls = Stalls::watch(options.server_core);
    let leaves = listen(kind, &server, members, ends, deadline)?.join().map_err(|_| "panic")??;
    samples.add(format!("{name} stall"), stalls.end()?);
    lateness(samples, name, &leaves, members, ends)?;
    Ok(true)
}

/// How late each was, in ms: on arrival and, where the event says it, by its own time.
fn lateness(
    samples: &mut Samples,
    name: &str,
    leaves: &[Leave],
    members: usize,
    ends: Ends,
) -> Result<()> {
    if leaves.is_empty() {
        return Err("nobody left".into());
    }
    let early =
        leaves.iter().filter(|leave| leave.arrived_us < ends.of(leave.member) * 1000).count();
    if early > 0 {
        return Err(format!("{early} leaves came too early").into());
    }
    let mut late: Vec<u32> = leaves
        .iter()
        .map(|leave| (leave.arrived_us - ends.of(leave.member) * 1000) as u32)
        .collect();
    late.sort_unstable();
    for (what, part) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        samples.add(format!("{name} {what}"), percentile(&late, part) / 1000.0);
    }
    samples.add(format!("{name} heard"), 100.0 * leaves.len() as f64 / members as f64);
    let mut by_event: Vec<u32> = leaves
        .iter()
        .filter_map(|leave| Some((leave.at_ms? - ends.of(leave.member)) as u32))
        .collect();
    by_event.sort_unstable();
    if !by_event.is_empty() {
        for (what, part) in [("at p50", 0.5), ("at p99", 0.99), ("at max", 1.0)] {
            samples.add(format!("{name} {what}"), percentile(&by_event, part));
        }
    }
    Ok(())
}

/// A crowd's leases end in one moment, beside others who go on.
pub fn crowd(options: &Options, samples: &mut Samples) -> Result<()> {
    let members = if options.quick { 50_000 } else { 250_000 };
    let least = Duration::from_secs(2) + Duration::from_micros(20 * members as u64);
    for _ in 0..if options.quick { 1 } else { 5 } {
        for (kind, name) in kinds(options) {
            with_time(least, |fill| {
                one_crowd(options, samples, kind, &format!("crowd.{name}"), members, fill)
            })?;
        }
    }
    Ok(())
}

const QUIET: Duration = Duration::from_secs(2);
/// How long it is watched how others fare.
const WATCHED: Duration = Duration::from_secs(4);
/// Heartbeats a millisecond of those who go on.
const HEARTBEATS: usize = 20;
const OTHERS: usize = 20_000;

/// False where the time to bring them in was too short.
fn one_crowd(
    options: &Options,
    samples: &mut Samples,
    kind: Kind,
    name: &str,
    members: usize,
    fill: Duration,
) -> Result<bool> {
    let mut server = Server::start(options, kind.settings())?;
    server.prefer();
    server.client.call(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 0 0 0"])?;
    let shape = people(members);
    let others = Shape { prefix: "others", members: OTHERS, ..shape };
    let end = now_ms() + fill.as_millis() as i64 + QUIET.as_millis() as i64;
    let far = end + FAR_MS;
    let mut load = Load::connect(&server)?;
    if kind == Kind::Owner {
        let lease = (end - now_ms()).to_string();
        server.client.call(&["PRESENCE.OWNER", "RENEW", OWNER, "PX", &lease])?;
    }
    for part in parts(members) {
        load.all(&mut kind.joins(&shape, part, Ends::At(end)))?;
    }
    // Their users have other numbers, so that nobody is taken for one of the crowd.
    let range = 1_000_000..1_000_000 + OTHERS;
    load.all(&mut kind.joins(&others, range.clone(), Ends::At(far)))?;
    if now_ms() + QUIET.as_millis() as i64 > end {
        return Ok(false);
    }
    let reply = match kind {
        Kind::Presence | Kind::Owner => Expect::int(0),
        Kind::Keys => Expect::ok(),
        Kind::Fields => Expect::int(1),
    };
    let mut heartbeats = kind.renewals(&others, range, Ends::At(far), reply);
    let until = end + WATCHED.as_millis() as i64;
    let pings = ping(&server, end - QUIET.as_millis() as i64, until)?;
    let deadline = Instant::now() + QUIET + fill + Duration::from_secs(60);
    let stalls = Stalls::watch(options.server_core);
    let leaves = listen(kind, &server, members, Ends::At(end), deadline)?;
    let beats = beat(&mut load, &mut heartbeats, end - QUIET.as_millis() as i64, until)?;
    let leaves = leaves.join().map_err(|_| "panic")??;
    let pings = pings.join().map_err(|_| "panic")??;
    samples.add(format!("{name} stall"), stalls.end()?);
    lateness(samples, name, &leaves, members, Ends::At(end))?;
    let done = leaves.iter().map(|leave| leave.arrived_us).max().unwrap_or(0);
    samples.add(format!("{name} all"), done as f64 / 1000.0 - end as f64);
    let during = (end * 1000, done.min(until * 1000));
    let quiet = ((end - QUIET.as_millis() as i64) * 1000, end * 1000);
    for (what, window) in [("", during), (" quiet", quiet)] {
        let mut waits: Vec<u32> = pings
            .iter()
            .filter(|(at, _)| (window.0..=window.1).contains(at))
            .map(|(_, wait)| *wait)
            .collect();
        waits.sort_unstable();
        if !waits.is_empty() {
            samples.add(format!("{name} ping p99.9{what}"), percentile(&waits, 0.999) / 1000.0);
            samples.add(format!("{name} ping max{what}"), percentile(&waits, 1.0) / 1000.0);
        }
        let made = beats.iter().filter(|at| (window.0..window.1).contains(*at)).count();
        let due = (window.1 - window.0) as f64 / 1000.0 * HEARTBEATS as f64;
        samples.add(format!("{name} rate kept{what}"), made as f64 / due);
        samples.add(format!("{name} rate lost{what}"), (1.0 - made as f64 / due).max(0.0));
    }
    Ok(true)
}

type Pings = JoinHandle<std::result::Result<Vec<(i64, u32)>, String>>;

/// A PING every millisecond: when it was due (unix us), and how long until its answer (us). One that
/// could not be sent in time because the one before had no answer yet counts from when it was due.
fn ping(server: &Server, from_ms: i64, until_ms: i64) -> Result<Pings> {
    let mut client = Client::connect(server.port)?;
    Ok(std::thread::spawn(move || {
        crate::server::prefer(0);
        let mut waits = Vec::new();
        let mut due = now_us().max(from_ms * 1000);
        while due < until_ms * 1000 {
            let now = now_us();
            // What the system's clock adds to a sleep is not the server's.
            let begin = if now < due {
                std::thread::sleep(Duration::from_micros((due - now) as u64));
                now_us()
            } else {
                due
            };
            client.call(&["PING"]).map_err(|e| e.to_string())?;
            waits.push((due, (now_us() - begin) as u32));
            due += 1000;
        }
        Ok(waits)
    }))
}

/// Heartbeats at their pace; what is late is made up for. When each was answered (unix us).
fn beat(load: &mut Load, calls: &mut Calls, from_ms: i64, until_ms: i64) -> Result<Vec<i64>> {
    let from_us = now_us().max(from_ms * 1000);
    let mut answered: Vec<i64> = Vec::new();
    loop {
        let now = now_us();
        if now >= until_ms * 1000 {
            return Ok(answered);
        }
        let due = ((now - from_us).max(0) as usize) * HEARTBEATS / 1000;
        // Not too many at once: they are different clients.
        let count = due.saturating_sub(answered.len()).min(200);
        if count == 0 {
            std::thread::sleep(Duration::from_micros(500));
            continue;
        }
        load.pipelined(calls, Until::Count(count))?;
        let at = now_us();
        answered.extend(std::iter::repeat_n(at, count));
    }
}

/// A million renewals a minute: does memory stay where it is?
pub fn heartbeats(options: &Options, samples: &mut Samples) -> Result<()> {
    const A_MINUTE: usize = 1_000_000;
    const TICK: Duration = Duration::from_millis(20);
    // A lease is renewed some times before it would end, as in life.
    let settings = [("presence.lease-ttl-ms", "60000"), ("presence.history-ttl-ms", "1000")];
    let minutes = if options.quick { 1 } else { options.minutes };
    let shape = people(200_000);
    let mut server = Server::start(options, &settings)?;
    let mut load = Load::connect(&server)?;
    let sha = crate::contenders::Shas::load(&mut server.client)?;
    for part in parts(shape.members) {
        load.all(&mut crate::contenders::System::Presence.joins(&shape, part, &sha))?;
    }
    let mut calls = crate::contenders::System::Presence.heartbeats(&shape, &sha);
    // Everybody once, so that all that is to grow has grown; and the history of the joins lapses.
    load.all(&mut calls)?;
    let paced = |load: &mut Load, calls: &mut Calls, time: Duration| -> Result<()> {
        let (start, mut made) = (Instant::now(), 0);
        while start.elapsed() < time {
            let due = (start.elapsed().as_secs_f64() / 60.0 * A_MINUTE as f64) as usize;
            if due > made {
                load.pipelined(calls, Until::Count(due - made))?;
                made = due;
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    };
    paced(&mut load, &mut calls, Duration::from_secs(10))?;
    let before = server.used_memory()?;
    let mut most = before;
    for _ in 0..minutes * 6 {
        paced(&mut load, &mut calls, Duration::from_secs(10))?;
        most = most.max(server.used_memory()?);
    }
    samples.add("heartbeats minutes", minutes as f64);
    samples.add("heartbeats memory", before / 1e6);
    samples.add("heartbeats growth", 100.0 * (server.used_memory()? - before) / before);
    samples.add("heartbeats most", 100.0 * (most - before) / before);
    Ok(())
}
