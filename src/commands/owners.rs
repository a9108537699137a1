//! `PRESENCE._OWNERS`: what another node has decided of owners. Internal: it travels in the replication stream
//! and in the AOF.

use crate::server::expiry::{owner_changes, sweep};
use crate::server::ffi::error::{Error, Outcome};
use crate::server::module::call::Call;
use crate::server::module::command::{Access, ArgKind, ArgSpec, Command, Spec};

pub struct Owners;

impl Command for Owners {
    const SPEC: Spec = Spec {
        name: "presence._owners",
        summary: "Internal: applies to owners what another node has decided. Not for clients.",
        complexity: "O(N), N being the effects in the batch.",
        since: "0.2.0",
        arity: 2,
        access: Access::WritesNoKey,
        flags: "admin",
        categories: "admin dangerous",
        tips: "",
        args: &[ArgSpec::new("batch", ArgKind::String)],
    };

    fn run(call: &Call) -> Outcome {
        if !call.ctx.is_replaying() {
            return Err(Error::new("PRESENCE._OWNERS is for replication and the AOF only"));
        }
        let batch = call.args().required_first()?;
        let applied = owner_changes::apply(call.ctx.db(), batch, call.now());
        // What was done until something did not fit stands in our own AOF.
        call.ctx.replicate_verbatim();
        sweep::arm(call.ctx, call.now());
        applied.map_err(|error| Error::new(format!("the batch is {error}")))?;
        call.ctx.reply_ok();
        Ok(())
    }
}
