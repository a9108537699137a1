//! The commands, a file each: read the arguments, ask the space, hand on what happened, reply.

mod apply;
mod close;
mod count;
mod cursor;
mod events;
mod feed;
mod message;
mod news;
mod offline;
mod online;
mod owner;
mod owner_sessions;
mod owners;
mod parse;
mod publish;
mod read;
mod reply;
mod seen;
mod space;
mod spaces;
mod status;
mod sweep;
mod unlink;
mod user;

use crate::server::module::init::{Registration, container, row};

/// The commands, for `init` to register.
pub const TABLE: &[Registration] = &[
    row::<online::Online>(),
    row::<offline::Offline>(),
    row::<status::Status>(),
    row::<user::User>(),
    row::<space::Space>(),
    row::<spaces::Spaces>(),
    row::<count::Count>(),
    row::<seen::Seen>(),
    row::<events::Events>(),
    row::<read::Read>(),
    row::<feed::Feed>(),
    row::<message::Message>(),
    row::<close::Close>(),
    container::<owner::Owner>(),
    row::<apply::Apply>(),
    row::<sweep::Sweep>(),
    row::<unlink::Unlink>(),
    row::<publish::Publish>(),
    row::<owners::Owners>(),
];
