//! Which space is due next, over all databases.
//!
//! An index beside the keyspace, of hints: an entry says that the space of that name may have
//! something to do from that moment on. Whoever follows it looks at the key and corrects the
//! entry. One that is stale costs a look; only one that is missing would lose an expiry.

use crate::collections::{BlockArena, IndexedHeap, LinearHashIndex, Positions, hash_of};
use crate::space::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Ends each block: there may be zeroes behind it.
const END: u8 = 1;

/// Where in the order by time a space is.
type Place = u32;

/// A block each: a space's name and [`END`].
type Entries = BlockArena<Place>;

/// The name of a space and its position in the heap.
struct Entry<'a> {
    heap_slot: Place,
    name: &'a [u8],
}

impl<'a> Entry<'a> {
    fn of(block: &'a [u8], heap_slot: Place) -> Option<Self> {
        let end = block.iter().rposition(|byte| *byte == END)?;
        Some(Entry { heap_slot, name: block.get(..end)? })
    }

    fn block(name: &[u8]) -> Vec<u8> {
        [name, &[END]].concat()
    }
}

impl Positions for Entries {
    fn moved(&mut self, id: u32, position: u32) {
        if let Some(heap_slot) = self.mark_mut(id) {
            *heap_slot = position;
        }
    }
}

fn entry(entries: &Entries, id: u32) -> Option<Entry<'_>> {
    Entry::of(entries.get(id)?, *entries.mark(id)?)
}

fn name_hash(entries: &Entries, id: u32) -> u64 {
    entry(entries, id).map_or(0, |entry| hash_of(entry.name))
}

/// The spaces of one database, ordered by when they are due. A database that is flushed gives its
/// whole queue away at once, however many spaces are in it.
#[derive(Default)]
pub struct DbQueue {
    /// The number of the database. SWAPDB changes it.
    db: i32,
    /// A removal changes the number of another entry.
    entries: Entries,
    names: LinearHashIndex,
    order: IndexedHeap,
    /// The moment under which the queue stands in [`ExpiryQueue::root_pointers`]; none while it is empty.
    head: Option<Timestamp>,
}

impl DbQueue {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn find(&self, name: &[u8]) -> Option<u32> {
        let is = |id| entry(&self.entries, id).is_some_and(|entry| entry.name == name);
        self.names.find(hash_of(name), is)
    }

    fn next_due(&self) -> Option<Timestamp> {
        self.order.peek().map(|(due, _)| due)
    }

    fn due_of(&self, id: u32) -> Option<Timestamp> {
        self.order.due_at(entry(&self.entries, id)?.heap_slot)
    }

    /// Returns true if the space is a new entry.
    fn schedule(&mut self, name: &[u8], due: Timestamp) -> bool {
        if let Some(id) = self.find(name) {
            let Some(Entry { heap_slot, .. }) = entry(&self.entries, id) else { return false };
            if self.order.due_at(heap_slot) != Some(due) {
                self.order.update(heap_slot, due, &mut self.entries);
            }
            return false;
        }
        let id = self.entries.insert(&Entry::block(name), 0);
        let entries = &self.entries;
        self.names.insert(hash_of(name), id, |other| name_hash(entries, other));
        self.order.push(due, id, &mut self.entries);
        true
    }

    fn remove(&mut self, id: u32) {
        let Some(Entry { heap_slot, .. }) = entry(&self.entries, id) else { return };
        let hash = name_hash(&self.entries, id);
        self.order.remove(heap_slot, &mut self.entries);
        let entries = &self.entries;
        self.names.remove(hash, |other| other == id, |other| name_hash(entries, other));
        if let Some(moved) = self.entries.remove(id) {
            self.renumber(moved, id);
        }
    }

    /// The space that had the number `old` has the number `new`: tells all who know it.
    fn renumber(&mut self, old: u32, new: u32) {
        let Some(Entry { heap_slot, .. }) = entry(&self.entries, new) else { return };
        self.order.rename(heap_slot, new, &mut self.entries);
        self.names.replace(name_hash(&self.entries, new), old, new);
    }

    /// The moment at which the entry is due, and its name.
    fn at(&self, id: u32) -> Option<(Timestamp, i32, &[u8])> {
        let entry = entry(&self.entries, id)?;
        Some((self.order.due_at(entry.heap_slot)?, self.db, entry.name))
    }

    fn heap_bytes(&self) -> usize {
        self.entries.heap_bytes() + self.order.heap_bytes() + self.names.heap_bytes()
    }
}

/// How far a look at all spaces has come: along the hashes of the names of one queue after the other,
/// which are the same wherever entries move.
struct Look {
    queue: usize,
    /// From which hash on; none where there is nothing more in the queue.
    from: Option<u64>,
    /// Names of the queue that come before that.
    ready: Vec<Box<[u8]>>,
}

