//! Heartbeats in the configurations that people run: without persistence, with an AOF, with a replica, with both.
//!
//! The load has the pace of real clients, ten times as fast: each session is renewed once a second, and its
//! lease is three seconds long. So a server that tells its replicas only some of the renewals has to tell
//! as many of them as it would with ten and thirty seconds. A figure is the mean of all beats of a job: the
//! server's processor time, and the bytes that reach the replica and the AOF, both divided by the number
//! of renewals.

use crate::contenders::{Shas, System};
use crate::dataset::Shape;
use crate::load::{Load, Until};
use crate::samples::Samples;
use crate::server::Server;
use crate::{Options, Result};
use std::time::{Duration, Instant};

pub struct Configuration {
    /// In tables and in the names of samples.
    pub name: &'static str,
    has_aof: bool,
    has_replica: bool,
}

impl Configuration {
    /// The settings of the server.
    pub fn settings(&self) -> &'static [(&'static str, &'static str)] {
        match self.has_aof {
            // A rewrite would make the file smaller.
            true => &[
                ("appendonly", "yes"),
                ("appendfsync", "everysec"),
                ("auto-aof-rewrite-percentage", "0"),
            ],
            false => &[],
        }
    }
}

pub const CONFIGURATIONS: [Configuration; 4] = [
    Configuration { name: "bare", has_aof: false, has_replica: false },
    Configuration { name: "AOF everysec", has_aof: true, has_replica: false },
    Configuration { name: "one replica", has_aof: false, has_replica: true },
    Configuration { name: "AOF and replica", has_aof: true, has_replica: true },
];

pub const SYSTEMS: [System; 5] =
    [System::Presence, System::SetEx, System::SortedSetAny, System::FieldSetEx, System::Classic];

pub const SHAPES: [Shape; 2] = [
    Shape { name: "20k in one space", prefix: "room", spaces: 1, members: 20_000, meta: true },
    Shape {
        name: "20k in 1,000 spaces",
        prefix: "room",
        spaces: 1000,
        members: 20_000,
        meta: true,
    },
];

/// Between two renewals of a session.
const BEAT: Duration = Duration::from_secs(1);
/// Of our sessions: three beats. So long a replica may show a session that nobody renews, too.
const LEASE_MS: &str = "3000";
const LINK_WITHIN: Duration = Duration::from_secs(60);

/// The name of a figure.
pub fn figure(what: &str, system: System, shape: &Shape, configuration: &Configuration) -> String {
    format!("{what}.{}.{}.{}", system.name(), shape.name, configuration.name)
}

pub fn configurations(options: &Options, samples: &mut Samples) -> Result<()> {
    let (shapes, systems) = if options.quick { (1, 2) } else { (SHAPES.len(), SYSTEMS.len()) };
    for shape in &SHAPES[..shapes] {
        for configuration in &CONFIGURATIONS {
            for system in &SYSTEMS[..systems] {
                if system.needs().is_some_and(|command| !options.knows(command)) {
                    continue;
                }
                one(options, samples, *system, shape, configuration)?;
            }
        }
    }
    Ok(())
}

fn one(
    options: &Options,
    samples: &mut Samples,
    system: System,
    shape: &Shape,
    configuration: &Configuration,
) -> Result<()> {
    let mut settings =
        vec![("presence.lease-ttl-ms", LEASE_MS), ("presence.restart-grace-ms", LEASE_MS)];
    settings.extend(configuration.settings());
    let mut server = Server::start(options, &settings)?;
    let _replica = match configuration.has_replica {
        true => Some(replica_of(options, &mut server)?),
        false => None,
    };
    let sha = Shas::load(&mut server.client)?;
    let mut load = Load::connect(&server)?;
    if let Some(mut calls) = system.fill(shape, &sha) {
        load.all(&mut calls)?;
    }
    let mut calls = system.heartbeats(shape, &sha);
    // Twelve is a multiple of three and of four: whatever is told every third or fourth time is told as
    // often as it is due.
    let beats = if options.quick { 4 } else { 12 };
    let mut due = Instant::now() + BEAT;
    let mut begun = None;
    for beat in 0..=beats {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if Instant::now() > due + BEAT {
            return Err("the machine is too slow for a beat per second".into());
        }
        due += BEAT;
        if beat == 0 {
            begun = Some((server.cpu_ns()?, propagated(&mut server, configuration)?));
        }
        if beat < beats {
            load.pipelined(&mut calls, Until::Count(shape.members))?;
        }
    }
    let (cpu, bytes) = begun.ok_or("no beat")?;
    let renewals = (beats * shape.members) as f64;
    let cpu = (server.cpu_ns()? - cpu) as f64 / 1000.0 / renewals;
    samples.add(figure("configuration", system, shape, configuration), cpu);
    if configuration.has_aof || configuration.has_replica {
        let bytes = (propagated(&mut server, configuration)? - bytes) / renewals;
        samples.add(figure("propagated", system, shape, configuration), bytes);
    }
    Ok(())
}

/// Bytes that the server has sent to its replica, or else written to its AOF.
fn propagated(server: &mut Server, configuration: &Configuration) -> Result<f64> {
    let (section, field) = match configuration.has_replica {
        true => ("replication", "master_repl_offset"),
        false if configuration.has_aof => ("persistence", "aof_current_size"),
        false => return Ok(0.0),
    };
    Ok(server.info(section, field)?.parse()?)
}

/// A replica that has all data, on another core than its primary.
pub fn replica_of(options: &Options, primary: &mut Server) -> Result<Server> {
    let elsewhere = Options { server_core: None, ..options.clone() };
    let mut replica = Server::start(&elsewhere, &[])?;
    replica.client.call(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()])?;
    let end = Instant::now() + LINK_WITHIN;
    while replica.info("replication", "master_link_status")? != "up" {
        if Instant::now() > end {
            return Err("the replica does not get its data".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(replica)
}
