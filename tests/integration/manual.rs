//! The pages of the manual: their links, and that each guarantee and field of INFO has its place in them.

use crate::harness::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// README.md, docs/*.md and what they link to at the top and in the folders beside them.
fn pages() -> BTreeMap<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = BTreeMap::new();
    let mut folders =
        ["", "docs", "gateway", "examples", "benches"].map(|name| root.join(name)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.starts_with(root.join("docs")) && path != root.join("docs") {
                folders.push(path.clone());
            }
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
    // Every page is in an index: README.md, or the page that is called like the folder.
    for name in pages.keys().filter(|name| name.starts_with("docs")) {
        let folder = name.parent().unwrap();
        let index = if folder == Path::new("docs") {
            PathBuf::from("README.md")
        } else {
            folder.with_extension("md")
        };
        let linked: Vec<_> =
            links(&pages[&index]).iter().filter_map(|link| target(&index, link)).collect();
        assert!(linked.contains(name), "{} does not link to {}", index.display(), name.display());
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

/// Each name of a test in docs/concepts.md is a function of a test, and the guarantees are numbered.
#[test]
fn every_guarantee_has_its_tests() {
    let concepts = page("docs/concepts.md");
    let (_, promises) = concepts.split_once("\n## Guarantees\n").unwrap();
    let tests = names_of_tests();
    let rows: Vec<&str> = promises
        .lines()
        .filter(|row| row.starts_with("| ") && row[2..].starts_with(|c: char| c.is_ascii_digit()))
        .collect();
    assert!(rows.len() >= 10, "{rows:?}");
    for (i, row) in rows.into_iter().enumerate() {
        assert!(row.starts_with(&format!("| {} | ", i + 1)), "not numbered in order: {row}");
        let names = row.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap();
        for name in names.split(',').map(|name| name.trim().trim_matches('`')) {
            assert!(tests.contains(name), "there is no test {name}");
        }
    }
}

/// The functions of tests, of the module, of the core and of the black-box tests.
fn names_of_tests() -> BTreeSet<String> {
    let mut folders: Vec<PathBuf> = ["src", "core/src", "core/tests", "tests"]
        .map(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))
        .to_vec();
    let mut names = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            // Editors and the examples' set-up leave other files here.
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let code = std::fs::read_to_string(path).unwrap();
            let tests = code.split("#[test]\n").skip(1);
            let names_of =
                tests.filter_map(|test| test.trim_start().split_once("fn ")?.1.split_once('('));
            names.extend(names_of.map(|(name, _)| name.to_string()));
        }
    }
    names
}

/// Each rule of ARCHITECTURE.md names tests or lints that are there.
#[test]
fn every_rule_of_the_architecture_has_its_checks() {
    let architecture = page("ARCHITECTURE.md");
    let (_, rules) = architecture.split_once("\n## What must always hold\n").unwrap();
    let rules = rules.split("\n## ").next().unwrap();
    let (tests, lints) = (names_of_tests(), page("Cargo.toml"));
    let rules: Vec<&str> = rules.split("\n- **").skip(1).collect();
    assert!(rules.len() >= 15, "only {} rules were found", rules.len());
    for rule in rules {
        let Some((_, checks)) = rule.split_once("Checked by ") else {
            panic!("nothing checks: {rule}")
        };
        for name in checks.split('`').skip(1).step_by(2) {
            let is_lint = lints.contains(&format!("{name} = \"deny\""));
            assert!(tests.contains(name) || is_lint, "there is no test or lint {name}");
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

/// Each line of the module's log in docs/troubleshooting.md is one that the code writes.
#[test]
fn every_line_of_the_log_in_the_manual_is_real() {
    let mut code = String::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                code += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    // A text that goes on in the next line, and the name that is put into it.
    let code: String = code.split("\\\n").map(str::trim_start).collect();
    let code = code.replace("{name}", "UNLINK");
    let page = page("docs/troubleshooting.md");
    let lines: Vec<&str> =
        page.split('`').filter_map(|text| text.strip_prefix("<presence> presence: ")).collect();
    assert!(lines.len() >= 5, "{lines:?}");
    for line in lines {
        // Parts that the code puts together.
        for part in line.split(['…', ':', ';']).map(|part| part.trim_matches([' ', '.'])) {
            assert!(code.contains(part), "no such text in src: {part}");
        }
    }
}
