//! `PRESENCE._PUBLISH`: publishes an event to the subscribers of this replica. Internal: it travels in
//! the replication stream of a server whose `PUBLISH` or `SPUBLISH` is renamed, and not in its AOF.

use crate::server::ffi::error::{Error, Outcome};
use crate::server::module::call::Call;
use crate::server::module::command::{Access, ArgKind, ArgSpec, Command, Spec};
use crate::server::module::config::ChannelMode;

pub struct Publish;

impl Command for Publish {
    const SPEC: Spec = Spec {
        name: "presence._publish",
        summary: "Internal: publishes an event that another node has published. Not for clients.",
        complexity: "O(N), N being the subscribers of the channel.",
        since: "0.1.0",
        arity: 4,
        access: Access::NoKey,
        flags: "admin pubsub may-replicate",
        categories: "admin dangerous pubsub",
        tips: "",
        args: &[
            ArgSpec::new("channel", ArgKind::String),
            ArgSpec::new("message", ArgKind::String),
            ArgSpec::new(
                "mode",
                ArgKind::OneOf(&[
                    ArgSpec::word("global", "GLOBAL"),
                    ArgSpec::word("sharded", "SHARDED"),
                ]),
            ),
        ],
    };

    fn run(call: &Call) -> Outcome {
        if !call.ctx.is_replaying() {
            return Err(Error::new("PRESENCE._PUBLISH is for replication only"));
        }
        let mut args = call.args();
        // The first argument is no key here, and is read in the same way.
        let channel = args.space()?;
        let message = args.required()?;
        let mode = if args.take_word("GLOBAL") {
            ChannelMode::Global
        } else if args.take_word("SHARDED") {
            ChannelMode::Sharded
        } else {
            return Err(args.unknown_option());
        };
        if !call.ctx.publish_here(mode, channel, message) {
            return Err(Error::new("the server does not let modules publish"));
        }
        call.ctx.reply_ok();
        Ok(())
    }
}
