//! The kernel calls that `std` and `socket2` do not offer, and all of this crate's `unsafe` for the labs. (That of
//! the fixtures' frames is in [`crate::raw`].)
//!
//! Everything exported is safe to call: namespaces, kills and a receive ring for frames.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Bytes of each frame that the ring keeps: headers, and small packets whole.
pub const SNAP_LENGTH: usize = 256;

const BLOCK_SIZE: usize = 1 << 20;
const BLOCKS: usize = 64;
/// A block that is not full is handed over after this many milliseconds.
const RETIRE_MS: u32 = 10;
/// Where `tpacket_block_desc` holds the block's status word.
const STATUS_OFFSET: usize = 8;
/// The fields of `tpacket_hdr_v1` that are read, counted from the block's start.
const COUNT_OFFSET: usize = 12;
const FIRST_FRAME_OFFSET: usize = 16;

/// Moves the calling thread into the network namespace that `namespace` is open on.
pub fn enter_netns(namespace: &File) -> io::Result<()> {
    // SAFETY: setns reads its two integers only; it changes this thread's namespace, not memory.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Lets this process, and those that it starts, have as many files open as they may.
pub fn raise_file_limit() -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls read or write this one struct only.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit))?;
        limit.rlim_cur = limit.rlim_max;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &limit)).map(drop)
    }
}

/// Sends `signal` to the process `pid`, which the caller started.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes two integers; `pid` is positive, so it means one process and no group.
    check(unsafe { libc::kill(pid.max(2) as i32, signal) }).map(drop)
}

/// Kills the process group that `leader`, a child of ours, was started at the head of.
pub fn kill_group(leader: u32) -> io::Result<()> {
    // SAFETY: kill takes two integers; `leader` is above 1, so this means one group and not every process.
    check(unsafe { libc::kill(-(leader.max(2) as i32), libc::SIGKILL) }).map(drop)
}

/// A frame as the ring holds it.
pub struct Frame<'a> {
    /// Its first [`SNAP_LENGTH`] bytes, from the Ethernet header.
    pub bytes: &'a [u8],
    /// Its whole length: more than the MTU for a GSO packet.
    pub length: usize,
    /// The sender left the checksum to offload: only the pseudo-header's sum stands in it.
    pub checksum_partial: bool,
}

/// An `AF_PACKET` receive ring (`TPACKET_V3`) on one device: frames that arrive there, not those sent.
pub struct PacketRing {
    socket: OwnedFd,
    memory: *mut u8,
    next: usize,
}

// SAFETY: the ring owns its mapping alone and every access needs `&mut self`, so it may move to another thread.
unsafe impl Send for PacketRing {}

impl PacketRing {
    /// Opens a ring on `device` of the calling thread's network namespace. No frame is missed after it returns.
    pub fn open(device: &str) -> io::Result<Self> {
        // Protocol 0 receives nothing: the socket starts when it is bound, with ring and filter in place.
        // SAFETY: socket takes three integers; a descriptor it returns is ours alone.
        let socket = unsafe {
            OwnedFd::from_raw_fd(check(libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                0,
            ))?)
        };
        set_option(
            &socket,
            libc::PACKET_VERSION,
            &(libc::tpacket_versions::TPACKET_V3 as i32),
        )?;
        set_option(&socket, libc::PACKET_IGNORE_OUTGOING, &1i32)?;
        cut_frames(&socket)?;
        set_option(&socket, libc::PACKET_RX_RING, &ring_request())?;
        // SAFETY: a fresh shared mapping of the ring just asked for; the kernel checks length and descriptor.
        let memory = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(
                ptr::null_mut(),
                BLOCKS * BLOCK_SIZE,
                protection,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ring = Self {
            socket,
            memory: memory.cast(),
            next: 0,
        };
        ring.bind(device)?;
        Ok(ring)
    }

    fn bind(&self, device: &str) -> io::Result<()> {
        let name = CString::new(device)?;
        // SAFETY: `name` is a live C string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: sockaddr_ll is plain integers, for which zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the pointer and length describe `address`, which lives through the call.
        check(unsafe { libc::bind(self.socket.as_raw_fd(), (&raw const address).cast(), length) })
            .map(drop)
    }

