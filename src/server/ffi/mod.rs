//! The server's interface: contexts, arguments, replies, errors, the clock, prefetching, the allocator.

pub mod acl;
pub mod alloc;
pub mod args;
pub mod clock;
pub mod context;
pub mod error;
pub mod prefetch;
