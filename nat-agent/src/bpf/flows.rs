//! A session table in memory: found, removed and freed as packets see it,
//! without a system call.

use std::path::Path;

use anyhow::{Result, ensure};
use nat_common::{
    abi::{Bucket, FlowKey, Half, NONE, SLOTS},
    table::{self, Buckets},
};

use super::shared::Shared;

/// A session table.
#[derive(Debug)]
pub struct Flows {
    buckets: Shared<Bucket>,
    seed: u64,
}

impl Flows {
    /// Maps a pinned session table.
    ///
    /// # Errors
    /// It cannot be opened or mapped, or has another layout.
    pub fn open(path: &Path, seed: u64) -> Result<Self> {
        let buckets = Shared::open(path)?;
        ensure!(
            buckets.len().is_power_of_two(),
            "{} has {} buckets, which is no power of two",
            path.display(),
            buckets.len(),
        );
        Ok(Self { buckets, seed })
    }

    /// How many flows it is meant for: half of its slots, so that hardly any is
    /// away from its home.
    pub fn capacity(&self) -> u32 {
        self.buckets.len() * (SLOTS as u32 / 2)
    }

    /// The half of a flow.
    pub fn get(&self, key: &FlowKey) -> Option<Half> {
        table::find(self, key).map(|slot| slot.half.read())
    }

    /// Calls `visit` for every flow. Those that come or go meanwhile may be seen or not.
    pub fn for_each(&self, mut visit: impl FnMut(&FlowKey, &Half)) {
        for slot in self.slots() {
            if let Some((key, half)) = table::read(slot) {
                visit(&key, &half);
            }
        }
    }

    /// Removes a flow: the number of its slot, to be freed later.
    pub fn remove(&self, key: &FlowKey) -> Option<u32> {
        let number = table::locate(self, key);
        let slot = table::slot(self, number).filter(|_| number != NONE)?;
        table::remove(slot);
        Some(number)
    }

    /// Slots whose flow was removed, by whomever, and that are to be freed.
    pub fn removed(&self) -> Vec<u32> {
        let dead = self
            .slots()
            .zip(0..)
            .filter(|(slot, _)| table::is_dead(slot));
        dead.map(|(_, number)| number).collect()
    }

    /// Frees slots of flows that were removed longer ago than any program runs.
    pub fn free(&self, numbers: &[u32]) {
        for number in numbers {
            table::free(self, *number);
        }
    }

    fn slots(&self) -> impl Iterator<Item = &nat_common::abi::Slot> {
        let buckets = (0..self.buckets.len()).filter_map(|number| self.buckets.get(number));
        buckets.flat_map(|bucket| &bucket.slots)
    }
}

impl Buckets for Flows {
    fn bucket(&self, number: u32) -> Option<&Bucket> {
        self.buckets.get(number)
    }

    fn mask(&self) -> u32 {
        self.buckets.len() - 1
    }

    fn seed(&self) -> u64 {
        self.seed
    }
}
