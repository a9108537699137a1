//! Presence for Redis and Valkey, as a loadable module.
//!
//! ```text
//! space/        the product: who is here, until when, what happened. Knows no server, no clock
//! agenda.rs     which space is due next
//! codec.rs      effects as bytes, for replicas, the AOF and the RDB
//! json.rs       is this a JSON value that every reader can take
//! collections/  containers that grow and shrink a little at a time
//! commands/     a file a command: arguments, space, reply
//! server/       the edge to the server, the only unsafe code
//! ```
//!
//! ARCHITECTURE.md tells the way of a command through these.

// Unit tests are built without the part that registers everything with the server.
#![cfg_attr(test, allow(dead_code))]

mod agenda;
mod codec;
mod collections;
mod commands;
mod json;
mod server;
mod space;

#[cfg(not(test))]
mod module {
    use crate::server::alloc::ServerAlloc;
    use crate::server::load::init;

    redis_module::redis_module! {
        name: "presence",
        version: 1,
        allocator: (ServerAlloc, ServerAlloc),
        data_types: [],
        init: init,
    }
}
