//! What was measured: the tables.

use crate::calls::{LIST, LISTS, SHAPES, figure};
use crate::configurations::{self, CONFIGURATIONS};
use crate::contenders::{HEARTBEATS, JOINS, System};
use crate::dataset::Shape;
use crate::growth::SIZES;
use crate::memory::{MANY, SESSIONS, SPACES};
use crate::samples::Samples;
use crate::targets::TARGETS;

/// A table: the first column is text, the others are set to the right.
pub struct Table {
    pub title: String,
    /// How to read it.
    pub note: &'static str,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(title: impl Into<String>, note: &'static str, head: &[&str]) -> Table {
        let head = head.iter().map(|text| text.to_string()).collect();
        Table { title: title.into(), note, head, rows: Vec::new() }
    }

    /// A row, unless there is nothing in it.
    fn row(&mut self, label: impl Into<String>, cells: &[Option<f64>]) {
        if cells.iter().any(Option::is_some) {
            let cells = cells.iter().map(|value| value.map(number).unwrap_or_default());
            self.rows.push([label.into()].into_iter().chain(cells).collect());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// For a terminal.
    pub fn plain(&self) -> String {
        let widths: Vec<usize> = (0..self.head.len()).map(|column| self.width(column)).collect();
        let line = |row: &Vec<String>| {
            let cells =
                row.iter().zip(&widths).enumerate().map(|(column, (text, width))| match column {
                    0 => format!("{text:<width$}"),
                    _ => format!("{text:>width$}"),
                });
            format!("  {}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
        };
        let rule: usize = widths.iter().sum::<usize>() + 2 * (widths.len() - 1);
        let mut text = format!("\n{}\n\n{}  {}\n", self.title, line(&self.head), "-".repeat(rule));
        text.extend(self.rows.iter().map(line));
        text
    }

    fn width(&self, column: usize) -> usize {
        let rows = self.rows.iter().chain([&self.head]);
        rows.filter_map(|row| row.get(column)).map(|text| text.chars().count()).max().unwrap_or(0)
    }

    pub fn markdown(&self) -> String {
        let line = |row: &Vec<String>| format!("| {} |\n", row.join(" | "));
        let mut text = format!("## {}\n\n", self.title);
        if !self.note.is_empty() {
            text += &format!("{}\n\n", self.note);
        }
        text += &line(&self.head);
        text += &format!("|---|{}\n", "---:|".repeat(self.head.len() - 1));
        text.extend(self.rows.iter().map(line));
        text + "\n"
    }
}

/// A number with as many digits as mean something.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => thousands(value.round() as i64),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn thousands(value: i64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) && digit != '-' {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// All tables that have something in them.
pub fn tables(samples: &Samples) -> Vec<Table> {
    let mut tables = vec![targets(samples)];
    tables.extend(configurations::SHAPES.iter().map(|shape| configured(samples, shape)));
    tables.push(owners(samples));
    for shape in SHAPES.iter().map(|shape| shape.name) {
        tables.push(heartbeats(samples, shape));
        tables.push(joins(samples, shape));
    }
    tables.extend([
        server(samples),
        reads(samples),
        growth(samples),
        sessions(samples),
        spaces(samples),
    ]);
    tables.extend([rdb(samples), lapse(samples), crowd(samples), steady(samples)]);
    tables.retain(|table| !table.is_empty());
    tables
}

/// A hundred thousand sessions kept alive.
fn owners(samples: &Samples) -> Table {
    let mut table = Table::new(
        "A hundred thousand sessions kept alive, with an AOF and a replica",
        "For ten seconds: each session is renewed every ten seconds, or each of ten owners every five. The processor \
         time of the server per second, and the bytes per second that reach the replica.",
        &["", "CPU ms/s", "bytes/s"],
    );
    for (way, label) in crate::owners::WAYS {
        let cells = ["cpu", "bytes"].map(|what| samples.get(&format!("owners.{way} {what}")));
        table.row(label, &cells);
    }
    table
}

/// Heartbeats in the configurations that people run.
fn configured(samples: &Samples, shape: &Shape) -> Table {
    let mut table = Table::new(
        format!("A heartbeat per second, by configuration, {}", shape.name),
        "CPU: processor time of the server per heartbeat. Bytes: what reaches the replica, or else the AOF, per \
         heartbeat. Leases last three heartbeats. The mean of all heartbeats of the job.",
        &["", "CPU µs", "× bare", "× SET … EX", "bytes"],
    );
    for system in configurations::SYSTEMS {
        for configuration in &CONFIGURATIONS {
            let cpu = |system, configuration| {
                samples.get(&configurations::figure("configuration", system, shape, configuration))
            };
            let ours = cpu(system, configuration);
            let times = |other: Option<f64>| Some(ours? / other?);
            let bytes = configurations::figure("propagated", system, shape, configuration);
            table.row(
                format!("{}, {}", system.label(), configuration.name),
                &[
                    ours,
                    times(cpu(system, &CONFIGURATIONS[0])),
                    times(cpu(System::SetEx, configuration)),
                    samples.get(&bytes),
                ],
            );
        }
    }
    table
}

fn targets(samples: &Samples) -> Table {
    let mut table = Table::new(
        "Targets",
        "A ratio is that of the server's processor time a call: the median of the rounds' ratios, \
         and where the middle half of them lies. Other figures are medians in the unit given. The rows \
         are named for a full run; a quick one takes less of RDB, spaces of two and leases, as their \
         tables below say, and so does not show that their marks are met.",
        &["", "against, or unit", "result", "middle half", "at most", ""],
    );
    let shapes: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
    for target in TARGETS {
        let forms = if target.ours.contains("{}") { &shapes[..] } else { &[""] };
        for form in forms {
            let ours = target.ours.replace("{}", form);
            let theirs = target.theirs.replace("{}", form);
            let ratio = samples.ratio(&ours, &theirs);
            let alone = samples.get(&ours).filter(|_| theirs.is_empty());
            let Some(result) = ratio.map(|ratio| ratio.median).or(alone) else { continue };
            let half = ratio.map(|ratio| format!("{}–{}", number(ratio.low), number(ratio.high)));
            let what =
                if form.is_empty() { target.what.into() } else { [target.what, form].join(", ") };
            table.rows.push(vec![
                what,
                target.against.into(),
                number(result),
                half.unwrap_or_default(),
                target.at_most.to_string(),
                if result <= target.at_most { "met" } else { "MISSED" }.into(),
            ]);
        }
    }
    table
}

fn named(what: &str, system: System, shape: &str) -> String {
    format!("{what}.{}.{shape}", system.name())
}

fn heartbeats(samples: &Samples, shape: &str) -> Table {
    let mut table = Table::new(
        format!("A heartbeat, {shape}"),
        "CPU: processor time of the server a call, in pipelines of 64. INFO: of it what the server \
         counts for the command itself. One by one: a call at a time over one connection, time to \
         the reply.",
        &[
            "",
            "CPU µs",
            "× baseline",
            "INFO µs",
            "calls/s",
            "one by one: CPU µs",
            "p50 µs",
            "p99 µs",
            "p99.9 µs",
        ],
    );
    let baseline = named("renewal", System::Baseline, shape);
    let mut row = |label: String, name: String, each: f64| {
        let get = |suffix: &str| samples.get(&format!("{name}{suffix}"));
        let cells = [
            get("").map(|cpu| cpu / each),
            samples.ratio(&name, &baseline).map(|ratio| ratio.median / each),
            get(" usec").map(|cpu| cpu / each),
            get(" rate").map(|rate| rate * each),
            get(" one"),
            get(" p50"),
            get(" p99"),
            get(" p99.9"),
        ];
        table.row(label, &cells);
    };
    for system in HEARTBEATS {
        row(system.label().into(), named("renewal", system, shape), 1.0);
    }
    for system in LISTS {
        let label = format!("{}, {LIST} a call, each", system.label());
        row(label, named("list", system, shape), LIST as f64);
    }
    table
}

fn joins(samples: &Samples, shape: &str) -> Table {
    let mut table = Table::new(
        format!("A join and a leave, {shape}"),
        "A new session beside those who are there, with metadata, and its end. All but \
         cihangir/presence and Longhouse publish it (for those the server's keyspace notifications, \
         which are off here, would); PRESENCE and Centrifugo map also keep it in their history.",
        &["", "join CPU µs", "× ours", "INFO µs", "leave CPU µs", "× ours", "INFO µs"],
    );
    for system in JOINS {
        let mut cells = Vec::new();
        for what in ["join", "leave"] {
            let (name, ours) = (named(what, system, shape), named(what, System::Presence, shape));
            cells.push(samples.get(&name));
            cells.push(samples.ratio(&name, &ours).map(|ratio| ratio.median));
            cells.push(samples.get(&format!("{name} usec")));
        }
        table.row(system.label(), &cells);
    }
    table
}

fn server(samples: &Samples) -> Table {
    let mut table = Table::new(
        "What is the server's",
        "Opens: a module command that opens its key, takes its value, asks the time, replicates itself \
         where it writes, and does nothing of its own: that much a heartbeat or COUNT asks the server for \
         whatever the module does. CPU µs, and ratios as above.",
        &["", "baseline", "opens", "ours", "opens / baseline", "ours / baseline", "ours / opens"],
    );
    let mut row = |label: String, [baseline, opens, ours]: [String; 3]| {
        let ratio = |a: &str, b: &str| samples.ratio(a, b).map(|ratio| ratio.median);
        let cells = [
            samples.get(&baseline),
            samples.get(&opens),
            samples.get(&ours),
            ratio(&opens, &baseline),
            ratio(&ours, &baseline),
            ratio(&ours, &opens),
        ];
        table.row(label, &cells);
    };
    for shape in SHAPES.iter().map(|shape| shape.name) {
        let systems = [System::Baseline, System::Opener, System::Presence];
        row(format!("a heartbeat, {shape}"), systems.map(|system| named("renewal", system, shape)));
    }
    let count = figure("count", System::Presence, &SIZES[0]);
    row(
        format!("COUNT, {}", SIZES[0].name),
        ["count.baseline".into(), "count.reader".into(), count],
    );
    table
}

fn reads(samples: &Samples) -> Table {
    let mut table = Table::new(
        "Reads, one space of 100k",
        "CPU includes the kernel's part in sending the reply. Longest: the longest page of all by the \
         server's slow log, of each page the quickest of some walks.",
        &["", "CPU µs", "INFO µs", "longest µs"],
    );
    for (label, name) in [
        ("PRESENCE.STATUS of 500 users", "status.presence"),
        ("ZMSCORE of 500", "status.zmscore"),
        ("PRESENCE.SPACE WITHSESSIONS", "space.presence"),
        ("HGETALL of session → user and metadata", "space.hgetall"),
        ("PRESENCE.SPACE WITHSESSIONS COUNT 1000", "space.page"),
    ] {
        let get = |suffix: &str| samples.get(&format!("{name}{suffix}"));
        table.row(label, &[get(""), get(" usec"), get(" longest")]);
    }
    table
}

fn growth(samples: &Samples) -> Table {
    let mut table = Table::new(
        "How it grows",
        "Processor time of the server a call, µs: all sizes on one server, side by side.",
        &["", "renewal", "COUNT", "join", "leave", "page of 1,000"],
    );
    for size in &SIZES {
        let get = |what: &str| samples.get(&figure(what, System::Presence, size));
        let cells = ["renewal", "count", "join", "leave", "page"].map(get);
        table.row(size.name, &cells);
    }
    table.row("(the baseline, arguments of COUNT)", &[None, samples.get("count.baseline")]);
    table
}

fn sessions(samples: &Samples) -> Table {
    let mut table = Table::new(
        "Memory of a session",
        "100,000 sessions in one space, one a user, 36-byte session, 10-byte user, 120 bytes of \
         metadata (ZADD keeps sessions alone, cihangir/presence and Longhouse no metadata): by how \
         much the server's used_memory grew, and its process.",
        &["", "bytes", "× ours", "process"],
    );
    for system in SESSIONS {
        memory_row(&mut table, samples, system, SHAPES[0].name);
    }
    table
}

fn spaces(samples: &Samples) -> Table {
    let mut table = Table::new(
        "Memory of a space of two",
        "A million spaces (a quick run: 20,000) with two users each, one 36-byte session each, no \
         metadata, history lapsed: bytes a space.",
        &["", "bytes", "× ours", "process"],
    );
    for system in SPACES {
        memory_row(&mut table, samples, system, MANY.name);
    }
    table
}

fn memory_row(table: &mut Table, samples: &Samples, system: System, shape: &str) {
    let name = named("memory", system, shape);
    let ours = named("memory", System::Presence, shape);
    let cells = [
        samples.get(&name),
        samples.ratio(&name, &ours).map(|ratio| ratio.median),
        samples.get(&named("memory rss", system, shape)),
    ];
    table.row(system.label(), &cells);
}

fn rdb(samples: &Samples) -> Table {
    let mut table = Table::new(
        "RDB of 1M sessions in 1,000 spaces",
        "A quick run: 100,000 in 100. Load: processor time of a start with the file, less that of \
         one without.",
        &["", "save CPU ms", "save ms", "load CPU ms", "file MB"],
    );
    for (label, name) in [("PRESENCE", "presence"), ("sorted set + hash", "plain")] {
        let cells =
            ["save", "save wall", "load", "rdb"].map(|what| samples.get(&format!("{what}.{name}")));
        table.row(label, &cells);
    }
    table
}

const EXPIRING: [(&str, &str); 4] = [
    ("PRESENCE", "presence"),
    ("PRESENCE, sessions of one owner", "owner"),
    ("keys with TTL, keyspace notifications", "keys"),
    ("hash fields with TTL, keyspace notifications", "fields"),
];

fn lapse(samples: &Samples) -> Table {
    let mut table = Table::new(
        "A million leases that end evenly, 20,000 a second",
        "A quick run: 40,000. How much later than its lease a subscriber heard of each end (and what \
         the event itself says), in ms; and how many it had heard of half a minute after the last. Stall: the longest that this machine \
         let a preferred thread on the server's core wait meanwhile; nothing can be better than that. \
         The notification of a hash does not say which of its fields have expired, whose session ended or \
         why, and has no id to catch up from: all of its fields that are due count as heard.",
        &["", "p50", "p99", "max", "event p50", "event p99", "event max", "heard %", "stall"],
    );
    for (label, name) in EXPIRING {
        let cells = ["p50", "p99", "max", "at p50", "at p99", "at max", "heard", "stall"]
            .map(|what| samples.get(&format!("lapse.{name} {what}")));
        table.row(label, &cells);
    }
    table
}

fn crowd(samples: &Samples) -> Table {
    let mut table = Table::new(
        "A quarter million leases that end at once",
        "A quick run: 50,000. How long until a subscriber had heard of all; meanwhile the waits of \
         another client that sends a PING each millisecond, and how much was kept of 20,000 \
         heartbeats a second of others. Quiet: the same client in the two seconds before.",
        &[
            "",
            "all ms",
            "PING p99.9 ms",
            "max ms",
            "quiet p99.9",
            "quiet max",
            "rate kept",
            "heard %",
            "stall ms",
        ],
    );
    for (label, name) in EXPIRING {
        let cells = [
            "all",
            "ping p99.9",
            "ping max",
            "ping p99.9 quiet",
            "ping max quiet",
            "rate kept",
            "heard",
            "stall",
        ]
        .map(|what| samples.get(&format!("crowd.{name} {what}")));
        table.row(label, &cells);
    }
    table
}

fn steady(samples: &Samples) -> Table {
    let mut table = Table::new(
        "Memory under a million renewals a minute",
        "200,000 sessions in 1,000 spaces, leases of a minute; used_memory at the end and at its \
         highest, beside the beginning.",
        &["", "minutes", "MB", "end, %", "most, %"],
    );
    let cells = ["minutes", "memory", "growth", "most"]
        .map(|what| samples.get(&format!("heartbeats {what}")));
    table.row("PRESENCE", &cells);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0.0123, 1.234, 12.34, 123.4, 1234.5, 1_234_567.0].map(number);
        assert_eq!(shown, ["0.012", "1.23", "12.3", "123", "1,235", "1,234,567"]);
    }
}
