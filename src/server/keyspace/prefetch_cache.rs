//! What a heartbeat will look at, asked for before its space is found.
//!
//! The server's search for a key takes a while, and only what it finds tells where the session is
//! looked for. So it is remembered where that was in the spaces of the last heartbeats. It is a hint and
//! no more: nothing is read where it points, and what it says wrongly is brought near for nothing.

use crate::server::ffi::prefetch;
use presence_core::space::{Lookup, Space, SpaceLayout};
use std::cell::RefCell;

/// So many spaces at most: two whose names fall together take turns. 320 KB, and the charts of large
/// spaces, 16 bytes for some 300 sessions.
const SPACES: usize = 1 << SPACES_BITS;
const SPACES_BITS: u32 = 12;
/// Any large odd number; this one is 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

struct Seen {
    /// The hash of the name and its database.
    name: u64,
    value: *const u8,
    layout: SpaceLayout,
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(SPACES * size_of::<Seen>() == 320 << 10);
const NOTHING: Seen = Seen { name: 0, value: std::ptr::null(), layout: SpaceLayout::NONE };

thread_local! {
    static SEEN: RefCell<Vec<Seen>> = const { RefCell::new(Vec::new()) };
}

/// A hash that is quick and no more. Who chooses names that fall together only loses the hint, as an index layout
/// that is wrong each time is not drawn each time.
fn hash(db: i32, name: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(SPREAD);
    let (words, rest) = name.as_chunks::<8>();
    let mut last = [0; 8];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    let words = words.iter().chain([&last]).map(|word| u64::from_le_bytes(*word));
    words.fold(mix(db as u64, name.len() as u64), mix)
}

/// What was cached of one heartbeat.
pub struct CachedLayout {
    name: u64,
}

/// Where the search for a user in the space of that name begins, where this is remembered. What it looks at
/// first is asked for.
pub fn look_ahead(db: i32, name: &[u8], user: &[u8]) -> (Lookup, CachedLayout) {
    let cached = CachedLayout { name: hash(db, name) };
    let lookup = SEEN.with_borrow(|seen| {
        let seen = seen.get(cached.place()).filter(|seen| seen.name == cached.name)?;
        prefetch::prefetch(seen.value);
        prefetch::prefetch(seen.value.wrapping_add(64));
        Some(seen.layout.lookup(user, prefetch::prefetch))
    });
    (lookup.unwrap_or_default(), cached)
}

impl CachedLayout {
    fn place(&self) -> usize {
        (self.name >> (64 - SPACES_BITS)) as usize
    }

    /// Compares it with what is there, and remembers that. Returns whether it was the same, so that what
    /// was asked for is what is looked at.
    pub fn compare(self, value: *const u8, space: &Space) -> bool {
        SEEN.with_borrow_mut(|all| {
            if all.is_empty() {
                all.resize_with(SPACES, || NOTHING);
            }
            let Some(seen) = all.get_mut(self.place()) else { return false };
            let same = seen.name == self.name && seen.value == value;
            if !same {
                *seen = Seen { name: self.name, value, layout: SpaceLayout::NONE };
            }
            space.update_layout(&mut seen.layout) && same
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use presence_core::space::{
        ChangeCtx, Condition, Limits, MetaChange, NullSink, OnlineRequest, Retention,
    };

    fn is_foreseen(db: i32, name: &[u8], value: *const u8, space: &Space) -> bool {
        look_ahead(db, name, b"alice").1.compare(value, space)
    }

    #[test]
    fn what_was_seen_last_is_foreseen() {
        let (one, other) = (Space::new(1), Space::new(2));
        let (here, there) = (std::ptr::from_ref(&one).cast(), std::ptr::from_ref(&other).cast());
        assert!(!is_foreseen(0, b"a", here, &one));
        assert!(is_foreseen(0, b"a", here, &one));
        assert!(!is_foreseen(0, b"b", there, &other));
        assert!(is_foreseen(0, b"b", there, &other) && is_foreseen(0, b"a", here, &one));
        // The same name in another database does not disturb it.
        assert!(!is_foreseen(1, b"a", there, &other) && is_foreseen(1, b"a", there, &other));
        assert!(is_foreseen(0, b"a", here, &one));
        // Another space under the name.
        assert!(!is_foreseen(0, b"a", there, &other) && is_foreseen(0, b"a", there, &other));
    }

    #[test]
    fn what_has_changed_is_not() {
        let mut space = Space::new(1);
        let retention = Retention::of_events(0, 0);
        let limits = Limits { sessions_per_user: 1, users: 0, retention, slack: 0 };
        let mut right = 0;
        for n in 0..2000 {
            let user = format!("user{n}");
            let at = ChangeCtx { space: b"s", now: 1, limits };
            let lookup = Lookup::default();
            let (always, keep) = (Condition::Always, MetaChange::Keep);
            let request =
                OnlineRequest { who: (&user, ""), keeper: 9.into(), meta: keep, condition: always };
            let came = space.online(at, &lookup, request, |_| true, &mut NullSink);
            assert!(came.is_ok_and(|came| came == Some(1)));
            right += usize::from(is_foreseen(0, b"s", std::ptr::null(), &space));
            assert!(is_foreseen(0, b"s", std::ptr::null(), &space));
        }
        // Its memory grows now and then.
        assert!((1900..1990).contains(&right), "{right}");
    }
}
