//! What it costs to ask: who of many is here, and everybody in a space.

use crate::calls::SHAPES;
use crate::contenders::{PLAIN_DB, System, plain_hash, plain_pair};
use crate::dataset::{Random, Shape, user};
use crate::load::{Calls, Load};
use crate::resp::{Client, Expect};
use crate::rounds::{Job, measure};
use crate::samples::Samples;
use crate::server::Server;
use crate::{Options, Result};

const ASKED: usize = 500;
/// Members of a page.
pub const PAGE: usize = 1000;

fn big() -> &'static Shape {
    &SHAPES[0]
}

/// STATUS of 500 users of 100k, half of them here, beside ZMSCORE of the same.
pub fn status(options: &Options, samples: &mut Samples) -> Result<()> {
    let shape = big();
    let (mut server, _) = crate::calls::filled(options, shape, &[System::Presence])?;
    let space = shape.space_of(0);
    let mut users = Calls::new(PLAIN_DB, vec![Expect::int(1)], &[]);
    for member in 0..shape.members {
        users.request(&[b"ZADD", b"users", b"2000000000000", user(member).as_bytes()]).end();
    }
    Load::connect(&server)?.all(&mut users)?;
    let ask = |db: usize, command: &str, key: &str, commands| {
        let mut random = Random(3);
        let mut calls = Calls::new(db, vec![Expect::array(ASKED)], commands);
        calls.pipeline = 8;
        for _ in 0..400 {
            let names: Vec<String> =
                (0..ASKED).map(|_| user(random.below(2 * shape.members))).collect();
            let mut args = vec![command.as_bytes(), key.as_bytes()];
            args.extend(names.iter().map(|name| name.as_bytes()));
            calls.request(&args).end();
        }
        calls
    };
    let mut jobs = [
        Job::new("status.presence", ask(0, "PRESENCE.STATUS", &space, &["presence.status"])),
        Job::new("status.zmscore", ask(PLAIN_DB, "ZMSCORE", "users", &["zmscore"])),
    ];
    measure(options, &mut server, &mut jobs, samples)
}

/// Everybody of 100k with sessions and metadata: at once, in pages, and beside HGETALL.
pub fn space(options: &Options, samples: &mut Samples) -> Result<()> {
    let shape = big();
    let (mut server, _) = crate::calls::filled(options, shape, &[System::Presence])?;
    Load::connect(&server)?.all(&mut plain_pair(shape, 0..shape.members))?;
    let space = shape.space_of(0);
    let mut whole = Calls::new(0, vec![Expect::array(10)], &["presence.space"]);
    whole.pipeline = 1;
    whole.request(&[b"PRESENCE.SPACE", space.as_bytes(), b"WITHSESSIONS"]).end();
    let all = Expect::array(2 * shape.members);
    let mut hgetall = Calls::new(PLAIN_DB, vec![all], &["hgetall"]);
    hgetall.pipeline = 1;
    hgetall.request(&[b"HGETALL", plain_hash(&space).as_bytes()]).end();
    let mut pages = pages(&mut server.client, &space, shape.members)?;
    let mut jobs = [
        Job::new("space.presence", whole),
        Job::new("space.hgetall", hgetall),
        Job::new("space.page", pages.clone()),
    ];
    measure(options, &mut server, &mut jobs, samples)?;
    let mut load = Load::connect(&server)?;
    // Each page took the server at most as long as its quickest time: what is longer in another walk
    // was somebody else's work on this core.
    let mut quickest = vec![i64::MAX; pages.len()];
    for _ in 0..options.rounds.max(5) {
        for (best, time) in quickest.iter_mut().zip(walk(&mut server, &mut load, &mut pages)?) {
            *best = time.min(*best);
        }
    }
    let longest = quickest.into_iter().max().ok_or("no pages")?;
    samples.add("space.page longest", longest as f64);
    Ok(())
}

/// A walk over all pages, as requests. Nobody comes or goes here, so cursors stay what they are.
fn pages(client: &mut Client, space: &str, members: usize) -> Result<Calls> {
    let mut calls = Calls::new(0, vec![Expect::array(10)], &["presence.space"]);
    let (mut cursor, mut seen, count) = ("0".to_string(), 0, PAGE.to_string());
    loop {
        let args = ["PRESENCE.SPACE", space, "WITHSESSIONS", "CURSOR", &cursor, "COUNT", &count];
        calls.request(&args.map(str::as_bytes)).end();
        let page = client.call(&args)?;
        seen += page.field("members")?.array()?.len();
        cursor = page.field("cursor")?.text()?;
        if cursor == "0" {
            break;
        }
    }
    if seen < members {
        return Err(format!("{seen} of {members} were in the pages").into());
    }
    calls.pipeline = 4;
    Ok(calls)
}

/// How long (us) each page of a walk held the server, by its slow log.
fn walk(server: &mut Server, load: &mut Load, pages: &mut Calls) -> Result<Vec<i64>> {
    let client = &mut server.client;
    client.call(&["CONFIG", "SET", "slowlog-max-len", "1000", "slowlog-log-slower-than", "0"])?;
    client.call(&["SLOWLOG", "RESET"])?;
    load.in_turn(pages)?;
    client.call(&["CONFIG", "SET", "slowlog-log-slower-than", "-1"])?;
    let mut times = Vec::new();
    // The latest comes first.
    for entry in client.call(&["SLOWLOG", "GET", "1000"])?.array()?.iter().rev() {
        let entry = entry.array()?;
        if entry[3].array()?[0].text()? == "PRESENCE.SPACE" {
            times.push(entry[2].int()?);
        }
    }
    if times.len() != pages.len() {
        return Err(format!("{} pages, {} in the slow log", pages.len(), times.len()).into());
    }
    Ok(times)
}
