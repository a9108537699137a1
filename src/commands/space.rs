//! `PRESENCE.SPACE`: who is here, at once or page by page.

use super::{parse, view};
use crate::server::args::set_once;
use crate::server::call::Call;
use crate::server::command::{Access, ArgKind, ArgSpec, Command, Spec, SPACE};
use crate::server::error::{Error, Outcome};
use crate::space;

pub struct Space;

/// A page passes over so many places for each member that it may return: in a space that most
/// have left, a page may come back with fewer members than asked for.
const PLACES_A_MEMBER: usize = 32;

impl Command for Space {
    const SPEC: Spec = Spec {
        name: "presence.space",
        summary: "Lists the users who are online in a space, with the id of its last event.",
        complexity: "O(N), N being the users returned, or their sessions with WITHSESSIONS.",
        since: "0.1.0",
        arity: -2,
        access: Access::Reads,
        flags: "",
        categories: "",
        args: &[
            SPACE,
            ArgSpec::word("withsessions", "WITHSESSIONS").optional(),
            ArgSpec::new("cursor", ArgKind::Integer).after("CURSOR").optional(),
            ArgSpec::new("count", ArgKind::Integer).after("COUNT").optional(),
        ],
    };

    fn run(call: &Call) -> Outcome {
        let mut args = call.args();
        let name = args.required()?;
        let (mut with_sessions, mut cursor, mut count) = (None, None, None);
        while args.left() > 0 {
            if args.take_word("WITHSESSIONS") {
                set_once(&mut with_sessions, (), "WITHSESSIONS")?;
            } else if args.take_word("CURSOR") {
                let value = std::str::from_utf8(args.value_of("CURSOR")?).ok();
                let value = value.and_then(|value| value.parse::<u64>().ok());
                set_once(
                    &mut cursor,
                    value.ok_or_else(|| Error::new("invalid cursor"))?,
                    "CURSOR",
                )?;
            } else if args.take_word("COUNT") {
                set_once(&mut count, parse::count(&mut args)?, "COUNT")?;
            } else {
                return Err(args.unknown_option());
            }
        }
        let space = call.read(name)?;
        let mark = space.as_ref().map_or(0, |space| space.mark());
        let from = cursor.and_then(|cursor| place_of(mark, cursor)).unwrap_or(0);
        let ctx = call.ctx;
        let id = space.as_ref().map_or((0, 0), |space| space.last_id());
        let (users, sessions) = space.as_ref().map_or((0, 0), |space| space.counts(call.now));
        // Where the page ends is known before its members are sent, so that the cursor can come
        // first, as the contract has it.
        let end = match (&space, count) {
            (Some(space), Some(count)) => end_of_page(space, from, count, call.now),
            _ => None,
        };
        ctx.reply_map(5);
        ctx.reply_bulk(b"id");
        ctx.reply_id(id);
        ctx.reply_bulk(b"users");
        ctx.reply_count(users);
        ctx.reply_bulk(b"sessions");
        ctx.reply_count(sessions);
        ctx.reply_bulk(b"cursor");
        ctx.reply_bulk(end.map_or(0, |end| cursor_of(mark, end)).to_string().as_bytes());
        ctx.reply_bulk(b"members");
        ctx.reply_array_of(|| {
            let places = space.as_ref().map(|space| space.walk(from, call.now));
            let places = places.into_iter().flatten();
            let mut members = 0;
            for (_, user) in places.take_while(|(place, _)| end.is_none_or(|end| *place < end)) {
                let Some(user) = user else { continue };
                members += 1;
                if with_sessions.is_none() {
                    ctx.reply_bulk(user.name());
                } else {
                    ctx.reply_map(2);
                    ctx.reply_bulk(b"user");
                    ctx.reply_bulk(user.name());
                    ctx.reply_bulk(b"sessions");
                    view::reply_sessions(ctx, &user);
                }
            }
            members
        });
        Ok(())
    }
}

/// The place at which the next page begins, or none where this one is the last.
fn end_of_page(space: &space::Space, from: u32, count: usize, now: u64) -> Option<u32> {
    let mut members = 0;
    let furthest = (from as usize).saturating_add(count.saturating_mul(PLACES_A_MEMBER));
    for (place, user) in space.walk(from, now) {
        if members == count || (place as usize) > furthest {
            return Some(place);
        }
        members += usize::from(user.is_some());
    }
    None
}

/// Places are those of one value in one process: loaded again, or on another node, the same users
/// have others. A cursor carries 20 bits of the value's mark, and one of another mark begins anew:
/// so a listing that is interrupted by a restart repeats members, but misses none. In all it has
/// 52 bits, which every client can hold as a number.
fn cursor_of(mark: u32, place: u32) -> u64 {
    u64::from(mark & 0xf_ffff) << 32 | u64::from(place)
}

fn place_of(mark: u32, cursor: u64) -> Option<u32> {
    u32::try_from(cursor ^ cursor_of(mark, 0)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_good_for_its_mark_only() {
        assert_eq!(place_of(0x1234_5678, cursor_of(0x1234_5678, 7)), Some(7));
        assert_eq!(place_of(0x1234_5679, cursor_of(0x1234_5678, 7)), None);
        assert!(cursor_of(u32::MAX, u32::MAX) < 1 << 53);
    }
}
