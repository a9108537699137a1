//! The commands of README.md and the tour of docs/quickstart.md, as the text stands there, with a subscriber beside
//! them.

use crate::harness::*;

const README: &str = include_str!("../../README.md");
const QUICKSTART: &str = include_str!("../../docs/quickstart.md");

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

/// The blocks of code of this page, from one heading to the next.
fn blocks(page: &'static str, heading: &str) -> Vec<&'static str> {
    let (_, rest) = page.split_once(heading).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    // What stands between fences: "```", or "```console".
    let fenced = section.split("```").skip(1).step_by(2);
    fenced.map(|block| block.split_once('\n').unwrap().1).collect()
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

/// Sends the commands that the blocks show, and compares the replies. Returns how many there were.
fn replay(c: &mut Conn, blocks: &[&str], mut before: impl FnMut(&mut Conn, &str)) -> usize {
    let mut commands = 0;
    for block in blocks.iter().filter(|block| block.starts_with("> ")) {
        for step in block.strip_prefix("> ").unwrap().split("\n> ") {
            let (line, reply) = step.split_once('\n').unwrap();
            before(c, line);
            let got = shown(&c.ok(words(line)), 0);
            assert_eq!(without_times(&got), without_times(reply.trim_end()), "{line}");
            commands += 1;
        }
    }
    commands
}

/// Compares the last block with the events that came, and returns the last event.
fn compare_events(sub: &mut Subscriber, blocks: &[&str]) -> Event {
    let wanted: Vec<&str> = blocks.last().unwrap().lines().collect();
    let events = sub.events(wanted.len(), ms(10_000));
    for (event, wanted) in events.iter().zip(&wanted) {
        assert_eq!(without_times(&event.raw), without_times(wanted));
    }
    events.into_iter().last().unwrap()
}

#[test]
fn the_commands_of_the_readme_are_true() {
    let blocks = blocks(README, "# redis-presence\n");
    let server = Server::start();
    let mut sub = server.subscribe(&["presence:lobby"]);
    let commands = replay(&mut server.connect(), &blocks, |_, _| ());
    assert!(commands >= 5, "the commands were not found");
    assert_eq!(compare_events(&mut sub, &blocks).brief(), "leave bob (offline)");
    sub.expect_none_for(ms(100));
}

#[test]
fn the_tour_is_true() {
    let blocks = blocks(QUICKSTART, "## The tour\n");
    let server = Server::start();
    let mut sub = server.subscribe(&["presence:lobby"]);
    // Nothing that is said before dave's lease may depend on how quickly the reader types.
    let mut dave = 0;
    let commands = replay(&mut server.connect(), &blocks, |c, line| {
        if line.contains(" dave ") {
            let lobby = Space::parse(&c.ok("PRESENCE.SPACE lobby WITHSESSIONS"));
            let leases = lobby.members.iter().flat_map(|(_, sessions)| sessions);
            for session in leases {
                assert!(session.expires_at > now_ms() + 50 * 60_000, "{session:?}");
            }
            dave = now_ms();
        }
    });
    assert!(commands >= 10 && dave > 0, "the tour was not found");

    // The events, the last of them without a command.
    let last = compare_events(&mut sub, &blocks);
    assert_eq!(last.brief(), "leave dave (timeout)");
    within("dave's leave", last.arrived, dave + 5000, dave + 6500);
    sub.expect_none_for(ms(300));
}
