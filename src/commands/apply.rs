//! `PRESENCE._APPLY`: does what a primary, or this server in an earlier life, has decided.
//! Internal: it travels in the replication stream and in the AOF.

use crate::codec;
use crate::server::call::Call;
use crate::server::command::{Access, ArgKind, ArgSpec, Command, Spec, SPACE};
use crate::server::error::{Error, Outcome};
use crate::server::journal::Journal;
use crate::space::{Effect, Retention};

pub struct Apply;

impl Command for Apply {
    const SPEC: Spec = Spec {
        name: "presence._apply",
        summary: "Internal: does to a space what another node has decided. Not for clients.",
        complexity: "O(N), N being the effects in the batch.",
        since: "0.1.0",
        arity: 3,
        access: Access::Updates,
        flags: "admin",
        categories: "admin dangerous",
        args: &[SPACE, ArgSpec::new("batch", ArgKind::String)],
    };

    fn run(call: &Call) -> Outcome {
        if !call.ctx.is_replaying() {
            return Err(Error::new("PRESENCE._APPLY is for replication and the AOF only"));
        }
        let mut args = call.args();
        let name = args.required()?;
        let batch = args.required()?.bytes();
        let mut key = call.change_or_create(name)?;
        let mut is_new = key.is_new();
        let mut journal = Journal::replay();
        // Each batch tells the settings under which it was made before they matter.
        let mut retention = Retention { length: 0, ttl: 0 };
        for effect in codec::decode(batch) {
            let effect =
                effect.map_err(|error| Error::new(format!("the batch is {}", error.message())))?;
            if is_new != matches!(effect, Effect::Begin { .. }) {
                return Err(Error::new("the batch does not fit: the space has not one beginning"));
            }
            is_new = false;
            key.space()
                .apply(name.bytes(), &effect, &mut retention, &mut journal)
                .map_err(|misfit| Error::new(format!("the batch does not fit: {}", misfit.0)))?;
        }
        key.commit(&journal);
        call.ctx.reply_ok();
        Ok(())
    }
}
