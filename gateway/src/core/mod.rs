//! What the gateway decides, without a socket, a server or a clock: who is in a room, who may have which id, and which
//! messages clients get.

pub mod action;
pub mod claim;
pub mod conn;
pub mod event;
pub mod follow;
pub mod hello;
pub mod peer;
pub mod protocol;
pub mod room;
pub mod time;
pub mod token;
