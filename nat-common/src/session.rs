//! Sessions: two halves per flow, created together, stamped apart.

use crate::{
    abi::{Delivery, FlowKey, Half, Ipv4, Mapping, MappingKey, Port},
    hooks::open::Arrival,
    packet::tcp::{FIN, RST, SYN},
    ports, rate,
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
    half.count(bytes);
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
    /// Whether the reverse half was made for this session.
    inserted: bool,
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
        inserted: false,
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
    rate::take(world, client, slice)?;
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

/// Creates the reverse half: before the forward one, so that a reply is never
/// un-NATed by half a session. If it cannot be had, the opening says why.
#[inline(always)]
pub fn create_reverse<W: World>(world: &W) -> bool {
    let Some(opening) = world.opening() else {
        return false;
    };
    let Err(reason) = insert_reverse(world, opening) else {
        return true;
    };
    opening.reason = reason;
    false
}

/// Creates the forward half, as [`create_reverse`] the other one.
#[inline(always)]
pub fn create_forward<W: World>(world: &W) -> bool {
    let Some(opening) = world.opening() else {
        return false;
    };
    let Err(reason) = insert_forward(world, opening) else {
        return true;
    };
    opening.reason = reason;
    false
}

/// Unmakes what was made for a session that could not be created whole.
#[inline(always)]
pub fn withdraw<W: World>(world: &W) {
    let Some(opening) = world.opening() else {
        return;
    };
    if opening.inserted {
        let Mapping { address, port, .. } = opening.mapping;
        world.remove_reverse(&reverse_key(&opening.key, address, port));
    }
    if opening.fresh {
        world.remove_mapping(&mapping_key(&opening.key));
        ports::put_back(world, &opening.taken);
    }
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

#[inline(always)]
fn insert_reverse<W: World>(world: &W, opening: &mut Opening) -> Result<(), Reason> {
    let client = world.client(opening.client).ok_or(Reason::NoAddress)?;
    let now = world.now();
    let half = &mut opening.half;
    // The client's side: where it is, for the hooks that hand packets straight to it.
    *half = Half {
        address: opening.key.source,
        port: opening.key.source_port,
        delivery: client.delivery.get() as u8,
        client: opening.client,
        created: now,
        last_seen: now,
        ifindex: client.ifindex.get(),
        ..Half::EMPTY
    };
    let key = reverse_key(&opening.key, opening.mapping.address, opening.mapping.port);
    let inserted = world.insert_reverse(&key, half);
    opening.inserted = inserted.is_ok();
    match inserted {
        // Same: opened on another CPU, or left by an agent that died in a sweep.
        Ok(()) | Err(InsertError::Same) => Ok(()),
        Err(InsertError::Full) => Err(Reason::SessionsFull),
        Err(InsertError::Exists | InsertError::Busy) => Err(Reason::Contention),
    }
}

#[inline(always)]
fn insert_forward<W: World>(world: &W, opening: &mut Opening) -> Result<(), Reason> {
    let now = world.now();
    let half = &mut opening.half;
    *half = Half {
        address: opening.mapping.address,
        port: opening.mapping.port,
        client: opening.client,
        created: now,
        last_seen: now,
        ..Half::EMPTY
    };
    if opening.hop.ifindex != 0 {
        remember(world, half, &opening.hop, opening.arrival.way.delivery());
    }
    match world.insert_forward(&opening.key, half) {
        // Another CPU opened the same flow at the same time, to the same end.
        Ok(()) | Err(InsertError::Same | InsertError::Exists) => Ok(()),
        Err(InsertError::Full) => Err(Reason::SessionsFull),
        Err(InsertError::Busy) => Err(Reason::Contention),
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
pub fn remember<W: World>(world: &W, half: &mut Half, hop: &Hop, delivery: Delivery) {
    // Without the neighbour's address neither is the MTU known: the next packet asks again.
    let complete = hop.destination_mac != [0; 6];
    half.set_generation(if complete { world.generation() } else { 0 });
    half.delivery = delivery as u8;
    half.ifindex = hop.ifindex;
    half.mtu = hop.mtu;
    if delivery == Delivery::Neighbour {
        let [a, b, c, d] = hop.gateway;
        half.destination_mac = [a, b, c, d, 0, 0];
        half.source_mac = [0; 6];
    } else {
        half.destination_mac = hop.destination_mac;
        half.source_mac = hop.source_mac;
    }
}

/// Forgets the next hop: every packet asks again, and nothing fits it.
#[inline(always)]
pub fn forget(half: &mut Half) {
    half.set_generation(0);
    half.mtu = 0;
}

/// The next hop cached in a half, while it holds. Call before [`stamp`].
#[inline(always)]
pub fn cached_hop<W: World>(world: &W, half: &Half, delivery: Delivery) -> bool {
    half.generation() == world.generation()
        && half.last_seen / HOP_TICKS == world.now() / HOP_TICKS
        && half.delivery == delivery as u8
}

/// Whether this packet is the owner's to send through this session.
#[inline(always)]
pub fn belongs<W: World>(world: &W, half: &Half, ingress: u32) -> bool {
    world
        .client(half.client)
        .is_some_and(|client| client.ifindex.get() == ingress)
}
