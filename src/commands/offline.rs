//! `PRESENCE.OFFLINE`: sessions end, at once or unless they come back soon.

use super::parse::{self, SESSIONS_LIST, Targets, USERS_LIST};
use crate::server::expiry::owners;
use crate::server::ffi::args::set_once;
use crate::server::ffi::error::Outcome;
use crate::server::module::call::Call;
use crate::server::module::command::{Access, ArgKind, ArgSpec, Command, SPACE, Spec, USER};
use presence_core::space::ChangeCtx;

pub struct Offline;

impl Command for Offline {
    const SPEC: Spec = Spec {
        name: "presence.offline",
        summary: "Ends sessions of users, or shortens their leases to a linger time.",
        complexity: "O(log N) for each session that ends, N being the sessions of the space.",
        since: "0.1.0",
        arity: -3,
        access: Access::Deletes,
        flags: "fast",
        categories: "fast",
        tips: "",
        args: &[
            SPACE,
            ArgSpec::new(
                "who",
                ArgKind::OneOf(&[
                    ArgSpec::new(
                        "one",
                        ArgKind::Block(&[
                            USER,
                            ArgSpec::new("session", ArgKind::String).after("SESSION").optional(),
                        ]),
                    ),
                    USERS_LIST,
                    SESSIONS_LIST,
                ]),
            ),
            ArgSpec::new("milliseconds", ArgKind::Integer).after("LINGER").optional(),
            ArgSpec::new("owner", ArgKind::String).after("OWNER").optional(),
        ],
    };

    fn run(call: &Call) -> Outcome {
        let mut args = call.args();
        let name = args.space()?;
        let whom = parse::whom(&mut args)?;
        let (mut session, mut linger, mut owner) = (None, None, None);
        let is_one = matches!(whom, Targets::One(_));
        while args.left() > 0 {
            if is_one && args.take_word("SESSION") {
                let value = parse::session(args.value_of("SESSION")?)?;
                set_once(&mut session, value, "SESSION")?;
            } else if args.take_word("LINGER") {
                set_once(&mut linger, parse::linger(&mut args)?, "LINGER")?;
            } else if args.take_word("OWNER") {
                let value = parse::owner(args.value_of("OWNER")?)?;
                set_once(&mut owner, value, "OWNER")?;
            } else {
                return Err(args.unknown_option());
            }
        }
        let whom = match whom {
            Targets::One(user) => vec![(user, session)],
            Targets::Users(list) => list.into_iter().map(|(user, _)| (user, None)).collect(),
            Targets::Sessions(list) => {
                list.into_iter().map(|(user, session)| (user, Some(session))).collect()
            }
        };

        let Some(mut key) = call.change(name)? else {
            call.ctx.reply_integer(0);
            return Ok(());
        };
        let owner = match owner {
            None => None,
            Some(name) => match owners::live(call.ctx.db(), name, call.now()) {
                Some(owner) => Some(owner),
                None => {
                    // It has no sessions.
                    call.ctx.reply_integer(0);
                    return Ok(());
                }
            },
        };
        let owner = owner.as_deref();
        let mut change_set = key.change_set();
        let at = ChangeCtx { space: name.bytes(), now: call.now(), limits: key.limits() };
        let linger = linger.unwrap_or(0);
        let gone: usize = whom
            .iter()
            .map(|(user, session)| {
                key.space().offline_owned(at, user, *session, owner, linger, &mut change_set)
            })
            .sum();
        key.commit(&mut change_set);
        call.ctx.reply_count(gone);
        Ok(())
    }
}
