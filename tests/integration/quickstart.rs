//! The commands of README.md and the tour of docs/quickstart.md, as the text stands there, with a subscriber beside
//! them.

use crate::harness::*;
use crate::transcript::{Block, Replay, blocks};

const README: &str = include_str!("../../README.md");
const QUICKSTART: &str = include_str!("../../docs/quickstart.md");

/// The commands and events of this page, from one heading to the next.
fn section(page: &'static str, heading: &str) -> Vec<Block<'static>> {
    let (_, rest) = page.split_once(heading).unwrap();
    let blocks = blocks(rest.split("\n## ").next().unwrap()).into_iter();
    blocks.filter(|block| block.text.starts_with("> ") || block.text.starts_with("{\"")).collect()
}

#[test]
fn the_commands_of_the_readme_are_true() {
    let server = Server::start();
    let mut replay = Replay::new(&server);
    let blocks = section(README, "# redis-presence\n");
    blocks.iter().for_each(|block| replay.block(block, |_, _| ()));
    replay.assert_right("README.md");
    assert!(replay.commands >= 5, "the commands were not found");
    let events = blocks.last().unwrap().text;
    assert!(events.lines().last().unwrap().contains(r#""type":"leave","user":"bob""#), "{events}");
    assert_eq!(replay.another_event(ms(100)), None);
}

#[test]
fn the_tour_is_true() {
    let server = Server::start();
    let mut replay = Replay::new(&server);
    let mut sub = server.subscribe(&["presence:lobby"]);
    // Nothing that is said before dave's lease may depend on how quickly the reader types.
    let mut dave = 0;
    let blocks = section(QUICKSTART, "## The tour\n");
    for block in &blocks {
        replay.block(block, |c, line| {
            if line.contains(" dave ") {
                let lobby = Space::parse(&c.ok("PRESENCE.SPACE lobby WITHSESSIONS"));
                let leases = lobby.members.iter().flat_map(|(_, sessions)| sessions);
                for session in leases {
                    assert!(session.expires_at > now_ms() + 50 * 60_000, "{session:?}");
                }
                dave = now_ms();
            }
        });
    }
    replay.assert_right("docs/quickstart.md");
    assert!(replay.commands >= 10 && dave > 0, "the tour was not found");
    assert_eq!(replay.another_event(ms(300)), None);

    // The page shows every event, the last of them without a command.
    let shown = blocks.last().unwrap().text.lines().count();
    let last = sub.events(shown, SOON).pop().unwrap();
    assert_eq!(last.brief(), "leave dave (timeout)");
    within("dave's leave", last.arrived, dave + 5000, dave + 6500);
}
