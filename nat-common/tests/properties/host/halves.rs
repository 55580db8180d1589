//! A session table whose entries come out mutable, as a BPF map's do.

use std::{cell::RefCell, collections::BTreeMap};

use nat_common::{
    abi::{FlowKey, Half},
    world::InsertError,
};

use super::lent::Lent;

/// Halves by flow, at most `capacity` of them.
#[derive(Debug)]
pub struct Halves {
    entries: RefCell<BTreeMap<FlowKey, Lent<Half>>>,
    capacity: usize,
}

impl Halves {
    /// An empty table.
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: RefCell::default(),
            capacity,
        }
    }

    /// The half of this flow.
    pub fn get(&self, key: &FlowKey) -> Option<&mut Half> {
        let entries = self.entries.borrow();
        entries.get(key).map(|half| half.lend())
    }

    /// Adds a half.
    ///
    /// # Errors
    /// The key exists (with or without the same address and port), or the table is full.
    pub fn insert(&self, key: FlowKey, half: Half) -> Result<(), InsertError> {
        let mut entries = self.entries.borrow_mut();
        if let Some(old) = entries.get(&key).map(|old| old.lend()) {
            let same = (old.address, old.port) == (half.address, half.port);
            return Err(if same {
                InsertError::Same
            } else {
                InsertError::Exists
            });
        }
        if entries.len() >= self.capacity {
            return Err(InsertError::Full);
        }
        entries.insert(key, Lent::new(half));
        Ok(())
    }

    /// Takes a half out.
    pub fn remove(&self, key: &FlowKey) {
        self.entries.borrow_mut().remove(key);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of all, in order.
    pub fn all(&self) -> Vec<(FlowKey, Half)> {
        let keys: Vec<_> = self.entries.borrow().keys().copied().collect();
        keys.iter()
            .filter_map(|key| Some((*key, *self.get(key)?)))
            .collect()
    }
}

impl Clone for Halves {
    fn clone(&self) -> Self {
        let copy = Self::new(self.capacity);
        for (key, half) in self.all() {
            copy.entries.borrow_mut().insert(key, Lent::new(half));
        }
        copy
    }
}
