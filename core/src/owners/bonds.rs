//! Which owner lives as long as which connection.
//!
//! A bond ties an owner to one connection: when the connection closes, the lease of the owner is cut to
//! at most its linger time. An owner has one bond at most, a connection any number. Nothing here is
//! saved or replicated: a connection belongs to one process.
//!
//! - Two maps, one by connection and one by owner; each bond is in both.
//! - A closed connection is noted in constant time ([`Bonds::closed`]) and handled later
//!   ([`Bonds::take_broken`]): the server tells of it at moments at which nothing may be done.

use std::collections::{BTreeMap, BTreeSet};

/// The number that the server gave a connection.
pub type Connection = u64;

/// An owner: its database and its name.
pub type OwnerKey = (i32, Box<str>);

/// A bond whose connection has closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub db: i32,
    pub owner: Box<str>,
    /// For how long the owner stays live without its connection (ms).
    pub linger: u64,
}

#[derive(Default)]
pub struct Bonds {
    /// The linger time (ms) of each owner of a connection.
    by_connection: BTreeMap<Connection, BTreeMap<OwnerKey, u64>>,
    by_owner: BTreeMap<OwnerKey, Connection>,
    /// Closed connections that had bonds.
    closed: BTreeSet<Connection>,
}

impl Bonds {
    /// Ties an owner to a connection, instead of any other one that it was tied to.
    pub fn bind(&mut self, connection: Connection, db: i32, owner: &str, linger: u64) {
        let key: OwnerKey = (db, owner.into());
        self.unbind_key(&key);
        self.by_owner.insert(key.clone(), connection);
        self.by_connection.entry(connection).or_default().insert(key, linger);
    }

    /// The owner has no bond any more.
    pub fn unbind(&mut self, db: i32, owner: &str) {
        // Most owners have none, and this is asked often.
        if !self.by_owner.is_empty() {
            self.unbind_key(&(db, owner.into()));
        }
    }

    fn unbind_key(&mut self, key: &OwnerKey) {
        let Some(connection) = self.by_owner.remove(key) else { return };
        if let Some(owners) = self.by_connection.get_mut(&connection) {
            owners.remove(key);
            if owners.is_empty() {
                self.by_connection.remove(&connection);
            }
        }
    }

    pub fn is_bound(&self, db: i32, owner: &str) -> bool {
        !self.by_owner.is_empty() && self.by_owner.contains_key(&(db, owner.into()))
    }

    pub fn is_empty(&self) -> bool {
        self.by_owner.is_empty()
    }

    /// A connection has closed. Returns whether it had bonds, which [`Self::take_broken`] returns.
    pub fn closed(&mut self, connection: Connection) -> bool {
        let had_bonds = self.by_connection.contains_key(&connection);
        if had_bonds {
            self.closed.insert(connection);
        }
        had_bonds
    }

    pub fn has_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// The next bond of a closed connection. It is over with that.
    pub fn take_broken(&mut self) -> Option<Broken> {
        while let Some(connection) = self.closed.first() {
            let first = self.by_connection.get(connection).and_then(BTreeMap::first_key_value);
            if let Some((key, linger)) = first {
                let (key, linger) = (key.clone(), *linger);
                self.unbind_key(&key);
                let (db, owner) = key;
                return Some(Broken { db, owner, linger });
            }
            self.closed.pop_first();
        }
        None
    }

    /// The bond of this owner, if its connection has closed. It is over with that.
    pub fn take_broken_of(&mut self, db: i32, owner: &str) -> Option<Broken> {
        if self.closed.is_empty() {
            return None;
        }
        let key: OwnerKey = (db, owner.into());
        let connection = self.by_owner.get(&key).filter(|of| self.closed.contains(of))?;
        let linger = *self.by_connection.get(connection)?.get(&key)?;
        self.unbind_key(&key);
        Some(Broken { db, owner: key.1, linger })
    }

    /// The bonds of a database are over, or all of them.
    pub fn forget(&mut self, db: Option<i32>) {
        let Some(db) = db else {
            *self = Bonds::default();
            return;
        };
        let keys: Vec<OwnerKey> =
            self.by_owner.keys().filter(|(of, _)| *of == db).cloned().collect();
        keys.iter().for_each(|key| self.unbind_key(key));
    }

    /// Two databases change places, and the owners with them.
    pub fn swap_dbs(&mut self, a: i32, b: i32) {
        let swapped = |db: i32| match db {
            db if db == a => b,
            db if db == b => a,
            db => db,
        };
        let by_owner = std::mem::take(&mut self.by_owner);
        self.by_owner =
            by_owner.into_iter().map(|((db, owner), of)| ((swapped(db), owner), of)).collect();
        for owners in self.by_connection.values_mut() {
            let before = std::mem::take(owners);
            *owners = before
                .into_iter()
                .map(|((db, owner), linger)| ((swapped(db), owner), linger))
                .collect();
        }
    }

