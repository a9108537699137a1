//! `PRESENCE._UNLINK`: deletes a space because a primary has. Internal: it travels in the replication
//! stream and in the AOF of a server whose `UNLINK` and `DEL` are renamed.

use crate::server::ffi::error::{Error, Outcome};
use crate::server::module::call::Call;
use crate::server::module::command::{Access, Command, SPACE, Spec};

pub struct Unlink;

impl Command for Unlink {
    const SPEC: Spec = Spec {
        name: "presence._unlink",
        summary: "Internal: deletes a space that another node has deleted. Not for clients.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: 2,
        access: Access::Deletes,
        flags: "admin",
        categories: "admin dangerous",
        tips: "",
        args: &[SPACE],
    };

    fn run(call: &Call) -> Outcome {
        if !call.ctx.is_replaying() {
            return Err(Error::new("PRESENCE._UNLINK is for replication and the AOF only"));
        }
        let name = call.args().space()?;
        let deleted = match call.change(name)? {
            Some(key) => {
                key.delete();
                true
            }
            None => false,
        };
        call.ctx.reply_integer(i64::from(deleted));
        Ok(())
    }
}
