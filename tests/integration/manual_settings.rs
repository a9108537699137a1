//! docs/configuration.md against a real server: each setting has its heading, and what stands below it is true.

use crate::harness::*;
use std::collections::BTreeMap;

const PAGE: &str = include_str!("../../docs/configuration.md");

/// What stands below the heading of a setting, in this order.
const PARTS: [&str; 5] = ["Default", "Range", "Change at run time", "Cost", "When to change it"];

/// The name below each heading of the third level, with its parts.
fn documented() -> BTreeMap<String, BTreeMap<&'static str, String>> {
    let sections = PAGE.split("\n### ").skip(1).map(|s| s.split("\n## ").next().unwrap());
    let parts = |section: &'static str| {
        let items = section.split("\n- **").skip(1).map(|item| item.split_once(":**").unwrap());
        let items: Vec<_> = items.map(|(part, text)| (part, text.replace("\n  ", " "))).collect();
        let names: Vec<_> = items.iter().map(|(part, _)| *part).collect();
        assert_eq!(names, PARTS, "{section}");
        items.into_iter().map(|(part, text)| (part, text.trim().to_string())).collect()
    };
    sections
        .map(|section| (section.split_once('\n').unwrap().0.to_string(), parts(section)))
        .collect()
}

/// The settings of a server without any in its configuration: `CONFIG GET presence.*`.
fn real(c: &mut Conn) -> BTreeMap<String, String> {
    let all = c.ok("CONFIG GET presence.*");
    let named = pairs(&all).into_iter();
    named
        .map(|(name, value)| (name.strip_prefix("presence.").unwrap().to_string(), text(value)))
        .collect()
}

/// Each setting has a heading with its default and a row of the table at the top, and nothing else has.
#[test]
fn every_setting_has_its_heading() {
    let server = Server::start();
    let real = real(&mut server.connect());
    let value =
        |shown: &str| if shown == "empty" { "" } else { shown.trim_matches('`') }.to_string();
    let headings: BTreeMap<_, _> =
        documented().into_iter().map(|(name, parts)| (name, value(&parts["Default"]))).collect();
    assert_eq!(headings, real, "docs/configuration.md: the headings");
    let rows = PAGE.lines().filter(|line| line.starts_with("| [`"));
    let rows: BTreeMap<_, _> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let (name, link) = cells[1].split_once("](").unwrap();
            let name = name.trim_matches(['[', '`']);
            assert_eq!(link, format!("#{name})"), "{row}");
            (name.to_string(), value(cells[2]))
        })
        .collect();
    assert_eq!(rows, real, "docs/configuration.md: the table");
}

/// The ends of a range are accepted and what lies beyond them is refused; so with the words of a choice.
#[test]
fn every_range_is_true() {
    let server = Server::start();
    let mut c = server.connect();
    for (name, parts) in documented() {
        let full = format!("presence.{name}");
        let is_set = |c: &mut Conn, value: &str| match c.try_cmd(["CONFIG", "SET", &full, value]) {
            Ok(reply) => text(&reply) == "OK",
            Err(error) => {
                assert!(error.starts_with("ERR"), "{name} {value}: {error}");
                false
            }
        };
        let range = &parts["Range"];
        let is_yes = parts["Change at run time"].starts_with("yes");
        let ends: Vec<i64> = range
            .split(|c: char| !c.is_ascii_digit() && c != '-')
            .filter_map(|word| word.parse().ok())
            .take(2)
            .collect();
        let accepted: Vec<String> = if let [least, most] = ends[..] {
            for beyond in [least - 1, most + 1] {
                assert!(!is_set(&mut c, &beyond.to_string()), "{name}: {beyond} is accepted");
            }
            [least, most].map(|end| end.to_string()).to_vec()
        } else if range.starts_with('`') {
            assert!(!is_set(&mut c, "neither"), "{name}: any word is accepted");
            range.split(", ").map(|word| word.trim_matches('`').to_string()).collect()
        } else {
            assert!(
                range.contains("text"),
                "{name}: a range is `a to b`, words or a text: {range}"
            );
            vec!["a: max-seen=1".to_string()]
        };
        for value in accepted {
            assert_eq!(is_set(&mut c, &value), is_yes, "{name} {value}, to be changed: {is_yes}");
        }
    }
}
