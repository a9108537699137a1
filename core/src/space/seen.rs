//! The users who have left a space and are not back: when each left, and why.
//!
//! - layout: a block per user with the name, and a mark of 16 bytes beside it: the time and the reason of the leave, and
//!   the users who left before and after. So the users are a list in the order in which they left. An index finds them
//!   by name.
//! - growth: by a page and by a small table at a time, as all containers of a space. Nothing is moved at once.
//! - cost: at most 64 bytes per user and the name; each function takes constant time.
//!
//! Who left first is forgotten first. If the clock was set back, a user can have left at an earlier time than those who
//! left before. Such a user is hidden from readers on time, and forgotten after them.

use super::{Reason, Timestamp};
use crate::collections::{BlockArena, LinearHashIndex, hash_of};

/// Ends a block: there may be zeroes behind it.
const END: u8 = 1;
/// A block of a name of this length has no [`END`]: it would be kept apart otherwise, and take more.
const FULL_BYTES: usize = super::MAX_NAME_BYTES;
/// No user.
const NONE: u32 = u32::MAX;
/// A leave makes the space forget at most this many users who are too many. The sweep forgets the rest.
const FORGOTTEN_PER_LEAVE: usize = 64;
/// The sweep comes for the first user whose time is over at most so much later (ms), to forget several at once.
const MOST_SLACK_MS: u64 = 1000;

/// Which users a space remembers after they have left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeenLimits {
    /// For how long (ms); 0 remembers nobody.
    pub ttl: u64,
    /// How many.
    pub users: u64,
}

impl SeenLimits {
    /// Remembers nobody.
    pub const NOBODY: SeenLimits = SeenLimits { ttl: 0, users: 0 };

    pub fn keeps_none(self) -> bool {
        self.ttl == 0 || self.users == 0
    }

    /// Whether a leave of this time is no longer remembered at `now`.
    pub fn is_over(self, at: Timestamp, now: Timestamp) -> bool {
        self.keeps_none() || at.saturating_add(self.ttl) <= now
    }
}

/// Beside the name of a user.
#[derive(Clone, Copy)]
struct Leave {
    /// When the user left, with the flags below.
    at: u64,
    before: u32,
    after: u32,
}

impl Default for Leave {
    fn default() -> Self {
        Leave { at: 0, before: NONE, after: NONE }
    }
}

impl Leave {
    const TIMEOUT: u64 = 1 << 63;
    /// The name takes all of its block.
    const FULL: u64 = 1 << 62;

    fn at(self) -> Timestamp {
        self.at & !(Self::TIMEOUT | Self::FULL)
    }

    fn reason(self) -> Reason {
        if self.at & Self::TIMEOUT != 0 { Reason::Timeout } else { Reason::Offline }
    }
}

type Blocks = BlockArena<Leave>;

fn name(blocks: &Blocks, id: u32) -> Option<&[u8]> {
    let block = blocks.get(id)?;
    if blocks.mark(id)?.at & Leave::FULL != 0 {
        return block.get(..FULL_BYTES);
    }
    block.get(..block.iter().rposition(|byte| *byte == END)?)
}

fn name_hash(blocks: &Blocks, id: u32) -> u64 {
    name(blocks, id).map_or(0, hash_of)
}

#[derive(Clone)]
pub struct SeenUsers {
    /// A removal changes the number of another user.
    blocks: Blocks,
    names: LinearHashIndex,
    first: u32,
    last: u32,
    /// Nobody who is here left later than that.
    latest: Timestamp,
}

impl Default for SeenUsers {
    fn default() -> Self {
        SeenUsers {
            blocks: Blocks::default(),
            names: LinearHashIndex::default(),
            first: NONE,
            last: NONE,
            latest: 0,
        }
    }
}

impl SeenUsers {
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn find(&self, user: &[u8]) -> Option<u32> {
        let is = |id| name(&self.blocks, id) == Some(user);
        self.names.find(hash_of(user), is)
    }

    fn leave(&self, id: u32) -> Option<Leave> {
        self.blocks.mark(id).copied()
    }

    /// When a user left, and why.
    pub fn get(&self, user: &[u8]) -> Option<(Timestamp, Reason)> {
        let leave = self.leave(self.find(user)?)?;
        Some((leave.at(), leave.reason()))
    }