/// A part of a walk along the names of a database.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SomeNames {
    /// Each with its hash, in the order of these.
    pub names: Vec<(u64, Box<[u8]>)>,
    /// From which hash the walk goes on; none at the end.
    pub next: Option<u64>,
}

/// Spaces by database and name, ordered by when they are due.
#[derive(Default)]
pub struct ExpiryQueue {
    /// A queue per database. Databases can be swapped, so a queue knows the number of its database.
    queues: Vec<DbQueue>,
    queue_of: BTreeMap<i32, usize>,
    /// The queues that are not empty, by the moment at which their first space is due.
    root_pointers: BTreeSet<(Timestamp, usize)>,
    /// Entries of all queues.
    len: usize,
    /// Where spaces are still to be looked at.
    look: Option<Look>,
}

impl ExpiryQueue {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn queue(&mut self, db: i32) -> usize {
        *self.queue_of.entry(db).or_insert_with(|| {
            self.queues.push(DbQueue { db, ..DbQueue::default() });
            self.queues.len() - 1
        })
    }

    fn queue_at(&self, db: i32) -> Option<&DbQueue> {
        self.queues.get(*self.queue_of.get(&db)?)
    }

    /// Brings [`Self::root_pointers`] up to date with a queue that has changed.
    fn update_head(&mut self, at: usize) {
        let Some(queue) = self.queues.get_mut(at) else { return };
        let (old, new) = (queue.head, queue.next_due());
        if old == new {
            return;
        }
        queue.head = new;
        if let Some(old) = old {
            self.root_pointers.remove(&(old, at));
        }
        if let Some(new) = new {
            self.root_pointers.insert((new, at));
        }
    }

    /// Files a space under the moment from which it may have something to do (unix ms).
    pub fn schedule(&mut self, db: i32, name: &[u8], due: Timestamp) {
        let at = self.queue(db);
        if let Some(queue) = self.queues.get_mut(at) {
            self.len += usize::from(queue.schedule(name, due));
        }
        self.update_head(at);
    }

    /// Takes a space off; one that is not there is no error.
    pub fn forget(&mut self, db: i32, name: &[u8]) {
        let Some(&at) = self.queue_of.get(&db) else { return };
        let Some(queue) = self.queues.get_mut(at) else { return };
        let Some(id) = queue.find(name) else { return };
        queue.remove(id);
        self.len -= 1;
        self.update_head(at);
    }

    /// The moment under which a space is stored.
    pub fn due_of(&self, db: i32, name: &[u8]) -> Option<Timestamp> {
        let queue = self.queue_at(db)?;
        queue.due_of(queue.find(name)?)
    }

    /// Takes off all spaces of a database, in constant time. Freeing what is returned takes longer.
    pub fn forget_db(&mut self, db: i32) -> Option<DbQueue> {
        let &at = self.queue_of.get(&db)?;
        let queue = self.queues.get_mut(at)?;
        let head = queue.head.take();
        let gone = std::mem::replace(queue, DbQueue { db, ..DbQueue::default() });
        self.len -= gone.len();
        if let Some(head) = head {
            self.root_pointers.remove(&(head, at));
        }
        Some(gone)
    }

    /// The names of all spaces of a database.
    pub fn names(&self, db: i32) -> Vec<Box<[u8]>> {
        let entries = self.queue_at(db).into_iter().flat_map(|queue| queue.entries.iter());
        entries
            .filter_map(|(_, block, heap_slot)| Some(Entry::of(block, *heap_slot)?.name.into()))
            .collect()
    }

    /// Some names of a database with their hashes, in the order of these, from one on, or none where nothing is near.
    /// The hashes are the same for as long as the process runs: a walk meets
    /// whatever is there throughout once, although entries come, go and move.
    pub fn names_from(&self, db: i32, from: u64) -> SomeNames {
        let Some(queue) = self.queue_at(db) else { return SomeNames::default() };
        let (found, next) = queue.names.next(from, |id| name_hash(&queue.entries, id));
        let named = |(hash, id)| Some((hash, entry(&queue.entries, id)?.name.into()));
        SomeNames { names: found.into_iter().filter_map(named).collect(), next }
    }

    /// Two databases have changed their numbers.
    pub fn swap_dbs(&mut self, a: i32, b: i32) {
        let (of_a, of_b) = (self.queue(a), self.queue(b));
        for (queue, db) in [(of_a, b), (of_b, a)] {
            self.queue_of.insert(db, queue);
            if let Some(queue) = self.queues.get_mut(queue) {
                queue.db = db;
            }
        }
    }

