//! Session tables: what is inserted is found, once, and nothing else is, with
//! any number of CPUs at work.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
    thread,
    time::Duration,
};

use nat_common::{
    abi::{Bucket, FlowKey, Half, NONE, SLOTS},
    table::{self, Buckets},
    world::InsertError,
};
use proptest::prelude::*;

/// A table of plain memory.
struct Memory {
    buckets: Vec<Bucket>,
    seed: u64,
}

// SAFETY: buckets are made of words and cells that are written the way the maps' are: by
// whoever has taken the slot.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(buckets: usize, seed: u64) -> Self {
        let buckets = (0..buckets).map(|_| Bucket::default()).collect();
        Self { buckets, seed }
    }

    fn remove(&self, key: &FlowKey) -> Option<u32> {
        let number = table::locate(self, key);
        table::remove(table::slot(self, number).filter(|_| number != NONE)?);
        Some(number)
    }

    fn entries(&self) -> Vec<(FlowKey, Half)> {
        let slots = self.buckets.iter().flat_map(|bucket| &bucket.slots);
        slots.filter_map(table::read).collect()
    }

    /// Whether no slot is used, and no home remembers anything.
    fn is_blank(&self) -> bool {
        let mut slots = self.buckets.iter().flat_map(|bucket| &bucket.slots);
        slots.all(|slot| slot.control.load() == 0)
    }
}

impl Buckets for Memory {
    fn bucket(&self, number: u32) -> Option<&Bucket> {
        self.buckets.get(number as usize)
    }

    fn mask(&self) -> u32 {
        self.buckets.len() as u32 - 1
    }

    fn seed(&self) -> u64 {
        self.seed
    }
}

fn key(number: u32) -> FlowKey {
    FlowKey {
        source: (0x0a00_0000 + (number >> 12)).to_be_bytes(),
        destination: [198, 51, 100, 1],
        source_port: (number as u16 & 0xfff).to_be_bytes(),
        destination_port: 443_u16.to_be_bytes(),
        protocol: [6, 17, 1][number as usize % 3],
        padding: [0; 3],
    }
}

fn half(number: u32) -> Half {
    Half {
        address: number.to_be_bytes(),
        created: !number,
        ..Half::EMPTY
    }
}

proptest! {
    /// The table against a map, through insertions, removals and freeing.
    #[test]
    fn it_is_a_map(seed: u64, steps in prop::collection::vec((0_u32..40, 0_u8..4), 1..400)) {
        let (table, mut model) = (Memory::new(4, seed), HashMap::new());
        for (number, step) in steps {
            let key = key(number);
            if step == 0 {
                if let Some(slot) = table.remove(&key) {
                    table::free(&table, slot);
                    prop_assert!(model.remove(&number).is_some());
                } else {
                    prop_assert!(!model.contains_key(&number));
                }
            } else {
                match table::insert(&table, &key, &half(number)) {
                    Ok(()) => prop_assert!(model.insert(number, half(number)).is_none()),
                    Err(InsertError::Same) => prop_assert!(model.contains_key(&number)),
                    Err(error) => {
                        prop_assert_eq!(error, InsertError::Full);
                        prop_assert!(model.len() >= 2 * SLOTS, "both buckets are full");
                    }
                }
            }
            let found = table::find(&table, &key).map(|slot| slot.half.read());
            prop_assert_eq!(found, model.get(&number).copied());
        }
        prop_assert_eq!(table.entries().len(), model.len());
    }
}

#[test]
fn half_full_it_refuses_nobody() {
    for seed in [0, 1, 0xdead_beef_0bad_f00d] {
        let table = Memory::new(4096, seed);
        let count = (4096 * SLOTS / 2) as u32;
        let refused = (0..count).filter(|number| {
            table::insert(&table, &key(*number), &half(*number)) == Err(InsertError::Full)
        });
        assert!(
            refused.count() <= 2,
            "a bucket and its second one are hardly ever full"
        );
    }
}

#[test]
fn most_flows_are_at_home() {
    let table = Memory::new(4096, 7);
    let count = (4096 * SLOTS / 4) as u32;
    for number in 0..count {
        table::insert(&table, &key(number), &half(number)).expect("room");
    }
    let slots = table.buckets.iter().flat_map(|bucket| &bucket.slots);
    let displaced = slots.map(|slot| (slot.control.load() >> 12 & 0x7fff).count_ones());
    let displaced: u32 = displaced.sum();
    assert!(
        displaced * 6 < count,
        "{displaced} of {count} are away from home"
    );
}

#[test]
fn a_full_table_refuses_and_empties_without_a_trace() {
    let table = Memory::new(2, 3);
    let mut numbers = Vec::new();
    for number in 0..200 {
        match table::insert(&table, &key(number), &half(number)) {
            Ok(()) => numbers.push(number),
            Err(error) => assert_eq!(error, InsertError::Full),
        }
    }
    assert_eq!(
        numbers.len(),
        2 * SLOTS,
        "every slot is used before the first refusal"
    );
    for number in &numbers {
        let found = table::find(&table, &key(*number)).expect("it was inserted");
        assert_eq!(found.half.read(), half(*number));
    }
    for number in numbers {
        let slot = table.remove(&key(number)).expect("it is there");
        assert!(table::find(&table, &key(number)).is_none());
        table::free(&table, slot);
    }
    assert!(table.is_blank());
}

