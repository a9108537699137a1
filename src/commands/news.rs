//! What has happened in a space since an id: what `EVENTS` and `READ` share.

use super::parse;
use crate::server::blocking::space_waits::Since;
use crate::server::ffi::args::{Args, integer};
use crate::server::ffi::context::Context;
use crate::server::ffi::error::Error;
use crate::server::keyspace::key::SpaceReadGuard;

/// The value of `BLOCK` (ms).
pub fn block(args: &mut Args<'_>, now: u64) -> Result<i64, Error> {
    let value = integer(args.value_of("BLOCK")?)
        .ok_or_else(|| Error::new("timeout is not an integer or out of range"))?;
    parse::timeout(value, now)
}

/// An id, or `$`: the last id that the space has when the command is called, which is none here.
pub fn after(value: &[u8]) -> Result<Option<(u64, u64)>, Error> {
    if value == b"$" { Ok(None) } else { parse::event_id(value).map(Some) }
}

/// The id of the last event; 0-0 if there is no space.
pub fn last_id(space: Option<&SpaceReadGuard>) -> (u64, u64) {
    space.map_or((0, 0), |space| space.last_id())
}

/// Whether there is something to tell: events, or that some are missing, or that the space is not
/// the one that was there when the client began to wait.
pub fn has_news(_name: &[u8], space: Option<&SpaceReadGuard>, since: &Since, now: u64) -> bool {
    // Another epoch is another space, or a new line of history, whose first event is news.
    let epoch = space.map(|space| space.last_id().0);
    if since.epoch.is_some() && since.epoch != epoch {
        return true;
    }
    let Some(space) = space else { return since.has_seen_events() };
    let (gap, mut events) = space.events_after(since.id(), now, space.settings().retention());
    (gap && since.after.is_some()) || events.next().is_some()
}

/// The entries `id`, `gap` and `events` of a map: how things are at `now`.
pub fn reply_entries(
    ctx: Context,
    _name: &[u8],
    space: Option<&SpaceReadGuard>,
    since: &Since,
    count: usize,
    now: u64,
) {
    ctx.reply_bulk(b"id");
    ctx.reply_id(last_id(space));
    ctx.reply_bulk(b"gap");
    let Some(space) = space else {
        ctx.reply_bool(since.has_seen_events());
        ctx.reply_bulk(b"events");
        ctx.reply_array(0);
        return;
    };
    let (gap, events) = space.events_after(since.id(), now, space.settings().retention());
    // Without an id all that is kept is told, and nothing is said to be missing.
    ctx.reply_bool(gap && since.after.is_some());
    ctx.reply_bulk(b"events");
    ctx.reply_array_of(|| events.take(count).map(|text| ctx.reply_bulk(text)).count());
}