    /// Every space is to be looked at once, whenever it is due: see [`ExpiryQueue::next_look`].
    pub fn look_at_all(&mut self) {
        self.look = Some(Look { queue: 0, from: Some(0), ready: Vec::new() });
    }

    /// Whether there are spaces to be looked at.
    pub fn has_looks(&self) -> bool {
        self.look.is_some()
    }

    /// The queue and the number of the next space that is to be looked at.
    fn next_to_look_at(&mut self) -> Option<(usize, u32)> {
        loop {
            let look = self.look.as_mut()?;
            while let Some(name) = look.ready.pop() {
                if let Some(id) = self.queues.get(look.queue)?.find(&name) {
                    return Some((look.queue, id));
                }
            }
            match (self.queues.get(look.queue), look.from) {
                (None, _) => self.look = None,
                (Some(_), None) => (look.queue, look.from) = (look.queue + 1, Some(0)),
                (Some(queue), Some(from)) => {
                    let (found, next) = queue.names.next(from, |id| name_hash(&queue.entries, id));
                    let found = found.iter().filter_map(|(_, id)| entry(&queue.entries, *id));
                    look.ready = found.map(|entry| entry.name.into()).collect();
                    look.from = next;
                }
            }
        }
    }

    /// The next space that is to be looked at: when it is due, its database, its name.
    pub fn next_look(&mut self) -> Option<(Timestamp, i32, &[u8])> {
        let (queue, id) = self.next_to_look_at()?;
        self.queues.get(queue)?.at(id)
    }

