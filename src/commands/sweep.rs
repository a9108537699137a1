//! `PRESENCE._SWEEP`: ends what has lapsed in one space. Internal: the server timer calls it.

use crate::server::expiry::sweep::sweep_space;
use crate::server::ffi::error::Outcome;
use crate::server::module::call::Call;
use crate::server::module::command::{Access, Command, SPACE, Spec};

pub struct Sweep;

impl Command for Sweep {
    const SPEC: Spec = Spec {
        name: "presence._sweep",
        summary: "Internal: ends the expired sessions of a space. Not for clients.",
        complexity: "O(log N) for each session that ends, N being the sessions of the space.",
        since: "0.1.0",
        arity: 2,
        access: Access::Deletes,
        flags: "",
        categories: "",
        tips: "",
        args: &[SPACE],
    };

    fn run(call: &Call) -> Outcome {
        let name = call.args().space()?;
        let ended = sweep_space(call.ctx, name, call.now())?;
        call.ctx.reply_count(ended);
        Ok(())
    }
}
