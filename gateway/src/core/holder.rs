//! Which connection holds a session.
//!
//! A client can move to another gateway before the first gateway has noticed that the old connection is gone. What the
//! first gateway then says about the session is late and must not end it. So a connection that takes over an id writes
//! its mark into a key beside the space, the holder key. A gateway changes a session only if the holder key is absent
//! or has the mark of its own connection; the server checks that in the same step (see `Store`).
//!
//! A connection that got a new random id writes no mark: nobody held that id before.

use super::room::Key;
use super::token::hex;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::sync::atomic::{AtomicU32, Ordering};

/// Numbers for connections. The upper half names the gateway, at random; the lower half counts. Of two connections of
/// one gateway the later one has the greater number.
pub struct ConnNumbers {
    gateway: u32,
    count: AtomicU32,
}

impl ConnNumbers {
    pub fn new(gateway: u32) -> ConnNumbers {
        ConnNumbers { gateway, count: AtomicU32::new(0) }
    }

    pub fn next(&self) -> u64 {
        let count = self.count.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        u64::from(self.gateway) << 32 | u64::from(count)
    }
}

/// The gateway's half and the count of a connection, as the holder key has them.
pub fn mark(conn: u64) -> (String, u32) {
    (format!("{:08x}:", conn >> 32), conn as u32)
}

/// The holder key of a session. It is in the slot of the space, for every space whose name has a hash tag or can be
/// made one.
pub fn holder_key(space: &str, (user, session): &Key) -> String {
    let mut digest = Sha256::new();
    digest.update((user.len() as u64).to_le_bytes());
    digest.update(user);
    digest.update(session);
    let mut key = String::from("presence-gateway:");
    match hash_tag(space) {
        Some(_) => key.push_str(space),
        None => {
            let _ = write!(key, "{{{space}}}");
        }
    }
    key.push(':');
    key.push_str(&hex(digest.finalize().iter().take(16)));
    key
}

/// The part of a key that decides about its slot in a cluster; None if that is the whole key.
fn hash_tag(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once('{')?;
    let (tag, _) = rest.split_once('}')?;
    Some(tag).filter(|tag| !tag.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_connections_have_greater_numbers() {
        let numbers = ConnNumbers::new(0xfedc_ba98);
        let (a, b) = (numbers.next(), numbers.next());
        assert!(a < b);
        assert_eq!(mark(a), ("fedcba98:".into(), 1));
        assert_eq!(mark(b), ("fedcba98:".into(), 2));
        let last = ConnNumbers { gateway: 1, count: AtomicU32::new(u32::MAX) };
        assert_eq!(mark(last.next()), ("00000001:".into(), 0));
    }

    #[test]
    fn holder_keys_share_the_slot_of_the_space() {
        for space in ["lobby", "{team}:lobby", "{x}", "a{b", "a{b}c}d", "room:{a}{b}", "{", "é"] {
            let key = holder_key(space, &("user".into(), "session".into()));
            let slot = hash_tag(space).unwrap_or(space);
            assert_eq!(hash_tag(&key), Some(slot), "{space}: {key}");
        }
    }

    #[test]
    fn sessions_have_holder_keys_of_their_own() {
        let key = |user: &str, session: &str| holder_key("s", &(user.into(), session.into()));
        let mut keys = vec![key("a", "bc"), key("ab", "c"), key("", "abc"), key("abc", "")];
        keys.push(holder_key("t", &("a".into(), "bc".into())));
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count);
        assert_eq!(key(&"x".repeat(512), "y").len(), key("", "").len());
    }
}
