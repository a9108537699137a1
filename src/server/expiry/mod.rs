//! The timer that ends expired sessions, the expiry queue that drives it, and its repair.

pub mod bonds;
pub mod expiry_queue;
pub mod owner_changes;
pub mod owners;
pub mod queue_repair;
pub mod sweep;
