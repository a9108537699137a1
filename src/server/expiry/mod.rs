//! The timer that ends expired sessions, the expiry queue that drives it, and its repair.

pub mod expiry_queue;
#[allow(dead_code)]
pub mod owners;
pub mod queue_repair;
pub mod sweep;
