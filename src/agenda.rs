//! Which space is due next, over all databases.
//!
//! An index beside the keyspace, of hints: an entry says that the space of that name may have
//! something to do from that moment on. Whoever follows it looks at the key and corrects the
//! entry. One that is stale costs a look; only one that is missing would lose an expiry.

use crate::collections::{hash_of, Blocks, DueHeap, HashIndex, Positions};
use crate::space::Timestamp;
use std::collections::BTreeMap;

/// Ends the block of a space of the first table, as most are: there may be zeroes behind a block.
const END: u8 = 1;
/// Ends that of a space of another table, whose number is in front of it.
const END_WITH_TABLE: u8 = 2;

/// Where in the order by time a space is filed.
type Place = u32;

/// A block each: a space's name and what tells its table.
type Entries = Blocks<Place>;

struct Entry<'a> {
    filed: Place,
    table: usize,
    name: &'a [u8],
}

impl<'a> Entry<'a> {
    fn of(block: &'a [u8], filed: Place) -> Option<Self> {
        let end = block.iter().rposition(|byte| *byte != 0)?;
        let (rest, end) = (block.get(..end)?, *block.get(end)?);
        if end == END {
            return Some(Entry { filed, table: 0, name: rest });
        }
        let (name, table) = rest.split_last_chunk()?;
        Some(Entry { filed, table: u32::from_le_bytes(*table) as usize, name })
    }

    fn block(table: usize, name: &[u8]) -> Vec<u8> {
        if table == 0 {
            return [name, &[END]].concat();
        }
        [name, &(table as u32).to_le_bytes(), &[END_WITH_TABLE]].concat()
    }
}

impl Positions for Entries {
    fn moved(&mut self, id: u32, position: u32) {
        if let Some(filed) = self.mark_mut(id) {
            *filed = position;
        }
    }
}

fn entry(entries: &Entries, id: u32) -> Option<Entry<'_>> {
    Entry::of(entries.get(id)?, *entries.mark(id)?)
}

fn name_hash(entries: &Entries, id: u32) -> u64 {
    entry(entries, id).map_or(0, |entry| hash_of(entry.name))
}

/// The spaces' names of one database. Databases can be swapped, so a table knows the number of
/// its database, and not the other way round.
#[derive(Default)]
struct Table {
    db: i32,
    names: HashIndex,
}

/// How far a look at all spaces has come: along the hashes of the names of one table after the other,
/// which are the same wherever entries move.
struct Look {
    table: usize,
    /// From which hash on; none where there is nothing more in the table.
    from: Option<u64>,
    /// Names of the table that come before that.
    ready: Vec<Box<[u8]>>,
}

/// Spaces by database and name, ordered by when they are due.
#[derive(Default)]
pub struct Agenda {
    /// A removal changes the number of another.
    entries: Entries,
    order: DueHeap,
    tables: Vec<Table>,
    table_of: BTreeMap<i32, usize>,
    /// Where spaces are still to be looked at.
    look: Option<Look>,
}

impl Agenda {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    fn table(&mut self, db: i32) -> usize {
        *self.table_of.entry(db).or_insert_with(|| {
            self.tables.push(Table { db, names: HashIndex::default() });
            self.tables.len() - 1
        })
    }

    fn find(&self, table: usize, name: &[u8]) -> Option<u32> {
        self.tables.get(table)?.names.find(hash_of(name), |id| {
            entry(&self.entries, id).is_some_and(|entry| entry.name == name)
        })
    }

    /// Files a space under the moment from which it may have something to do (unix ms).
    pub fn schedule(&mut self, db: i32, name: &[u8], due: Timestamp) {
        let table = self.table(db);
        if let Some(id) = self.find(table, name) {
            let Some(Entry { filed, .. }) = entry(&self.entries, id) else { return };
            if self.order.due_at(filed) != Some(due) {
                self.order.refile(filed, due, &mut self.entries);
            }
            return;
        }
        let id = self.entries.insert(&Entry::block(table, name), 0);
        let entries = &self.entries;
        if let Some(table) = self.tables.get_mut(table) {
            table.names.insert(hash_of(name), id, |other| name_hash(entries, other));
        }
        self.order.push(due, id, &mut self.entries);
    }

