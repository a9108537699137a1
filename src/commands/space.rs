//! `PRESENCE.SPACE`: who is here, at once or page by page.

use super::{parse, reply};
use crate::server::ffi::args::{set_once, unsigned};
use crate::server::ffi::context::Context;
use crate::server::ffi::error::{Error, Outcome};
use crate::server::ffi::prefetch;
use crate::server::module::call::Call;
use crate::server::module::command::{Access, ArgKind, ArgSpec, Command, SPACE, Spec};
use presence_core::collections::hash_of;
use presence_core::space::User;
use std::sync::LazyLock;

pub struct Space;

impl Command for Space {
    const SPEC: Spec = Spec {
        name: "presence.space",
        summary: "Returns the users who are online in a space, and the id of its last event.",
        complexity: "O(N), N being the users returned, or their sessions with WITHSESSIONS.",
        since: "0.1.0",
        arity: -2,
        access: Access::Reads,
        flags: "",
        categories: "",
        tips: "",
        args: &[
            SPACE,
            ArgSpec::word("withsessions", "WITHSESSIONS").optional(),
            ArgSpec::new("cursor", ArgKind::Integer).after("CURSOR").optional(),
            ArgSpec::new("count", ArgKind::Integer).after("COUNT").optional(),
        ],
    };

    fn run(call: &Call) -> Outcome {
        let mut args = call.args();
        let name = args.space()?;
        let (mut with_sessions, mut cursor, mut count) = (None, None, None);
        while args.left() > 0 {
            if args.take_word("WITHSESSIONS") {
                set_once(&mut with_sessions, (), "WITHSESSIONS")?;
            } else if args.take_word("CURSOR") {
                let value = unsigned(args.value_of("CURSOR")?)
                    .ok_or_else(|| Error::new("invalid cursor"))?;
                set_once(&mut cursor, value, "CURSOR")?;
            } else if args.take_word("COUNT") {
                set_once(&mut count, parse::count(&mut args)?, "COUNT")?;
            } else {
                return Err(args.unknown_option());
            }
        }
        let space = call.read(name)?;
        let from = cursor.and_then(place_of).unwrap_or(0);
        let ctx = call.ctx;
        let id = space.as_ref().map_or((0, 0), |space| space.last_id());
        let (users, sessions) = space.as_ref().map_or((0, 0), |space| space.counts(call.now()));
        let is_page = count.is_some() || from > 0;
        // A page is gathered before its members are sent, so that the cursor can come first, as
        // the contract has it.
        let (page, next) = match space.as_ref().filter(|_| is_page) {
            Some(space) => {
                space.page(from, count.unwrap_or(usize::MAX), call.now(), prefetch::prefetch)
            }
            None => (Vec::new(), None),
        };
        ctx.reply_map(5);
        ctx.reply_bulk(b"id");
        ctx.reply_id(id);
        ctx.reply_bulk(b"users");
        ctx.reply_count(users);
        ctx.reply_bulk(b"sessions");
        ctx.reply_count(sessions);
        ctx.reply_bulk(b"cursor");
        ctx.reply_bulk(next.map_or(0, cursor_of).to_string().as_bytes());
        ctx.reply_bulk(b"members");
        let whole = space.as_ref().filter(|_| !is_page).map(|space| space.users(call.now()));
        ctx.reply_array_of(|| {
            let members = page.into_iter().chain(whole.into_iter().flatten());
            members.map(|user| reply_member(ctx, &user, with_sessions.is_some())).count()
        });
        Ok(())
    }
}

fn reply_member(ctx: Context, user: &User<'_>, with_sessions: bool) {
    if !with_sessions {
        ctx.reply_bulk(user.name());
        return;
    }
    ctx.reply_map(2);
    ctx.reply_bulk(b"user");
    ctx.reply_bulk(user.name());
    ctx.reply_bulk(b"sessions");
    reply::reply_sessions(ctx, user);
}

/// Places are those of one process: loaded again, or on another node, the same users have others.
/// A cursor carries 20 bits that tell the process, and one of another process begins anew: so a
/// listing that is interrupted by a restart repeats members, but misses none. In all it has 52
/// bits, which every client can hold as a number.
fn cursor_of(place: u32) -> u64 {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| hash_of(b"cursor") & 0xf_ffff);
    *PROCESS << 32 | u64::from(place)
}

fn place_of(cursor: u64) -> Option<u32> {
    u32::try_from(cursor ^ cursor_of(0)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_good_for_its_process_only() {
        assert_eq!(place_of(cursor_of(7)), Some(7));
        assert_eq!(place_of(cursor_of(7) ^ 1 << 40), None);
        assert!(cursor_of(u32::MAX) < 1 << 53);
    }
}
