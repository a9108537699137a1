//! `PRESENCE._SWEEP`: ends what has lapsed in one space. Internal: the server timer calls it.

use crate::server::call::Call;
use crate::server::command::{Access, Command, Spec, SPACE};
use crate::server::error::Outcome;
use crate::server::sweep::sweep_space;

pub struct Sweep;

impl Command for Sweep {
    const SPEC: Spec = Spec {
        name: "presence._sweep",
        summary: "Internal: ends the sessions of a space whose leases are over. Needs no calling.",
        complexity: "O(log N) for each session that ends, N being the sessions of the space.",
        since: "0.1.0",
        arity: 2,
        access: Access::Deletes,
        flags: "",
        categories: "",
        args: &[SPACE],
    };

    fn run(call: &Call) -> Outcome {
        let name = call.args().space()?;
        let ended = sweep_space(call.ctx, name, call.now())?;
        call.ctx.reply_count(ended);
        Ok(())
    }
}
