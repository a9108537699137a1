//! The results as files of the repository: docs/benchmarks.md and a chart, docs/benchmarks.svg.

use crate::calls::{SHAPES, figure};
use crate::contenders::{HEARTBEATS, System};
use crate::report::{Table, number};
use crate::samples::Samples;
use crate::{Options, Result};
use std::fmt::Write;
use std::path::Path;

/// What the results were made on.
pub struct About {
    /// Engine and version.
    pub engine: String,
    /// The commit, with a mark where there were changes besides.
    pub commit: String,
    pub date: String,
    pub machine: String,
    pub command: String,
}

impl About {
    pub fn gather(options: &Options, engine: String) -> About {
        let run = |program: &str, args: &[&str]| {
            let output = std::process::Command::new(program).args(args).output().ok()?;
            let text = String::from_utf8(output.stdout).ok()?;
            Some(text.trim().to_string()).filter(|text| !text.is_empty())
        };
        let unknown = || "unknown".to_string();
        About {
            engine,
            commit: run("git", &["describe", "--always", "--dirty", "--tags"])
                .unwrap_or_else(unknown),
            date: run("date", &["-u", "+%Y-%m-%d %H:%M UTC"]).unwrap_or_else(unknown),
            machine: machine(options.cores).unwrap_or_else(unknown),
            command: options.command(),
        }
    }

    pub fn lines(&self) -> Vec<(&'static str, &str)> {
        vec![
            ("command", &self.command),
            ("engine", &self.engine),
            ("machine", &self.machine),
            ("date", &self.date),
            ("commit", &self.commit),
        ]
    }
}

fn machine(cores: usize) -> Option<String> {
    let field = |text: &str, name: &str| -> Option<String> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split(':').nth(1)?.trim().to_string())
    };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: f64 = field(&memory, "MemTotal")?.split(' ').next()?.parse().ok()?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    Some(format!(
        "{}, {} cores, {:.0} GiB, Linux {}",
        field(&cpu, "model name")?,
        cores,
        kib / 1024.0 / 1024.0,
        release.trim()
    ))
}

pub fn write(dir: &Path, about: &About, tables: &[Table], samples: &Samples) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut text = String::from(
        "# Benchmarks\n\n\
         Written by `make bench`; [benches/README.md](../benches/README.md) says what is measured, and \
         how.\nAbsolute figures are those of this machine in that hour: what counts are the ratios, of \
         things\nmeasured side by side.\n\n| | |\n|---|---|\n",
    );
    for (name, value) in about.lines() {
        writeln!(text, "| {name} | {value} |")?;
    }
    text += "\n";
    let chart = chart(samples);
    if let Some(svg) = &chart {
        std::fs::write(dir.join("benchmarks.svg"), svg)?;
        text += "![Processor time of the server a heartbeat](benchmarks.svg)\n\n";
    }
    for table in tables {
        text += &table.markdown();
    }
    std::fs::write(dir.join("benchmarks.md"), text.trim_end().to_string() + "\n")?;
    eprintln!("bench: {}", dir.join("benchmarks.md").display());
    Ok(())
}

const WIDTH: f64 = 760.0;
const LABELS: f64 = 260.0;
const VALUES: f64 = 60.0;
const BAR: f64 = 18.0;
const STEP: f64 = 26.0;
const TOP: f64 = 64.0;

/// A heartbeat in each system, one space of 100k: bars, the shortest is the cheapest.
fn chart(samples: &Samples) -> Option<String> {
    let shape = &SHAPES[0];
    let mut bars: Vec<(System, f64)> = HEARTBEATS
        .iter()
        .filter_map(|system| Some((*system, samples.get(&figure("renewal", *system, shape))?)))
        .collect();
    bars.sort_by(|a, b| a.1.total_cmp(&b.1));
    let longest = bars.last()?.1;
    let height = TOP + STEP * bars.len() as f64 + 12.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"Processor time of the server a heartbeat\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"26\" font-size=\"16\" font-weight=\"bold\" fill=\"#1b1f24\">What a heartbeat \
         costs the server</text>\n<text x=\"16\" y=\"46\" fill=\"#57606a\">microseconds of processor \
         time, {}, pipelines of 64; shorter is better</text>\n",
        shape.name
    );
    for (at, (system, value)) in bars.iter().enumerate() {
        let y = TOP + STEP * at as f64;
        let length = (value / longest * (WIDTH - LABELS - VALUES - 16.0)).max(1.0);
        let (fill, weight) = match system {
            System::Presence => ("#1a7f37", "bold"),
            System::Baseline | System::Opener => ("#8c959f", "normal"),
            _ => ("#6e9fd4", "normal"),
        };
        let base = y + BAR - 5.0;
        svg += &format!(
            "<text x=\"{:.0}\" y=\"{base:.0}\" text-anchor=\"end\" font-weight=\"{weight}\" \
             fill=\"#1b1f24\">{}</text>\n\
             <rect x=\"{LABELS:.0}\" y=\"{y:.0}\" width=\"{length:.1}\" height=\"{BAR:.0}\" rx=\"2\" \
             fill=\"{fill}\"/>\n\
             <text x=\"{:.1}\" y=\"{base:.0}\" font-weight=\"{weight}\" fill=\"#1b1f24\">{}</text>\n",
            LABELS - 8.0,
            system.label(),
            LABELS + length + 6.0,
            number(*value)
        );
    }
    Some(svg + "</svg>\n")
}