    /// A user leaves. Returns false, and changes nothing, if the user is here already.
    pub fn insert(&mut self, user: &[u8], at: Timestamp, reason: Reason) -> bool {
        if self.find(user).is_some() {
            return false;
        }
        let is_full = user.len() >= FULL_BYTES;
        let flags = if reason == Reason::Timeout { Leave::TIMEOUT } else { 0 }
            | if is_full { Leave::FULL } else { 0 };
        let at = at & !(Leave::TIMEOUT | Leave::FULL);
        let leave = Leave { at: at | flags, before: self.last, after: NONE };
        let id = match is_full {
            true => self.blocks.insert(user, leave),
            false => self.blocks.insert(&[user, &[END]].concat(), leave),
        };
        let blocks = &self.blocks;
        self.names.insert(hash_of(user), id, |other| name_hash(blocks, other));
        self.set_after(leave.before, id);
        self.last = id;
        self.latest = self.latest.max(at);
        true
    }

    /// A user is back. Returns whether the user was here.
    pub fn remove(&mut self, user: &[u8]) -> bool {
        let id = self.find(user);
        id.into_iter().for_each(|id| self.remove_id(id));
        id.is_some()
    }

    /// Forgets the user who left first.
    pub fn remove_first(&mut self) {
        if self.first != NONE {
            self.remove_id(self.first);
        }
    }

    fn remove_id(&mut self, id: u32) {
        let Some(leave) = self.leave(id) else { return };
        self.set_after(leave.before, leave.after);
        self.set_before(leave.after, leave.before);
        let (hash, blocks) = (name_hash(&self.blocks, id), &self.blocks);
        self.names.remove(hash, |other| other == id, |other| name_hash(blocks, other));
        if let Some(moved) = self.blocks.remove(id) {
            self.renumber(moved, id);
        }
        if self.is_empty() {
            *self = SeenUsers::default();
        }
    }

    /// The user who had the number `old` has the number `new`: tells all who know it.
    fn renumber(&mut self, old: u32, new: u32) {
        let Some(leave) = self.leave(new) else { return };
        self.set_after(leave.before, new);
        self.set_before(leave.after, new);
        self.names.replace(name_hash(&self.blocks, new), old, new);
    }

    /// After this user, or as the first one, comes that one.
    fn set_after(&mut self, id: u32, after: u32) {
        match self.blocks.mark_mut(id).filter(|_| id != NONE) {
            Some(leave) => leave.after = after,
            None => self.first = after,
        }
    }

    /// Before this user, or as the last one, comes that one.
    fn set_before(&mut self, id: u32, before: u32) {
        match self.blocks.mark_mut(id).filter(|_| id != NONE) {
            Some(leave) => leave.before = before,
            None => self.last = before,
        }
    }

    /// Whether there are users whom the space is to forget at `now`.
    pub fn has_excess(&self, now: Timestamp, limits: SeenLimits) -> bool {
        let first = self.leave(self.first);
        self.len() as u64 > limits.users
            || first.is_some_and(|leave| limits.is_over(leave.at(), now))
    }

    /// How many users the space is to forget at `now`, who left first first; at most `most`.
    pub fn excess(&self, now: Timestamp, limits: SeenLimits, most: usize) -> usize {
        let users = usize::try_from(limits.users).unwrap_or(usize::MAX);
        let too_many = self.len().saturating_sub(users);
        let mut next = self.first;
        let mut count = 0;
        while count < most {
            let Some(leave) = self.leave(next).filter(|_| next != NONE) else { break };
            if count >= too_many && !limits.is_over(leave.at(), now) {
                break;
            }
            (next, count) = (leave.after, count + 1);
        }
        count
    }

    /// Forgets users who are too many after a leave, or as many of them as one leave may.
    pub fn remove_surplus(&mut self, limits: SeenLimits) {
        for _ in 0..FORGOTTEN_PER_LEAVE {
            if self.len() as u64 <= limits.users {
                return;
            }
            self.remove_first();
        }
    }

    /// Whether nobody is remembered at `now`. It says so late rather than early if the clock was set back.
    pub fn is_over(&self, now: Timestamp, limits: SeenLimits) -> bool {
        self.is_empty() || limits.is_over(self.latest, now)
    }

    /// The moment from which the sweep finds several users to forget, or the last one. 0 is at once.
    pub fn next_due(&self, limits: SeenLimits) -> Timestamp {
        let ends = |id| self.leave(id).map_or(0, |leave| leave.at().saturating_add(limits.ttl));
        if limits.keeps_none() || self.len() as u64 > limits.users {
            return 0;
        }
        let (first, last) = (ends(self.first), ends(self.last));
        let slack = (limits.ttl / 16).min(MOST_SLACK_MS);
        // Not before the first one's time is over, whatever the clock did meanwhile.
        first.saturating_add(slack).min(last).max(first)
    }

