//! Session tables: an array of buckets, a bucket of slots, a slot a cache line.
//!
//! A flow's key says which slot is its home. It stands there, or where the home
//! slot says: at one of the other slots of the home's bucket, or, when that was
//! full, in one second bucket. So a packet touches one line; a flow away from
//! home costs a second one, and a flow that is not there mostly one.
//!
//! Any number of CPUs find and insert at once, and the agent removes at the same
//! time, without a lock that the agent takes:
//!
//! - whoever inserts locks the home's bucket against another insertion of the
//!   same flow, takes a free slot, writes it, notes it at the home and then makes
//!   it live: a reader sees a whole entry or none;
//! - whoever removes marks the slot dead; readers that have it finish with what
//!   they have. It is free again only when the agent has waited for them
//!   ([`free`]), so that no packet ever goes on with another flow's addresses.

use crate::{
    abi::{Bucket, FlowKey, Half, NONE, SLOTS, Slot},
    raw::{flow_key, flow_words, opaque},
    world::InsertError,
};

/// The key's protocol number, in the control word of a slot in use.
const PROTOCOL: u32 = 0xff;
/// Somebody uses the slot.
const TAKEN: u32 = 1 << 8;
/// It holds an entry.
const LIVE: u32 = 1 << 9;
/// The entry is removed, but packets may still be reading it.
const DEAD: u32 = 1 << 10;
/// Somebody inserts into this bucket (the first slot's control word only).
const LOCKED: u32 = 1 << 11;
/// From this bit on: a bit for each distance from home, 1 to 15, at which the
/// bucket holds an entry whose home this is.
const AWAY: u32 = 12;
/// From this bit on: how many entries whose home this is are in second buckets.
const ELSEWHERE: u32 = 27;
/// As many as fit there.
const MOST_ELSEWHERE: u32 = u32::MAX >> ELSEWHERE;
/// How often the lock is tried: some microseconds, several times what an insertion takes.
const TRIES: u32 = 512;

/// Slots of a bucket, as a number of slots.
const WIDTH: u32 = SLOTS as u32;

/// [`WIDTH`] for loops: the compiler would write each out sixteen times.
#[inline(always)]
fn width() -> u32 {
    opaque(u64::from(WIDTH)) as u32
}

/// A session table's memory.
pub trait Buckets {
    /// A bucket by number.
    fn bucket(&self, number: u32) -> Option<&Bucket>;

    /// Buckets less one; their number is a power of two.
    fn mask(&self) -> u32;

    /// What nobody outside knows: where flows stand must not be foreseen.
    fn seed(&self) -> u64;

    /// [`seek`]; the BPF side makes it a function of its own.
    #[inline(always)]
    fn seek(&self, key: &FlowKey) -> u32
    where
        Self: Sized,
    {
        seek(self, key)
    }
}

/// Where a flow belongs.
#[derive(Clone, Copy)]
struct Place {
    /// The home's bucket.
    bucket: u32,
    /// The home's number in it.
    home: u32,
    /// The second bucket.
    second: u32,
}

impl Place {
    /// The place of a key: bits of a keyed hash (multiplication and shift, three
    /// rounds; the multipliers are those of `splitmix64`).
    #[inline(always)]
    fn of<B: Buckets>(table: &B, key: &FlowKey) -> Self {
        let [addresses, ports] = flow_words(key);
        let mut hash = (addresses ^ table.seed()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ (hash >> 32) ^ ports).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 29) ^ table.seed()).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^= hash >> 32;
        let (bucket, second) = (hash as u32, (hash >> 28) as u32);
        let same = (bucket ^ second) & table.mask() == 0;
        Self {
            bucket: bucket & table.mask(),
            home: (hash >> 60) as u32,
            second: (second ^ u32::from(same)) & table.mask(),
        }
    }

    /// The home slot's number in the table.
    #[inline(always)]
    fn home(self) -> u32 {
        self.bucket * WIDTH + self.home
    }

    /// The number of a slot at this distance from home, in the same bucket.
    #[inline(always)]
    fn at(self, distance: u32) -> u32 {
        self.bucket * WIDTH + (self.home + distance) % WIDTH
    }

    /// How far from home a slot of the same bucket is.
    #[inline(always)]
    fn distance(self, number: u32) -> u32 {
        (number % WIDTH + WIDTH - self.home) % WIDTH
    }
}

