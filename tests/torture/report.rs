//! What a run prints: a line for each round, and of a failure what is needed to understand it.

use crate::checker::Wrong;
use crate::generator::Plan;
use crate::harness::{Dump, module_path, server_path};
use crate::history::{Heard, Loss, Round};
use std::fmt::Write;
use std::time::Duration;

const SHOWN: usize = 8;
const LAST_OPS: usize = 12;

pub fn summary(plan: &Plan, round: &Round, took: Duration) -> String {
    let streams: std::collections::BTreeSet<_> = round.eras.iter().map(|era| era.stream).collect();
    let heard: usize = streams
        .iter()
        .map(|s| {
            round.streams[*s].heard.iter().filter(|h| matches!(h, Heard::Event { .. })).count()
        })
        .sum();
    let lossy = round.eras.iter().filter(|era| era.loss == Loss::Tail).count();
    format!(
        "round {}: {:?}, grace {} ms, aof {}; {} commands, {} events, {} faults, {} changes of who decides ({} by \
         promotion), {} full syncs, {} glimpses, {} comparisons, followers {:?}, {:.1} s",
        plan.round,
        plan.topology,
        plan.grace,
        plan.aof,
        round.ops.len(),
        heard,
        round.faults.len(),
        round.eras.len().saturating_sub(1),
        lossy,
        round.full_syncs.len(),
        round.glimpses.len(),
        round.digests.len(),
        round.followed,
        took.as_secs_f64()
    )
}

/// What was wrong, in short, and how to repeat it. The rest is in a file whose path is part of the text.
pub fn failure(plan: &Plan, round: &Round, wrong: &[Wrong]) -> String {
    let mut dump = Dump::new();
    dump.add("torture", &details(plan, round, wrong));
    let mut out = format!("{} things were wrong in round {}\n\n", wrong.len(), plan.round);
    for wrong in wrong.iter().take(2) {
        let _ = writeln!(out, "* {}: {}\n", wrong.rule, cut(&wrong.text, 500));
    }
    let _ = write!(
        out,
        "what led to it: {}\n\n{} with {}\n\nthe same clients and faults again (when exactly each happens is up to the machine):\n  make torture SEED={} ROUND={}",
        dump.write(),
        server_path().display(),
        module_path().display(),
        plan.seed,
        plan.round
    );
    out
}

/// What was wrong, and for the first of it what led to it.
fn details(plan: &Plan, round: &Round, wrong: &[Wrong]) -> String {
    let mut out = format!("{} things were wrong in round {}\n\n", wrong.len(), plan.round);
    let w = &mut out;
    for wrong in wrong.iter().take(SHOWN) {
        let _ = writeln!(w, "* {}: {}\n", wrong.rule, cut(&wrong.text, 1500));
    }
    let first = &wrong[0];
    if !first.user.is_empty() {
        let _ = writeln!(
            w,
            "the last commands about {} in {}, up to then and a few more:",
            first.user, first.space
        );
        let ops: Vec<_> = round
            .ops
            .iter()
            .filter(|op| op.space == first.space)
            .filter(|op| op.who.is_empty() || op.who.iter().any(|who| who.0 == first.user))
            .collect();
        let then = ops.iter().filter(|op| op.sent <= first.at).count();
        for op in &ops[then.saturating_sub(LAST_OPS)..(then + 3).min(ops.len())] {
            let _ = writeln!(
                w,
                "  {}..{:?} era {} {:?} {:?} -> {:?}",
                op.sent, op.received, op.era, op.who, op.what, op.reply
            );
        }
        for (number, stream) in round.streams.iter().enumerate() {
            let events: Vec<_> = stream
                .heard
                .iter()
                .filter_map(|heard| match heard {
                    Heard::Event { arrived, event } => Some((arrived, event)),
                    _ => None,
                })
                .filter(|(_, event)| event.space == first.space && event.who.0 == first.user)
                .collect();
            let then = events.iter().filter(|(_, event)| event.at <= first.at).count();
            let near = &events[then.saturating_sub(6)..(then + 2).min(events.len())];
            if !near.is_empty() {
                let _ = writeln!(w, "heard of it in stream {number}, node {}:", stream.node);
            }
            for (arrived, event) in near {
                let _ = writeln!(w, "  {arrived} {}", event.raw);
            }
        }
    }
    let _ = writeln!(w, "faults:");
    for (at, fault) in &round.faults {
        let _ = writeln!(w, "  {at} {fault}");
    }
    let _ = writeln!(w, "who decided:");
    for era in &round.eras {
        let _ = writeln!(
            w,
            "  {:?}..{} node {} {} {:?}",
            era.began, era.ended, era.decider, era.how, era.loss
        );
    }
    let _ = writeln!(w, "full synchronisations: {:?}", round.full_syncs);
    out
}

fn cut(text: &str, length: usize) -> String {
    match text.char_indices().nth(length) {
        Some((at, _)) => format!("{} …", &text[..at]),
        None => text.to_string(),
    }
}
