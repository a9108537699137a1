//! How costs grow with sessions and with spaces: all sizes on one server, side by side.

use crate::calls::{figure, filled};
use crate::contenders::System;
use crate::dataset::Shape;
use crate::load::{Calls, Load};
use crate::reads::PAGE;
use crate::resp::Expect;
use crate::rounds::{Job, measure};
use crate::samples::Samples;
use crate::{Options, Result};

const fn shape(name: &'static str, prefix: &'static str, spaces: usize, members: usize) -> Shape {
    Shape { name, prefix, spaces, members, meta: true }
}

/// No space without a session: so not 100k spaces of 1k sessions.
pub const SIZES: [Shape; 10] = [
    shape("1k in 1 space", "a", 1, 1_000),
    shape("10k in 1 space", "b", 1, 10_000),
    shape("100k in 1 space", "c", 1, 100_000),
    shape("1M in 1 space", "d", 1, 1_000_000),
    shape("1k in 1k spaces", "e", 1_000, 1_000),
    shape("10k in 1k spaces", "f", 1_000, 10_000),
    shape("100k in 1k spaces", "g", 1_000, 100_000),
    shape("1M in 1k spaces", "h", 1_000, 1_000_000),
    shape("100k in 100k spaces", "i", 100_000, 100_000),
    shape("1M in 100k spaces", "j", 100_000, 1_000_000),
];
/// What a quick run looks at: the smallest, the largest, and many spaces.
const QUICK: [usize; 4] = [0, 2, 3, 8];

pub fn growth(options: &Options, samples: &mut Samples) -> Result<()> {
    let sizes: Vec<Shape> =
        if options.quick { QUICK.iter().map(|at| SIZES[*at]).collect() } else { SIZES.to_vec() };
    let (mut server, sha) = filled(options, &sizes[0], &[System::Presence])?;
    let mut load = Load::connect(&server)?;
    let mut jobs = Vec::new();
    for size in &sizes {
        if size.prefix != sizes[0].prefix {
            for part in parts(size.members) {
                load.all(&mut System::Presence.joins(size, part, &sha))?;
            }
        }
        let name = |what: &str| figure(what, System::Presence, size);
        jobs.push(Job::new(name("renewal"), System::Presence.heartbeats(size, &sha)));
        jobs.push(Job::new(name("count"), counts(size)));
        jobs.push(Job::new(name("page"), first_pages(size)));
        let new = size.members..size.members + if options.quick { 500 } else { 2000 };
        let (joins, leaves) = (
            System::Presence.joins(size, new.clone(), &sha),
            System::Presence.leaves(size, new, &sha),
        );
        jobs.push(Job::new(name("join"), joins).undone_by(name("leave"), leaves));
    }
    jobs.push(Job::new("count.baseline", asks("BENCHMARK.BASELINE", &["benchmark.baseline"], 0)));
    jobs.push(Job::new("count.reader", asks("BENCHMARK.READS", &["benchmark.reads"], 1000)));
    let options = Options { slice: options.slice / 4, ..options.clone() };
    measure(&options, &mut server, &mut jobs, samples)
}

/// Members in parts, so that not all requests are in memory at once.
pub fn parts(members: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    const PART: usize = 100_000;
    (0..members).step_by(PART).map(move |from| from..(from + PART).min(members))
}

fn counts(size: &Shape) -> Calls {
    let each = (size.members / size.spaces) as i64;
    let mut calls = Calls::new(0, vec![Expect::int(each)], &["presence.count"]);
    // A thousand requests at least, so that all connections have work.
    for at in 0..size.spaces.clamp(1000, 20_000) {
        calls.request(&[b"PRESENCE.COUNT", size.space_of(at).as_bytes()]).end();
    }
    calls
}

/// A command of a baseline, with the arguments of COUNT.
fn asks(command: &str, names: &'static [&'static str], reply: i64) -> Calls {
    let mut calls = Calls::new(0, vec![Expect::int(reply)], names);
    for at in 0..1000 {
        calls.request(&[command.as_bytes(), SIZES[0].space_of(at).as_bytes()]).end();
    }
    calls
}

fn first_pages(size: &Shape) -> Calls {
    let mut calls = Calls::new(0, vec![Expect::array(10)], &["presence.space"]);
    calls.pipeline = 4;
    let count = PAGE.to_string();
    for at in 0..size.spaces.clamp(32, 1000) {
        let space = size.space_of(at);
        calls.request(&[
            b"PRESENCE.SPACE",
            space.as_bytes(),
            b"WITHSESSIONS",
            b"COUNT",
            count.as_bytes(),
        ]);
        calls.end();
    }
    calls
}
