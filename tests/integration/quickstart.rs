//! The tour of README.md, as the text stands there, with a subscriber beside it; and what `make run` prints.

use crate::harness::*;

const README: &str = include_str!("../../README.md");

/// The words of a line as redis-cli splits it, for the quotes that the tour uses.
pub fn words(line: &str) -> Vec<String> {
    let parts = line.split('\'').enumerate();
    parts
        .flat_map(|(i, part)| match i % 2 {
            0 => part.split_whitespace().map(String::from).collect(),
            _ => vec![part.to_string()],
        })
        .collect()
}

/// The part of README.md under this heading.
fn section(heading: &str) -> &str {
    let (_, rest) = README.split_once(heading).unwrap();
    rest.split("\n## ").next().unwrap()
}

/// What was shown with ids and times replaced, which differ in each run.
fn without_times(shown: &str) -> String {
    let mut out = String::new();
    let mut digits = 0;
    for c in shown.chars().chain(['\n']) {
        if c.is_ascii_digit() {
            digits += 1;
        } else if digits >= 13 {
            out.truncate(out.len() - digits);
            out += "<time>";
            digits = 0;
        } else {
            digits = 0;
        }
        out.push(c);
    }
    out.trim_end().to_string()
}

/// A reply as redis-cli shows it.
fn shown(reply: &Value, indent: usize) -> String {
    match reply {
        Value::Int(n) => format!("(integer) {n}"),
        Value::Nil => "(nil)".to_string(),
        Value::BulkString(_) => format!("\"{}\"", text(reply).replace('"', "\\\"")),
        Value::Array(all) => {
            let width = all.len().to_string().len();
            let lines = all.iter().enumerate().map(|(i, one)| {
                let label = format!("{:>width$}) ", i + 1);
                let pad = if i == 0 { 0 } else { indent };
                format!("{}{label}{}", " ".repeat(pad), shown(one, indent + label.len()))
            });
            lines.collect::<Vec<_>>().join("\n")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_tour_is_true() {
    let tour = section("## Five minutes\n");
    // What stands between fences: "```", or "```console".
    let fenced = tour.split("```").skip(1).step_by(2);
    let blocks: Vec<&str> = fenced.map(|block| block.split_once('\n').unwrap().1).collect();
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.subscribe(&["presence:lobby"]);
    // Each command and its reply. Nothing that is said so far may depend on how quickly the reader types.
    let mut dave = 0;
    let mut commands = 0;
    for block in blocks.iter().filter(|block| block.starts_with("> ")) {
        for step in block.strip_prefix("> ").unwrap().split("\n> ") {
            let (line, reply) = step.split_once('\n').unwrap();
            if line.contains(" dave ") {
                let lobby = Space::parse(&c.ok("PRESENCE.SPACE lobby WITHSESSIONS"));
                let leases = lobby.members.iter().flat_map(|(_, sessions)| sessions);
                for session in leases {
                    assert!(session.expires_at > now_ms() + 50 * 60_000, "{session:?}");
                }
                dave = now_ms();
            }
            let got = shown(&c.ok(words(line)), 0);
            assert_eq!(without_times(&got), without_times(reply.trim_end()), "{line}");
            commands += 1;
        }
    }
    assert!(commands >= 10 && dave > 0, "the tour was not found");

    // The events, the last of them without a command.
    let wanted: Vec<&str> = blocks.last().unwrap().lines().collect();
    let events = sub.events(wanted.len(), ms(10_000));
    for (event, wanted) in events.iter().zip(&wanted) {
        assert_eq!(without_times(&event.raw), without_times(wanted));
    }
    let last = events.last().unwrap();
    assert_eq!(last.brief(), "leave dave (timeout)");
    within("dave's leave", last.arrived, dave + 5000, dave + 6500);
    sub.expect_none_for(ms(300));
}