    /// Hands the frames of the next block to `visit`; false when none came within `timeout`.
    pub fn next_block(
        &mut self,
        timeout: Duration,
        mut visit: impl FnMut(Frame),
    ) -> io::Result<bool> {
        if self.status(self.next).load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            self.poll(timeout)?;
            if self.status(self.next).load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
                return Ok(false);
            }
        }
        // SAFETY: the block lies within the mapping, and the kernel leaves it alone until its status is given back.
        let block = unsafe {
            std::slice::from_raw_parts(self.memory.add(self.next * BLOCK_SIZE), BLOCK_SIZE)
        };
        visit_frames(block, &mut visit);
        self.status(self.next)
            .store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % BLOCKS;
        Ok(true)
    }

    fn status(&self, block: usize) -> &AtomicU32 {
        // SAFETY: aligned, within the mapping for any block of the ring, and shared with the kernel as one word.
        unsafe { AtomicU32::from_ptr(self.memory.add(block * BLOCK_SIZE + STATUS_OFFSET).cast()) }
    }

    fn poll(&self, timeout: Duration) -> io::Result<()> {
        let mut wanted = libc::pollfd {
            fd: self.socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one live pollfd, and a count of one.
        match check(unsafe { libc::poll(&mut wanted, 1, timeout.as_millis() as i32) }) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Frames the kernel could not put into the ring since the last call.
    pub fn lost(&self) -> io::Result<u32> {
        let mut statistics = libc::tpacket_stats_v3 {
            tp_packets: 0,
            tp_drops: 0,
            tp_freeze_q_cnt: 0,
        };
        let mut length = size_of_val(&statistics) as libc::socklen_t;
        // SAFETY: the pointer and length describe a live local of the type that this option fills.
        check(unsafe {
            let value = (&raw mut statistics).cast();
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                value,
                &mut length,
            )
        })?;
        Ok(statistics.tp_drops)
    }
}

impl Drop for PacketRing {
    fn drop(&mut self) {
        // SAFETY: exactly what mmap returned in `open`; no reference into it outlives a call.
        unsafe { libc::munmap(self.memory.cast(), BLOCKS * BLOCK_SIZE) };
    }
}

fn ring_request() -> libc::tpacket_req3 {
    const FRAME_SIZE: usize = 2048;
    libc::tpacket_req3 {
        tp_block_size: BLOCK_SIZE as u32,
        tp_block_nr: BLOCKS as u32,
        tp_frame_size: FRAME_SIZE as u32,
        tp_frame_nr: (BLOCKS * BLOCK_SIZE / FRAME_SIZE) as u32,
        tp_retire_blk_tov: RETIRE_MS,
        tp_sizeof_priv: 0,
        tp_feature_req_word: 0,
    }
}

/// A one-instruction filter that keeps every frame, cut to [`SNAP_LENGTH`].
fn cut_frames(socket: &OwnedFd) -> io::Result<()> {
    let mut keep = libc::sock_filter {
        code: 0x06,
        jt: 0,
        jf: 0,
        k: SNAP_LENGTH as u32,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &mut keep,
    };
    // SAFETY: the program and its one instruction live through the call, which copies them.
    check(unsafe {
        let length = size_of_val(&program) as libc::socklen_t;
        let value = (&raw const program).cast();
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            value,
            length,
        )
    })
    .map(drop)
}

fn set_option<T>(socket: &OwnedFd, option: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer and length describe `value`, which the kernel copies; it checks the size for the option.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            ptr::from_ref(value).cast(),
            length,
        )
    })
    .map(drop)
}

/// Walks the `tpacket3_hdr` list of a block.
fn visit_frames(block: &[u8], visit: &mut impl FnMut(Frame)) {
    let mut header = word(block, FIRST_FRAME_OFFSET) as usize;
    for _ in 0..word(block, COUNT_OFFSET) {
        let kept = word(block, header + 12) as usize;
        let start =
            header + usize::from(u16::from_ne_bytes([block[header + 24], block[header + 25]]));
        visit(Frame {
            bytes: &block[start..start + kept],
            length: word(block, header + 16) as usize,
            checksum_partial: word(block, header + 20) & libc::TP_STATUS_CSUMNOTREADY != 0,
        });
        header += word(block, header) as usize;
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