    /// Takes a space off; one that is not there is no error.
    pub fn forget(&mut self, db: i32, name: &[u8]) {
        let Some(&table) = self.table_of.get(&db) else { return };
        if let Some(id) = self.find(table, name) {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u32) {
        let Some(Entry { filed, table, .. }) = entry(&self.entries, id) else { return };
        let hash = name_hash(&self.entries, id);
        self.order.remove(filed, &mut self.entries);
        let entries = &self.entries;
        if let Some(table) = self.tables.get_mut(table) {
            table.names.remove(hash, |other| other == id, |other| name_hash(entries, other));
        }
        if let Some(moved) = self.entries.remove(id) {
            self.renumber(moved, id);
        }
    }

    /// The space that had the number `old` has the number `new`: tells all who know it.
    fn renumber(&mut self, old: u32, new: u32) {
        let Some(Entry { filed, table, .. }) = entry(&self.entries, new) else { return };
        self.order.rename(filed, new, &mut self.entries);
        if let Some(table) = self.tables.get_mut(table) {
            table.names.replace(name_hash(&self.entries, new), old, new);
        }
    }

    /// The spaces of a table with their numbers, the lowest first.
    fn of_table(&self, table: usize) -> impl Iterator<Item = (u32, Entry<'_>)> {
        let entries = self.entries.iter();
        let entries = entries.filter_map(|(id, name, place)| Some((id, Entry::of(name, *place)?)));
        entries.filter(move |(_, entry)| entry.table == table)
    }

    /// Whether no other database than this has spaces.
    pub fn is_only(&self, db: i32) -> bool {
        let of_db = self.table_of.get(&db).and_then(|table| self.tables.get(*table));
        of_db.map_or(0, |table| table.names.len()) == self.entries.len()
    }

    /// Takes off all spaces of a database.
    pub fn forget_db(&mut self, db: i32) {
        let Some(&table) = self.table_of.get(&db) else { return };
        let ids: Vec<u32> = self.of_table(table).map(|(id, _)| id).collect();
        // From the last on: what a removal moves has a higher number.
        for id in ids.into_iter().rev() {
            self.remove(id);
        }
    }

    /// The names of all spaces of a database.
    pub fn names(&self, db: i32) -> Vec<Box<[u8]>> {
        let Some(&table) = self.table_of.get(&db) else { return Vec::new() };
        self.of_table(table).map(|(_, entry)| entry.name.into()).collect()
    }

    /// Two databases have changed their numbers.
    pub fn swap_dbs(&mut self, a: i32, b: i32) {
        let (of_a, of_b) = (self.table(a), self.table(b));
        for (table, db) in [(of_a, b), (of_b, a)] {
            self.table_of.insert(db, table);
            if let Some(table) = self.tables.get_mut(table) {
                table.db = db;
            }
        }
    }

    /// Every space is to be looked at once, whenever it is due: see [`Agenda::next_look`].
    pub fn look_at_all(&mut self) {
        self.look = Some(Look { table: 0, from: Some(0), ready: Vec::new() });
    }

    /// Whether there are spaces to be looked at.
    pub fn has_looks(&self) -> bool {
        self.look.is_some()
    }

    /// The number of the next space that is to be looked at.
    fn next_to_look_at(&mut self) -> Option<u32> {
        loop {
            let look = self.look.as_mut()?;
            while let Some(name) = look.ready.pop() {
                let names = &self.tables.get(look.table)?.names;
                let is = |id| entry(&self.entries, id).is_some_and(|entry| *entry.name == *name);
                if let Some(id) = names.find(hash_of(&name), is) {
                    return Some(id);
                }
            }
            match (self.tables.get(look.table), look.from) {
                (None, _) => self.look = None,
                (Some(_), None) => (look.table, look.from) = (look.table + 1, Some(0)),
                (Some(table), Some(from)) => {
                    let (found, next) = table.names.next(from, |id| name_hash(&self.entries, id));
                    let found = found.iter().filter_map(|(_, id)| entry(&self.entries, *id));
                    look.ready = found.map(|entry| entry.name.into()).collect();
                    look.from = next;
                }
            }
        }
    }

    /// The next space that is to be looked at: when it is due, its database, its name.
    pub fn next_look(&mut self) -> Option<(Timestamp, i32, &[u8])> {
        let id = self.next_to_look_at()?;
        let entry = entry(&self.entries, id)?;
        let due = self.order.due_at(entry.filed)?;
        Some((due, self.tables.get(entry.table)?.db, entry.name))
    }

    /// The moment at which the first space is due.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.order.peek().map(|(due, _)| due)
    }

