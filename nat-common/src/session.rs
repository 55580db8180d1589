//! Sessions: two halves per flow, created together, stamped apart.

use crate::{
    abi::{FlowKey, Half, Ipv4, Mapping, MappingKey, Port},
    hooks::open::Arrival,
    packet::tcp::{FIN, RST, SYN},
    ports,
    reason::Reason,
    world::{Hop, InsertError, World},
};

/// Records a packet in its half.
///
/// The tick is written only when it changes. A reset does not refresh
/// (RFC 7857 section 2.2); a SYN starts the connection's flags anew, so that a
/// pair of ports can be used again.
#[inline(always)]
pub fn stamp<W: World>(world: &W, half: &mut Half, tcp_flags: u8, bytes: u32) {
    half.packets += 1;
    half.bytes += u64::from(bytes);
    let now = world.now();
    if half.last_seen != now && tcp_flags & RST == 0 {
        half.last_seen = now;
    }
    let seen = if tcp_flags & SYN != 0 && half.seen & (FIN | RST) != 0 {
        tcp_flags
    } else {
        half.seen | tcp_flags
    };
    if seen != half.seen {
        half.seen = seen;
    }
}

/// A session about to be opened. It lives in memory of its own for each CPU,
/// through which the steps talk: a BPF program's stack has 512 bytes in all, and
/// the verifier follows a step that takes no arguments only once.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// The flow, as the client's packet shows it.
    pub key: FlowKey,
    /// Next hop of the forward half; interface 0 where this hook does not know it.
    pub hop: Hop,
    /// The client's number.
    pub client: u16,
    /// What becomes of the packet if no session is opened for it.
    pub refusal: Refusal,
    /// Why it is dropped then.
    pub reason: Reason,
    /// The packet that opens it.
    pub arrival: Arrival,
    /// The largest IP packet it makes on the wire.
    pub wire_length: u32,
    mapping: Mapping,
    /// Whether the mapping was made for this session, of the port taken.
    fresh: bool,
    taken: ports::Taken,
    half: Half,
}

/// What becomes of a packet that opens no session. (A plain number: a variant
/// with fields would be stored with bytes that were never written, which the
/// verifier refuses.)
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// On, untouched: it is not ours to translate.
    Pass,
    /// On the stack path.
    ByStack,
    /// Dropped.
    Drop,
}

impl Opening {
    /// Nothing.
    pub const EMPTY: Self = Self {
        key: FlowKey::EMPTY,
        hop: Hop::EMPTY,
        client: 0,
        refusal: Refusal::Pass,
        reason: Reason::Contention,
        arrival: Arrival::EMPTY,
        wire_length: 0,
        mapping: Mapping::EMPTY,
        fresh: false,
        taken: ports::Taken::EMPTY,
        half: Half::EMPTY,
    };
}

/// Finds or makes the mapping of the opening's internal endpoint; if it cannot
/// be had, the opening says why.
#[inline(always)]
pub fn map<W: World>(world: &W) -> bool {
    let Some(opening) = world.opening() else {
        return false;
    };
    match mapping(world, opening) {
        Ok(()) => true,
        Err(reason) => {
            opening.reason = reason;
            false
        }
    }
}

/// The internal endpoint's mapping, made if it has none (endpoint-independent
/// mapping, RFC 4787 REQ-1). One left over from the client's previous egress
/// address is replaced: its sessions keep it until they end, new ones do not.
#[inline(always)]
fn mapping<W: World>(world: &W, opening: &mut Opening) -> Result<(), Reason> {
    let client = world.client(opening.client).ok_or(Reason::NoAddress)?;
    let slice = world.slice(client.slice.get()).ok_or(Reason::NoAddress)?;
    let key = mapping_key(&opening.key);
    let known = world.mapping(&key);
    opening.fresh = false;
    if let Some(mapping) = known
        && mapping.client == opening.client
        && mapping.address == slice.address
    {
        opening.mapping = mapping;
        return Ok(());
    }
    let taken = ports::take(world, opening.client, client, key.protocol)?;
    opening.mapping = Mapping {
        address: taken.address,
        port: taken.port.to_be_bytes(),
        client: opening.client,
        created: world.now(),
        padding: 0,
    };
    opening.taken = taken;
    let Err(error) = world.insert_mapping(&key, &opening.mapping, known.is_some()) else {
        opening.fresh = true;
        return Ok(());
    };
    ports::put_back(world, &opening.taken);
    if error == InsertError::Full {
        return Err(Reason::MappingsFull);
    }
    // Another CPU mapped the same endpoint at the same time: its port serves both.
    opening.mapping = world.mapping(&key).ok_or(Reason::Contention)?;
    Ok(())
}

