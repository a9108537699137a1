//! `PRESENCE.OWNER`: owners, whose one lease stands for all sessions that they own.

use super::owner_sessions::Sessions;
use super::parse::{self, ExpiryArgs};
use crate::server::expiry::{bonds, owner_changes, owners};
use crate::server::ffi::args::set_once;
use crate::server::ffi::error::{Error, Outcome};
use crate::server::module::call::Call;
use crate::server::module::command::{
    Access, ArgKind, ArgSpec, Command, Container, Spec, Subcommand, subcommand,
};
use crate::server::module::space_settings;
use presence_core::space::Reason;

pub struct Owner;

/// For counts that add up over the primaries of a cluster.
const SUM: &str = "request_policy:all_shards response_policy:agg_sum";

pub const OWNER: ArgSpec = ArgSpec::new("owner", ArgKind::String);

const LINGER: ArgSpec = ArgSpec::new("linger", ArgKind::Integer).after("LINGER").optional();

impl Container for Owner {
    const SPEC: Spec = Spec {
        name: "presence.owner",
        summary: "A container for commands on owners, which keep sessions alive for others.",
        complexity: "Depends on subcommand.",
        since: "0.2.0",
        arity: -2,
        access: Access::NoKey,
        flags: "",
        categories: "",
        tips: "",
        args: &[],
    };
    const SUBCOMMANDS: &'static [Subcommand] = &[
        subcommand::<Renew>(),
        subcommand::<End>(),
        subcommand::<Sessions>(),
        subcommand::<List>(),
    ];
}

struct Renew;

impl Command for Renew {
    const SPEC: Spec = Spec {
        name: "renew",
        summary: "Creates an owner, or renews its lease.",
        complexity: "O(log N), N being the owners of the database.",
        since: "0.2.0",
        arity: -3,
        access: Access::WritesNoKey,
        flags: "fast",
        categories: "fast",
        tips: SUM,
        args: &[
            OWNER,
            ArgSpec::new(
                "lease",
                ArgKind::OneOf(&[
                    ArgSpec::new("seconds", ArgKind::Integer).after("EX"),
                    ArgSpec::new("milliseconds", ArgKind::Integer).after("PX"),
                ]),
            )
            .optional(),
            ArgSpec::new("bond", ArgKind::Block(&[ArgSpec::word("bind", "BIND"), LINGER]))
                .optional(),
        ],
    };

    fn run(call: &Call) -> Outcome {
        let mut args = call.args();
        // The first argument is no key here, and is read in the same way.
        let argument = args.space()?;
        let name = parse::owner(argument.bytes())?;
        let (mut bind, mut linger) = (None, None);
        let mut times = ExpiryArgs::new("presence.owner|renew");
        while args.left() > 0 {
            if args.take_word("BIND") {
                set_once(&mut bind, (), "BIND")?;
            } else if args.take_word("LINGER") {
                set_once(&mut linger, parse::linger(&mut args)?, "LINGER")?;
            } else if !times.take(&mut args, call.now(), false)? {
                return Err(args.unknown_option());
            }
        }
        if linger.is_some() && bind.is_none() {
            return Err(Error::syntax("LINGER belongs to BIND, which is missing"));
        }
        let (ctx, now) = (call.ctx, call.now());
        let lease = times.lease(now, || space_settings::lease_ttl_ms(None))?;
        let connection = match bind {
            None => None,
            Some(()) => Some(ctx.connection().ok_or_else(|| {
                Error::new("BIND needs a connection of its own: it is not allowed in scripts")
            })?),
        };
        let db = ctx.db();
        bonds::settle(ctx, name, now);
        let is_known = owners::with(db, |owners| owners.live(name, now).is_some());
        if !is_known && !ctx.has_memory(argument) {
            return Err(Error::NO_MEMORY);
        }
        let sessions = owner_changes::renew(ctx, name, lease, now);
        if let Some(connection) = connection {
            bonds::bind(connection, db, name, linger.unwrap_or(0));
        }
        ctx.reply_count(sessions);
        Ok(())
    }
}

struct End;

impl Command for End {
    const SPEC: Spec = Spec {
        name: "end",
        summary: "Ends an owner and its sessions, or shortens its lease to a linger time.",
        complexity: "O(log N), N being the owners of the database. The sessions end in the background.",
        since: "0.2.0",
        arity: -3,
        access: Access::WritesNoKey,
        flags: "fast",
        categories: "fast",
        tips: SUM,
        args: &[OWNER, LINGER],
    };

    fn run(call: &Call) -> Outcome {
        let mut args = call.args();
        let name = parse::owner(args.required_first()?)?;
        let mut linger = None;
        while args.left() > 0 {
            if !args.take_word("LINGER") {
                return Err(args.unknown_option());
            }
            set_once(&mut linger, parse::linger(&mut args)?, "LINGER")?;
        }
        let (ctx, now) = (call.ctx, call.now());
        bonds::settle(ctx, name, now);
        let until = now.saturating_add(linger.unwrap_or(0));
        let sessions = owner_changes::cut(ctx, name, until, Reason::Offline, now);
        // The owner has said goodbye: that its connection closes now says nothing more.
        bonds::unbind(ctx.db(), name);
        ctx.reply_count(sessions);
        Ok(())
    }
}

struct List;

impl Command for List {
    const SPEC: Spec = Spec {
        name: "list",
        summary: "Returns the live owners of the selected database.",
        complexity: "O(N), N being the owners of the database.",
        since: "0.2.0",
        arity: 2,
        access: Access::ReadsNoKey,
        flags: "",
        categories: "",
        tips: "request_policy:all_shards",
        args: &[],
    };

    fn run(call: &Call) -> Outcome {
        let (ctx, db, now) = (call.ctx, call.ctx.db(), call.now());
        let live: Vec<_> = owners::with(db, |owners| owners.list(now).cloned().collect());
        ctx.reply_array(live.len());
        for owner in live {
            ctx.reply_map(4);
            ctx.reply_bulk(b"owner");
            ctx.reply_bulk(owner.name().as_bytes());
            ctx.reply_bulk(b"sessions");
            ctx.reply_count(owner.sessions());
            ctx.reply_bulk(b"expires_at");
            ctx.reply_count(owner.until());
            ctx.reply_bulk(b"bound");
            ctx.reply_bool(bonds::is_bound(db, owner.name()));
        }
        Ok(())
    }
}