    /// The space that is due first: since when, in which database, its name.
    pub fn first(&self) -> Option<(Timestamp, i32, &[u8])> {
        let (due, id) = self.order.peek()?;
        let entry = entry(&self.entries, id)?;
        Some((due, self.tables.get(entry.table)?.db, entry.name))
    }

    /// How many spaces are due at `now`.
    pub fn backlog(&self, now: Timestamp) -> usize {
        let mut due = 0;
        self.order.for_each_due(now, |_| due += 1);
        due
    }

    /// Bytes on the heap, estimated.
    pub fn heap_bytes(&self) -> usize {
        let names: usize = self.tables.iter().map(|table| table.names.heap_bytes()).sum();
        self.entries.heap_bytes() + self.order.heap_bytes() + names
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

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
            let mut agenda = Agenda::default();
            let mut model: BTreeMap<(i32, u8), u64> = BTreeMap::new();
            // Who was there when the look began, was there since, and was not looked at.
            let mut waiting: BTreeSet<(i32, u8)> = BTreeSet::new();
            for op in ops {
                match op {
                    Op::Schedule(db, number, due) => {
                        agenda.schedule(db, &name(number), due);
                        model.insert((db, number), due);
                    }
                    Op::Forget(db, number) => {
                        agenda.forget(db, &name(number));
                        model.remove(&(db, number));
                    }
                    Op::ForgetDb(db) => {
                        agenda.forget_db(db);
                        model.retain(|(other, _), _| *other != db);
                    }
                    Op::Swap(a, b) => {
                        agenda.swap_dbs(a, b);
                        let swap = |db| if db == a { b } else if db == b { a } else { db };
                        model = model.into_iter().map(|((db, name), due)| ((swap(db), name), due)).collect();
                        waiting = waiting.into_iter().map(|(db, name)| (swap(db), name)).collect();
                    }
                    Op::Look(count) => {
                        if !agenda.has_looks() {
                            agenda.look_at_all();
                            waiting = model.keys().copied().collect();
                        }
                        for _ in 0..count {
                            let Some((due, db, of)) = agenda.next_look() else {
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
                prop_assert_eq!(agenda.len(), model.len());
                prop_assert_eq!(agenda.next_due(), model.values().min().copied());
                prop_assert_eq!(agenda.backlog(500), model.values().filter(|due| **due <= 500).count());
            }
            for db in 0..3 {
                let names = agenda.names(db);
                let expected: BTreeSet<_> =
                    model.keys().filter(|(of, _)| *of == db).map(|(_, number)| name(*number)).collect();
                prop_assert_eq!(names.into_iter().map(Vec::from).collect::<BTreeSet<_>>(), expected);
            }
            agenda.look_at_all();
            let mut looked = BTreeMap::new();
            while let Some((due, db, name)) = agenda.next_look() {
                prop_assert!(looked.insert((db, name[0]), due).is_none());
            }
            prop_assert_eq!(&looked, &model);
            prop_assert!(!agenda.has_looks());
            while let Some((due, db, name)) = agenda.first() {
                let (name, key) = (name.to_vec(), (db, name[0]));
                prop_assert_eq!(Some(due), model.values().min().copied());
                prop_assert_eq!(model.remove(&key), Some(due));
                agenda.forget(db, &name);
            }
            prop_assert!(model.is_empty());
        }
    }

    #[test]
    fn a_space_takes_little() {
        let mut agenda = Agenda::default();
        for n in 0..100_000 {
            agenda.schedule(0, format!("space{n:06}").as_bytes(), n);
        }
        let full = agenda.heap_bytes();
        assert!(full < 100_000 * 45, "{full}");
        agenda.forget_db(0);
        assert!(agenda.heap_bytes() < 1000, "{}", agenda.heap_bytes());
    }
}
