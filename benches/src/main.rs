//! What presence costs: this module beside a command that does nothing, beside plain commands, and
//! beside how others do it, on one server in one run. README.md in this folder says what is measured
//! and how to read it.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic stops the benchmark and names the line"
)]

mod calls;
mod configurations;
mod contenders;
mod dataset;
mod docs;
mod expiry;
mod growth;
mod load;
mod memory;
mod owners;
mod persistence;
mod reads;
mod report;
mod resp;
mod rounds;
mod samples;
mod scripts;
mod server;
mod targets;

use samples::Samples;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Clone)]
pub struct Options {
    pub server: PathBuf,
    pub module: PathBuf,
    pub baseline: PathBuf,
    pub quick: bool,
    /// Names of the groups to run; empty: all.
    only: Vec<String>,
    pub rounds: usize,
    /// How long one job runs at a time.
    pub slice: Duration,
    /// Of a million renewals each.
    pub minutes: usize,
    pub cores: usize,
    pub server_core: Option<usize>,
    /// The commands that the server has, of those that not every server has.
    known: Vec<&'static str>,
    /// The repository's docs, where the results are to be written there.
    docs: Option<PathBuf>,
}

impl Options {
    fn read() -> Result<Options> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let quick = std::env::args().any(|arg| arg == "--quick");
        let here = std::env::current_exe()?;
        let here = here.parent().ok_or("no folder")?;
        let absolute =
            |path: PathBuf| path.canonicalize().map_err(|e| format!("{}: {e}", path.display()));
        let server = variable("SERVER").ok_or("SERVER names no server: run me by `make bench`")?;
        let module = variable("PRESENCE_MODULE").map_or(here.join("presence.so"), PathBuf::from);
        let rounds = variable("ROUNDS").map(|text| text.parse()).transpose()?;
        let minutes = variable("MINUTES").map(|text| text.parse()).transpose()?;
        let cores = server::cores();
        let server_core = (cores.len() > 1).then(|| cores[cores.len() - 1]);
        if server_core.is_some() {
            server::pin(cores[0]);
        }
        // Not half of the results over all of them, unless that is asked for.
        let whole = !quick && variable("ONLY").is_none();
        let write_docs = whole || variable("DOCS").is_some();
        let options = Options {
            // Not canonical: a server may look at its own name.
            server: std::path::absolute(server)?,
            module: absolute(module)?,
            baseline: absolute(here.join("libpresence_baseline.so"))?,
            quick,
            only: variable("ONLY")
                .map(|list| list.split(',').map(|name| name.trim().to_string()).collect())
                .unwrap_or_default(),
            rounds: rounds.unwrap_or(if quick { 5 } else { 15 }),
            slice: Duration::from_millis(if quick { 50 } else { 200 }),
            minutes: minutes.unwrap_or(10),
            cores: cores.len(),
            server_core,
            known: Vec::new(),
            docs: variable("DOCS_DIR").map(PathBuf::from).filter(|_| write_docs),
        };
        if options.rounds == 0 {
            return Err("ROUNDS is 0".into());
        }
        for name in &options.only {
            if !GROUPS.iter().any(|(group, _, _)| group == name) {
                let names: Vec<&str> = GROUPS.iter().map(|(group, _, _)| *group).collect();
                return Err(format!("ONLY: no {name}; there are {}", names.join(", ")).into());
            }
        }
        Ok(options)
    }

    /// Whether the server has a command of [`OPTIONAL_COMMANDS`].
    pub fn knows(&self, command: &str) -> bool {
        self.known.contains(&command)
    }

    /// How this run was asked for.
    pub fn command(&self) -> String {
        let mut text = String::from(if self.quick { "make bench-quick" } else { "make bench" });
        for name in ["ONLY", "ROUNDS", "MINUTES"] {
            if let Some(value) = std::env::var(name).ok().filter(|value| !value.is_empty()) {
                text += &format!(" {name}={value}");
            }
        }
        text
    }

    fn wants(&self, group: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == group)
    }
}

type Group = fn(&Options, &mut Samples) -> Result<()>;

/// What can be chosen by ONLY.
const GROUPS: &[(&str, &str, Group)] = &[
    ("renewal", "heartbeats of everybody's kind", calls::renewal),
    ("configurations", "heartbeats with an AOF and a replica", configurations::configurations),
    ("owners", "a hundred thousand sessions kept alive by ten owners", owners::owners),
    ("join", "joins and leaves", calls::join),
    ("status", "the status of 500 users", reads::status),
    ("space", "everybody in a space of 100k", reads::space),
    ("growth", "sizes and numbers of spaces", growth::growth),
    ("memory", "bytes a session and a space", memory::memory),
    ("rdb", "saving and loading", persistence::persistence),
    ("lapse", "leases that end evenly", expiry::lapse),
    ("crowd", "a crowd whose leases end at once", expiry::crowd),
    ("heartbeats", "memory under a million renewals a minute", expiry::heartbeats),
];

/// Commands of contenders that not every server has.
const OPTIONAL_COMMANDS: [&str; 1] = ["HSETEX"];

/// Which of the optional commands the server has.
fn known_commands(options: &Options) -> Result<Vec<&'static str>> {
    let mut server = server::Server::start(options, &[])?;
    let mut known = Vec::new();
    for command in OPTIONAL_COMMANDS {
        // A wrong number of arguments is an error too, but another one.
        let error = server.client.call(&[command]).err().map(|error| error.to_string());
        if error.is_none_or(|error| !error.contains("unknown command")) {
            known.push(command);
        }
    }
    Ok(known)
}

/// The server's own words for what it is.
fn engine(options: &Options) -> Result<String> {
    let mut server = server::Server::start(options, &[])?;
    let allocator = server.info("memory", "mem_allocator")?;
    let (name, version) = match server.info("server", "valkey_version") {
        Ok(version) => ("Valkey", version),
        Err(_) => ("Redis", server.info("server", "redis_version")?),
    };
    Ok(format!("{name} {version}, {allocator}"))
}

fn run() -> Result<()> {
    let mut options = Options::read()?;
    server::tidy_up()?;
    options.known = known_commands(&options)?;
    let mut samples = Samples::default();
    let start = Instant::now();
    for (name, about, group) in GROUPS {
        // A minute is too long for a quick run, unless it is asked for.
        let too_long = options.quick && *name == "heartbeats" && options.only.is_empty();
        if options.wants(name) && !too_long {
            eprintln!("{:>6.1} s  {name}: {about}", start.elapsed().as_secs_f64());
            group(&options, &mut samples).map_err(|e| format!("{name}: {e}"))?;
        }
    }
    eprintln!("{:>6.1} s  done", start.elapsed().as_secs_f64());
    let engine = engine(&options)?;
    let about = docs::About::gather(&options, engine);
    for (name, value) in about.lines() {
        println!("{name:<8} {value}");
    }
    let tables = report::tables(&samples);
    for table in &tables {
        print!("{}", table.plain());
    }
    match &options.docs {
        Some(dir) => docs::write(dir, &about, &tables, &samples),
        None => Ok(()),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
