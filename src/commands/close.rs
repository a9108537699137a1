//! `PRESENCE.CLOSE`: the end of a space.

use super::parse::ExpiryArgs;
use crate::server::ffi::error::Outcome;
use crate::server::module::call::Call;
use crate::server::module::command::{Access, ArgKind, ArgSpec, Command, SPACE, Spec};
use presence_core::space::ChangeCtx;

pub struct Close;

impl Command for Close {
    const SPEC: Spec = Spec {
        name: "presence.close",
        summary: "Ends a space: all sessions end, and no session can begin for a time.",
        complexity: "O(N), N being the sessions of the space.",
        since: "0.1.0",
        arity: -2,
        access: Access::Deletes,
        flags: "",
        categories: "",
        tips: "",
        args: &[
            SPACE,
            ArgSpec::new(
                "closed-for",
                ArgKind::OneOf(&[
                    ArgSpec::new("seconds", ArgKind::Integer).after("EX"),
                    ArgSpec::new("milliseconds", ArgKind::Integer).after("PX"),
                ]),
            )
            .optional(),
        ],
    };

    fn run(call: &Call) -> Outcome {
        let mut args = call.args();
        let name = args.space()?;
        let mut times = ExpiryArgs::new("presence.close");
        while args.left() > 0 {
            if !times.take(&mut args, call.now(), false)? {
                return Err(args.unknown_option());
            }
        }
        let Some(mut key) = call.change(name)? else {
            call.ctx.reply_integer(0);
            return Ok(());
        };
        let mut change_set = key.change_set();
        let limits = key.limits();
        let usual = call.now().saturating_add(limits.retention.ttl);
        let until = times.until().unwrap_or(usual);
        let at = ChangeCtx { space: name.bytes(), now: call.now(), limits };
        let closed = key.space().close(at, until, &mut change_set);
        key.commit(&mut change_set);
        call.ctx.reply_integer(i64::from(closed));
        Ok(())
    }
}
