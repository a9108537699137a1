//! `PRESENCE._APPLY`: does what a primary, or this server in an earlier life, has decided.
//! Internal: it travels in the replication stream and in the AOF.

use crate::server::expiry::expiry_queue::epoch_given;
use crate::server::ffi::error::{Error, Outcome};
use crate::server::keyspace::key::SpaceWriteGuard;
use crate::server::module::call::Call;
use crate::server::module::command::{Access, ArgKind, ArgSpec, Command, SPACE, Spec};
use crate::server::propagate::change_set::ChangeSet;
use presence_core::codec;
use presence_core::space::{Effect, Retention};

pub struct Apply;

impl Command for Apply {
    const SPEC: Spec = Spec {
        name: "presence._apply",
        summary: "Internal: applies to a space what another node has decided. Not for clients.",
        complexity: "O(N), N being the effects in the batch.",
        since: "0.1.0",
        arity: 3,
        access: Access::Updates,
        flags: "admin",
        categories: "admin dangerous",
        tips: "",
        args: &[SPACE, ArgSpec::new("batch", ArgKind::String)],
    };

    fn run(call: &Call) -> Outcome {
        if !call.ctx.is_replaying() {
            return Err(Error::new("PRESENCE._APPLY is for replication and the AOF only"));
        }
        let mut args = call.args();
        let name = args.space()?;
        let batch = args.required()?;
        let mut key = call.change_or_create(name)?;
        let mut change_set = key.replay();
        // A slot that moves here: nobody can say what happens after the last bound, so it is the lease.
        let is_import = call.ctx.is_primary() && !call.ctx.is_loading();
        let applied = apply(&mut key, name.bytes(), batch, is_import, &mut change_set);
        // What was done until something did not fit is done: it counts, and stands in our own AOF.
        if !key.is_new() || applied.is_ok() {
            key.commit(&mut change_set);
        }
        applied?;
        call.ctx.reply_ok();
        Ok(())
    }
}

fn apply(
    key: &mut SpaceWriteGuard<'_>,
    name: &[u8],
    batch: &[u8],
    is_import: bool,
    change_set: &mut ChangeSet<'_>,
) -> Result<(), Error> {
    let mut unbegun = key.is_new();
    // Each batch tells the settings under which it was made before they matter.
    let mut retention = Retention::of_events(0, 0);
    for effect in codec::decode(batch) {
        let effect = effect.map_err(|error| Error::new(format!("the batch is {error}")))?;
        let begins = matches!(effect, Effect::Begin { .. });
        if unbegun && !begins {
            return Err(Error::new("the batch does not fit: the space has no beginning"));
        }
        if begins {
            // Whatever is there, who decides has begun anew.
            key.begin_anew();
        }
        unbegun = false;
        match effect {
            Effect::Begin { epoch, .. } | Effect::NewLine { epoch } => epoch_given(epoch),
            Effect::LineDue => key.set_line_due(),
            _ => {}
        }
        let effect = if is_import { effect.widened() } else { effect };
        key.space()
            .apply(name, &effect, &mut retention, change_set)
            .map_err(|error| Error::new(format!("the batch does not fit: {error}")))?;
    }
    Ok(())
}
