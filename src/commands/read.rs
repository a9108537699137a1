//! `PRESENCE.READ`: what happened in many spaces, and what happens next in any of them.

use super::{news, parse};
use crate::server::blocking::blocked_clients::{self, Wait};
use crate::server::blocking::space_waits::{AwaitedSpace, Since, SpaceWait, Waiter};
use crate::server::ffi::args::{Args, set_once};
use crate::server::ffi::clock::Clock;
use crate::server::ffi::context::{Context, OwnedString};
use crate::server::ffi::error::{Error, Outcome};
use crate::server::keyspace::key::SpaceReadGuard;
use crate::server::module::call::Call;
use crate::server::module::command::{Access, ArgKind, ArgSpec, Command, SPACE, Spec};

pub struct Read;

/// The spaces stand behind this word, and their ids behind the spaces.
const SPACES: &str = "SPACES";

impl Command for Read {
    const SPEC: Spec = Spec {
        name: "presence.read",
        summary: "Returns the events of several spaces after an id each, and waits for the next one if there is none.",
        complexity: "O(S+N), S being the spaces asked for and N the events returned.",
        since: "0.2.0",
        arity: -4,
        access: Access::ReadsAfter(SPACES),
        flags: "blocking",
        categories: "blocking",
        tips: "",
        args: &[
            ArgSpec::new("count", ArgKind::Integer).after("COUNT").optional(),
            ArgSpec::new("milliseconds", ArgKind::Integer).after("BLOCK").optional(),
            ArgSpec::new(
                "spaces",
                ArgKind::Block(&[SPACE.multiple(), ArgSpec::new("id", ArgKind::String).multiple()]),
            )
            .after(SPACES),
        ],
    };

    fn run(call: &Call) -> Outcome {
        let mut args = call.args_without_space();
        let (mut count, mut block) = (None, None);
        while !args.take_word(SPACES) {
            if args.left() == 0 {
                return Err(Error::syntax("SPACES is missing"));
            } else if args.take_word("COUNT") {
                set_once(&mut count, parse::count(&mut args)?, "COUNT")?;
            } else if args.take_word("BLOCK") {
                set_once(&mut block, news::block(&mut args, call.now())?, "BLOCK")?;
            } else {
                return Err(args.unknown_option());
            }
        }
        let (spaces, has_news) = spaces(call, &mut args)?;
        let wait = SpaceWait {
            waiter: Waiter { has_news: news::has_news, reply: reply_to_waiting },
            db: call.ctx.db(),
            spaces,
            count: count.unwrap_or(usize::MAX),
        };
        if let Some(block) = block.filter(|_| !has_news && !call.ctx.may_not_block()) {
            // If the server does not block this client, the client gets what there is.
            if blocked_clients::wait(call.ctx, Wait::Spaces(wait), block).is_err() {
                call.ctx.reply_null_array();
            }
            return Ok(());
        }
        reply(call.ctx, &wait, &Clock::at(call.now()))
    }
}

/// Reads the spaces and from where on each is wanted, and whether there is news of one. All are looked at, so an error
/// is returned before anything is replied.
fn spaces(call: &Call, args: &mut Args<'_>) -> Result<(Vec<AwaitedSpace>, bool), Error> {
    let unbalanced = "each space after SPACES needs an id or '$'";
    let half = args.left() / 2;
    if half == 0 || !args.left().is_multiple_of(2) {
        return Err(Error::syntax(unbalanced));
    }
    let (names, ids) = (args.take(half), args.take(half));
    let ids: Vec<_> = ids.iter().map(|id| news::after(id.bytes())).collect::<Result<_, _>>()?;
    let mut spaces = Vec::with_capacity(half);
    let mut has_news = false;
    for (name, id) in names.iter().zip(ids) {
        let space = call.read(*name)?;
        let after = id.unwrap_or_else(|| news::last_id(space.as_ref()));
        // An id says enough: a space that is deleted, or another one, is a gap.
        let since = Since { epoch: None, after: Some(after) };
        has_news |= news::has_news(name.bytes(), space.as_ref(), &since, call.now());
        spaces.push(AwaitedSpace { name: name.bytes().to_vec(), since });
    }
    Ok((spaces, has_news))
}

/// The reply to a client that has waited, as things are now.
fn reply_to_waiting(ctx: Context, wait: &SpaceWait) {
    if let Err(error) = reply(ctx, wait, &Clock::default()) {
        ctx.reply_error(&error);
    }
}

/// Replies with the spaces of which there is news; null if there is none.
fn reply(ctx: Context, wait: &SpaceWait, clock: &Clock) -> Outcome {
    let mut with_news = Vec::new();
    for awaited in &wait.spaces {
        let key = OwnedString::new(&awaited.name);
        let space = SpaceReadGuard::open(ctx, key.as_arg(), clock)?;
        if news::has_news(&awaited.name, space.as_ref(), &awaited.since, clock.now()) {
            with_news.push((awaited, key));
        }
    }
    if with_news.is_empty() {
        ctx.reply_null_array();
        return Ok(());
    }
    ctx.reply_array(with_news.len());
    for (AwaitedSpace { name, since }, key) in with_news {
        // Nothing has happened since it was opened above.
        let space = SpaceReadGuard::open(ctx, key.as_arg(), clock).unwrap_or(None);
        ctx.reply_map(4);
        ctx.reply_bulk(b"space");
        ctx.reply_bulk(name);
        news::reply_entries(ctx, name, space.as_ref(), since, wait.count, clock.now());
    }
    Ok(())
}
