//! Saving and loading an RDB: processor time, beside the same data in a sorted set and a hash a space.

use crate::contenders::{Shas, System, plain_pair};
use crate::dataset::Shape;
use crate::growth::parts;
use crate::load::Load;
use crate::samples::Samples;
use crate::server::Server;
use crate::{Options, Result};
use std::time::Instant;

const FULL: Shape =
    Shape { name: "", prefix: "room", spaces: 1000, members: 1_000_000, meta: true };
// As many a space: small ones are kept in another way.
const QUICK: Shape = Shape { spaces: 100, members: 100_000, ..FULL };

pub fn persistence(options: &Options, samples: &mut Samples) -> Result<()> {
    let shape = if options.quick { QUICK } else { FULL };
    let rounds = if options.quick { 3 } else { 5 };
    // What a server without data needs to start.
    let mut start = 0;
    let mut servers = Vec::new();
    for name in ["presence", "plain"] {
        let mut server = Server::start(options, &[])?;
        start = server.cpu_ns()?;
        let sha = Shas::load(&mut server.client)?;
        let mut load = Load::connect(&server)?;
        for part in parts(shape.members) {
            load.all(&mut match name {
                "presence" => System::Presence.joins(&shape, part, &sha),
                _ => plain_pair(&shape, part),
            })?;
        }
        servers.push((name, server));
    }
    for round in 0..rounds {
        if round % 2 == 1 {
            servers.reverse();
        }
        let mut next = Vec::new();
        for (name, mut server) in servers {
            let (clock, before) = (Instant::now(), server.cpu_ns()?);
            server.client.call(&["SAVE"])?;
            let wall = clock.elapsed().as_secs_f64();
            samples.add(format!("save.{name}"), (server.cpu_ns()? - before) as f64 / 1e6);
            samples.add(format!("save wall.{name}"), wall * 1e3);
            let size = std::fs::metadata(server.dir().join("dump.rdb"))?.len();
            samples.add(format!("rdb.{name}"), size as f64 / 1e6);
            let mut server = server.restart(options, &[])?;
            samples.add(format!("load.{name}"), (server.cpu_ns()? - start) as f64 / 1e6);
            check(&mut server, name, &shape)?;
            next.push((name, server));
        }
        servers = next;
    }
    Ok(())
}

/// All came back.
fn check(server: &mut Server, name: &str, shape: &Shape) -> Result<()> {
    let (keys, at) = match name {
        "presence" => (shape.spaces, "db0"),
        _ => (2 * shape.spaces, "db11"),
    };
    let loaded = server.info("keyspace", at)?;
    if !loaded.starts_with(&format!("keys={keys},")) {
        return Err(format!("{name}: {keys} keys were saved, and these loaded: {loaded}").into());
    }
    Ok(())
}
