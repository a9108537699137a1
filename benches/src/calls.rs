//! What a call costs: heartbeats, joins, reads.

use crate::contenders::{HEARTBEATS, JOINS, Shas, System, in_lists};
use crate::dataset::Shape;
use crate::load::Load;
use crate::rounds::{Job, measure};
use crate::samples::Samples;
use crate::server::Server;
use crate::{Options, Result};

/// The two ways in which a hundred thousand people are spread.
pub const SHAPES: [Shape; 2] = [
    Shape { name: "one space of 100k", prefix: "room", spaces: 1, members: 100_000, meta: true },
    Shape { name: "1,024 spaces", prefix: "room", spaces: 1024, members: 102_400, meta: true },
];
/// Sessions in a call with a list.
pub const LIST: usize = 100;

pub const LISTS: [System; 4] =
    [System::Baseline, System::Presence, System::SortedSet, System::SortedSetAny];

/// The name of a figure.
pub fn figure(what: &str, system: System, shape: &Shape) -> String {
    format!("{what}.{}.{}", system.name(), shape.name)
}

/// A server on which everybody of the shape is present in each of the systems.
pub fn filled(options: &Options, shape: &Shape, systems: &[System]) -> Result<(Server, Shas)> {
    let mut server = Server::start(options, &[])?;
    let sha = Shas::load(&mut server.client)?;
    let mut load = Load::connect(&server)?;
    for system in systems {
        if let Some(mut calls) = system.fill(shape, &sha) {
            load.all(&mut calls).map_err(|e| format!("{}: {e}", system.name()))?;
        }
    }
    Ok((server, sha))
}

/// One session a call, and a hundred a call.
pub fn renewal(options: &Options, samples: &mut Samples) -> Result<()> {
    for shape in &SHAPES {
        let systems: Vec<System> = HEARTBEATS
            .into_iter()
            .filter(|system| !options.quick || quick(*system, shape))
            .filter(|system| system.needs().is_none_or(|command| options.knows(command)))
            .collect();
        let (mut server, sha) = filled(options, shape, &systems)?;
        let mut jobs: Vec<Job> = systems
            .iter()
            .map(|system| {
                let calls = system.heartbeats(shape, &sha);
                let job = Job::new(figure("renewal", *system, shape), calls);
                if options.quick && shape.spaces > 1 { job } else { job.one_by_one() }
            })
            .collect();
        for system in LISTS {
            let calls = in_lists(system, shape, LIST);
            jobs.push(Job::new(figure("list", system, shape), calls));
        }
        measure(options, &mut server, &mut jobs, samples)?;
    }
    Ok(())
}

/// To whoever has a key for each session it is all one how many spaces there are: a quick run asks once.
fn quick(system: System, shape: &Shape) -> bool {
    use System::{Cihangir, HashEx, Longhouse};
    shape.spaces == 1 || !matches!(system, HashEx | Cihangir | Longhouse)
}

/// New members come and go, beside those who are there. It is published by those who publish.
pub fn join(options: &Options, samples: &mut Samples) -> Result<()> {
    for shape in &SHAPES {
        let systems: Vec<System> =
            JOINS.into_iter().filter(|system| !options.quick || quick(*system, shape)).collect();
        let (mut server, sha) = filled(options, shape, &systems)?;
        let count = if options.quick { 1000 } else { 4000 };
        let mut jobs: Vec<Job> = systems
            .iter()
            .map(|system| {
                // Each of Longhouse's joins looks at all keys.
                let count = if *system == System::Longhouse { 2 } else { count };
                let new = shape.members..shape.members + count;
                let joins = system.joins(shape, new.clone(), &sha);
                let leaves = system.leaves(shape, new, &sha);
                Job::new(figure("join", *system, shape), joins)
                    .undone_by(figure("leave", *system, shape), leaves)
            })
            .collect();
        measure(options, &mut server, &mut jobs, samples)?;
    }
    Ok(())
}
