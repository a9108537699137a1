//! What a page shows of `redis-cli`, and what a server really replies.
//!
//! A block of code that begins with `> ` has commands and their replies as redis-cli shows them, in RESP3 if the fence
//! says `resp3`. A block whose lines begin with `{` has events as a subscriber receives them. Two things stand for
//! what differs in each run:
//!
//! - A number of 13 digits or more is a time, an epoch or a cursor. The same number stands for the same value
//!   everywhere in the page, also in a command.
//! - `…` stands for any text up to the end of the line.

use crate::harness::*;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

/// The words of a line as redis-cli splits it.
pub fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match quote {
            Some(q) if c == q => quote = None,
            Some('"') if c == '\\' => word.get_or_insert_default().push(match chars.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                other => other.unwrap(),
            }),
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    assert!(quote.is_none(), "a quote is not closed: {line}");
    words.extend(word);
    words
}

/// A block of code: what the opening fence says, and where its text is in the page.
pub struct Block<'a> {
    pub info: &'a str,
    pub text: &'a str,
    pub at: usize,
}

/// The blocks of code of a page.
pub fn blocks(page: &str) -> Vec<Block<'_>> {
    let (mut blocks, mut open, mut at) = (Vec::new(), None, 0);
    for line in page.split_inclusive('\n') {
        let end = at + line.len();
        if let Some(fence) = line.strip_prefix("```") {
            open = match open {
                None => Some((fence.trim(), end)),
                Some((info, from)) => {
                    blocks.push(Block { info, text: &page[from..at], at: from });
                    None
                }
            };
        }
        at = end;
    }
    assert!(open.is_none(), "a block of code has no end");
    blocks
}

/// A string as redis-cli shows it.
fn quoted(bytes: &[u8]) -> String {
    let shown = bytes.iter().map(|byte| match byte {
        b'"' | b'\\' => format!("\\{}", char::from(*byte)),
        b'\n' => "\\n".into(),
        b'\r' => "\\r".into(),
        b'\t' => "\\t".into(),
        b' '..=b'~' => char::from(*byte).to_string(),
        other => format!("\\x{other:02x}"),
    });
    format!("\"{}\"", shown.collect::<String>())
}

