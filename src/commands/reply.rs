//! How sessions look in replies.

use crate::server::ffi::context::Context;
use presence_core::space::{Reason, SessionRecord, User};

/// An array of a user's live sessions, each a map.
pub fn reply_sessions(ctx: Context, user: &User<'_>) {
    ctx.reply_array(user.sessions().count());
    for session in user.sessions() {
        reply_session(ctx, session);
    }
}

/// The word for why a user left, as in events.
pub fn reason(reason: Reason) -> &'static [u8] {
    match reason {
        Reason::Offline => b"offline",
        Reason::Timeout => b"timeout",
    }
}

fn reply_session(ctx: Context, session: SessionRecord<'_>) {
    ctx.reply_map(5);
    ctx.reply_bulk(b"session");
    ctx.reply_bulk(session.session());
    ctx.reply_bulk(b"joined_at");
    ctx.reply_count(session.joined_at());
    ctx.reply_bulk(b"expires_at");
    ctx.reply_count(session.lease().until());
    ctx.reply_bulk(b"meta");
    match session.meta() {
        Some(meta) => ctx.reply_bulk(meta),
        None => ctx.reply_null(),
    }
    ctx.reply_bulk(b"owner");
    match session.owner() {
        Some(owner) => ctx.reply_bulk(owner.as_bytes()),
        None => ctx.reply_null(),
    }
}