/// A slot by its number in the table.
#[inline(always)]
pub fn slot<B: Buckets>(table: &B, number: u32) -> Option<&Slot> {
    let bucket = table.bucket(number / WIDTH)?;
    bucket.slots.get((number % WIDTH) as usize)
}

/// Whether the slot holds this flow.
#[inline(always)]
fn holds(slot: &Slot, key: &FlowKey) -> bool {
    let [addresses, ports] = flow_words(key);
    let wanted = LIVE | u32::from(key.protocol);
    slot.control.load() & (LIVE | DEAD | PROTOCOL) == wanted
        && slot.addresses.get() == addresses
        && slot.ports.get() == ports as u32
}

/// The slot that holds a flow.
#[inline(always)]
pub fn find<'a, B: Buckets>(table: &'a B, key: &FlowKey) -> Option<&'a Slot> {
    let home = slot(table, Place::of(table, key).home())?;
    if holds(home, key) {
        return Some(home);
    }
    if home.control.load() >> AWAY == 0 {
        return None;
    }
    slot(table, table.seek(key))
}

/// The number of the slot that holds a flow, or [`NONE`].
pub fn locate<B: Buckets>(table: &B, key: &FlowKey) -> u32 {
    let home = Place::of(table, key).home();
    match slot(table, home) {
        Some(slot) if holds(slot, key) => home,
        _ => table.seek(key),
    }
}

/// Looks for a flow away from its home: the slot's number, or [`NONE`].
#[inline(always)]
pub fn seek<B: Buckets>(table: &B, key: &FlowKey) -> u32 {
    let place = Place::of(table, key);
    let Some(home) = slot(table, place.home()) else {
        return NONE;
    };
    let control = home.control.load();
    for distance in 1..width() {
        if control & away(distance) != 0
            && let Some(slot) = slot(table, place.at(distance))
            && holds(slot, key)
        {
            return place.at(distance);
        }
    }
    if control >> ELSEWHERE == 0 {
        return NONE;
    }
    for index in 0..width() {
        let number = place.second * WIDTH + index;
        if slot(table, number).is_some_and(|slot| holds(slot, key)) {
            return number;
        }
    }
    NONE
}

/// The bit of a distance from home.
#[inline(always)]
const fn away(distance: u32) -> u32 {
    (1 << AWAY >> 1) << distance
}

/// Adds a flow.
///
/// # Errors
/// It exists (with or without the same address and port), both its buckets are
/// full, or another CPU holds the lock.
#[inline(always)]
pub fn insert<B: Buckets>(table: &B, key: &FlowKey, half: &Half) -> Result<(), InsertError> {
    let place = Place::of(table, key);
    let bucket = table.bucket(place.bucket).ok_or(InsertError::Full)?;
    let [first, ..] = &bucket.slots;
    if !lock(first) {
        return Err(InsertError::Busy);
    }
    let inserted = insert_locked(table, place, key, half);
    first.control.fetch_and(!LOCKED);
    inserted
}

#[inline(always)]
fn lock(first: &Slot) -> bool {
    for _ in 0..TRIES {
        if first.control.fetch_or(LOCKED) & LOCKED == 0 {
            return true;
        }
    }
    false
}

#[inline(always)]
fn insert_locked<B: Buckets>(
    table: &B,
    place: Place,
    key: &FlowKey,
    half: &Half,
) -> Result<(), InsertError> {
    let number = room(table, place, key, half)?;
    let home = slot(table, place.home()).ok_or(InsertError::Full)?;
    let slot = slot(table, number).ok_or(InsertError::Full)?;
    // A flow of another bucket, which has this one as its second, may have been faster.
    if !take(slot) {
        return Err(InsertError::Busy);
    }
    write(slot, key, half);
    note(home, place, number);
    slot.control.fetch_or(LIVE | u32::from(key.protocol));
    Ok(())
}

