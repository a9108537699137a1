//! The timer that ends expired sessions, the expiry queue that drives it, and its repair.

pub mod expiry_queue;
pub mod queue_repair;
pub mod sweep;
