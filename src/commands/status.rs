//! `PRESENCE.STATUS`: how many live sessions users have.

use super::parse;
use crate::server::ffi::error::Outcome;
use crate::server::ffi::prefetch;
use crate::server::module::call::Call;
use crate::server::module::command::{Access, Command, SPACE, Spec, USER};

pub struct Status;

impl Command for Status {
    const SPEC: Spec = Spec {
        name: "presence.status",
        summary: "Returns the number of live sessions of each user.",
        complexity: "O(1) for each user.",
        since: "0.1.0",
        arity: -3,
        access: Access::Reads,
        flags: "fast",
        categories: "fast",
        tips: "",
        args: &[SPACE, USER.multiple()],
    };

    fn run(call: &Call) -> Outcome {
        let mut args = call.args();
        let name = args.space()?;
        let mut users = Vec::with_capacity(args.left());
        for user in args.take(args.left()) {
            users.push(parse::user(user.bytes())?);
        }
        let space = call.read(name)?;
        call.ctx.reply_array(users.len());
        match &space {
            Some(space) => {
                let counts = space.statuses(&users, call.now(), prefetch::prefetch);
                counts.into_iter().for_each(|count| call.ctx.reply_count(count));
            }
            None => users.iter().for_each(|_| call.ctx.reply_integer(0)),
        }
        Ok(())
    }
}
