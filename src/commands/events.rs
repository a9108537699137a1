//! `PRESENCE.EVENTS`: what happened in a space, and what happens next.

use super::{news, parse};
use crate::server::blocking::blocked_clients::{self, Wait};
use crate::server::blocking::space_waits::{AwaitedSpace, Since, SpaceWait, Waiter};
use crate::server::ffi::args::set_once;
use crate::server::ffi::clock::Clock;
use crate::server::ffi::context::{Context, OwnedString};
use crate::server::ffi::error::Outcome;
use crate::server::keyspace::key::SpaceReadGuard;
use crate::server::module::call::Call;
use crate::server::module::command::{Access, ArgKind, ArgSpec, Command, SPACE, Spec};

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
                set_once(&mut after, news::after(args.value_of("AFTER")?)?, "AFTER")?;
            } else if args.take_word("COUNT") {
                set_once(&mut count, parse::count(&mut args)?, "COUNT")?;
            } else if args.take_word("BLOCK") {
                set_once(&mut block, news::block(&mut args, call.now())?, "BLOCK")?;
            } else {
                return Err(args.unknown_option());
            }
        }
        let mut space = call.read(name)?;
        let count = count.unwrap_or(usize::MAX);
        let after = after.map(|after| after.unwrap_or_else(|| news::last_id(space.as_ref())));
        let epoch = space.as_ref().map(|space| space.last_id().0);
        let since = Since { epoch, after };
        if let Some(block) = block.filter(|_| !call.ctx.may_not_block())
            && !news::has_news(name.bytes(), space.as_ref(), &since, call.now())
        {
            drop(space);
            let wait = SpaceWait {
                waiter: Waiter { has_news: news::has_news, reply: reply_to_waiting },
                db: call.ctx.db(),
                spaces: vec![AwaitedSpace { name: name.bytes().to_vec(), since }],
                count,
            };
            // If the server does not block this client, the client gets what there is.
            if blocked_clients::wait(call.ctx, Wait::Spaces(wait), block).is_ok() {
                return Ok(());
            }
            space = call.read(name)?;
        }
        reply(call.ctx, name.bytes(), space.as_ref(), &since, count, call.now());
        Ok(())
    }
}

/// The reply to a client that has waited, as things are now.
fn reply_to_waiting(ctx: Context, wait: &SpaceWait) {
    let Some(AwaitedSpace { name, since }) = wait.spaces.first() else { return };
    let (clock, key) = (Clock::default(), OwnedString::new(name));
    match SpaceReadGuard::open(ctx, key.as_arg(), &clock) {
        Ok(space) => reply(ctx, name, space.as_ref(), since, wait.count, clock.now()),
        Err(error) => ctx.reply_error(&error),
    }
}

fn reply(
    ctx: Context,
    name: &[u8],
    space: Option<&SpaceReadGuard>,
    since: &Since,
    count: usize,
    now: u64,
) {
    ctx.reply_map(3);
    news::reply_entries(ctx, name, space, since, count, now);
}
