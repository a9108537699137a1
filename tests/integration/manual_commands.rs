//! The pages docs/commands/: the head of each is what the server says of the command, its arguments are all explained,
//! and its examples are true. Examples in the other pages of the manual are run here too.
//!
//! `make command-pages` writes the heads, and corrects the replies of the examples.

use crate::harness::*;
use crate::transcript::{Replay, blocks};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

const SECTIONS: [&str; 8] = [
    "Syntax",
    "Required arguments",
    "Optional arguments",
    "Reply",
    "Errors",
    "Examples",
    "History",
    "See also",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages of a folder, sorted.
fn pages(folder: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(root().join(folder)) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut pages: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
    pages.sort();
    pages
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

fn page_of(command: &str) -> PathBuf {
    root().join(format!("docs/commands/{command}.md"))
}

/// An argument of COMMAND DOCS.
struct Argument {
    name: String,
    kind: String,
    token: Option<String>,
    flags: Vec<String>,
    parts: Vec<Argument>,
}

fn map(v: &Value) -> BTreeMap<String, &Value> {
    pairs(v).into_iter().collect()
}

fn arguments(list: Option<&&Value>) -> Vec<Argument> {
    let list = list.map_or(&[][..], |list| items(list));
    let argument = |argument: &Value| {
        let argument = map(argument);
        Argument {
            name: text(argument["name"]),
            kind: text(argument["type"]),
            token: argument.get("token").map(|token| text(token)),
            flags: argument.get("flags").map_or_else(Vec::new, |flags| texts(flags)),
            parts: arguments(argument.get("arguments")),
        }
    };
    list.iter().map(argument).collect()
}

impl Argument {
    fn is(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag)
    }

    /// As in the syntax of the manuals of Redis and Valkey.
    fn syntax(&self) -> String {
        let parts = |between: &str| {
            self.parts.iter().map(Argument::syntax).collect::<Vec<_>>().join(between)
        };
        let value = match self.kind.as_str() {
            "pure-token" => self.token.clone().unwrap(),
            "oneof" => parts(" | "),
            "block" => parts(" "),
            _ => self.name.clone(),
        };
        let value = if self.is("multiple") { format!("{value} [{value} ...]") } else { value };
        let value = match &self.token {
            Some(token) if self.kind != "pure-token" => format!("{token} {value}"),
            _ => value,
        };
        match (self.is("optional"), self.kind.as_str()) {
            (true, _) => format!("[{value}]"),
            (false, "oneof") => format!("<{value}>"),
            (false, _) => value,
        }
    }

    /// The words that a reader has to know, each with whether it is optional: tokens, and names of values without one.
    fn words(&self, optional: bool, into: &mut BTreeSet<(String, bool)>) {
        let optional = optional || self.is("optional");
        if let Some(token) = &self.token {
            into.insert((token.clone(), optional));
        } else if self.parts.is_empty() {
            into.insert((self.name.clone(), optional));
        }
        self.parts.iter().for_each(|part| part.words(optional, into));
    }
}

/// A command, or one of its subcommands, as the server describes it.
struct Described {
    /// In upper case, with a space before the name of a subcommand.
    name: String,
    summary: String,
    since: String,
    complexity: String,
    categories: Vec<String>,
    arguments: Vec<Argument>,
    parts: Vec<Described>,
}

/// `info` is that of COMMAND INFO.
fn described(name: &str, docs: &Value, info: &Value) -> Described {
    let docs = map(docs);
    let info = items(info);
    let flags = texts(&info[2]);
    let has = |flag: &str| flags.iter().any(|f| f == flag);
    let categories = [("readonly", "@read"), ("write", "@write"), ("fast", "@fast")];
    let categories = categories.into_iter().chain([("blocking", "@blocking"), ("admin", "@admin")]);
    let categories: Vec<String> =
        categories.filter(|(flag, _)| has(flag)).map(|(_, name)| name.to_string()).collect();
    // Redis 7.0 has none for the commands of modules.
    let reported: BTreeSet<String> = texts(&info[6]).into_iter().collect();
    assert!(
        reported.is_empty() || reported == categories.iter().cloned().collect(),
        "{name}: {reported:?} do not follow from its flags, {flags:?}"
    );
    let parts = docs.get("subcommands").map_or_else(Vec::new, |parts| pairs(parts));
    let part = |(part, docs): &(String, &Value)| {
        let info = items(&info[9]).iter().find(|info| text(&items(info)[0]) == *part);
        described(part, docs, info.unwrap())
    };
    let mut parts: Vec<_> = parts.iter().map(part).collect();
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    let get = |field: &str| docs.get(field).map_or_else(String::new, |value| text(value));
    Described {
        name: name.to_uppercase().replace('|', " "),
        summary: get("summary"),
        since: get("since"),
        complexity: get("complexity"),
        categories,
        arguments: arguments(docs.get("arguments")),
        parts,
    }
}

/// All commands of the module but those that begin with `_`.
fn commands(c: &mut Conn) -> Vec<(String, Described)> {
    let mut names = texts(&c.ok("COMMAND LIST FILTERBY MODULE presence"));
    names.retain(|name| !name.contains("._") && !name.contains('|'));
    names.sort();
    let command = |name: String| {
        let docs = c.ok(["COMMAND", "DOCS", &name]);
        let info = c.ok(["COMMAND", "INFO", &name]);
        let described = described(&name, pairs(&docs)[0].1, &items(&info)[0]);
        (name, described)
    };
    names.into_iter().map(command).collect()
}

impl Described {
    /// In one line where it is short, else a line for each argument and each alternative.
    fn syntax(&self) -> String {
        let arguments: Vec<_> = self.arguments.iter().map(Argument::syntax).collect();
        let line = format!("{} {}", self.name, arguments.join(" "));
        if line.len() <= 100 {
            return line.trim_end().to_string();
        }
        let mut lines = vec![self.name.clone()];
        for argument in &self.arguments {
            let is_choice = argument.kind == "oneof" && !argument.is("optional");
            if is_choice && argument.syntax().len() > 90 {
                let choices = argument.parts.iter().enumerate();
                lines.extend(choices.map(|(i, choice)| {
                    let mark = if i == 0 { '<' } else { '|' };
                    format!("    {mark} {}", choice.syntax())
                }));
                lines.last_mut().unwrap().push_str(" >");
            } else if lines.len() == 1 && !argument.is("optional") {
                lines[0] += &format!(" {}", argument.syntax());
            } else {
                lines.push(format!("    {}", argument.syntax()));
            }
        }
        lines.join("\n")
    }

    fn facts(&self) -> [String; 3] {
        let categories: Vec<_> = self.categories.iter().map(|name| format!("`{name}`")).collect();
        [self.since.clone(), self.complexity.clone(), categories.join(", ")]
    }

    /// What a page begins with, up to the section after Syntax.
    fn head(&self) -> String {
        let mut head = format!("# {}\n\n{}\n\n", self.name, self.summary);
        let names = ["Available since", "Time complexity", "ACL categories"];
        if self.parts.is_empty() {
            head += "| | |\n|---|---|\n";
            for (name, fact) in names.into_iter().zip(self.facts()) {
                head += &format!("| **{name}** | {fact} |\n");
            }
        } else {
            head += &format!("| | {} |\n|---|---|---|---|\n", names.join(" | "));
            for part in &self.parts {
                head += &format!("| `{}` | {} |\n", part.name, part.facts().join(" | "));
            }
        }
        let one = std::slice::from_ref(self);
        let forms = if self.parts.is_empty() { one } else { &self.parts };
        let forms: Vec<_> = forms.iter().map(Described::syntax).collect();
        head + &format!("\n## Syntax\n\n```\n{}\n```\n", forms.join("\n"))
    }

    fn words(&self) -> BTreeSet<(String, bool)> {
        let mut words = BTreeSet::new();
        self.arguments.iter().for_each(|argument| argument.words(false, &mut words));
        self.parts.iter().for_each(|part| words.extend(part.words()));
        words
    }
}

/// The names of the sections of a page, each with its text.
fn sections(page: &str) -> Vec<(&str, &str)> {
    page.split("\n## ").skip(1).map(|section| section.split_once('\n').unwrap()).collect()
}

/// The words in the bold code that list items of a section begin with: "- **`EX seconds`**".
fn explained(section: &str) -> BTreeSet<String> {
    let items = section.split("\n- **`").skip(1);
    items
        .flat_map(|item| item.split("**").next().unwrap().split([' ', '`', '[', ']', '|', ',']))
        .map(String::from)
        .collect()
}

/// What of this page is not as it has to be.
fn flaws(command: &Described, page: &str) -> Vec<String> {
    let mut flaws = Vec::new();
    if !page.starts_with(&command.head()) {
        flaws.push(format!("it does not begin with\n\n{}", command.head()));
    }
    let sections = sections(page);
    let names: Vec<&str> = sections.iter().map(|(name, _)| *name).collect();
    let words = command.words();
    let has = |optional: bool| words.iter().any(|(_, o)| *o == optional);
    let wanted: Vec<&str> = SECTIONS
        .into_iter()
        .filter(|name| match *name {
            "Required arguments" => has(false),
            "Optional arguments" => has(true),
            _ => true,
        })
        .collect();
    if names != wanted {
        flaws.push(format!("its sections are {names:?}, not {wanted:?}"));
    }
    for (name, optional) in [("Required arguments", false), ("Optional arguments", true)] {
        let Some((_, section)) = sections.iter().find(|(n, _)| *n == name) else { continue };
        let explained = explained(&format!("\n{section}"));
        for (word, _) in words.iter().filter(|(_, o)| *o == optional) {
            if !explained.contains(word) {
                flaws.push(format!("no item \"- **`{word} …`**\" under {name}"));
            }
        }
    }
    let section = |name| sections.iter().find(|(n, _)| *n == name).map_or("", |(_, text)| *text);
    for resp in ["RESP2", "RESP3"] {
        if !section("Reply").contains(resp) {
            flaws.push(format!("Reply does not say what it is in {resp}"));
        }
    }
    if !section("Errors").contains("../commands.md#errors") {
        flaws.push("Errors does not link to ../commands.md#errors".into());
    }
    if !blocks(page).iter().any(|block| block.text.starts_with("> ")) {
        flaws.push("it has no example".into());
    }
    flaws
}

#[test]
fn every_command_has_its_page() {
    let server = Server::start();
    let commands = commands(&mut server.connect());
    assert!(commands.len() >= 9, "only {} commands were found", commands.len());
    let index = std::fs::read_to_string(root().join("docs/commands.md")).unwrap();
    let mut wrong = Vec::new();
    for (name, command) in &commands {
        let path = page_of(name);
        match std::fs::read_to_string(&path) {
            Err(_) => wrong.push(format!("{} is missing", shown(&path))),
            Ok(page) => wrong.extend(
                flaws(command, &page).iter().map(|flaw| format!("{}: {flaw}", shown(&path))),
            ),
        }
        if !index.contains(&format!("| [{}](commands/{name}.md) |", command.name)) {
            wrong.push(format!(
                "docs/commands.md has no row [{}](commands/{name}.md)",
                command.name
            ));
        }
    }
    for path in pages("docs/commands") {
        if !commands.iter().any(|(name, _)| page_of(name) == path) {
            wrong.push(format!("{}: there is no such command", shown(&path)));
        }
    }
    let hint = "`make command-pages` writes the heads, or without a release build: cargo test --test integration -- \
                --ignored manual_commands::write. CONTRIBUTING.md describes the pages";
    assert!(wrong.is_empty(), "{}\n\n{hint}", wrong.join("\n"));
}

/// Internal commands have no page; the index names them.
#[test]
fn every_internal_command_is_in_the_index() {
    let server = Server::start();
    let index = std::fs::read_to_string(root().join("docs/commands.md")).unwrap();
    for name in texts(&server.connect().ok("COMMAND LIST FILTERBY MODULE presence")) {
        if name.contains("._") {
            assert!(index.contains(&format!("`{}`", name.to_uppercase())), "{name}");
        }
    }
}

/// Pages whose examples are not run: the tour is run in quickstart.rs, and installing loads the module.
const NOT_RUN: [&str; 2] = ["docs/quickstart.md", "docs/install.md"];

fn pages_with_examples() -> Vec<(PathBuf, String)> {
    let inside = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut folders = vec!["docs".to_string()];
    folders.extend(inside.filter(|path| path.is_dir()).map(|path| shown(&path)));
    let pages = folders.iter().flat_map(|folder| pages(folder));
    let pages = pages.filter(|path| !NOT_RUN.contains(&shown(path).as_str()));
    pages
        .map(|path| (path.clone(), std::fs::read_to_string(path).unwrap()))
        .filter(|(_, page)| blocks(page).iter().any(|block| block.text.starts_with("> ")))
        .collect()
}

/// Runs the examples of a page on a server of its own, with a pause before each command.
fn replay(page: &str, pause: Duration) -> Replay {
    let server = Server::start();
    let mut replay = Replay::new(&server);
    let shown = |text: &str| text.starts_with("> ") || text.starts_with("{\"id\"");
    for block in blocks(page).iter().filter(|block| shown(block.text)) {
        replay.block(block, |_, _| std::thread::sleep(pause));
    }
    replay
}

#[test]
fn every_example_is_true() {
    let pages = pages_with_examples();
    assert!(pages.len() >= 10, "only {} pages have examples", pages.len());
    for (path, page) in pages {
        replay(&page, Duration::ZERO).assert_right(&shown(&path));
    }
}

/// Not a test: writes what the tests above compare. Read the difference before you commit it.
#[test]
#[ignore = "make command-pages runs it"]
fn write_the_command_pages() {
    let server = Server::start();
    for (name, command) in commands(&mut server.connect()) {
        let path = page_of(&name);
        let page = std::fs::read_to_string(&path).unwrap_or_default();
        // All behind the first block of code, which is the syntax.
        let rest = blocks(&page).first().map_or(String::new(), |syntax| {
            let fence = syntax.at + syntax.text.len();
            page[fence..].split_once('\n').map_or("", |(_, rest)| rest).to_string()
        });
        std::fs::write(path, command.head() + &rest).unwrap();
    }
    for (path, mut page) in pages_with_examples() {
        // So that no two commands have the same time by chance.
        let mut wrong = replay(&page, ms(7)).wrong;
        wrong.sort_by_key(|wrong| wrong.at.start);
        for wrong in wrong.into_iter().rev() {
            println!("{}: {}", shown(&path), wrong.shown.lines().next().unwrap());
            let line_end = if wrong.at.is_empty() && !wrong.right.is_empty() { "\n" } else { "" };
            page.replace_range(wrong.at, &(wrong.right + line_end));
        }
        std::fs::write(path, page).unwrap();
    }
}
