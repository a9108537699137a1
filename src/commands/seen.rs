//! `PRESENCE.SEEN`: when users were here last.

use super::{parse, reply};
use crate::server::ffi::error::Outcome;
use crate::server::module::call::Call;
use crate::server::module::command::{Access, Command, SPACE, Spec, USER};

pub struct Seen;

impl Command for Seen {
    const SPEC: Spec = Spec {
        name: "presence.seen",
        summary: "Returns when each user was last online, and why the user left.",
        complexity: "O(N), N being the users given.",
        since: "0.2.0",
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
        let space = space.as_ref();
        let (ctx, now) = (call.ctx, call.now());
        let retention = space.map(|space| space.settings().retention());
        ctx.reply_array(users.len());
        for user in users {
            let seen = space.zip(retention).and_then(|(space, kept)| space.seen(user, now, kept));
            let Some(seen) = seen else {
                ctx.reply_null();
                continue;
            };
            ctx.reply_array(3);
            ctx.reply_count(seen.sessions);
            ctx.reply_count(seen.at);
            match seen.reason {
                Some(reason) => ctx.reply_bulk(reply::reason(reason)),
                None => ctx.reply_null(),
            }
        }
        Ok(())
    }
}
