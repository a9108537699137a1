//! What the gateway decides, without a socket, a server or a clock: who is in a room, who may have which id, what is
//! said to whom in which words.

pub mod claim;
pub mod event;
pub mod follow;
pub mod holder;
pub mod protocol;
pub mod room;
pub mod time;
