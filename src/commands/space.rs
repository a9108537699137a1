//! `PRESENCE.SPACE`: who is here, at once or page by page.

use super::{cursor, parse, reply};
use crate::server::ffi::args::set_once;
use crate::server::ffi::context::Context;
use crate::server::ffi::error::Outcome;
use crate::server::ffi::prefetch;
use crate::server::keyspace::key::SpaceReadGuard;
use crate::server::module::call::Call;
use crate::server::module::command::{Access, ArgKind, ArgSpec, Command, SPACE, Spec};
use presence_core::space::{SpaceHead, User};

pub struct Space;

impl Command for Space {
    const SPEC: Spec = Spec {
        name: "presence.space",
        summary: "Returns the users who are online in a space, and the id of its last event.",
        complexity: "O(N), N being the users returned, or their sessions with WITHSESSIONS.",
        since: "0.1.0",
        arity: -2,
        access: Access::Reads,
        flags: "",
        categories: "",
        tips: "",
        args: &[
            SPACE,
            ArgSpec::word("withsessions", "WITHSESSIONS").optional(),
            ArgSpec::word("json", "JSON").optional(),
            ArgSpec::new("cursor", ArgKind::Integer).after("CURSOR").optional(),
            ArgSpec::new("count", ArgKind::Integer).after("COUNT").optional(),
        ],
    };

    fn run(call: &Call) -> Outcome {
        let mut args = call.args();
        let name = args.space()?;
        let (mut with_sessions, mut json, mut cursor, mut count) = (None, None, None, None);
        while args.left() > 0 {
            if args.take_word("WITHSESSIONS") {
                set_once(&mut with_sessions, (), "WITHSESSIONS")?;
            } else if args.take_word("JSON") {
                set_once(&mut json, (), "JSON")?;
            } else if args.take_word("CURSOR") {
                cursor::read(&mut args, &mut cursor)?;
            } else if args.take_word("COUNT") {
                set_once(&mut count, parse::count(&mut args)?, "COUNT")?;
            } else {
                return Err(args.unknown_option());
            }
        }
        let space = call.read(name)?;
        let space = space.as_ref();
        let from = cursor::place_of(cursor);
        let (users, sessions) = space.map_or((0, 0), |space| space.counts(call.now()));
        let is_page = count.is_some() || from > 0;
        // A page is gathered before its members are sent, so that the cursor can come first, as
        // the contract has it.
        let (page, next) = match space.filter(|_| is_page) {
            Some(space) => {
                space.page(from, count.unwrap_or(usize::MAX), call.now(), prefetch::prefetch)
            }
            None => (Vec::new(), None),
        };
        let head = SpaceHead {
            id: space.map_or((0, 0), |space| space.last_id()),
            users,
            sessions,
            cursor: next.map_or(0, cursor::cursor_of),
        };
        let whole = space.filter(|_| !is_page);
        let members = page.into_iter().chain(whole.into_iter().flat_map(|it| it.users(call.now())));
        if json.is_some() {
            reply_json(call, &head, whole, members, with_sessions.is_some());
        } else {
            reply_map(call.ctx, &head, members, with_sessions.is_some());
        }
        Ok(())
    }
}

fn reply_json<'a>(
    call: &Call,
    head: &SpaceHead,
    whole: Option<&SpaceReadGuard>,
    members: impl Iterator<Item = User<'a>>,
    with_sessions: bool,
) {
    // A text of gigabytes is not copied as it grows. That of a page is short.
    let bytes = whole.map_or(0, |space| space.json_bytes(call.now(), with_sessions));
    let mut text = Vec::with_capacity(bytes);
    head.write_json(&mut text, members, with_sessions);
    call.ctx.reply_bulk(&text);
}

fn reply_map<'a>(
    ctx: Context,
    head: &SpaceHead,
    members: impl Iterator<Item = User<'a>>,
    with_sessions: bool,
) {
    ctx.reply_map(5);
    ctx.reply_bulk(b"id");
    ctx.reply_id(head.id);
    ctx.reply_bulk(b"users");
    ctx.reply_count(head.users);
    ctx.reply_bulk(b"sessions");
    ctx.reply_count(head.sessions);
    ctx.reply_bulk(b"cursor");
    ctx.reply_bulk(head.cursor.to_string().as_bytes());
    ctx.reply_bulk(b"members");
    ctx.reply_array_of(|| members.map(|user| reply_member(ctx, &user, with_sessions)).count());
}

fn reply_member(ctx: Context, user: &User<'_>, with_sessions: bool) {
    if !with_sessions {
        ctx.reply_bulk(user.name());
        return;
    }
    ctx.reply_map(2);
    ctx.reply_bulk(b"user");
    ctx.reply_bulk(user.name());
    ctx.reply_bulk(b"sessions");
    reply::reply_sessions(ctx, user);
}
