//! `PRESENCE.ONLINE`: a session is alive.

use super::parse::{self, ExpiryArgs, SESSIONS_LIST, Targets, USERS_LIST};
use crate::server::expiry::owners;
use crate::server::ffi::args::set_once;
use crate::server::ffi::error::{Error, Outcome};
use crate::server::ffi::prefetch;
use crate::server::keyspace::key::SpaceWriteGuard;
use crate::server::keyspace::prefetch_cache;
use crate::server::module::call::Call;
use crate::server::module::command::{Access, ArgKind, ArgSpec, Command, SPACE, Spec, USER};
use crate::server::module::space_settings;
use presence_core::owners::Owner;
use presence_core::space::{ChangeCtx, Condition, Keeper, MetaChange, OnlineRequest};
use std::cell::Cell;
use std::sync::Arc;

pub struct Online;

/// What the command replies.
enum Reply {
    /// How many users came online.
    CameOnline(usize),
    /// `NX` or `XX` of a single session was not met.
    NotMet,
    /// The positions of the sessions of a list with `XX` that are not there.
    LeftOut(Vec<usize>),
}

const KEEPERS: [ArgSpec; 5] = [
    ArgSpec::new("seconds", ArgKind::Integer).after("EX"),
    ArgSpec::new("milliseconds", ArgKind::Integer).after("PX"),
    ArgSpec::new("unix-time-seconds", ArgKind::UnixTime).after("EXAT"),
    ArgSpec::new("unix-time-milliseconds", ArgKind::UnixTime).after("PXAT"),
    ArgSpec::new("owner", ArgKind::String).after("OWNER"),
];

/// The owner of that name in the selected database.
fn live_owner(call: &Call, name: &str) -> Result<Arc<Owner>, Error> {
    owners::live(call.ctx.db(), name, call.now()).ok_or(Error::NO_OWNER)
}

impl Command for Online {
    const SPEC: Spec = Spec {
        name: "presence.online",
        summary: "Creates sessions of users, or renews their leases.",
        complexity: "O(1) for each session.",
        since: "0.1.0",
        arity: -3,
        access: Access::Updates,
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
                            ArgSpec::new("json", ArgKind::String).after("META").optional(),
                        ]),
                    ),
                    USERS_LIST,
                    SESSIONS_LIST,
                ]),
            ),
            ArgSpec::new("lease", ArgKind::OneOf(&KEEPERS)).optional(),
            ArgSpec::new(
                "condition",
                ArgKind::OneOf(&[ArgSpec::word("nx", "NX"), ArgSpec::word("xx", "XX")]),
            )
            .optional(),
        ],
    };

    fn run(call: &Call) -> Outcome {
        let mut args = call.args();
        let name = args.space()?;
        let space = parse::new_space(name)?;
        // The search for the user begins before the rest is read, so that memory is on its way
        // meanwhile. What is wrong with the rest is told first all the same.
        let first = args.peek(0).unwrap_or_default();
        let (mut lookup, cached) = prefetch_cache::look_ahead(call.ctx.db(), space, first);
        let mut opened = call.change(name);
        if let Ok(Some(key)) = &mut opened {
            key.enter(&mut lookup, first, cached);
        }
        let whom = parse::whom(&mut args)?;
        let (mut session, mut meta, mut condition, mut owner) = (None, None, None, None);
        let mut times = ExpiryArgs::new("presence.online");
        let is_one = matches!(whom, Targets::One(_));
        while args.left() > 0 {
            if is_one && args.take_word("SESSION") {
                let value = parse::session(args.value_of("SESSION")?)?;
                set_once(&mut session, value, "SESSION")?;
            } else if is_one && args.take_word("META") {
                let value = parse::meta(args.value_of("META")?)?;
                set_once(&mut meta, value, "META")?;
            } else if is_one && args.take_word("NX") {
                set_once(&mut condition, Condition::IfAbsent, "NX")?;
            } else if args.take_word("XX") {
                set_once(&mut condition, Condition::IfPresent, "XX")?;
            } else if args.take_word("OWNER") {
                let value = parse::owner(args.value_of("OWNER")?)?;
                set_once(&mut owner, value, "OWNER")?;
            } else if !times.take(&mut args, call.now(), true)? {
                return Err(args.unknown_option());
            }
        }
        if let Ok(Some(key)) = &mut opened {
            key.follow(&mut lookup);
        }
        if owner.is_some() && times.until().is_some() {
            return Err(Error::syntax("OWNER and a time are given; an owner has its own lease"));
        }
        let lease = times.lease(call.now(), || {
            // Whatever else is wrong with the key is told after the arguments.
            let rule = match &mut opened {
                Ok(Some(key)) => key.rule(),
                _ => space_settings::rule_of(space),
            };
            space_settings::lease_ttl_ms(rule)
        })?;

        let mut there = opened?.filter(SpaceWriteGuard::is_open);
        let owner = match owner {
            Some(name) => Some(live_owner(call, name)?),
            None => None,
        };
        let keeper = owner.as_ref().map_or(Keeper::Lease(lease), Keeper::Owner);
        if let (Some(key), Targets::One(user)) = (&mut there, &whom) {
            let only_renews =
                owner.is_none() && meta.is_none() && condition != Some(Condition::IfAbsent);
            if only_renews && key.renew(&lookup, (user, session.unwrap_or("")), lease) {
                call.ctx.reply_count(0);
                return Ok(());
            }
        }
        let mut key = match there {
            Some(key) => key,
            // Only now, when nothing is wrong with the arguments: it may be that a space that was
            // closed is deleted for the new one.
            None => call.change_or_create(name)?,
        };
        let mut change_set = key.change_set();
        let limits = key.limits();
        let at = ChangeCtx { space, now: call.now(), limits };
        let admitted = Cell::new(false);
        let has_memory = |bytes: usize| {
            admitted.set(call.ctx.has_memory(name) && call.ctx.has_room_for(bytes));
            admitted.get()
        };
        let reply = match &whom {
            Targets::One(user) => {
                let who = (*user, session.unwrap_or(""));
                let meta = meta.map_or(MetaChange::Keep, MetaChange::To);
                let condition = condition.unwrap_or(Condition::Always);
                let space = key.space();
                let came_online = space.online(
                    at,
                    &lookup,
                    OnlineRequest { who, keeper, meta, condition },
                    has_memory,
                    &mut change_set,
                );
                came_online.map(|count| count.map_or(Reply::NotMet, Reply::CameOnline))
            }
            Targets::Users(list) | Targets::Sessions(list)
                if condition == Some(Condition::IfPresent) =>
            {
                let space = key.space();
                space
                    .renew_many(at, list, keeper, prefetch::prefetch, &mut change_set)
                    .map(Reply::LeftOut)
            }
            Targets::Users(list) | Targets::Sessions(list) => {
                let space = key.space();
                space
                    .online_many(at, list, keeper, has_memory, prefetch::prefetch, &mut change_set)
                    .map(Reply::CameOnline)
            }
        }
        .map_err(|error| Error::from((error, &limits)))?;
        if admitted.get() {
            change_set.allow_growth();
        }
        key.commit(&mut change_set);
        match reply {
            Reply::CameOnline(count) => call.ctx.reply_count(count),
            Reply::NotMet => call.ctx.reply_null(),
            Reply::LeftOut(positions) => {
                call.ctx.reply_array(positions.len());
                positions.into_iter().for_each(|position| call.ctx.reply_count(position));
            }
        }
        Ok(())
    }
}