    /// An estimate of the bytes that the bonds take.
    pub fn heap_bytes(&self) -> usize {
        const PER_BOND: usize = 160;
        let names: usize = self.by_owner.keys().map(|(_, owner)| 2 * owner.len() + PER_BOND).sum();
        names + self.by_connection.len() * PER_BOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A list of bonds: connection, database, owner, linger.
    #[derive(Default)]
    struct Model {
        bonds: Vec<(Connection, i32, &'static str, u64)>,
        closed: Vec<Connection>,
    }

    const OWNERS: [&str; 3] = ["a", "b", "\0\u{1f600}"];

    #[derive(Clone, Debug)]
    enum Step {
        Bind(Connection, i32, usize, u64),
        Unbind(i32, usize),
        Closed(Connection),
        TakeAll,
        TakeOf(i32, usize),
        Forget(Option<i32>),
        Swap(i32, i32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let (connection, db, owner) = (1..4u64, 0..3, 0..OWNERS.len());
        prop_oneof![
            6 => (connection.clone(), db.clone(), owner.clone(), 0..9u64)
                .prop_map(|(c, db, o, l)| Step::Bind(c, db, o, l)),
            2 => (db.clone(), owner.clone()).prop_map(|(db, o)| Step::Unbind(db, o)),
            2 => (db.clone(), owner).prop_map(|(db, o)| Step::TakeOf(db, o)),
            3 => connection.prop_map(Step::Closed),
            3 => Just(Step::TakeAll),
            1 => prop::option::of(db.clone()).prop_map(Step::Forget),
            1 => (db.clone(), db).prop_map(|(a, b)| Step::Swap(a, b)),
        ]
    }

    proptest! {
        #[test]
        fn bonds_are_those_of_a_plain_list(steps in prop::collection::vec(step(), 1..60)) {
            let (mut bonds, mut model) = (Bonds::default(), Model::default());
            for step in steps {
                match step {
                    Step::Bind(connection, db, owner, linger) => {
                        // The number of a closed connection is not given out again.
                        if model.closed.contains(&connection) {
                            continue;
                        }
                        bonds.bind(connection, db, OWNERS[owner], linger);
                        model.bonds.retain(|(_, of, name, _)| (*of, *name) != (db, OWNERS[owner]));
                        model.bonds.push((connection, db, OWNERS[owner], linger));
                    }
                    Step::Unbind(db, owner) => {
                        bonds.unbind(db, OWNERS[owner]);
                        model.bonds.retain(|(_, of, name, _)| (*of, *name) != (db, OWNERS[owner]));
                    }
                    Step::Closed(connection) => {
                        let had = model.bonds.iter().any(|(of, ..)| *of == connection);
                        if !model.closed.contains(&connection) {
                            prop_assert_eq!(bonds.closed(connection), had);
                            model.closed.push(connection);
                        }
                    }
                    Step::TakeAll => {
                        let mut broken = Vec::new();
                        while let Some(one) = bonds.take_broken() {
                            broken.push((one.db, one.owner.to_string(), one.linger));
                        }
                        broken.sort();
                        let closed = std::mem::take(&mut model.closed);
                        let mut wanted: Vec<_> = model.bonds.iter()
                            .filter(|(of, ..)| closed.contains(of))
                            .map(|(_, db, name, linger)| (*db, name.to_string(), *linger))
                            .collect();
                        wanted.sort();
                        model.bonds.retain(|(of, ..)| !closed.contains(of));
                        prop_assert_eq!(broken, wanted);
                        prop_assert!(!bonds.has_closed());
                    }
                    Step::TakeOf(db, owner) => {
                        let broken = bonds.take_broken_of(db, OWNERS[owner]).map(|one| one.linger);
                        let at = model.bonds.iter().position(|(of, at, name, _)| {
                            (*at, *name) == (db, OWNERS[owner]) && model.closed.contains(of)
                        });
                        prop_assert_eq!(broken, at.map(|at| model.bonds.remove(at).3));
                    }
                    Step::Forget(db) => {
                        bonds.forget(db);
                        if db.is_none() {
                            model.closed.clear();
                        }
                        model.bonds.retain(|(_, of, ..)| db.is_some_and(|db| db != *of));
                    }
                    Step::Swap(a, b) => {
                        bonds.swap_dbs(a, b);
                        for (_, db, ..) in &mut model.bonds {
                            *db = if *db == a { b } else if *db == b { a } else { *db };
                        }
                    }
                }
                prop_assert_eq!(bonds.is_empty(), model.bonds.is_empty());
                for db in 0..3 {
                    for owner in OWNERS {
                        let bound = model.bonds.iter().any(|(_, of, name, _)| (*of, *name) == (db, owner));
                        prop_assert_eq!(bonds.is_bound(db, owner), bound);
                    }
                }
            }
            bonds.forget(None);
            prop_assert_eq!(bonds.heap_bytes(), 0);
        }
    }

    #[test]
    fn bonds_move_and_replace_their_linger() {
        let mut bonds = Bonds::default();
        bonds.bind(1, 0, "o", 5);
        bonds.bind(1, 0, "o", 7);
        bonds.bind(1, 0, "p", 0);
        bonds.bind(2, 0, "p", 9);
        assert!(bonds.closed(1) && !bonds.closed(3));
        let broken = Broken { db: 0, owner: "o".into(), linger: 7 };
        assert_eq!((bonds.take_broken(), bonds.take_broken()), (Some(broken), None));
        assert!(bonds.is_bound(0, "p") && !bonds.is_bound(0, "o"));
    }
}
