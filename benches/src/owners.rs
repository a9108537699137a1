//! A hundred thousand sessions kept alive: by a heartbeat per session, and by the owners of ten gateways.
//!
//! With an AOF and a replica. Each session is renewed every ten seconds, its lease is thirty. An owner is renewed
//! every five seconds, its lease is fifteen. What is measured is ten seconds of that: the server's processor time
//! per second, and the bytes per second that reach the replica.

use crate::configurations::{CONFIGURATIONS, replica_of};
use crate::dataset::{Shape, session, user};
use crate::load::{Calls, Load, Until};
use crate::resp::Expect;
use crate::samples::Samples;
use crate::server::Server;
use crate::{Options, Result};
use std::time::{Duration, Instant};

const SHAPE: Shape =
    Shape { name: "", prefix: "room", spaces: 1000, members: 100_000, meta: false };
const GATEWAYS: usize = 10;
const LEASE_MS: &str = "30000";
const OWNER_MS: &[u8] = b"15000";
/// What is measured.
const WINDOW: Duration = Duration::from_secs(10);
const OWNER_BEAT: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(20);

pub const WAYS: [(&str, &str); 2] =
    [("heartbeats", "a heartbeat per session"), ("owners", "the owners of ten gateways")];

pub fn owners(options: &Options, samples: &mut Samples) -> Result<()> {
    for (way, _) in WAYS {
        one(options, samples, way == "owners", way)?;
    }
    Ok(())
}

fn one(options: &Options, samples: &mut Samples, has_owners: bool, way: &str) -> Result<()> {
    let mut settings = vec![("presence.lease-ttl-ms", LEASE_MS)];
    settings.extend(CONFIGURATIONS[3].settings());
    let mut server = Server::start(options, &settings)?;
    let _replica = replica_of(options, &mut server)?;
    let mut load = Load::connect(&server)?;
    let mut renewals = owner_renewals();
    if has_owners {
        load.all(&mut renewals)?;
    }
    load.all(&mut sessions(Expect::int(1), 0..SHAPE.members, has_owners))?;
    let mut heartbeats = sessions(Expect::int(0), SHAPE.order(), false);
    // The joins are written and sent.
    std::thread::sleep(Duration::from_secs(1));
    let before = (server.cpu_ns()?, offset(&mut server)?);
    let (start, mut made, mut next) = (Instant::now(), 0, Duration::ZERO);
    while start.elapsed() < WINDOW {
        if has_owners {
            if start.elapsed() >= next {
                load.all(&mut renewals)?;
                next += OWNER_BEAT;
            }
        } else {
            let part = start.elapsed().as_secs_f64() / WINDOW.as_secs_f64();
            let due = (part.min(1.0) * SHAPE.members as f64) as usize;
            if due > made {
                load.pipelined(&mut heartbeats, Until::Count(due - made))?;
                made = due;
            }
        }
        std::thread::sleep(TICK);
    }
    let seconds = start.elapsed().as_secs_f64();
    let cpu = (server.cpu_ns()? - before.0) as f64 / 1e6 / seconds;
    samples.add(format!("owners.{way} cpu"), cpu);
    samples.add(format!("owners.{way} bytes"), (offset(&mut server)? - before.1) / seconds);
    Ok(())
}

fn offset(server: &mut Server) -> Result<f64> {
    Ok(server.info("replication", "master_repl_offset")?.parse()?)
}

fn owner(number: usize) -> String {
    format!("gateway-{number}")
}

fn owner_renewals() -> Calls {
    // The reply is the number of sessions.
    let mut calls = Calls::new(0, vec![Expect::BeginsWith(b":".to_vec())], &[]);
    for number in 0..GATEWAYS {
        let owner = owner(number);
        calls.request(&[b"PRESENCE.OWNER", b"RENEW", owner.as_bytes(), b"PX", OWNER_MS]).end();
    }
    calls
}

fn sessions(reply: Expect, members: impl IntoIterator<Item = usize>, has_owners: bool) -> Calls {
    let mut calls = Calls::new(0, vec![reply], &[]);
    for member in members {
        let (space, user, session) = (SHAPE.space_of(member), user(member), session(member));
        let owner = owner(member % GATEWAYS);
        let mut args: Vec<&[u8]> = vec![
            b"PRESENCE.ONLINE",
            space.as_bytes(),
            user.as_bytes(),
            b"SESSION",
            session.as_bytes(),
        ];
        if has_owners {
            args.extend([&b"OWNER"[..], owner.as_bytes()]);
        }
        calls.request(&args).end();
    }
    calls
}
