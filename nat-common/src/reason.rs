//! Why a packet is dropped: one list for counters, `natctl` and the docs.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal, $text:literal, $sentence:literal;)*) => {
        /// Why a packet was dropped. The number is its index in the drop counters.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[doc = $doc])* $name = $number,)*
        }

        impl Reason {
            /// All reasons, by number.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// Its name in metrics and on the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }

            /// What happened and what to do, for the person reading the counters.
            pub const fn sentence(self) -> &'static str {
                match self { $(Reason::$name => $sentence,)* }
            }
        }
    };
}

reasons! {
    /// The frame ends before its headers do, or before its IP length says.
    Truncated = 0, "truncated",
        "The frame ends before its headers or its stated length; look at the sender or the link's MTU.";
    /// Version, header length or total length are impossible.
    BadHeader = 1, "bad-header",
        "The IPv4, TCP, UDP or ICMP header contradicts itself; the sender is broken or probing.";
    /// Loose or strict source routing (RFC 7126 section 4.3).
    SourceRoute = 2, "source-route",
        "The packet asks for source routing, which would lead it around the translation.";
    /// A fragment of a datagram.
    Fragment = 3, "fragment",
        "A fragment has no ports to translate by; lower the sender's datagram size below the path's MTU.";
    /// Neither TCP, UDP nor ICMP.
    UnsupportedProtocol = 4, "unsupported-protocol",
        "Only TCP, UDP and ICMP echo are translated; exclude the destination if it needs another protocol.";
    /// ICMP that is no echo.
    UnsupportedIcmp = 5, "unsupported-icmp",
        "Of ICMP only echo requests and replies are translated.";
    /// TCP flags of no valid segment: none, SYN+FIN, SYN+RST, FIN without ACK.
    BadTcpFlags = 6, "bad-tcp-flags",
        "The TCP flags make no valid segment; somebody is scanning.";
    /// Port 0 on either side.
    PortZero = 7, "port-zero",
        "Port 0 cannot be answered.";
    /// A source that no packet may have: 0/8, 127/8, 224/3, or its own destination.
    BadSource = 8, "bad-source",
        "The source address is loopback, multicast, or the destination itself.";
    /// A multicast or broadcast destination on the way out.
    BadDestination = 9, "bad-destination",
        "Multicast and broadcast are not translated, and never leave with a client's own address.";
    /// The source is not the client's own.
    Spoofed = 10, "spoofed",
        "A client sent with an address that is not its own, or a client's address came in on another device.";
    /// No session for a packet from outside.
    NoSession = 11, "no-session",
        "Nothing inside has talked to this sender: unsolicited traffic, or a reply after its session ended.";
    /// The client has no egress address to use.
    NoAddress = 12, "no-address",
        "The client has no usable egress address; see its line in `natctl status`.";
    /// The address has no free block left.
    PortsExhausted = 13, "ports-exhausted",
        "All ports of the egress address are taken; give the pool more addresses.";
    /// The client holds as many blocks as it may.
    ClientCap = 14, "client-cap",
        "The client uses all ports it may; raise portsPerClient or find out why it opens so many.";
    /// The forward or reverse table is full.
    SessionsFull = 15, "sessions-full",
        "The session table is full; raise limits.sessions.";
    /// The mapping table is full.
    MappingsFull = 16, "mappings-full",
        "The mapping table is full; raise limits.sessions.";
    /// Another CPU was faster, several times.
    Contention = 17, "contention",
        "Several CPUs wanted the same port or session at once; the sender repeats and succeeds.";
    /// Reached the outside device with a client's own address.
    Untranslated = 18, "untranslated",
        "A packet with a client's own address reached the outside device without being checked at the client's device.";
    /// TTL ran out on the way in.
    TtlExpired = 19, "ttl-expired",
        "The packet's time to live ran out here.";
    /// A TCP reset, SYN+ACK or echo reply without a session.
    NotAnOpening = 20, "not-an-opening",
        "A client's TCP reset, SYN+ACK or echo reply that belongs to no session: an answer to nobody.";
    /// The packet's bytes could not be read or changed.
    Unwritable = 21, "unwritable",
        "The kernel refused access to the packet's bytes; please report this.";
    /// The client has made as many mappings in this tick as it may.
    MappingRate = 22, "mapping-rate",
        "The client opens mappings faster than it may; raise mappingsPerSecond or find out why it opens so many.";
}

/// How many reasons there are.
pub const REASONS: u32 = Reason::ALL.len() as u32;

/// Size of the drop counters: room for reasons to come, so that one more does not
/// change the layout of what is pinned.
pub const REASON_SLOTS: u32 = 64;

const _: () = assert!(REASONS <= REASON_SLOTS);
