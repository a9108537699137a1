//! What a session takes, and what a million small spaces take: each system on a server of its own.

use crate::calls::{SHAPES, figure};
use crate::contenders::{Shas, System};
use crate::dataset::Shape;
use crate::growth::parts;
use crate::load::{Load, Until};
use crate::samples::Samples;
use crate::server::Server;
use crate::{Options, Result};
use std::time::{Duration, Instant};

use System::{Cihangir, Classic, ClassicUsers, HashEx, Longhouse, Map, Presence, SetEx, SortedSet};

pub const SESSIONS: [System; 9] =
    [Presence, SortedSet, SetEx, HashEx, Classic, ClassicUsers, Map, Cihangir, Longhouse];
pub const SPACES: [System; 3] = [Presence, Classic, Map];

/// Two users each, one session each, no metadata.
pub const MANY: Shape = Shape {
    name: "1M spaces of 2",
    prefix: "room",
    spaces: 1_000_000,
    members: 2_000_000,
    meta: false,
};
const QUICK_MANY: Shape = Shape { spaces: 20_000, members: 40_000, ..MANY };

/// What a full history would add is no matter of sessions: it has lapsed when memory is read.
const HISTORY: [(&str, &str); 1] = [("presence.history-ttl-ms", "1000")];
const HISTORY_LAPSED: Duration = Duration::from_millis(2500);

pub fn memory(options: &Options, samples: &mut Samples) -> Result<()> {
    let shape = &SHAPES[0];
    let (sessions, spaces) = if options.quick {
        (&[Presence, Classic, ClassicUsers][..], &SPACES[..2])
    } else {
        (&SESSIONS[..], &SPACES[..])
    };
    for system in sessions.iter().copied() {
        let (used, rss) = taken(options, system, shape, true)?;
        samples.add(figure("memory", system, shape), used / shape.members as f64);
        samples.add(figure("memory rss", system, shape), rss / shape.members as f64);
    }
    let many = if options.quick { QUICK_MANY } else { MANY };
    for system in spaces.iter().copied() {
        let (used, rss) = taken(options, system, &many, false)?;
        samples.add(figure("memory", system, &MANY), used / many.spaces as f64);
        samples.add(figure("memory rss", system, &MANY), rss / many.spaces as f64);
    }
    Ok(())
}

/// By how much the server's memory grew, and that of its process.
fn taken(options: &Options, system: System, shape: &Shape, renew: bool) -> Result<(f64, f64)> {
    let mut server = Server::start(options, &HISTORY)?;
    let sha = Shas::load(&mut server.client)?;
    let before = settled(&mut server)?;
    {
        let mut load = Load::connect(&server)?;
        match system {
            Presence | Classic | ClassicUsers | Map => {
                for part in parts(shape.members) {
                    load.all(&mut system.joins(shape, part, &sha))?;
                }
            }
            _ => {
                if let Some(mut calls) = system.fill(shape, &sha) {
                    load.all(&mut calls)?;
                }
            }
        }
        if renew {
            // Everybody is touched, so that tables that are being moved to larger ones are through.
            let mut everybody = system.heartbeats(shape, &sha);
            load.pipelined(&mut everybody, Until::Count(shape.members))?;
        }
    }
    if system == Presence {
        std::thread::sleep(HISTORY_LAPSED);
    }
    let after = settled(&mut server)?;
    Ok((after.0 - before.0, after.1 - before.1))
}

/// Memory when it no longer changes: connections are gone, tables moved.
fn settled(server: &mut Server) -> Result<(f64, f64)> {
    const LONGEST: Duration = Duration::from_secs(60);
    let end = Instant::now() + LONGEST;
    let (mut last, mut same) = (0.0, 0);
    while same < 3 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100));
        let now = server.used_memory()?;
        same = if f64::abs(now - last) < 4096.0 { same + 1 } else { 0 };
        last = now;
    }
    Ok((last, server.info("memory", "used_memory_rss")?.parse()?))
}
