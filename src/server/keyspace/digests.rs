//! What spaces remember for their digests and counts.
//!
//! Few spaces have any, so it lies beside them: by the address of the [`SpaceValue`](super::space_value::SpaceValue), which
//! has a flag for it. The address stays the same when the key is renamed or moved, so what is pending follows. A copy
//! has another address and no flag.
//!
//! A value may be freed by another thread. That thread notes the address before it gives the memory back. The main thread
//! looks at these notes before it uses the table, so what is found there is never that of an earlier value.

use super::key::SpaceWriteGuard;
use crate::server::propagate::change_set::ChangeSet;
use crate::server::propagate::channels::Publisher;
use crate::server::propagate::propagation_targets;
use presence_core::digest::Digests;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    static TABLE: RefCell<HashMap<usize, Box<Digests>>> = RefCell::default();
}

/// The addresses of values that were freed and had something in the table.
static FREED: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static IS_ANY_FREED: AtomicBool = AtomicBool::new(false);

/// The value at this address is about to be freed, by any thread.
pub(super) fn freed(address: usize) {
    if let Ok(mut freed) = FREED.lock() {
        freed.push(address);
        IS_ANY_FREED.store(true, Ordering::Release);
    }
}

fn with_table<T>(use_it: impl FnOnce(&mut HashMap<usize, Box<Digests>>) -> T) -> T {
    TABLE.with_borrow_mut(|table| {
        if IS_ANY_FREED.swap(false, Ordering::Acquire)
            && let Ok(mut freed) = FREED.lock()
        {
            for address in std::mem::take(&mut *freed) {
                table.remove(&address);
            }
            if table.len() * 4 < table.capacity() {
                table.shrink_to(table.len() * 2);
            }
        }
        use_it(table)
    })
}

pub(super) fn with<T>(address: usize, use_it: impl FnOnce(&mut Digests) -> T) -> Option<T> {
    with_table(|table| table.get_mut(&address).map(|digests| use_it(digests)))
}

pub(super) fn insert(address: usize, digests: Digests) {
    with_table(|table| table.insert(address, Box::new(digests)));
}

pub(super) fn remove(address: usize) {
    with_table(|table| table.remove(&address));
}

impl SpaceWriteGuard<'_> {
    /// Takes in what a change set has gathered for digests, and publishes what is due.
    pub(super) fn take_in_net_changes(&mut self, change_set: &mut ChangeSet<'_>) {
        let Some((net, before)) = change_set.take_net_changes() else {
            if change_set.has_events() {
                // There are no digests here, or others decide: the chain of digests ends.
                self.held().forget_digests();
            }
            return;
        };
        let most = self.settings().digest_max_changes();
        let held = self.held();
        if net.is_empty() && held.space.stored() == before.1 {
            return;
        }
        held.begin_digests(|| Digests::new(before.0, before.1));
        held.with_digests(|digests, _| digests.merge(net, most));
        self.publish_digests(false);
    }

    /// Publishes the digest and the counts that are due. `is_end`: the space is about to be deleted, because nothing is
    /// left in it. What is pending is published before.
    pub fn publish_digests(&mut self, is_end: bool) {
        let (name, now) = (self.name, self.clock.now());
        let interval = self.settings().digest_interval_ms();
        let held = self.held();
        if interval == 0 {
            held.forget_digests();
            return;
        }
        let texts = held.with_digests(|digests, space| {
            let name = name.bytes();
            let digest = digests.digest(name, space, now, interval, is_end);
            (digest, digests.count(name, space, now, interval, is_end))
        });
        let Some((digest, count)) = texts else { return };
        let (publisher, unheard) =
            (Publisher::new(self.ctx, name), propagation_targets::are_none());
        if let Some(digest) = digest {
            publisher.publish_digest(unheard, &digest);
        }
        if let Some(count) = count {
            publisher.publish_count(unheard, &count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What another thread has freed is not found again by a new value at the same address.
    #[test]
    fn a_freed_value_leaves_nothing_behind() {
        insert(16, Digests::new((1, 1), (0, 0)));
        insert(32, Digests::new((1, 2), (0, 0)));
        assert!(with(16, |_| ()).is_some());
        std::thread::spawn(|| freed(16)).join().unwrap();
        assert!(with(16, |_| ()).is_none() && with(32, |_| ()).is_some());
        remove(32);
        assert!(with(32, |_| ()).is_none());
    }
}