    /// All users, who left first first.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Timestamp, Reason)> {
        let mut next = self.first;
        std::iter::from_fn(move || {
            let leave = self.leave(next).filter(|_| next != NONE)?;
            let user = name(&self.blocks, next)?;
            next = leave.after;
            Some((user, leave.at(), leave.reason()))
        })
    }

    /// Bytes on the heap, in constant time.
    pub fn heap_bytes(&self) -> usize {
        self.blocks.heap_bytes() + self.names.heap_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name_of(n: usize) -> Vec<u8> {
        match n % 5 {
            0 => vec![b'x'; 500 + n % 13],
            1 => format!("user\0\u{1}{n}\0").into_bytes(),
            2 => vec![1; 1 + n],
            _ => format!("{n}").into_bytes(),
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Leave(usize, u64, bool),
        Back(usize),
        First,
        Surplus(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0..60usize, 0..100u64, any::<bool>()).prop_map(|(n, at, timeout)| Op::Leave(n, at, timeout)),
            2 => (0..60usize).prop_map(Op::Back),
            1 => Just(Op::First),
            1 => (0..50u64).prop_map(Op::Surplus),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_list(ops in prop::collection::vec(op(), 1..300)) {
            let mut seen = SeenUsers::default();
            let mut model: Vec<(Vec<u8>, u64, Reason)> = Vec::new();
            for op in ops {
                match op {
                    Op::Leave(n, at, timeout) => {
                        let reason = if timeout { Reason::Timeout } else { Reason::Offline };
                        let is_new = !model.iter().any(|(name, ..)| *name == name_of(n));
                        prop_assert_eq!(seen.insert(&name_of(n), at, reason), is_new);
                        if is_new {
                            model.push((name_of(n), at, reason));
                        }
                    }
                    Op::Back(n) => {
                        let at = model.iter().position(|(name, ..)| *name == name_of(n));
                        prop_assert_eq!(seen.remove(&name_of(n)), at.is_some());
                        at.map(|at| model.remove(at));
                    }
                    Op::First => {
                        seen.remove_first();
                        if !model.is_empty() {
                            model.remove(0);
                        }
                    }
                    Op::Surplus(users) => {
                        seen.remove_surplus(SeenLimits { ttl: 1, users });
                        model.drain(..model.len().saturating_sub(users as usize));
                    }
                }
                prop_assert_eq!(seen.len(), model.len());
                let all: Vec<_> = seen.iter().map(|(user, at, reason)| (user.to_vec(), at, reason)).collect();
                prop_assert_eq!(&all, &model);
                for n in 0..60 {
                    let there = model.iter().find(|(name, ..)| *name == name_of(n));
                    prop_assert_eq!(seen.get(&name_of(n)), there.map(|(_, at, reason)| (*at, *reason)));
                }
                let limits = SeenLimits { ttl: 50, users: 1000 };
                for now in (0..200).step_by(10) {
                    // Whoever is still remembered keeps the space, and the sweep comes for those who are not.
                    let remembered = model.iter().filter(|(_, at, _)| !limits.is_over(*at, now)).count();
                    prop_assert!(remembered == 0 || !seen.is_over(now, limits));
                    let has_excess = seen.has_excess(now, limits);
                    prop_assert_eq!(has_excess, model.first().is_some_and(|(_, at, _)| at + 50 <= now));
                    prop_assert!(seen.is_empty() || has_excess || seen.next_due(limits) > now);
                }
                if model.is_empty() {
                    prop_assert!(seen.heap_bytes() == 0 && seen.is_over(0, limits));
                }
            }
        }
    }

    /// 64 bytes and the name, however long that is and however many there are.
    #[test]
    fn a_user_takes_little() {
        for length in [1, 7, 8, 20, 63, 64, 255, 256, 300, 511, 512] {
            for users in [1000usize, 30_000] {
                let mut seen = SeenUsers::default();
                for n in 0..users {
                    let mut user = vec![b'u'; length];
                    let digits = format!("{n:05}");
                    let at = length.saturating_sub(digits.len());
                    if length < digits.len() {
                        user = (n as u16).to_le_bytes().to_vec();
                    } else {
                        user[at..].copy_from_slice(digits.as_bytes());
                    }
                    assert!(seen.insert(&user, n as u64, Reason::Timeout));
                }
                let (bytes, most) = (seen.heap_bytes(), users * (64 + length.max(2)));
                // The last page of each kind is not full.
                assert!(bytes < most + (64 << 10), "{bytes} for {users} names of {length}");
                let limits = SeenLimits { ttl: 1, users: 0 };
                while !seen.is_empty() {
                    seen.remove_surplus(limits);
                }
                assert_eq!(seen.heap_bytes(), 0);
            }
        }
    }
}
