//! The moment of a call.

use super::key::server_time;
use std::cell::Cell;

/// A clock that is looked at once and then stands still. Looking takes longer than much of what a
/// command does; a call can have it done while it waits for memory.
#[derive(Default)]
pub struct Clock(Cell<Option<u64>>);

impl Clock {
    /// One that has been looked at.
    pub fn at(now: u64) -> Self {
        Clock(Cell::new(Some(now)))
    }

    /// Unix time (ms).
    pub fn now(&self) -> u64 {
        self.0.get().unwrap_or_else(|| {
            let now = server_time();
            self.0.set(Some(now));
            now
        })
    }
}
