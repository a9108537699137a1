//! Which of the server's own commands can be called and replicated by their names.
//!
//! `rename-command` in the server's configuration takes a command's name away. The server carries it
//! out before it loads modules, and never again, so it is enough to look once. The new name, if there
//! is one, is of no use: the server does not tell it, and a replica may not know it. Where a command
//! is missing, the module does the same by internal commands of its own, whose names nobody can take
//! away: a name that `rename-command` does not find ends the server's start.

use crate::server::ffi::context::Context;
use std::ffi::CStr;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A command of the server.
pub struct CoreCommand {
    name: &'static CStr,
    is_missing: AtomicBool,
}

pub static UNLINK: CoreCommand = CoreCommand::new(c"UNLINK");
pub static DEL: CoreCommand = CoreCommand::new(c"DEL");
pub static PUBLISH: CoreCommand = CoreCommand::new(c"PUBLISH");
pub static SPUBLISH: CoreCommand = CoreCommand::new(c"SPUBLISH");

/// The internal command that deletes a space: see `commands::unlink`.
pub const OWN_UNLINK: &CStr = c"PRESENCE._UNLINK";
/// The internal command that publishes: see `commands::publish`.
pub const OWN_PUBLISH: &CStr = c"PRESENCE._PUBLISH";

impl CoreCommand {
    const fn new(name: &'static CStr) -> Self {
        CoreCommand { name, is_missing: AtomicBool::new(false) }
    }

    /// The name, if the command can be called by it.
    pub fn name(&self) -> Option<&'static CStr> {
        (!self.is_missing.load(Relaxed)).then_some(self.name)
    }
}

/// Finds out which commands are missing. Called while the module loads.
pub fn probe(ctx: Context) {
    for command in [&UNLINK, &DEL, &PUBLISH, &SPUBLISH] {
        if !is_there(ctx, command.name) {
            command.is_missing.store(true, Relaxed);
            let name = command.name.to_string_lossy();
            ctx.log(
                c"warning",
                &format!(
                    "presence: {name} is renamed or disabled by rename-command. The module uses \
                     internal commands instead. Rename it on all nodes alike: a primary that has \
                     {name} sends it to its replicas"
                ),
            );
        }
    }
}

/// Each of these commands needs arguments, so a call without any ends before it does something: the
/// server says whether it did not know the name or missed the arguments.
fn is_there(ctx: Context, name: &CStr) -> bool {
    let error = ctx.call_without_arguments(name);
    error.is_none_or(|error| error.kind() != ErrorKind::NotFound)
}