/// A free slot for a flow, as near to its home as possible, if it has none yet.
/// (No use of [`seek`]: the functions' stacks would add up to more than there is.)
#[inline(always)]
fn room<B: Buckets>(
    table: &B,
    place: Place,
    key: &FlowKey,
    half: &Half,
) -> Result<u32, InsertError> {
    let home = slot(table, place.home()).ok_or(InsertError::Full)?;
    let control = home.control.load();
    let mut free = NONE;
    for distance in 0..width() {
        let ours = distance == 0 || control & away(distance) != 0;
        if ours || free == NONE {
            look(table, place.at(distance), key, half, &mut free)?;
        }
    }
    let elsewhere = control >> ELSEWHERE;
    if elsewhere != 0 || free == NONE {
        for index in 0..width() {
            look(table, place.second * WIDTH + index, key, half, &mut free)?;
        }
    }
    let away = free / WIDTH != place.bucket;
    if free == NONE || away && elsewhere == MOST_ELSEWHERE {
        return Err(InsertError::Full);
    }
    Ok(free)
}

/// Whether a slot holds the flow, or is the first free one.
#[inline(always)]
fn look<B: Buckets>(
    table: &B,
    number: u32,
    key: &FlowKey,
    half: &Half,
    free: &mut u32,
) -> Result<(), InsertError> {
    let slot = slot(table, number).ok_or(InsertError::Full)?;
    if holds(slot, key) {
        let old = slot.half.lend();
        let same = old.address == half.address && old.port == half.port;
        return Err(if same {
            InsertError::Same
        } else {
            InsertError::Exists
        });
    }
    if *free == NONE && slot.control.load() & TAKEN == 0 {
        *free = number;
    }
    Ok(())
}

/// Notes at the home where its flow stands.
#[inline(always)]
fn note(home: &Slot, place: Place, number: u32) {
    if number / WIDTH != place.bucket {
        home.control.fetch_add(1 << ELSEWHERE);
        return;
    }
    let distance = place.distance(number);
    if distance != 0 {
        home.control.fetch_or(away(distance));
    }
}

/// Takes a free slot; false if somebody has it.
#[inline(always)]
fn take(slot: &Slot) -> bool {
    slot.control.load() & TAKEN == 0 && slot.control.fetch_or(TAKEN) & TAKEN == 0
}

#[inline(always)]
fn write(slot: &Slot, key: &FlowKey, half: &Half) {
    let [addresses, ports] = flow_words(key);
    slot.addresses.set(addresses);
    slot.ports.set(ports as u32);
    *slot.half.lend() = *half;
}

/// Removes what a slot holds. The slot stays taken until it is [`free`]d.
#[inline(always)]
pub fn remove(slot: &Slot) {
    slot.control.fetch_or(DEAD);
}

/// What a slot holds.
pub fn read(slot: &Slot) -> Option<(FlowKey, Half)> {
    let control = slot.control.load();
    (control & (LIVE | DEAD) == LIVE).then(|| (key(slot, control), slot.half.read()))
}

/// Whether a slot's entry has been removed, and the slot is to be freed.
pub fn is_dead(slot: &Slot) -> bool {
    slot.control.load() & DEAD != 0
}

fn key(slot: &Slot, control: u32) -> FlowKey {
    let protocol = u64::from(control & PROTOCOL) << 32;
    flow_key([slot.addresses.get(), u64::from(slot.ports.get()) | protocol])
}

/// Frees a dead slot. Only the agent does, one at a time, when no packet can
/// still be reading it: longer after [`remove`] than any program runs.
///
/// The home forgets the entry while the slot is still taken: afterwards another
/// flow of the same home may come to stand there.
pub fn free<B: Buckets>(table: &B, number: u32) {
    let Some(slot) = slot(table, number) else {
        return;
    };
    let control = slot.control.load();
    if control & DEAD == 0 {
        return;
    }
    forget(table, Place::of(table, &key(slot, control)), number);
    slot.control.fetch_and(!(TAKEN | LIVE | DEAD | PROTOCOL));
}

fn forget<B: Buckets>(table: &B, place: Place, number: u32) {
    let Some(home) = slot(table, place.home()) else {
        return;
    };
    if number / WIDTH != place.bucket {
        home.control.fetch_add((1_u32 << ELSEWHERE).wrapping_neg());
        return;
    }
    let distance = place.distance(number);
    if distance != 0 {
        home.control.fetch_and(!away(distance));
    }
}
