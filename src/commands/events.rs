//! `PRESENCE.EVENTS`: what happened in a space, and what happens next.

use super::parse;
use crate::server::blocking::blocked_clients::{self, Wait, Waiter};
use crate::server::ffi::args::{integer, set_once};
use crate::server::ffi::context::Context;
use crate::server::ffi::error::{Error, Outcome};
use crate::server::keyspace::key::SpaceReadGuard;
use crate::server::module::call::Call;
use crate::server::module::command::{Access, ArgKind, ArgSpec, Command, SPACE, Spec};
use crate::server::module::config;

pub struct Events;

impl Command for Events {
    const SPEC: Spec = Spec {
        name: "presence.events",
        summary: "Returns the events of a space after an id, and waits for the next one if there is none.",
        complexity: "O(N), N being the events returned.",
        since: "0.1.0",
        arity: -2,
        access: Access::Reads,
        flags: "blocking",
        categories: "blocking",
        tips: "",
        args: &[
            SPACE,
            ArgSpec::new("id", ArgKind::String).after("AFTER").optional(),
            ArgSpec::new("count", ArgKind::Integer).after("COUNT").optional(),
            ArgSpec::new("milliseconds", ArgKind::Integer).after("BLOCK").optional(),
        ],
    };

    fn run(call: &Call) -> Outcome {
        let mut args = call.args();
        let name = args.space()?;
        let (mut after, mut count, mut block) = (None, None, None);
        while args.left() > 0 {
            if args.take_word("AFTER") {
                let value = args.value_of("AFTER")?;
                let value = if value == b"$" { None } else { Some(parse::event_id(value)?) };
                set_once(&mut after, value, "AFTER")?;
            } else if args.take_word("COUNT") {
                set_once(&mut count, parse::count(&mut args)?, "COUNT")?;
            } else if args.take_word("BLOCK") {
                let value = integer(args.value_of("BLOCK")?)
                    .ok_or_else(|| Error::new("timeout is not an integer or out of range"))?;
                set_once(&mut block, parse::timeout(value, call.now())?, "BLOCK")?;
            } else {
                return Err(args.unknown_option());
            }
        }
        let mut space = call.read(name)?;
        let last_id = space.as_ref().map_or((0, 0), |space| space.last_id());
        let count = count.unwrap_or(usize::MAX);
        // Without AFTER all that is kept is told, and nothing is said to be missing.
        let after = after.map(|after| after.unwrap_or(last_id));
        let epoch = space.as_ref().map(|space| space.last_id().0);
        let waiter = Waiter { has_news, reply };
        let mut wait = Wait { waiter, after, count, epoch };
        if let Some(block) = block.filter(|_| !call.ctx.may_not_block())
            && !has_news(space.as_ref(), &wait, call.now())
        {
            drop(space);
            match blocked_clients::wait(call.ctx, name, wait, block) {
                Ok(()) => return Ok(()),
                // The server does not block this client: it gets what there is.
                Err(not_blocked) => wait = not_blocked,
            }
            space = call.read(name)?;
        }
        reply(call.ctx, space.as_ref(), &wait, call.now());
        Ok(())
    }
}

/// Whether there is something to tell: events, or that some are missing, or that the space is not
/// the one that was there when the client began to wait.
fn has_news(space: Option<&SpaceReadGuard>, wait: &Wait, now: u64) -> bool {
    // Another epoch is another space, or a new line of history, whose first event is news.
    let epoch = space.map(|space| space.last_id().0);
    if wait.epoch.is_some() && wait.epoch != epoch {
        return true;
    }
    let Some(space) = space else { return is_gone(wait) };
    let (gap, mut events) = space.events_after(wait.from(), now, config::retention());
    (gap && wait.after.is_some()) || events.next().is_some()
}

/// Whether there were events that are not there with the space.
fn is_gone(wait: &Wait) -> bool {
    wait.after.is_some_and(|after| after != (0, 0))
}

/// The reply, as things are at `now`.
fn reply(ctx: Context, space: Option<&SpaceReadGuard>, wait: &Wait, now: u64) {
    ctx.reply_map(3);
    ctx.reply_bulk(b"id");
    ctx.reply_id(space.map_or((0, 0), |space| space.last_id()));
    ctx.reply_bulk(b"gap");
    let Some(space) = space else {
        ctx.reply_bool(is_gone(wait));
        ctx.reply_bulk(b"events");
        ctx.reply_array(0);
        return;
    };
    let (gap, events) = space.events_after(wait.from(), now, config::retention());
    ctx.reply_bool(gap && wait.after.is_some());
    ctx.reply_bulk(b"events");
    ctx.reply_array_of(|| events.take(wait.count).map(|text| ctx.reply_bulk(text)).count());
}