/// A reply as redis-cli shows it; lines after the first are indented.
fn shown(reply: &Value, indent: usize) -> String {
    let list = |elements: usize, mark: char, element: &dyn Fn(usize, usize) -> String| {
        let width = elements.to_string().len();
        let lines = (0..elements).map(|i| {
            let label = format!("{:>width$}{mark} ", i + 1);
            let pad = if i == 0 { 0 } else { indent };
            format!("{}{label}{}", " ".repeat(pad), element(i, indent + label.len()))
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    match reply {
        Value::Int(n) => format!("(integer) {n}"),
        Value::Nil => "(nil)".to_string(),
        Value::Okay => "OK".to_string(),
        Value::SimpleString(text) => text.clone(),
        Value::Boolean(value) => format!("({value})"),
        Value::BulkString(bytes) => quoted(bytes),
        Value::Array(all) if all.is_empty() => "(empty array)".to_string(),
        Value::Array(all) => list(all.len(), ')', &|i, indent| shown(&all[i], indent)),
        Value::Map(all) if all.is_empty() => "(empty hash)".to_string(),
        Value::Map(all) => list(all.len(), '#', &|i, indent| {
            format!("{} => {}", shown(&all[i].0, indent), shown(&all[i].1, indent))
        }),
        other => panic!("{other:?}"),
    }
}

/// How many digits a text begins with.
fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// Numbers of that many digits are times, epochs and cursors.
const VARIES: usize = 13;

/// How many digits such a number has at least in a run: a cursor is seldom short.
const SHORTEST: usize = 10;

/// What the numbers of a page stand for in this run.
#[derive(Default)]
pub struct Numbers(BTreeMap<String, String>);

impl Numbers {
    /// Whether `got` is what the page shows. If it is, its numbers are remembered.
    pub fn matches(&mut self, page: &str, got: &str) -> bool {
        let mut found = self.0.clone();
        let same = compare(page, got, &mut found);
        if same {
            self.0 = found;
        }
        same
    }

    /// A line of the page with the numbers of this run.
    pub fn in_this_run(&self, line: &str) -> String {
        replace_numbers(line, &self.0)
    }

    /// What this run showed, with the numbers of the page where it has them.
    fn in_page(&self, got: &str) -> String {
        let back = self.0.iter().rev().map(|(page, got)| (got.clone(), page.clone()));
        replace_numbers(got, &back.collect())
    }
}

fn replace_numbers(text: &str, by: &BTreeMap<String, String>) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(first) = rest.chars().next() {
        let (word, after) = rest.split_at(digits(rest).max(first.len_utf8()));
        out += by.get(word).map_or(word, String::as_str);
        rest = after;
    }
    out
}

fn compare(mut page: &str, mut got: &str, numbers: &mut BTreeMap<String, String>) -> bool {
    while let Some(c) = page.chars().next() {
        let (len, real) = (digits(page), digits(got));
        if c == '…' {
            let rest = &page[c.len_utf8()..];
            let line = got.split('\n').next().unwrap();
            let ends = line.char_indices().map(|(at, _)| at).chain([line.len()]);
            return ends.into_iter().any(|end| {
                let mut tried = numbers.clone();
                let same = compare(rest, &got[end..], &mut tried);
                if same {
                    *numbers = tried;
                }
                same
            });
        } else if len >= VARIES {
            let value = numbers.entry(page[..len].into()).or_insert_with(|| got[..real].into());
            if real < SHORTEST || *value != got[..real] {
                return false;
            }
            (page, got) = (&page[len..], &got[real..]);
        } else if let Some(rest) = got.strip_prefix(c) {
            (page, got) = (&page[c.len_utf8()..], rest);
        } else {
            return false;
        }
    }
    got.is_empty()
}

/// Something that a page shows and that is not so: where it is in the page, and what is right.
#[derive(Debug)]
pub struct Wrong {
    pub at: Range<usize>,
    pub shown: String,
    pub right: String,
}

/// Runs what pages show on a server.
pub struct Replay {
    pub c: Conn,
    resp3: Conn,
    sub: Subscriber,
    heard: VecDeque<String>,
    numbers: Numbers,
    pub wrong: Vec<Wrong>,
    pub commands: usize,
}

impl Replay {
    pub fn new(server: &Server) -> Replay {
        Replay {
            c: server.connect(),
            resp3: server.connect3(),
            sub: server.psubscribe(&["*"]),
            heard: VecDeque::new(),
            numbers: Numbers::default(),
            wrong: Vec::new(),
            commands: 0,
        }
    }

    /// Runs a block, and calls `before` before each command.
    pub fn block(&mut self, block: &Block, mut before: impl FnMut(&mut Conn, &str)) {
        if block.text.starts_with("{\"") {
            return self.events(block);
        }
        // Each command, and where its reply is in the block.
        let mut steps: Vec<(&str, Range<usize>)> = Vec::new();
        let mut at = 0;
        for line in block.text.split_inclusive('\n') {
            at += line.len();
            match (line.strip_prefix("> "), steps.last_mut()) {
                (Some(command), _) => steps.push((command.trim_end(), at..at)),
                (None, Some((_, reply))) => reply.end = at,
                (None, None) => panic!("a block begins with a reply: {}", block.text),
            }
        }
        for (line, reply) in steps {
            before(&mut self.c, line);
            let text = &block.text[reply.clone()];
            self.command(block.info == "resp3", line, text, block.at + reply.start);
        }
    }

    fn command(&mut self, resp3: bool, line: &str, reply: &str, at: usize) {
        let c = if resp3 { &mut self.resp3 } else { &mut self.c };
        let got = match c.try_cmd(words(&self.numbers.in_this_run(line))) {
            Ok(reply) => shown(&reply, 0),
            Err(error) => format!("(error) {error}"),
        };
        // How long a call waited.
        let waited = reply.rfind("\n(").filter(|at| reply[*at..].ends_with("s)\n"));
        let text = reply[..waited.unwrap_or(reply.len())].trim_end();
        if !self.numbers.matches(text, &got) {
            let shown = format!("> {line}\n{text}");
            self.wrong.push(Wrong {
                at: at..at + text.len(),
                shown,
                right: self.numbers.in_page(&got),
            });
        }
        self.commands += 1;
    }

    /// Each event of the block has arrived, in this order, after those of the block before.
    fn events(&mut self, block: &Block) {
        let mut at = block.at;
        for line in block.text.lines() {
            let mut skipped = Vec::new();
            let found = loop {
                let Some(raw) = self.heard.pop_front().or_else(|| {
                    let message = self.sub.try_next(ms(10_000))?;
                    Some(String::from_utf8(message.payload).unwrap())
                }) else {
                    break false;
                };
                if self.numbers.matches(line, &raw) {
                    break true;
                }
                skipped.push(raw);
            };
            if !found {
                let right = self.numbers.in_page(skipped.first().map_or("", String::as_str));
                self.heard.extend(skipped.into_iter().skip(1));
                self.wrong.push(Wrong { at: at..at + line.len(), shown: line.into(), right });
            }
            at += line.len() + 1;
        }
    }

    /// The next event that no block has shown, if one comes in this time.
    pub fn another_event(&mut self, deadline: Duration) -> Option<String> {
        self.heard.pop_front().or_else(|| {
            self.sub.try_next(deadline).map(|message| String::from_utf8(message.payload).unwrap())
        })
    }

    #[track_caller]
    pub fn assert_right(&self, page: &str) {
        let wrong =
            self.wrong.iter().map(|w| format!("{}\n--- is really:\n{}\n", w.shown, w.right));
        let wrong: Vec<_> = wrong.collect();
        assert!(wrong.is_empty(), "{page} shows:\n{}", wrong.join("\n"));
    }
}

#[test]
fn transcript_words_are_those_of_redis_cli() {
    for (line, wanted) in [
        ("a  b", &["a", "b"][..]),
        ("a '{\"b c\": 1}' d", &["a", "{\"b c\": 1}", "d"]),
        ("a \"\" '' \"b \\\"c\\n\"", &["a", "", "", "b \"c\n"]),
    ] {
        assert_eq!(words(line), wanted, "{line}");
    }
}

#[test]
fn transcript_numbers_that_differ_stand_for_one_value() {
    let (a, b, x, y) = ("1000000000000", "2000000000000", "1795801713453", "1795801713454");
    let same = |pairs: &[(String, String)]| {
        let mut numbers = Numbers::default();
        pairs.iter().all(|(page, got)| numbers.matches(page, got))
    };
    let pair = |page: String, got: String| (page, got);
    assert!(same(&[pair(format!("{a}-1 {b}"), format!("{x}-1 {y}"))]));
    assert!(same(&[pair(format!("{a}-1 {b}"), format!("{x}-1 {x}"))]), "two may be equal");
    assert!(!same(&[pair(format!("{a}-1 {a}"), format!("{x}-1 {y}"))]), "one is not two");
    assert!(!same(&[pair(a.into(), x.into()), pair(a.into(), y.into())]), "nor later");
    assert!(!same(&[pair(format!("{a}-1"), format!("{x}-2"))]), "a seq does not differ");
    assert!(same(&[pair("1) \"…\"\n2) 3".into(), "1) \"bob\"\n2) 3".into())]));
    assert!(!same(&[pair("1) \"…\"\n2) 3".into(), "1) \"bob\"\n2) 4".into())]));
    let mut numbers = Numbers::default();
    assert!(numbers.matches(a, x));
    assert_eq!(
        numbers.in_this_run(&format!("AFTER {a}-1 COUNT 10 é")),
        format!("AFTER {x}-1 COUNT 10 é")
    );
}

#[test]
fn transcript_shows_replies_as_redis_cli_does() {
    let server = Server::start();
    let mut replay = Replay::new(&server);
    let page = "```\n> ECHO 'a \"b\" \\ é'\n\"a \\\"b\\\" \\\\ \\xc3\\xa9\"\n> GET none\n(nil)\n> SET k v\nOK\n> \
                LRANGE none 0 -1\n(empty array)\n> EVAL 'return {1,{2,3},\"x\"}' 0\n1) (integer) 1\n2) 1) (integer) 2\n   \
                2) (integer) 3\n3) \"x\"\n> NONE\n(error) ERR …\n```\n```resp3\n> CONFIG GET maxmemory\n1# \"maxmemory\" => \
                \"0\"\n```\n";
    for block in blocks(page) {
        replay.block(&block, |_, _| ());
    }
    replay.assert_right("this test");
    assert_eq!(replay.commands, 7);
    replay.block(&blocks("```\n> ECHO a\n\"b\"\n> ECHO c\n\"c\"\n```\n")[0], |_, _| ());
    let wrong: Vec<_> = replay.wrong.iter().map(|w| (w.at.clone(), w.right.as_str())).collect();
    assert_eq!(wrong, [(13..16, "\"a\"")]);
}
