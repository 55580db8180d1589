//! The maps, and the packet core's world over them.
//!
//! The agent sets the number of entries at load. Session tables (buckets in an
//! array, see [`nat_common::table`]) and mappings are preallocated and not LRU: a
//! flood must not evict live connections.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_NOEXIST},
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, PerCpuArray, Queue, RingBuf, lpm_trie::Key},
    helpers::generated::bpf_get_prandom_u32,
    macros::btf_map,
};
use core::ffi::c_void;
use nat_common::{
    abi::{
        Address, Block, Bucket, Client, Device, Event, ExcludeKey, FlowKey, Half, Ipv4, Mapping,
        MappingKey, Name, Page, Pool, Report, Settings, Slice,
    },
    raw::flow_words,
    reason::{REASON_SLOTS, Reason},
    session::Opening,
    table::{self, Buckets},
    world::{Hop, InsertError, RouteQuery, World},
};

use crate::{route, settings, steps};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const NO_PREALLOC: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;
const EEXIST: i32 = 17;

/// What clients send, by flow.
#[btf_map]
static FORWARD: Array<Bucket, 1, MMAPABLE> = Array::new();
/// What answers them, by flow.
#[btf_map]
static REVERSE: Array<Bucket, 1, MMAPABLE> = Array::new();
/// External endpoint of each internal one.
#[btf_map]
static MAPPINGS: HashMap<MappingKey, Mapping, 1> = HashMap::new();
/// Client number by source prefix.
#[btf_map]
static SOURCES: LpmTrie<Ipv4, u32, 65536> = LpmTrie::new();
/// Clients by number.
#[btf_map]
static CLIENTS: Array<Client, 1, MMAPABLE> = Array::new();
/// Destinations that a pool leaves alone.
#[btf_map]
static EXCLUDES: LpmTrie<[u8; 8], u32, 65536> = LpmTrie::new();
/// Egress addresses.
#[btf_map]
static ADDRESSES: HashMap<Ipv4, Address, 1> = HashMap::new();
/// Slices by number.
#[btf_map]
static SLICES: Array<Slice, 1> = Array::new();
/// Blocks of all slices.
#[btf_map]
static BLOCKS: Array<Block, 1, MMAPABLE> = Array::new();
/// Pages of all clients.
#[btf_map]
static PAGES: Array<Page, 1, MMAPABLE> = Array::new();
/// Free blocks: a queue for each slice and protocol.
#[btf_map]
static FREE_BLOCKS: ArrayOfMaps<Queue<u32, 1024>, 1> = ArrayOfMaps::new();
/// Devices that programs are attached to.
#[btf_map]
static DEVICES: HashMap<u32, Device, 4096> = HashMap::new();
/// What changes while programs run.
#[btf_map]
static SETTINGS: Array<Settings, 1> = Array::new();
/// Drops by reason.
#[btf_map]
static DROPS: PerCpuArray<u64, { REASON_SLOTS as usize }> = PerCpuArray::new();
/// Memory for a session about to be opened.
#[btf_map]
static OPENING: PerCpuArray<Opening, 1> = PerCpuArray::new();
/// Senders to be told why.
#[btf_map]
static EVENTS: RingBuf<Event, 65536> = RingBuf::new();
/// Clients' names, for commands; the programs do not read them.
#[btf_map]
static NAMES: HashMap<u32, Name, 65536, NO_PREALLOC> = HashMap::new();
/// Pools' settings, for agent and commands; the programs do not read them.
#[btf_map]
static POOLS: HashMap<u32, Pool, 1024, NO_PREALLOC> = HashMap::new();
/// The agent's report, for commands; the programs do not read it.
#[btf_map]
static REPORT: Array<Report, 1> = Array::new();

/// Keeps the maps that only the agent and commands use in the object.
#[inline(never)]
#[unsafe(no_mangle)]
fn keep() -> usize {
    &raw const NAMES as usize ^ &raw const POOLS as usize ^ &raw const REPORT as usize
}

/// Counts a drop.
#[inline(always)]
pub fn count(context: &impl EbpfContext, reason: Reason) {
    #[cfg(feature = "log")]
    crate::log::dropped(context, reason);
    #[cfg(not(feature = "log"))]
    let _ = context;
    if let Some(counter) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own counter; the program is not migrated while it runs.
        unsafe { *counter += 1 };
    }
}

/// The world as a program on this node sees it.
pub struct Node {
    context: *mut c_void,
    /// At tcx the kernel finds neighbours; at XDP they must be known.
    neighbours: route::Neighbours,
}

impl Node {
    /// The world around an XDP or tcx context.
    #[inline(always)]
    pub fn new(context: &impl EbpfContext, neighbours: route::Neighbours) -> Self {
        Self {
            context: context.as_ptr(),
            neighbours,
        }
    }

    /// The world for a step that needs no context: it asks no routes.
    #[inline(always)]
    pub const fn without_context() -> Self {
        Self {
            context: core::ptr::null_mut(),
            neighbours: route::Neighbours::Known,
        }
    }

    /// The world for a step, from what it is given.
    #[inline(always)]
    pub const fn step(context: *mut c_void, neighbours: route::Neighbours) -> Self {
        Self {
            context,
            neighbours,
        }
    }
}

/// A session table: what clients send, or what answers it.
pub struct Flows<const ANSWERS: bool>;

/// What clients send.
pub const SENT: Flows<false> = Flows;
/// What answers it.
pub const ANSWERS: Flows<true> = Flows;

impl<const ANSWERS: bool> Buckets for Flows<ANSWERS> {
    #[inline(always)]
    fn bucket(&self, number: u32) -> Option<&Bucket> {
        if ANSWERS {
            REVERSE.get(number)
        } else {
            FORWARD.get(number)
        }
    }

