//! Clients that wait for events.

pub mod blocked_clients;
pub mod feed_waits;
pub mod space_waits;
