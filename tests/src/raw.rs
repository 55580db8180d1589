//! Frames into and out of devices, byte for byte: `AF_PACKET` sockets.

use std::io::{self, IoSliceMut};
use std::mem::{self, MaybeUninit};
use std::os::fd::AsRawFd;
use std::ptr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// Room for the longest frame: a whole IPv4 packet, segments still to be cut.
const ROOM: usize = 68 * 1024;
/// Room for the control messages asked for: the mark, and `tpacket_auxdata`.
const CONTROL: usize = 128;
/// Bytes of `virtio_net_hdr`, which stands before every frame.
const VIRTIO: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
const SEGMENTS_OF_TCP_V4: u8 = 1;
/// Where TCP over IPv4 without options begins, where its checksum is from there, and where it ends.
const TCP: (u16, u16, u16) = (34, 16, 54);
/// Where a VLAN tag stands in a frame.
const TAG: usize = 12;

/// A frame, and what stands beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Its bytes from the Ethernet header on. A VLAN tag that the kernel took off is back in its place.
    pub bytes: Vec<u8>,
    /// `skb->mark`.
    pub mark: u32,
    /// Payload of each TCP segment it is still to be cut into; its checksum then is left to offload. 0: it is whole.
    pub gso_size: u16,
}

/// A socket for frames of all devices of a network namespace.
pub struct PacketSocket(Socket);

impl PacketSocket {
    /// One that sends from the calling thread's namespace, and receives nothing.
    pub fn sender() -> io::Result<Self> {
        Self::open(0)
    }

    /// One that receives frames of this EtherType. With `libc::ETH_P_ALL` it sees them as they arrive at a device,
    /// and with any other only what XDP and tcx let up to the stack.
    pub fn receiver(ether_type: u16) -> io::Result<Self> {
        let this = Self::open(ether_type)?;
        this.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING)?;
        this.set(libc::SOL_PACKET, libc::PACKET_AUXDATA)?;
        this.set(libc::SOL_SOCKET, libc::SO_RCVMARK)?;
        Ok(this)
    }

    fn open(ether_type: u16) -> io::Result<Self> {
        let protocol = Protocol::from(i32::from(ether_type.to_be()));
        let this = Self(Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?);
        this.set(libc::SOL_PACKET, libc::PACKET_VNET_HDR)?;
        this.0.set_nonblocking(true)?;
        Ok(this)
    }

    fn set(&self, level: i32, option: i32) -> io::Result<()> {
        let on = 1i32;
        // SAFETY: the pointer and length describe `on`, which the kernel copies.
        let result = unsafe {
            let length = size_of_val(&on) as libc::socklen_t;
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                (&raw const on).cast(),
                length,
            )
        };
        check(result as isize).map(drop)
    }

    /// Sends a frame out of the device with this number.
    pub fn send(&self, ifindex: u32, frame: &Frame) -> io::Result<()> {
        self.0.set_mark(frame.mark)?;
        let bytes = [&virtio(frame.gso_size)[..], &frame.bytes].concat();
        let ether_type = frame.bytes.get(12..14).unwrap_or(&[0, 0]);
        let mut to = empty_address();
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = u16::from_ne_bytes([ether_type[0], ether_type[1]]);
        to.sll_ifindex = ifindex as i32;
        // SAFETY: both pointers and lengths describe live locals.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        check(sent).map(drop)
    }

    /// A frame that has come, and the number of the device it came to.
    pub fn receive(&self) -> io::Result<Option<(u32, Frame)>> {
        let (mut header, mut bytes) = ([0; VIRTIO], vec![0; ROOM]);
        let (mut from, mut control) = (empty_address(), [0u64; CONTROL / 8]);
        let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut bytes)];
        // SAFETY: msghdr is plain integers and pointers, for which zero is valid.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of_val(&from) as libc::socklen_t;
        // `IoSliceMut` promises the layout of `iovec`.
        message.msg_iov = parts.as_mut_ptr().cast();
        message.msg_iovlen = parts.len();
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: everything that the message points to lives through the call, with the lengths given.
        let received = check(unsafe { libc::recvmsg(self.0.as_raw_fd(), &mut message, 0) });
        let length = match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            other => other? - VIRTIO,
        };
        let beside = beside(&message);
        bytes.truncate(length);
        if let Some(tag) = beside.tag {
            bytes.splice(TAG..TAG, tag);
        }
        let frame = Frame {
            bytes,
            mark: beside.mark,
            gso_size: u16::from_ne_bytes([header[4], header[5]]),
        };
        Ok(Some((from.sll_ifindex as u32, frame)))
    }
}

/// Waits until one of the sockets has a frame, or the time is over.
pub fn wait(sockets: &[&PacketSocket], timeout: Duration) -> io::Result<()> {
    let mut polled: Vec<_> = sockets
        .iter()
        .map(|socket| libc::pollfd {
            fd: socket.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    let timeout = timeout.as_millis() as i32;
    // SAFETY: the pointer and count describe `polled`.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
    check(ready as isize).map(drop)
}

/// The header of `virtio_net.h` before a frame: nothing to be done, or TCP over IPv4 to be cut into segments.
fn virtio(gso_size: u16) -> [u8; VIRTIO] {
    let mut header = [0; VIRTIO];
    if gso_size > 0 {
        let (start, checksum, end) = TCP;
        header[..2].copy_from_slice(&[NEEDS_CHECKSUM, SEGMENTS_OF_TCP_V4]);
        header[2..4].copy_from_slice(&end.to_ne_bytes());
        header[4..6].copy_from_slice(&gso_size.to_ne_bytes());
        header[6..8].copy_from_slice(&start.to_ne_bytes());
        header[8..10].copy_from_slice(&checksum.to_ne_bytes());
    }
    header
}

#[derive(Default)]
struct Beside {
    mark: u32,
    tag: Option<[u8; 4]>,
}

/// Reads the control messages.
fn beside(message: &libc::msghdr) -> Beside {
    let mut beside = Beside::default();
    // SAFETY: the macros walk the control messages that recvmsg left, within their length.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: as above: not null means a message of the kernel's, whole.
    while let Some(header) = unsafe { next.as_ref() } {
        // SAFETY: behind the header follows data of the type that the kernel sends under this name.
        unsafe {
            let data = libc::CMSG_DATA(header);
            match (header.cmsg_level, header.cmsg_type) {
                (libc::SOL_SOCKET, libc::SO_MARK) => {
                    beside.mark = ptr::read_unaligned(data.cast());
                }
                (libc::SOL_PACKET, libc::PACKET_AUXDATA) => {
                    beside.tag = tag(&ptr::read_unaligned(data.cast()));
                }
                _ => {}
            }
            next = libc::CMSG_NXTHDR(message, header);
        }
    }
    beside
}

fn tag(beside: &libc::tpacket_auxdata) -> Option<[u8; 4]> {
    let valid = beside.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
    let [kind, tci] = [beside.tp_vlan_tpid, beside.tp_vlan_tci].map(u16::to_be_bytes);
    valid.then_some([kind[0], kind[1], tci[0], tci[1]])
}

fn empty_address() -> libc::sockaddr_ll {
    // SAFETY: sockaddr_ll is plain integers, for which zero is valid.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