    #[inline(always)]
    fn mask(&self) -> u32 {
        settings::bucket_mask()
    }

    #[inline(always)]
    fn seed(&self) -> u64 {
        settings::seed()
    }

    #[inline(always)]
    fn seek(&self, key: &FlowKey) -> u32 {
        let [addresses, ports] = flow_words(key);
        if ANSWERS {
            steps::seek_reverse(addresses, ports)
        } else {
            steps::seek_forward(addresses, ports)
        }
    }
}

#[inline(always)]
fn inserted(result: Result<(), i32>) -> Result<(), InsertError> {
    result.map_err(|error| {
        if error == -EEXIST {
            InsertError::Exists
        } else {
            InsertError::Full
        }
    })
}

impl World for Node {
    #[inline(always)]
    fn forward(&self, key: &FlowKey) -> Option<&mut Half> {
        table::find(&SENT, key).map(|slot| slot.half.lend())
    }

    #[inline(always)]
    fn reverse(&self, key: &FlowKey) -> Option<&mut Half> {
        table::find(&ANSWERS, key).map(|slot| slot.half.lend())
    }

    #[inline(always)]
    fn insert_forward(&self, key: &FlowKey, half: &Half) -> Result<(), InsertError> {
        table::insert(&SENT, key, half)
    }

    #[inline(always)]
    fn insert_reverse(&self, key: &FlowKey, half: &Half) -> Result<(), InsertError> {
        table::insert(&ANSWERS, key, half)
    }

    #[inline(always)]
    fn remove_reverse(&self, key: &FlowKey) {
        if let Some(slot) = table::find(&ANSWERS, key) {
            table::remove(slot);
        }
    }

    #[inline(always)]
    fn mapping(&self, key: &MappingKey) -> Option<Mapping> {
        // SAFETY: read at once; mappings are replaced whole, never written in place.
        MAPPINGS.get_ptr(key).map(|mapping| unsafe { *mapping })
    }

    #[inline(always)]
    fn insert_mapping(
        &self,
        key: &MappingKey,
        mapping: &Mapping,
        replace: bool,
    ) -> Result<(), InsertError> {
        let flags = if replace { BPF_ANY } else { BPF_NOEXIST };
        inserted(MAPPINGS.insert(key, mapping, u64::from(flags)))
    }

    #[inline(always)]
    fn remove_mapping(&self, key: &MappingKey) {
        let _ = MAPPINGS.remove(key);
    }

    #[inline(always)]
    fn client_of(&self, source: &Ipv4) -> Option<u16> {
        SOURCES
            .get(&Key::new(32, *source))
            .map(|index| *index as u16)
    }

    #[inline(always)]
    fn client(&self, index: u16) -> Option<&Client> {
        CLIENTS.get(u32::from(index))
    }

    #[inline(always)]
    fn excluded(&self, pool: u32, destination: &Ipv4) -> bool {
        let key = ExcludeKey {
            pool: pool.to_be_bytes(),
            destination: *destination,
        };
        let [p0, p1, p2, p3] = key.pool;
        let [d0, d1, d2, d3] = key.destination;
        EXCLUDES
            .get(&Key::new(64, [p0, p1, p2, p3, d0, d1, d2, d3]))
            .is_some()
    }

    #[inline(always)]
    fn address(&self, address: &Ipv4) -> Option<Address> {
        // SAFETY: one 32-bit value, replaced whole.
        ADDRESSES
            .get_ptr(address)
            .map(|address| unsafe { *address })
    }

    #[inline(always)]
    fn slice(&self, index: u32) -> Option<&Slice> {
        SLICES.get(index)
    }

    #[inline(always)]
    fn block(&self, index: u32) -> Option<&Block> {
        BLOCKS.get(index)
    }

    #[inline(always)]
    fn page(&self, index: u32) -> Option<&Page> {
        PAGES.get(index)
    }

    #[inline(always)]
    fn pop_block(&self, queue: u32) -> Option<u32> {
        FREE_BLOCKS.get(queue)?.pop().ok().flatten()
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<Device> {
        // SAFETY: written by the agent only, replaced whole.
        DEVICES.get_ptr(ifindex).map(|device| unsafe { *device })
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        settings::tick()
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn generation(&self) -> u32 {
        SETTINGS.get(0).map_or(1, |settings| settings.generation)
    }

    #[inline(always)]
    fn route(&self, query: &RouteQuery, hop: &mut Hop) -> bool {
        route::look_up(self.context, query, self.neighbours, hop)
    }

    #[inline(always)]
    fn opening(&self) -> Option<&mut Opening> {
        // SAFETY: this CPU's own; programs on these hooks run with bottom halves
        // disabled, so none interrupts another on the same CPU.
        OPENING
            .get_ptr_mut(0)
            .map(|opening| unsafe { &mut *opening })
    }

    #[inline(always)]
    fn admit(&self) -> bool {
        steps::admit(self.context, self.neighbours)
    }

    #[inline(always)]
    fn map(&self) -> bool {
        steps::map() != 0
    }

    #[inline(always)]
    fn create_reverse(&self) -> bool {
        steps::create_reverse() != 0
    }

    #[inline(always)]
    fn create_forward(&self) -> bool {
        steps::create_forward() != 0
    }

    #[inline(always)]
    fn withdraw(&self) {
        steps::withdraw();
    }

    #[inline(always)]
    fn notify(&self, client: u16, reason: Reason, quote: &[u8; 28]) {
        let event = Event {
            reason: reason as u32,
            client: u32::from(client),
            quote: *quote,
            padding: 0,
        };
        // A full buffer means that the agent is away or busy: the sender is not told.
        let _ = EVENTS.output(event, 0);
    }
}
