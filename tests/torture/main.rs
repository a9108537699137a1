//! The torture test: random clients and random faults against real servers, and a checker of everything that was heard.
//!
//! A run is a row of rounds. Each starts servers of its own, lets clients loose on them while faults happen, waits until
//! everybody has lapsed, and hands what was recorded to the checker; so its memory is bounded however long the run.
//!
//! - `generator` what is done in a round: a pure function of the seed and the number of the round
//! - `clients`  what clients do, and the reader
//! - `followers` at each node one who believes what it hears and is told, and must not be misled
//! - `nodes`    servers, who replicates whom, recorders of what is published
//! - `proxy`    the network between primaries and replicas, which can be cut
//! - `nemesis`  faults as they are done, and the round as a whole
//! - `history`  what is recorded
//! - `checker`  is what was recorded right? A pure function; `checker_test` shows it each kind of fault
//! - `report`   what a failure prints
//!
//! `PRESENCE_TORTURE_SECONDS` is the length of the run (30), `PRESENCE_SEED` its seed (another one in each run),
//! `PRESENCE_TORTURE_ROUND` the round that it begins with (0).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic fails the test and names the line"
)]

#[allow(dead_code)]
#[path = "../integration/harness.rs"]
mod harness;

mod checker;
#[cfg(test)]
mod checker_test;
mod clients;
mod followers;
mod generator;
mod history;
mod nemesis;
mod nodes;
mod report;

use std::time::{Duration, Instant};

/// What a round takes beside its plan: servers start, everybody lapses.
const AROUND: Duration = Duration::from_secs(5);

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[test]
fn nothing_is_lost_doubled_early_or_late() {
    let seconds = number("PRESENCE_TORTURE_SECONDS").unwrap_or(30);
    let seed = number("PRESENCE_SEED").unwrap_or_else(|| harness::now_ms() as u64 % 1_000_000_000);
    println!("torture: seed {seed}, {seconds} s, {}", harness::server_path().display());
    let end = Instant::now() + Duration::from_secs(seconds);
    let first = number("PRESENCE_TORTURE_ROUND").unwrap_or(0);
    for number in first.. {
        let left = end.saturating_duration_since(Instant::now());
        if number > first && left < AROUND {
            break;
        }
        let length = left.saturating_sub(AROUND).clamp(Duration::from_secs(5), generator::LONGEST);
        let plan = generator::Plan::new(seed, number);
        let began = Instant::now();
        let round = nemesis::play(&plan, length);
        let wrong = checker::check(&round);
        println!("{}", report::summary(&plan, &round, began.elapsed()));
        assert!(wrong.is_empty(), "{}", report::failure(&plan, &round, &wrong));
    }
}