#[test]
fn a_removed_flow_keeps_its_slot_until_it_is_freed() {
    let table = Memory::new(1, 0);
    for number in 0..SLOTS as u32 {
        table::insert(&table, &key(number), &half(number)).expect("room");
    }
    let slot = table.remove(&key(5)).expect("it is there");
    let next = SLOTS as u32;
    assert_eq!(
        table::insert(&table, &key(next), &half(next)),
        Err(InsertError::Full)
    );
    table::free(&table, slot);
    assert_eq!(table::insert(&table, &key(next), &half(next)), Ok(()));
}

#[test]
fn a_key_that_exists_says_whether_it_leads_to_the_same_end() {
    let table = Memory::new(1, 0);
    table::insert(&table, &key(1), &half(1)).expect("room");
    let again = Half {
        created: 9,
        ..half(1)
    };
    assert_eq!(
        table::insert(&table, &key(1), &again),
        Err(InsertError::Same)
    );
    assert_eq!(
        table::insert(&table, &key(1), &half(2)),
        Err(InsertError::Exists)
    );
    let found = table::find(&table, &key(1)).expect("it is there");
    assert_eq!(found.half.read(), half(1), "it is left as it was");
}

#[test]
fn only_removed_slots_are_freed() {
    let table = Memory::new(1, 0);
    table::insert(&table, &key(1), &half(1)).expect("room");
    table::free(&table, table::locate(&table, &key(1)));
    assert!(table::find(&table, &key(1)).is_some());
}

const CPUS: usize = 4;
const FLOWS: u32 = 48;
const ROUNDS: u32 = 50_000;

/// What the threads share: a table of two buckets, so that they meet all the
/// time, and how far each of them is, which tells the agent when nobody can be
/// reading a slot any more.
struct Stage {
    table: Memory,
    steps: [AtomicU64; CPUS],
    inserted: [AtomicU32; FLOWS as usize],
    running: AtomicU32,
}

/// All CPUs open the same flow at the same moment, again and again: one does.
#[test]
fn one_of_many_inserts_a_flow() {
    const FLOWS: u32 = 20_000;
    let table = Memory::new(4096, 5);
    let (arrived, inserted) = (AtomicU32::new(0), AtomicU32::new(0));
    let open_all = || {
        for number in 0..FLOWS {
            arrived.fetch_add(1, SeqCst);
            while arrived.load(SeqCst) < 2 * (number + 1) {
                std::hint::spin_loop();
            }
            if table::insert(&table, &key(number), &half(number)).is_ok() {
                inserted.fetch_add(1, SeqCst);
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(open_all);
        scope.spawn(open_all);
    });
    assert_eq!(inserted.load(SeqCst), FLOWS);
    assert_eq!(table.entries().len(), FLOWS as usize);
}

#[test]
fn cpus_and_the_agent_at_once() {
    let stage = Stage {
        table: Memory::new(2, 11),
        steps: std::array::from_fn(|_| AtomicU64::new(0)),
        inserted: std::array::from_fn(|_| AtomicU32::new(0)),
        running: AtomicU32::new(CPUS as u32),
    };
    thread::scope(|scope| {
        for cpu in 0..CPUS {
            let stage = &stage;
            scope.spawn(move || packets(stage, cpu));
        }
        agent(&stage);
    });
    let left = stage.table.entries();
    for (found, _) in &left {
        assert!(table::find(&stage.table, found).is_some());
    }
    for (key, _) in left {
        let slot = stage.table.remove(&key).expect("once");
        table::free(&stage.table, slot);
        assert!(stage.table.remove(&key).is_none(), "two slots hold {key:?}");
    }
    assert!(stage.table.is_blank());
}

/// One CPU: looks flows up, and inserts those that are not there.
fn packets(stage: &Stage, cpu: usize) {
    let _done = Done(&stage.running);
    let mut random = 0x2545_f491_4f6c_dd1d_u64 ^ cpu as u64;
    for round in 0..ROUNDS {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let number = (random >> 33) as u32 % FLOWS;
        // Odd while a packet is on its way.
        stage.steps[cpu].fetch_add(1, SeqCst);
        match table::find(&stage.table, &key(number)) {
            Some(slot) => {
                if round % 64 == 0 {
                    // A slow program: the agent has time to remove and free what it holds.
                    thread::sleep(Duration::from_micros(1));
                }
                assert_eq!(slot.half.read(), half(number), "another flow's half");
            }
            None => {
                if table::insert(&stage.table, &key(number), &half(number)).is_ok() {
                    let before = stage.inserted[number as usize].fetch_add(1, SeqCst);
                    assert_eq!(before, 0, "the flow is there already");
                }
            }
        }
        stage.steps[cpu].fetch_add(1, SeqCst);
    }
}

/// Tells the agent that a CPU is done, also by a failed assertion.
struct Done<'a>(&'a AtomicU32);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// The agent: removes flows, waits for the packets, frees their slots.
fn agent(stage: &Stage) {
    let mut number = 0;
    while stage.running.load(SeqCst) > 0 {
        let removed: Vec<u32> = (0..8)
            .filter_map(|_| {
                number = (number + 1) % FLOWS;
                // Before the removal: afterwards the flow may be inserted again at once.
                let live = stage.inserted[number as usize].load(SeqCst) == 1;
                live.then(|| {
                    stage.inserted[number as usize].store(0, SeqCst);
                    stage.table.remove(&key(number)).expect("it is live")
                })
            })
            .collect();
        grace(stage);
        for slot in removed {
            table::free(&stage.table, slot);
        }
    }
}

/// Until every packet that was on its way is done.
fn grace(stage: &Stage) {
    for step in &stage.steps {
        let began = step.load(SeqCst);
        let running = || stage.running.load(SeqCst) > 0;
        while began % 2 == 1 && step.load(SeqCst) == began && running() {
            thread::yield_now();
        }
    }
}
