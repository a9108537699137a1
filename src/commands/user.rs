//! `PRESENCE.USER`: one user, with all sessions.

use super::{parse, reply};
use crate::server::ffi::error::Outcome;
use crate::server::keyspace::key::SpaceReadGuard;
use crate::server::module::call::Call;
use crate::server::module::command::{Access, Command, SPACE, Spec, USER};

pub struct User;

impl Command for User {
    const SPEC: Spec = Spec {
        name: "presence.user",
        summary: "Returns the live sessions of a user, and since when the user is online.",
        complexity: "O(N), N being the user's sessions.",
        since: "0.1.0",
        arity: 3,
        access: Access::Reads,
        flags: "fast",
        categories: "fast",
        tips: "",
        args: &[SPACE, USER],
    };

    fn run(call: &Call) -> Outcome {
        let mut args = call.args();
        let name = args.space()?;
        let user = parse::user(args.required()?)?;
        let space = call.read(name)?;
        let Some(space) = &space else {
            call.ctx.reply_null();
            return Ok(());
        };
        let Some(user) = space.user(user, call.now()) else {
            reply_remembered(call, space, user);
            return Ok(());
        };
        call.ctx.reply_map(3);
        call.ctx.reply_bulk(b"status");
        call.ctx.reply_bulk(b"online");
        call.ctx.reply_bulk(b"joined_at");
        call.ctx.reply_count(user.joined_at());
        call.ctx.reply_bulk(b"sessions");
        reply::reply_sessions(call.ctx, &user);
        Ok(())
    }
}

/// A user who is not online: with the time and the reason of the leave, if the space remembers it.
fn reply_remembered(call: &Call, space: &SpaceReadGuard, user: &str) {
    let ctx = call.ctx;
    let seen = space.seen(user, call.now(), space.settings().retention());
    let Some((at, reason)) = seen.and_then(|seen| Some((seen.at, seen.reason?))) else {
        ctx.reply_null();
        return;
    };
    ctx.reply_map(5);
    ctx.reply_bulk(b"status");
    ctx.reply_bulk(b"offline");
    ctx.reply_bulk(b"joined_at");
    ctx.reply_null();
    ctx.reply_bulk(b"sessions");
    ctx.reply_array(0);
    ctx.reply_bulk(b"seen_at");
    ctx.reply_count(at);
    ctx.reply_bulk(b"reason");
    ctx.reply_bulk(reply::reason(reason));
}
