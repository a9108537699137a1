//! What was measured, as tables.

use crate::calls::{figure, LIST, SHAPES};
use crate::figures::Figures;
use crate::systems::{System, HEARTBEATS, JOINS};
use crate::targets::TARGETS;
use crate::{Options, Result};

/// A table: the first column is text, the others are set to the right.
struct Table {
    title: String,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(title: impl Into<String>, head: &[&str]) -> Table {
        let head = head.iter().map(|text| text.to_string()).collect();
        Table { title: title.into(), head, rows: Vec::new() }
    }

    fn plain(&self) -> String {
        let width = |column: usize| {
            self.rows
                .iter()
                .chain([&self.head])
                .filter_map(|row| row.get(column))
                .map(|text| text.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells: Vec<String> = row
                .iter()
                .enumerate()
                .map(|(column, text)| {
                    let width = widths[column];
                    if column == 0 {
                        format!("{text:<width$}")
                    } else {
                        format!("{text:>width$}")
                    }
                })
                .collect();
            format!("  {}\n", cells.join("  ").trim_end())
        };
        let rule: usize = widths.iter().sum::<usize>() + 2 * (widths.len() - 1);
        let mut text = format!("\n{}\n\n{}  {}\n", self.title, line(&self.head), "-".repeat(rule));
        text.extend(self.rows.iter().map(line));
        text
    }
}

/// A number with as many digits as mean something.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 100.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn cell(value: Option<f64>) -> String {
    value.map(number).unwrap_or_default()
}

pub fn show(_options: &Options, figures: &Figures) -> Result<()> {
    let mut tables = call_tables(figures);
    tables.push(targets(figures));
    for table in tables.iter().filter(|table| !table.rows.is_empty()) {
        print!("{}", table.plain());
    }
    Ok(())
}

fn call_tables(figures: &Figures) -> Vec<Table> {
    let mut tables = Vec::new();
    for shape in &SHAPES {
        let head = [
            "",
            "CPU us",
            "x floor",
            "INFO us",
            "calls/s",
            "1: CPU us",
            "1: p50 us",
            "1: p99",
            "1: p99.9",
        ];
        let mut table = Table::new(format!("A heartbeat, {}", shape.name), &head);
        for system in HEARTBEATS {
            let name = figure("renewal", system, shape);
            let floor = figure("renewal", System::Floor, shape);
            if figures.has(&name) {
                row(&mut table, figures, system.label(), &name, &floor, 1.0);
            }
        }
        for system in [System::Floor, System::Presence, System::SortedSet] {
            let name = figure("list", system, shape);
            let floor = figure("renewal", System::Floor, shape);
            if figures.has(&name) {
                let label = format!("{}, {LIST} a call, each", system.label());
                row(&mut table, figures, &label, &name, &floor, LIST as f64);
            }
        }
        tables.push(table);
        let head = ["", "join CPU us", "x ours", "INFO us", "leave CPU us", "x ours"];
        let mut table = Table::new(format!("A join and a leave, {}", shape.name), &head);
        for system in JOINS {
            let (join, leave) = (figure("join", system, shape), figure("leave", system, shape));
            let beside = |name: &str, what: &str| {
                let ours = figure(what, System::Presence, shape);
                cell(figures.ratio(name, &ours).map(|ratio| ratio.median))
            };
            if figures.has(&join) {
                table.rows.push(vec![
                    system.label().into(),
                    cell(figures.get(&join)),
                    beside(&join, "join"),
                    cell(figures.get(&format!("{join} usec"))),
                    cell(figures.get(&leave)),
                    beside(&leave, "leave"),
                ]);
            }
        }
        tables.push(table);
    }
    tables
}

fn row(table: &mut Table, figures: &Figures, label: &str, name: &str, floor: &str, units: f64) {
    let get = |suffix: &str| figures.get(&format!("{name}{suffix}"));
    table.rows.push(vec![
        label.into(),
        cell(get("").map(|cpu| cpu / units)),
        cell(figures.ratio(name, floor).map(|ratio| ratio.median / units)),
        cell(get(" usec").map(|cpu| cpu / units)),
        cell(get(" rate").map(|rate| rate * units)),
        cell(get(" one")),
        cell(get(" p50")),
        cell(get(" p99")),
        cell(get(" p99.9")),
    ]);
}

fn targets(figures: &Figures) -> Table {
    let mut table = Table::new(
        "Targets (ratio of server CPU: median of the rounds' ratios, and their middle half)",
        &["", "against", "ratio", "middle half", "at most", ""],
    );
    let shapes: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
    for target in TARGETS {
        let forms = if target.ours.contains("{}") { &shapes[..] } else { &[""] };
        for form in forms {
            let ours = target.ours.replace("{}", form);
            let Some(ratio) = figures.ratio(&ours, &target.theirs.replace("{}", form)) else {
                continue;
            };
            table.rows.push(vec![
                [target.what, form].join(", "),
                target.against.into(),
                number(ratio.median),
                format!("{}-{}", number(ratio.low), number(ratio.high)),
                target.at_most.to_string(),
                if ratio.median <= target.at_most { "met" } else { "MISSED" }.into(),
            ]);
        }
    }
    table
}
