//! Presence for Redis and Valkey, as a loadable module.
//!
//! ```text
//! presence_core  the product without a server, a crate of its own: core/
//! commands/      a file a command: arguments, space, reply
//! server/        the edge to the server, the only unsafe code
//! ```
//!
//! ARCHITECTURE.md tells the way of a command through these.

// Unit tests are built without the part that registers everything with the server.
#![cfg_attr(test, allow(dead_code))]

mod commands;
mod server;

#[cfg(not(test))]
mod module {
    use crate::commands::TABLE;
    use crate::server::ffi::alloc::ServerAlloc;
    use redis_module::{Context, RedisString, Status};

    fn init(ctx: &Context, _args: &[RedisString]) -> Status {
        crate::server::module::init::init(ctx, TABLE)
    }

    redis_module::redis_module! {
        name: "presence",
        version: 1,
        allocator: (ServerAlloc, ServerAlloc),
        data_types: [],
        init: init,
    }
}
