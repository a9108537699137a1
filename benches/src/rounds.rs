//! Jobs measured side by side: a slice of each, then again a slice of each, for some rounds.

use crate::load::{Calls, Load, Run, Until};
use crate::samples::{Samples, percentile};
use crate::server::Server;
use crate::{Options, Result};
use std::time::Duration;

/// Something to measure, under the name that its figures get:
///
/// | figure | |
/// |---|---|
/// | `name` | processor time of the server a call, us |
/// | `name usec` | of it what INFO commandstats says, us |
/// | `name rate` | calls a second, pipelined |
/// | `name one` | processor time a call where calls come one by one, us |
/// | `name one rate` | calls a second, one by one |
/// | `name p50`, `p99`, `p99.9` | time to the reply, one by one, us |
pub struct Job {
    pub name: String,
    pub calls: Calls,
    /// Undoes what the calls did, under its own name; then a slice is the whole ring.
    pub undo: Option<(String, Calls)>,
    /// Whether calls are also made one by one.
    pub one_by_one: bool,
    latencies: Vec<u32>,
    /// How many calls take about the time of a slice; found by trying.
    count: usize,
}

impl Job {
    pub fn new(name: impl Into<String>, calls: Calls) -> Job {
        Job {
            name: name.into(),
            calls,
            undo: None,
            one_by_one: false,
            latencies: Vec::new(),
            count: 0,
        }
    }

    pub fn one_by_one(mut self) -> Job {
        self.one_by_one = true;
        self
    }

    pub fn undone_by(mut self, name: impl Into<String>, calls: Calls) -> Job {
        self.undo = Some((name.into(), calls));
        self
    }
}

/// All jobs, round after round, each time beginning with another one.
pub fn measure(
    options: &Options,
    server: &mut Server,
    jobs: &mut [Job],
    samples: &mut Samples,
) -> Result<()> {
    let mut load = Load::connect(server)?;
    for job in &mut *jobs {
        warm_up(server, &mut load, job, options.slice)?;
    }
    let count = jobs.len();
    for round in 0..options.rounds {
        for at in 0..count {
            slice(server, &mut load, &mut jobs[(round + at) % count], options.slice, samples)?;
        }
    }
    for job in jobs {
        job.latencies.sort_unstable();
        if !job.latencies.is_empty() {
            for (name, part) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
                let value = percentile(&job.latencies, part) / 1000.0;
                samples.add(format!("{} {name}", job.name), value);
            }
        }
    }
    Ok(())
}

/// Not all that runs here is ours: a slice is as many calls as need so much processor time, and not
/// what a busy machine happens to let through meanwhile, unless that takes very long.
fn warm_up(server: &mut Server, load: &mut Load, job: &mut Job, time: Duration) -> Result<()> {
    slice(server, load, job, time / 4, &mut Samples::default())?;
    job.latencies.clear();
    if job.undo.is_none() {
        let until = Until::Time(time / 4);
        let (_, cpu) = timed(server, || load.pipelined(&mut job.calls, until))?;
        job.count = ((time.as_micros() as f64 / cpu) as usize).max(1);
    }
    Ok(())
}

fn slice(
    server: &mut Server,
    load: &mut Load,
    job: &mut Job,
    time: Duration,
    samples: &mut Samples,
) -> Result<()> {
    let name = &job.name;
    let calls = &mut job.calls;
    let of = |e: Box<dyn std::error::Error>| format!("{name}: {e}");
    if let Some((undo_name, undo)) = &mut job.undo {
        watched(server, name, calls.commands, samples, || load.all(calls)).map_err(of)?;
        watched(server, undo_name, undo.commands, samples, || load.all(undo)).map_err(of)?;
        return Ok(());
    }
    let until = match job.count {
        0 => Until::Time(time),
        count => Until::Either(count, time * 8),
    };
    watched(server, name, calls.commands, samples, || load.pipelined(calls, until)).map_err(of)?;
    if job.one_by_one {
        let until = Until::Time(time / 2);
        let (run, cpu) = timed(server, || load.one_by_one(calls, until)).map_err(of)?;
        samples.add(format!("{name} one"), cpu);
        samples.add(format!("{name} one rate"), run.calls as f64 / run.wall.as_secs_f64());
        job.latencies.extend(run.latencies);
    }
    Ok(())
}

fn watched(
    server: &mut Server,
    name: &str,
    commands: &[&str],
    samples: &mut Samples,
    run: impl FnMut() -> Result<Run>,
) -> Result<()> {
    server.client.call(&["CONFIG", "RESETSTAT"])?;
    let (run, cpu) = timed(server, run)?;
    samples.add(name, cpu);
    samples.add(format!("{name} usec"), server.usec_in(commands)? / run.calls as f64);
    samples.add(format!("{name} rate"), run.calls as f64 / run.wall.as_secs_f64());
    Ok(())
}

/// A run, and the server's processor time a call in microseconds.
fn timed(server: &Server, mut run: impl FnMut() -> Result<Run>) -> Result<(Run, f64)> {
    settle();
    let before = server.cpu_ns()?;
    let run = run()?;
    settle();
    let cpu = server.cpu_ns()? - before;
    let a_call = cpu as f64 / 1000.0 / run.calls as f64;
    Ok((run, a_call))
}

/// The kernel adds up a thread's time when the thread goes to sleep: let it.
fn settle() {
    std::thread::sleep(Duration::from_millis(1));
}
