//! `PRESENCE.COUNT`: how many users are online, or sessions live.

use crate::server::ffi::error::Outcome;
use crate::server::module::call::Call;
use crate::server::module::command::{Access, ArgSpec, Command, SPACE, Spec};

pub struct Count;

impl Command for Count {
    const SPEC: Spec = Spec {
        name: "presence.count",
        summary: "Returns the number of users who are online in a space, or of live sessions.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: -2,
        access: Access::Reads,
        flags: "fast",
        categories: "fast",
        tips: "",
        args: &[SPACE, ArgSpec::word("sessions", "SESSIONS").optional()],
    };

    fn run(call: &Call) -> Outcome {
        let mut args = call.args();
        let name = args.space()?;
        let sessions = args.take_word("SESSIONS");
        if args.left() > 0 {
            return Err(args.unknown_option());
        }
        let counts = call.read(name)?.map_or((0, 0), |space| space.counts(call.now()));
        call.ctx.reply_count(if sessions { counts.1 } else { counts.0 });
        Ok(())
    }
}