    /// The moment at which the first space is due.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.root_pointers.first().map(|(due, _)| *due)
    }

    /// The space that is due first: since when, in which database, its name.
    pub fn first(&self) -> Option<(Timestamp, i32, &[u8])> {
        let (_, at) = self.root_pointers.first()?;
        let queue = self.queues.get(*at)?;
        let (_, id) = queue.order.peek()?;
        queue.at(id)
    }

    /// How many spaces are due at `now`; `limit` if there are that many or more.
    pub fn backlog(&self, now: Timestamp, limit: usize) -> usize {
        let mut due = 0;
        for (_, at) in self.root_pointers.iter().take_while(|(head, _)| *head <= now) {
            let left = limit.saturating_sub(due);
            due += self.queues.get(*at).map_or(0, |queue| queue.order.count_due(now, left));
            if due >= limit {
                break;
            }
        }
        due
    }

    /// Bytes on the heap, estimated.
    pub fn heap_bytes(&self) -> usize {
        self.queues.iter().map(DbQueue::heap_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Schedule(i32, u8, u64),
        Forget(i32, u8),
        ForgetDb(i32),
        Swap(i32, i32),
        Look(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            12 => (0..3, 0..40u8, 0..1000u64).prop_map(|(db, name, due)| Op::Schedule(db, name, due)),
            6 => (0..3, 0..40u8).prop_map(|(db, name)| Op::Forget(db, name)),
            1 => (0..3).prop_map(Op::ForgetDb),
            2 => (0..3, 0..3).prop_map(|(a, b)| Op::Swap(a, b)),
            4 => (0..30usize).prop_map(Op::Look),
        ]
    }

    /// Names of many lengths, all but a few ending in zeroes.
    fn name(number: u8) -> Vec<u8> {
        let mut name = vec![number];
        name.resize(1 + usize::from(number % 16).pow(2) * 3, 0);
        name
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(ops in prop::collection::vec(op(), 0..300)) {
            let mut queue = ExpiryQueue::default();
            let mut model: BTreeMap<(i32, u8), u64> = BTreeMap::new();
            // Who was there when the look began, was there since, and was not looked at.
            let mut waiting: BTreeSet<(i32, u8)> = BTreeSet::new();
            for op in ops {
                match op {
                    Op::Schedule(db, number, due) => {
                        queue.schedule(db, &name(number), due);
                        model.insert((db, number), due);
                    }
                    Op::Forget(db, number) => {
                        queue.forget(db, &name(number));
                        model.remove(&(db, number));
                    }
                    Op::ForgetDb(db) => {
                        let gone = queue.forget_db(db).map_or(0, |gone| gone.len());
                        prop_assert_eq!(gone, model.keys().filter(|(of, _)| *of == db).count());
                        model.retain(|(other, _), _| *other != db);
                    }
                    Op::Swap(a, b) => {
                        queue.swap_dbs(a, b);
                        let swap = |db| if db == a { b } else if db == b { a } else { db };
                        model = model.into_iter().map(|((db, name), due)| ((swap(db), name), due)).collect();
                        waiting = waiting.into_iter().map(|(db, name)| (swap(db), name)).collect();
                    }
                    Op::Look(count) => {
                        if !queue.has_looks() {
                            queue.look_at_all();
                            waiting = model.keys().copied().collect();
                        }
                        for _ in 0..count {
                            let Some((due, db, of)) = queue.next_look() else {
                                prop_assert!(waiting.is_empty());
                                break;
                            };
                            prop_assert_eq!(of, name(of[0]));
                            prop_assert_eq!(model.get(&(db, of[0])), Some(&due));
                            waiting.remove(&(db, of[0]));
                        }
                    }
                }
                waiting.retain(|key| model.contains_key(key));
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.next_due(), model.values().min().copied());
                let due = model.values().filter(|due| **due <= 500).count();
                prop_assert_eq!(queue.backlog(500, usize::MAX), due);
                prop_assert_eq!(queue.backlog(500, 5), due.min(5));
                for number in 0..3 {
                    let expected = model.get(&(0, number)).copied();
                    prop_assert_eq!(queue.due_of(0, &name(number)), expected);
                }
            }
            for db in 0..3 {
                let names = queue.names(db);
                let expected: BTreeSet<_> =
                    model.keys().filter(|(of, _)| *of == db).map(|(_, number)| name(*number)).collect();
                prop_assert_eq!(names.into_iter().map(Vec::from).collect::<BTreeSet<_>>(), expected);
            }
            queue.look_at_all();
            let mut looked = BTreeMap::new();
            while let Some((due, db, name)) = queue.next_look() {
                prop_assert!(looked.insert((db, name[0]), due).is_none());
            }
            prop_assert_eq!(&looked, &model);
            prop_assert!(!queue.has_looks());
            while let Some((due, db, name)) = queue.first() {
                let (name, key) = (name.to_vec(), (db, name[0]));
                prop_assert_eq!(Some(due), model.values().min().copied());
                prop_assert_eq!(model.remove(&key), Some(due));
                queue.forget(db, &name);
            }
            prop_assert!(model.is_empty());
        }
    }

    /// A swap, and a flush, keep the order over all databases.
    #[test]
    fn a_database_is_forgotten_whole() {
        let mut queue = ExpiryQueue::default();
        for n in 0..1000u64 {
            queue.schedule((n % 3) as i32, format!("space{n}").as_bytes(), n);
        }
        queue.swap_dbs(0, 1);
        assert_eq!(queue.forget_db(1).map(|gone| gone.len()), Some(334));
        assert_eq!((queue.len(), queue.names(1).len(), queue.next_due()), (666, 0, Some(1)));
        assert_eq!(queue.first(), Some((1, 0, &b"space1"[..])));
        queue.schedule(1, b"again", 0);
        assert_eq!(queue.first(), Some((0, 1, &b"again"[..])));
        assert_eq!(queue.forget_db(7).map(|gone| gone.len()), None);
    }

    #[test]
    fn a_walk_along_the_names_meets_once_what_stays() {
        let mut queue = ExpiryQueue::default();
        let name = |kind: &str, n: u64| format!("{kind}{n}").into_bytes();
        for n in 0..3000 {
            queue.schedule(0, &name("stays", n), n);
            queue.schedule(1, &name("other", n), n);
        }
        let (mut met, mut from, mut step) = (BTreeMap::<Vec<u8>, u32>::new(), Some(0), 0);
        while let Some(at) = from {
            let SomeNames { names, next } = queue.names_from(0, at);
            assert!(next.is_none_or(|next| next > at));
            assert!(names.iter().all(|(hash, name)| *hash >= at && *hash == hash_of(name)));
            names.into_iter().for_each(|(_, name)| *met.entry(name.into()).or_default() += 1);
            from = next;
            // Others come and go meanwhile, so that tables split and merge and entries move.
            for n in step * 20..(step + 1) * 20 {
                queue.schedule(0, &name("comes", n), n);
                queue.forget(0, &name("comes", n / 2));
            }
            step += 1;
        }
        assert!((0..3000).all(|n| met.get(&name("stays", n)) == Some(&1)));
        assert!(met.values().all(|times| *times == 1));
        assert!(met.keys().all(|name| !name.starts_with(b"other")));
        assert_eq!(queue.names_from(7, 0), SomeNames::default());
    }

    #[test]
    fn a_space_takes_little() {
        let mut queue = ExpiryQueue::default();
        for n in 0..100_000 {
            queue.schedule(0, format!("space{n:06}").as_bytes(), n);
        }
        let full = queue.heap_bytes();
        assert!(full < 100_000 * 45, "{full}");
        queue.forget_db(0);
        assert!(queue.heap_bytes() < 1000, "{}", queue.heap_bytes());
    }
}
