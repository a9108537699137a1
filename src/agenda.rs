//! Which space is due next, over all databases.
//!
//! An index beside the keyspace, of hints: an entry says that the space of that name may have
//! something to do from that moment on. Whoever follows it looks at the key and corrects the
//! entry. One that is stale costs a look; only one that is missing would lose an expiry.

use crate::collections::{hash_of, DueHeap, HashIndex, Positions, Slab};
use crate::space::Timestamp;
use std::collections::BTreeMap;

struct Entry {
    name: Box<[u8]>,
    table: usize,
    filed: u32,
}

impl Positions for Slab<Entry> {
    fn moved(&mut self, id: u32, position: u32) {
        if let Some(entry) = self.get_mut(id) {
            entry.filed = position;
        }
    }
}

fn name_hash(entries: &Slab<Entry>, id: u32) -> u64 {
    entries.get(id).map_or(0, |entry| hash_of(&entry.name, b""))
}

/// The spaces' names of one database. Databases can be swapped, so a table knows the number of
/// its database, and not the other way round.
#[derive(Default)]
struct Table {
    db: i32,
    names: HashIndex,
}

/// Spaces by database and name, ordered by when they are due.
#[derive(Default)]
pub struct Agenda {
    entries: Slab<Entry>,
    order: DueHeap,
    tables: Vec<Table>,
    table_of: BTreeMap<i32, usize>,
    /// From which entry on the spaces are still to be looked at.
    look_from: Option<u32>,
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
        self.tables.get(table)?.names.find(hash_of(name, b""), |id| {
            self.entries.get(id).is_some_and(|entry| *entry.name == *name)
        })
    }

    /// Files a space under the moment from which it may have something to do (unix ms).
    pub fn schedule(&mut self, db: i32, name: &[u8], due: Timestamp) {
        let table = self.table(db);
        if let Some(id) = self.find(table, name) {
            let Some(entry) = self.entries.get(id) else { return };
            let filed = entry.filed;
            if self.order.due_at(filed) != Some(due) {
                self.order.refile(filed, due, &mut self.entries);
            }
            return;
        }
        let id = self.entries.insert(Entry { name: name.into(), table, filed: 0 });
        let entries = &self.entries;
        if let Some(table) = self.tables.get_mut(table) {
            table.names.insert(hash_of(name, b""), id, |other| name_hash(entries, other));
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
        let Some(entry) = self.entries.get(id) else { return };
        let (table, filed, hash) = (entry.table, entry.filed, name_hash(&self.entries, id));
        self.order.remove(filed, &mut self.entries);
        let entries = &self.entries;
        if let Some(table) = self.tables.get_mut(table) {
            table.names.remove(hash, |other| other == id, |other| name_hash(entries, other));
        }
        self.entries.remove(id);
    }

    /// Whether no other database than this has spaces.
    pub fn is_only(&self, db: i32) -> bool {
        let of_db = self.table_of.get(&db).and_then(|table| self.tables.get(*table));
        of_db.map_or(0, |table| table.names.len()) == self.entries.len()
    }

    /// Takes off all spaces of a database.
    pub fn forget_db(&mut self, db: i32) {
        let Some(&table) = self.table_of.get(&db) else { return };
        let ids: Vec<u32> = self
            .entries
            .iter_from(0)
            .filter(|(_, entry)| entry.table == table)
            .map(|(id, _)| id)
            .collect();
        for id in ids {
            self.remove(id);
        }
    }

    /// The names of all spaces of a database.
    pub fn names(&self, db: i32) -> Vec<Box<[u8]>> {
        let Some(&table) = self.table_of.get(&db) else { return Vec::new() };
        let entries = self.entries.iter_from(0).filter(|(_, entry)| entry.table == table);
        entries.map(|(_, entry)| entry.name.clone()).collect()
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
        self.look_from = Some(0);
    }

    /// Whether there are spaces to be looked at.
    pub fn has_looks(&self) -> bool {
        self.look_from.is_some()
    }

    /// The next space that is to be looked at: when it is due, its database, its name.
    pub fn next_look(&mut self) -> Option<(Timestamp, i32, &[u8])> {
        let next = self.entries.iter_from(self.look_from?).next();
        self.look_from = next.map(|(id, _)| id + 1);
        let (_, entry) = next?;
        let due = self.order.due_at(entry.filed)?;
        Some((due, self.tables.get(entry.table)?.db, &entry.name))
    }

    /// The moment at which the first space is due.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.order.peek().map(|(due, _)| due)
    }

    /// The space that is due first: since when, in which database, its name.
    pub fn first(&self) -> Option<(Timestamp, i32, &[u8])> {
        let (due, id) = self.order.peek()?;
        let entry = self.entries.get(id)?;
        Some((due, self.tables.get(entry.table)?.db, &entry.name))
    }

    /// How many spaces are due at `now`.
    pub fn backlog(&self, now: Timestamp) -> usize {
        let mut due = 0;
        self.order.for_each_due(now, |_| due += 1);
        due
    }

    /// Bytes on the heap but for the names, estimated.
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
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0..3, 0..40u8, 0..1000u64).prop_map(|(db, name, due)| Op::Schedule(db, name, due)),
            3 => (0..3, 0..40u8).prop_map(|(db, name)| Op::Forget(db, name)),
            1 => (0..3).prop_map(Op::ForgetDb),
            1 => (0..3, 0..3).prop_map(|(a, b)| Op::Swap(a, b)),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(ops in prop::collection::vec(op(), 0..300)) {
            let mut agenda = Agenda::default();
            let mut model: BTreeMap<(i32, u8), u64> = BTreeMap::new();
            for op in ops {
                match op {
                    Op::Schedule(db, name, due) => {
                        agenda.schedule(db, &[name], due);
                        model.insert((db, name), due);
                    }
                    Op::Forget(db, name) => {
                        agenda.forget(db, &[name]);
                        model.remove(&(db, name));
                    }
                    Op::ForgetDb(db) => {
                        agenda.forget_db(db);
                        model.retain(|(other, _), _| *other != db);
                    }
                    Op::Swap(a, b) => {
                        agenda.swap_dbs(a, b);
                        let swap = |db| if db == a { b } else if db == b { a } else { db };
                        model = model.into_iter().map(|((db, name), due)| ((swap(db), name), due)).collect();
                    }
                }
                prop_assert_eq!(agenda.len(), model.len());
                prop_assert_eq!(agenda.next_due(), model.values().min().copied());
                prop_assert_eq!(agenda.backlog(500), model.values().filter(|due| **due <= 500).count());
            }
            for db in 0..3 {
                let names = agenda.names(db).into_iter().map(|name| (db, name[0]));
                let expected = model.keys().copied().filter(|(of, _)| *of == db);
                prop_assert_eq!(names.collect::<BTreeSet<_>>(), expected.collect::<BTreeSet<_>>());
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
}