/// Creates both halves, the reverse one first: a reply is never un-NATed by
/// half a session. What was made is unmade when a later step fails, and the
/// opening says why.
#[inline(always)]
pub fn create<W: World>(world: &W) -> bool {
    let Some(opening) = world.opening() else {
        return false;
    };
    let Err(reason) = insert(world, opening) else {
        return true;
    };
    opening.reason = reason;
    if opening.fresh {
        world.remove_mapping(&mapping_key(&opening.key));
        ports::put_back(world, &opening.taken);
    }
    false
}

#[inline(always)]
fn mapping_key(key: &FlowKey) -> MappingKey {
    MappingKey {
        address: key.source,
        port: key.source_port,
        protocol: key.protocol,
        padding: 0,
    }
}

/// Inserts the reverse half, then the forward half.
#[inline(always)]
fn insert<W: World>(world: &W, opening: &mut Opening) -> Result<(), Reason> {
    let client = world.client(opening.client).ok_or(Reason::NoAddress)?;
    let now = world.now();
    let half = &mut opening.half;
    // The client's side first: where it is, for the hooks that hand packets straight to it.
    *half = Half {
        address: opening.key.source,
        port: opening.key.source_port,
        delivery: client.delivery.get() as u8,
        client: opening.client,
        created: now,
        last_seen: now,
        ifindex: client.ifindex.get(),
        gateway: opening.key.source,
        ..Half::EMPTY
    };
    let key = reverse_key(&opening.key, opening.mapping.address, opening.mapping.port);
    let inserted = insert_reverse(world, &key, half)?;
    *half = Half {
        address: opening.mapping.address,
        port: opening.mapping.port,
        client: opening.client,
        created: now,
        last_seen: now,
        ingress: client.ifindex.get(),
        ..Half::EMPTY
    };
    if opening.hop.ifindex != 0 {
        remember(world, half, &opening.hop);
    }
    match world.insert_forward(&opening.key, half) {
        // Exists: another CPU opened the same flow at the same time, to the same end.
        Ok(()) | Err(InsertError::Exists) => Ok(()),
        Err(InsertError::Full) => {
            if inserted {
                world.remove_reverse(&key);
            }
            Err(Reason::SessionsFull)
        }
    }
}

/// Inserts the reverse half; false if the flow has it already.
#[inline(always)]
fn insert_reverse<W: World>(world: &W, key: &FlowKey, half: &Half) -> Result<bool, Reason> {
    match world.insert_reverse(key, half) {
        Ok(()) => Ok(true),
        Err(InsertError::Full) => Err(Reason::SessionsFull),
        Err(InsertError::Exists) => match world.reverse(key) {
            // The same flow's: opened on another CPU, or left by an agent that died in a sweep.
            Some(old) if old.address == half.address && old.port == half.port => Ok(false),
            _ => Err(Reason::Contention),
        },
    }
}

/// The key of the reverse half, given the external endpoint: what the answer to
/// the translated packet looks like.
#[inline(always)]
pub fn reverse_key(key: &FlowKey, address: Ipv4, port: Port) -> FlowKey {
    FlowKey {
        source: key.destination,
        destination: address,
        source_port: key.destination_port,
        destination_port: port,
        protocol: key.protocol,
        padding: [0; 3],
    }
}

/// Ticks after which a cached next hop is looked up again, a power of two: the
/// agent may be away, and nobody else bumps the generation.
const HOP_TICKS: u32 = 16;

/// Caches a next hop in a half.
#[inline(always)]
pub fn remember<W: World>(world: &W, half: &mut Half, hop: &Hop) {
    // Without the neighbour's address neither is the MTU known: the next packet asks again.
    let complete = hop.destination_mac != [0; 6];
    half.generation = if complete { world.generation() } else { 0 };
    half.ifindex = hop.ifindex;
    half.mtu = hop.mtu;
    half.gateway = hop.gateway;
    half.destination_mac = hop.destination_mac;
    half.source_mac = hop.source_mac;
}

/// Forgets the next hop: every packet asks again, and nothing fits it.
#[inline(always)]
pub fn forget(half: &mut Half) {
    half.generation = 0;
    half.mtu = 0;
}

/// The next hop cached in a half, while it holds. Call before [`stamp`].
#[inline(always)]
pub fn cached_hop<W: World>(world: &W, half: &Half) -> bool {
    half.generation == world.generation() && half.last_seen / HOP_TICKS == world.now() / HOP_TICKS
}

/// Whether this packet is the owner's to send through this session.
#[inline(always)]
pub fn belongs(half: &Half, ingress: u32) -> bool {
    half.ingress == ingress
}
