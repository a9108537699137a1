//! `PRESENCE.USER`: one user, with all sessions.

use super::{parse, reply};
use crate::server::ffi::error::Outcome;
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
        let Some(user) = space.as_ref().and_then(|space| space.user(user, call.now())) else {
            call.ctx.reply_null();
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
