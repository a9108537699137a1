//! Clients that wait for events.

pub mod blocked_clients;
pub mod space_waits;
