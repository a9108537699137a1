//! `PRESENCE.MESSAGE`: a text in the space's order of events.

use super::parse;
use crate::server::ffi::args::set_once;
use crate::server::ffi::error::{Error, Outcome};
use crate::server::module::call::Call;
use crate::server::module::command::{Access, ArgKind, ArgSpec, Command, SPACE, Spec, USER};
use presence_core::space::{ChangeCtx, message_bytes};

pub struct Message;

impl Command for Message {
    const SPEC: Spec = Spec {
        name: "presence.message",
        summary: "Publishes a message as an event of the space.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: -4,
        access: Access::Updates,
        flags: "deny-oom fast",
        categories: "fast",
        tips: "",
        args: &[
            SPACE,
            USER,
            ArgSpec::new("message", ArgKind::String),
            ArgSpec::new("session", ArgKind::String).after("SESSION").optional(),
        ],
    };

    fn run(call: &Call) -> Outcome {
        let mut args = call.args();
        let name = args.space()?;
        let space = parse::new_space(name)?;
        let user = parse::user(args.required()?)?;
        let message = parse::message(args.required()?)?;
        let mut session = None;
        while args.left() > 0 {
            if !args.take_word("SESSION") {
                return Err(args.unknown_option());
            }
            let value = parse::session(args.value_of("SESSION")?)?;
            set_once(&mut session, value, "SESSION")?;
        }

        // The server refuses the command if memory is out. A long message may be more than is left.
        if !call.ctx.has_room_for(message_bytes(message)) {
            return Err(Error::NO_MEMORY);
        }
        let mut key = call.change_or_create(name)?;
        let mut change_set = key.change_set();
        change_set.allow_growth();
        let at = ChangeCtx { space, now: call.now(), limits: key.limits() };
        let session = session.unwrap_or("");
        let id = key.space().message(at, user, session, message, &mut change_set);
        key.commit(&mut change_set);
        match id {
            Some(id) => call.ctx.reply_id(id),
            None => call.ctx.reply_null(),
        }
        Ok(())
    }
}
