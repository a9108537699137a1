//! `PRESENCE.SPACES`: the spaces of a database that have anybody in them, at once or page by page.

use super::{cursor, parse};
use crate::server::expiry::expiry_queue;
use crate::server::ffi::acl::Reader;
use crate::server::ffi::args::{Args, integer, set_once};
use crate::server::ffi::context::{Context, OwnedString};
use crate::server::ffi::error::{Error, Outcome};
use crate::server::module::call::Call;
use crate::server::module::command::{Access, ArgKind, ArgSpec, Command, Spec};
use presence_core::expiry_queue::SomeNames;
use presence_core::glob::{Glob, MAX_PATTERN_BYTES};

pub struct Spaces;

/// A page passes over at most so many spaces for each that it may return, and over at least so many in all: it may
/// come back with fewer than asked for.
const LOOKS_A_SPACE: usize = 8;
const LEAST_LOOKS: usize = 128;

impl Command for Spaces {
    const SPEC: Spec = Spec {
        name: "presence.spaces",
        summary: "Returns the spaces of the selected database that have users online.",
        complexity: "O(N), N being the spaces of the database, or with COUNT the number given.",
        since: "0.2.0",
        arity: -1,
        access: Access::NoKey,
        flags: "readonly",
        categories: "read",
        tips: "request_policy:all_shards",
        args: &[
            ArgSpec::new("pattern", ArgKind::String).after("MATCH").optional(),
            ArgSpec::new("users", ArgKind::Integer).after("MIN").optional(),
            ArgSpec::new("cursor", ArgKind::Integer).after("CURSOR").optional(),
            ArgSpec::new("count", ArgKind::Integer).after("COUNT").optional(),
        ],
    };

    fn run(call: &Call) -> Outcome {
        let request = Request::read(&mut call.args_without_space())?;
        let reader = Reader::of_caller(call.ctx)?;
        let ctx = call.ctx;
        ctx.reply_map(2);
        ctx.reply_bulk(b"cursor");
        if request.count.is_some() {
            // A page is gathered first: its cursor is known at its end.
            let mut page = Vec::new();
            let next = request.walk(call, &reader, |entry| page.push(entry));
            ctx.reply_bulk(next.map_or(0, cursor::cursor_of).to_string().as_bytes());
            ctx.reply_bulk(b"spaces");
            ctx.reply_array(page.len());
            page.iter().for_each(|entry| entry.reply(ctx));
            return Ok(());
        }
        ctx.reply_bulk(b"0");
        ctx.reply_bulk(b"spaces");
        ctx.reply_array_of(|| {
            let mut count = 0;
            request.walk(call, &reader, |entry| {
                entry.reply(ctx);
                count += 1;
            });
            count
        });
        Ok(())
    }
}

/// A space that has anybody in it.
struct Entry {
    name: Box<[u8]>,
    users: usize,
    sessions: usize,
}

impl Entry {
    fn reply(&self, ctx: Context) {
        ctx.reply_map(3);
        ctx.reply_bulk(b"space");
        ctx.reply_bulk(&self.name);
        ctx.reply_bulk(b"users");
        ctx.reply_count(self.users);
        ctx.reply_bulk(b"sessions");
        ctx.reply_count(self.sessions);
    }
}

struct Request {
    pattern: Option<Glob>,
    /// At least 1.
    least_users: usize,
    /// The place at which the walk begins.
    from: u32,
    count: Option<usize>,
}

impl Request {
    fn read(args: &mut Args<'_>) -> Result<Self, Error> {
        let (mut pattern, mut least, mut cursor, mut count) = (None, None, None, None);
        while args.left() > 0 {
            if args.take_word("MATCH") {
                let glob = Glob::new(args.value_of("MATCH")?).ok_or_else(|| {
                    Error::new(format!("MATCH is longer than {MAX_PATTERN_BYTES} bytes"))
                })?;
                set_once(&mut pattern, glob, "MATCH")?;
            } else if args.take_word("MIN") {
                let value = integer(args.value_of("MIN")?).ok_or(Error::NOT_AN_INTEGER)?;
                let value = usize::try_from(value)
                    .map_err(|_| Error::syntax("MIN takes a number of 0 or more"))?;
                set_once(&mut least, value, "MIN")?;
            } else if args.take_word("CURSOR") {
                cursor::read(args, &mut cursor)?;
            } else if args.take_word("COUNT") {
                set_once(&mut count, parse::count(args)?, "COUNT")?;
            } else {
                return Err(args.unknown_option());
            }
        }
        let from = cursor::place_of(cursor);
        Ok(Request { pattern, least_users: least.unwrap_or(1).max(1), from, count })
    }

    /// Goes along the hashes of the names, which are the same for as long as the process runs. So a space that is
    /// there throughout is met, and met once. Returns the place at which the next page begins.
    fn walk(&self, call: &Call, reader: &Reader, mut found: impl FnMut(Entry)) -> Option<u32> {
        let most = self.count.unwrap_or(usize::MAX);
        let most_looks = most.saturating_mul(LOOKS_A_SPACE).max(LEAST_LOOKS);
        let (mut entries, mut looks, mut last) = (0, 0, None);
        let mut next = Some(u64::from(self.from) << 32);
        while let Some(from) = next {
            let SomeNames { names, next: after } = expiry_queue::names_from(call.ctx.db(), from);
            for (hash, name) in names {
                let place = (hash >> 32) as u32;
                let is_full = entries >= most || looks >= most_looks;
                // Two names of one place are not parted: the next page would begin with both.
                if is_full && last.is_some_and(|last| last != place) {
                    return Some(place);
                }
                looks += 1;
                last = Some(place);
                if let Some(entry) = self.entry(call, reader, name) {
                    entries += 1;
                    found(entry);
                }
            }
            next = after;
        }
        None
    }

    /// The space of this name, if it is to be listed.
    fn entry(&self, call: &Call, reader: &Reader, name: Box<[u8]>) -> Option<Entry> {
        if self.pattern.as_ref().is_some_and(|pattern| !pattern.matches(&name)) {
            return None;
        }
        let key = OwnedString::new(&name);
        if !reader.may_read(key.as_arg()) {
            return None;
        }
        // Another type may be at the key, or the key has expired.
        let (users, sessions) = call.peek(key.as_arg())?.counts(call.now());
        (users >= self.least_users).then_some(Entry { name, users, sessions })
    }
}
