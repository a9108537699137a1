//! `PRESENCE.FEED`: what happened in all spaces of the selected database, and what happens next.

use super::{news, parse};
use crate::server::blocking::blocked_clients::{self, Wait};
use crate::server::blocking::feed_waits::{FeedWait, Group};
use crate::server::ffi::acl::Caller;
use crate::server::ffi::args::set_once;
use crate::server::ffi::context::Context;
use crate::server::ffi::error::{Error, Outcome, quoted};
use crate::server::module::call::Call;
use crate::server::module::command::{Access, ArgKind, ArgSpec, Command, Spec};
use crate::server::propagate::feed::{self, Filter, Page};
use presence_core::feed::Position;
use presence_core::glob::{Glob, MAX_PATTERN_BYTES};
use std::cell::Cell;

pub struct Feed;

/// A client that has waited gets no more once its events have so many bytes. There may be many such clients, and they
/// call again.
const AFTER_WAIT: usize = 16 << 10;

impl Command for Feed {
    const SPEC: Spec = Spec {
        name: "presence.feed",
        summary: "Returns the events of all spaces of the database after a position, and waits for the next one if there is none.",
        complexity: "O(N), N being the events in the feed after the position.",
        since: "0.2.0",
        arity: -1,
        access: Access::NoKey,
        flags: "readonly blocking",
        categories: "read blocking",
        tips: "request_policy:all_shards",
        args: &[
            ArgSpec::new("position", ArgKind::String).after("AFTER").optional(),
            ArgSpec::new("count", ArgKind::Integer).after("COUNT").optional(),
            ArgSpec::new("milliseconds", ArgKind::Integer).after("BLOCK").optional(),
            ArgSpec::new("pattern", ArgKind::String).after("MATCH").optional(),
        ],
    };

    fn run(call: &Call) -> Outcome {
        let mut args = call.args_without_space();
        let (mut after, mut count, mut block, mut pattern) = (None, None, None, None);
        while args.left() > 0 {
            if args.take_word("AFTER") {
                set_once(&mut after, after_value(args.value_of("AFTER")?)?, "AFTER")?;
            } else if args.take_word("COUNT") {
                set_once(&mut count, parse::count(&mut args)?, "COUNT")?;
            } else if args.take_word("BLOCK") {
                set_once(&mut block, news::block(&mut args, call.now())?, "BLOCK")?;
            } else if args.take_word("MATCH") {
                set_once(&mut pattern, args.value_of("MATCH")?, "MATCH")?;
            } else {
                return Err(args.unknown_option());
            }
        }
        let glob = pattern.map(|pattern| Glob::new(pattern).ok_or_else(too_long)).transpose()?;
        let (from, gap) = start(after.unwrap_or(After::Begin))?;
        let group = Group {
            db: call.ctx.db(),
            caller: Caller::of(call.ctx)?,
            pattern: pattern.map(<[u8]>::to_vec),
        };
        let count = count.unwrap_or(usize::MAX);
        let mut filter = Filter::new(group.db, glob.as_ref(), &group.caller);
        let waits_at = feed::with(|feed| {
            let page = feed::page(feed, from, &mut filter, count, usize::MAX);
            let has_news = gap || !page.texts.is_empty() || page.next < feed.end();
            if block.is_some() && !has_news && !call.ctx.may_not_block() {
                return Some(page.next);
            }
            reply(call.ctx, &feed.position(page.next), gap, &page);
            None
        });
        let (Some(from), Some(block)) = (waits_at.flatten(), block) else { return Ok(()) };
        let wait = FeedWait { reply: reply_to_waiting, group, from: Cell::new(from), count };
        if let Err(Wait::Feed(not_blocked)) =
            blocked_clients::wait(call.ctx, Wait::Feed(wait), block)
        {
            // The server does not block this client: it gets what there is.
            reply_to_waiting(call.ctx, &not_blocked);
        }
        Ok(())
    }
}

/// The value of `AFTER`.
enum After {
    Begin,
    End,
    Position(Position),
}

fn after_value(value: &[u8]) -> Result<After, Error> {
    if value == b"$" {
        return Ok(After::End);
    }
    let position = feed::with(|feed| feed.parse(value)).ok_or_else(is_off)?;
    position
        .map(After::Position)
        .ok_or_else(|| Error::new(format!("invalid position {}", quoted(value))))
}

/// The number of the first event that is wanted, and whether some before it may be missing.
fn start(after: After) -> Result<(u64, bool), Error> {
    feed::with(|feed| match after {
        After::Begin => (feed.begin(), false),
        After::End => (feed.end(), false),
        After::Position(Position::Here(number)) => (number, feed.has_gap_after(number)),
        // All of this run happened after that position.
        After::Position(Position::Elsewhere) => (feed.begin(), true),
    })
    .ok_or_else(is_off)
}

fn is_off() -> Error {
    Error::new("there is no feed: presence.feed-bytes is 0")
}

fn too_long() -> Error {
    Error::new(format!("pattern is longer than {MAX_PATTERN_BYTES} bytes"))
}

/// The reply to a client that has waited, as things are now.
fn reply_to_waiting(ctx: Context, wait: &FeedWait) {
    let glob = wait.group.glob();
    let mut filter = Filter::new(wait.group.db, glob.as_ref(), &wait.group.caller);
    let replied = feed::with(|feed| {
        let from = wait.from.get();
        let page = feed::page(feed, from, &mut filter, wait.count, AFTER_WAIT);
        reply(ctx, &feed.position(page.next), feed.has_gap_after(from), &page);
    });
    if replied.is_none() {
        ctx.reply_error(&is_off());
    }
}

fn reply(ctx: Context, position: &str, gap: bool, page: &Page<'_>) {
    ctx.reply_map(3);
    ctx.reply_bulk(b"position");
    ctx.reply_bulk(position.as_bytes());
    ctx.reply_bulk(b"gap");
    ctx.reply_bool(gap);
    ctx.reply_bulk(b"events");
    ctx.reply_array(page.texts.len());
    page.texts.iter().for_each(|text| ctx.reply_bulk(text));
}
