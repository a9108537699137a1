//! The pages of the manual: their links, and that each command, promise and field of INFO has its place in them.

use crate::harness::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// README.md, docs/*.md and what they link to at the top and in the folders beside them.
fn pages() -> BTreeMap<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = BTreeMap::new();
    for folder in ["", "docs", "gateway", "examples", "benches"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = std::fs::read_to_string(&path).unwrap();
                pages.insert(path.strip_prefix(root).unwrap().to_path_buf(), text);
            }
        }
    }
    pages
}

fn page(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The text without fenced blocks, which hold no links and no headings.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fence && !fenced
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The targets of `[text](target)`, except in `code`.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let mut links = Vec::new();
    for paragraph in prose.split("\n\n") {
        let code = |at: usize| paragraph[..at].matches('`').count() % 2 == 1;
        for (at, _) in paragraph.match_indices("](") {
            if !code(at) {
                let target = paragraph[at + 2..].split([')', ' ']).next().unwrap();
                links.push(target.to_string());
            }
        }
    }
    links
}

/// The anchors that GitHub makes of the headings: lower case, without punctuation, "-" for a space; the second of one
/// name ends with "-1".
fn anchors(text: &str) -> BTreeSet<String> {
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    let prose = prose(text);
    let headings = prose.lines().filter(|line| {
        let level = line.len() - line.trim_start_matches('#').len();
        (1..=6).contains(&level) && line[level..].starts_with(' ')
    });
    let anchor = |heading: &str| -> String {
        let kept = heading.trim_start_matches('#').trim().chars();
        let kept = kept.filter(|c| c.is_alphanumeric() || ['-', '_', ' '].contains(c));
        kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    let mut anchors = BTreeSet::new();
    for name in headings.map(anchor) {
        let n = times.entry(name.clone()).or_default();
        anchors.insert(if *n == 0 { name } else { format!("{name}-{n}") });
        *n += 1;
    }
    anchors
}

/// What a relative link in this page leads to; none if it leads out of the repository.
fn target(page: &Path, link: &str) -> Option<PathBuf> {
    let mut path = page.parent().unwrap().to_path_buf();
    for part in Path::new(link).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => path = path.parent()?.to_path_buf(),
            Component::CurDir => (),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

/// The links that lead nowhere, each with its page.
fn broken_links(pages: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let resolves = |name: &Path, link: &str| {
        let (path, anchor) = link.split_once('#').map_or((link, None), |(p, a)| (p, Some(a)));
        let target = if path.is_empty() { Some(name.to_path_buf()) } else { target(name, path) };
        let Some(target) = target else { return false };
        let has = |anchor| pages.get(&target).is_some_and(|text| anchors(text).contains(anchor));
        (pages.contains_key(&target) || root.join(&target).exists()) && anchor.is_none_or(has)
    };
    let mut broken = Vec::new();
    for (name, text) in pages {
        for link in links(text) {
            if !link.contains("://") && !link.starts_with("mailto:") && !resolves(name, &link) {
                broken.push(format!("{}: {link}", name.display()));
            }
        }
    }
    broken
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let total: usize = pages.values().map(|text| links(text).len()).sum();
    assert!(total > 100, "only {total} links were found");
    let broken = broken_links(&pages);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    // Every page of docs/ is in the index.
    let index = links(&pages[Path::new("README.md")]);
    for name in pages.keys().filter(|name| name.starts_with("docs")) {
        let name = name.display().to_string();
        assert!(index.contains(&name), "README.md does not link to {name}");
    }
}

#[test]
fn a_broken_link_is_found() {
    let one = |text: &str| {
        let mut pages = BTreeMap::from([(PathBuf::from("docs/page.md"), text.to_string())]);
        pages.insert(PathBuf::from("README.md"), "# A b, *c*!\n\n## Twice\n\n## Twice\n".into());
        broken_links(&pages)
    };
    for good in ["../README.md", "../README.md#a-b-c", "../README.md#twice-1", "../src", "#here"] {
        let text = format!("# Here\n\n[x]({good}) `[x](none)`\n\n```\n[x](none)\n# No\n```\n");
        assert!(one(&text).is_empty(), "{good}");
    }
    for bad in ["README.md", "../README.md#a-b", "../README.md#twice-2", "#no", "../..", "/etc"] {
        assert_eq!(one(&format!("# Here\n\n[x]({bad})\n")), [format!("docs/page.md: {bad}")]);
    }
}

#[test]
fn readme_is_short() {
    let lines = page("README.md").lines().count();
    assert!(lines <= 200, "README.md has {lines} lines; the rest belongs in docs/");
}

/// Each command has its heading, and the syntax below it names every word that COMMAND DOCS has.
#[test]
fn every_command_is_in_the_manual() {
    let server = Server::start();
    let mut c = server.connect();
    let commands = page("docs/commands.md");
    for name in texts(&c.ok("COMMAND LIST FILTERBY MODULE presence")) {
        let upper = name.to_uppercase();
        if upper.starts_with("PRESENCE._") {
            assert!(commands.contains(&format!("`{upper}`")), "{upper}");
            continue;
        }
        let Some((_, section)) = commands.split_once(&format!("\n## {upper}\n")) else {
            panic!("docs/commands.md has no heading {upper}")
        };
        let syntax = section.split("```").nth(1).unwrap();
        assert!(syntax.trim_start().starts_with(&format!("{upper} ")), "{upper}: {syntax}");
        let section = section.split("\n## ").next().unwrap();
        for part in ["**Reply:**", "**Complexity:**"] {
            assert!(section.contains(part), "{upper} has no {part}");
        }
        let docs = c.ok(["COMMAND", "DOCS", &name]);
        for token in tokens(&docs) {
            let mut words = syntax.split(|c: char| !c.is_ascii_alphanumeric());
            assert!(words.any(|word| word == token), "{upper}: no {token} in {syntax}");
        }
    }
}

/// The values of `token` anywhere in a reply of COMMAND DOCS.
fn tokens(reply: &Value) -> Vec<String> {
    let Value::Array(all) = reply else { return Vec::new() };
    let mut tokens: Vec<String> = all.iter().flat_map(tokens).collect();
    for pair in all.windows(2) {
        if matches!((&pair[0], &pair[1]), (Value::BulkString(_), Value::BulkString(_)))
            && text(&pair[0]) == "token"
        {
            tokens.push(text(&pair[1]));
        }
    }
    tokens
}

/// Each name of a test in docs/concepts.md is a function of a test.
#[test]
fn every_promise_has_its_tests() {
    let concepts = page("docs/concepts.md");
    let (_, promises) = concepts.split_once("\n## What is promised\n").unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let code: String = files.filter_map(|path| std::fs::read_to_string(path).ok()).collect();
    let rows: Vec<&str> = promises
        .lines()
        .filter(|row| row.starts_with("| ") && row[2..].starts_with(|c: char| c.is_ascii_digit()))
        .collect();
    assert!(rows.len() >= 10, "{rows:?}");
    for row in rows {
        let tests = row.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap();
        for name in tests.split(',').map(|name| name.trim().trim_matches('`')) {
            assert!(code.contains(&format!("#[test]\nfn {name}()")), "there is no test {name}");
        }
    }
}

/// Each field of INFO is in the table of docs/operations.md, and no other.
#[test]
fn every_field_of_info_is_in_the_manual() {
    let server = Server::start();
    let info = server.connect().info("presence");
    let real: BTreeSet<String> =
        info.keys().filter_map(|name| name.strip_prefix("presence_")).map(String::from).collect();
    let operations = page("docs/operations.md");
    let (_, section) = operations.split_once("\n## INFO\n").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let names = rows.flat_map(|row| row.split('|').nth(1).unwrap().split(','));
    let listed: BTreeSet<String> =
        names.map(|name| name.trim().trim_matches('`').to_string()).collect();
    assert_eq!(listed, real);
}
