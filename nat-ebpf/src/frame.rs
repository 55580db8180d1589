//! Packet bytes over both contexts: direct access between start and end, every
//! access checked against the end, as the verifier wants it.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, xdp_md},
    helpers::generated::{bpf_l4_csum_replace, bpf_skb_pull_data, bpf_xdp_get_buff_len},
};
use core::mem::MaybeUninit;
use nat_common::{
    packet::{
        checksum::{update, update_udp},
        ethernet,
    },
    raw::{Header, opaque},
    world::{Frame, Patch},
};

/// Where the Ethernet header says what it carries.
const ETHER_TYPE: usize = 12;
/// Headers are within this many bytes: Ethernet, IPv4 with options, TCP without.
const HEADERS: u32 = 14 + 60 + 20;

/// Reads a header between the bounds.
#[inline(always)]
fn load<T: Header>(start: usize, end: usize, at: usize) -> Option<T> {
    // For one byte the comparison becomes `from >= end`, of which the verifier learns nothing.
    const { assert!(size_of::<T>() > 1) };
    let from = opaque((start + at) as u64) as usize;
    if from + size_of::<T>() > end {
        return None;
    }
    let mut header = MaybeUninit::<T>::uninit();
    // SAFETY: the bytes are inside the packet, as just checked (and as the
    // verifier checks again), and `Header` promises that any bytes make a T.
    // Packet data starts at an even address and headers at even offsets: where
    // sizes allow, two bytes are read at a time.
    unsafe {
        if size_of::<T>().is_multiple_of(2) {
            let from = from as *const u16;
            core::ptr::copy_nonoverlapping(from, header.as_mut_ptr().cast(), size_of::<T>() / 2);
        } else {
            let from = from as *const u8;
            core::ptr::copy_nonoverlapping(from, header.as_mut_ptr().cast(), size_of::<T>());
        }
        Some(header.assume_init())
    }
}

/// Writes bytes between the bounds.
#[inline(always)]
fn store<const N: usize>(start: usize, end: usize, at: usize, bytes: &[u8; N]) -> Option<()> {
    let to = opaque((start + at) as u64) as usize;
    if to + N > end {
        return None;
    }
    // SAFETY: inside the packet, as just checked; two bytes at a time as in `load`.
    unsafe {
        if N.is_multiple_of(2) {
            core::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), to as *mut u16, N / 2);
        } else {
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, N);
        }
    }
    Some(())
}

/// A packet at XDP.
pub struct XdpFrame {
    context: *mut xdp_md,
    start: usize,
    end: usize,
}

impl XdpFrame {
    /// The packet of this context.
    #[inline(always)]
    pub fn new(context: *mut xdp_md) -> Self {
        // SAFETY: the kernel's context is valid while the program runs.
        let (start, end) = unsafe { ((*context).data as usize, (*context).data_end as usize) };
        Self {
            context,
            start,
            end,
        }
    }
}

impl Frame for XdpFrame {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context is the kernel's.
        unsafe { bpf_xdp_get_buff_len(self.context) as u32 }
    }

    #[inline(always)]
    fn holds(&self, bytes: u32) -> bool {
        // Only a packet in several buffers is longer than its first.
        self.start + bytes as usize <= self.end || bytes <= self.length()
    }

    #[inline(always)]
    fn tagged(&self) -> bool {
        false
    }

    #[inline(always)]
    fn load<T: Header>(&self, at: usize) -> Option<T> {
        load(self.start, self.end, at)
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, at: usize, bytes: &[u8; N]) -> Option<()> {
        store(self.start, self.end, at, bytes)
    }

    #[inline(always)]
    fn patch(&mut self, at: usize, patch: &Patch) -> Option<()> {
        let delta = patch.delta();
        let checksum = if patch.zero_is_none {
            update_udp(patch.checksum, delta)
        } else {
            update(patch.checksum, delta)
        };
        self.store(at, &checksum)
    }

    #[inline(always)]
    fn wire_length(&self, ip_length: u32, _headers: u32) -> u32 {
        ip_length
    }
}

/// A packet at a tcx hook.
pub struct SkbFrame {
    context: *mut __sk_buff,
    start: usize,
    end: usize,
    /// Bytes of the Ethernet header that are not there.
    missing: usize,
}

impl SkbFrame {
    /// The packet of this context, its headers in direct reach.
    #[inline(always)]
    pub fn new(context: *mut __sk_buff) -> Self {
        let mut frame = Self {
            context,
            start: 0,
            end: 0,
            missing: 0,
        };
        frame.reach();
        let wanted = if frame.length() < HEADERS {
            frame.length()
        } else {
            HEADERS
        };
        if frame.start + wanted as usize > frame.end {
            // SAFETY: the context is the kernel's. On failure the bytes stay
            // out of reach, and the packet counts as truncated.
            unsafe { bpf_skb_pull_data(context, wanted) };
            frame.reach();
        }
        frame
    }

    /// The packet of this context, where generic XDP may have been before: the
    /// kernel then hands it on without its Ethernet header (seen on Linux 6.18).
    #[inline(always)]
    pub fn behind_xdp(context: *mut __sk_buff) -> Self {
        let mut frame = Self::new(context);
        let there = load::<[u8; 2]>(frame.start, frame.end, ETHER_TYPE);
        if there.map(u16::from_ne_bytes) != frame.ether_type() {
            frame.missing = ethernet::PAYLOAD;
        }
        frame
    }

    /// Where an offset of the frame is in the bytes that are there. Made whole before
    /// it is added: the verifier refuses a packet's start less something.
    #[inline(always)]
    fn place(&self, at: usize) -> Option<usize> {
        let place = at.checked_sub(self.missing)?;
        Some(opaque(place as u64) as usize)
    }

    /// Takes the bounds anew: helpers that write move the bytes.
    #[inline(always)]
    fn reach(&mut self) {
        // SAFETY: the kernel's context is valid while the program runs.
        unsafe {
            self.start = (*self.context).data as usize;
            self.end = (*self.context).data_end as usize;
        }
    }

    #[inline(always)]
    fn replace(&mut self, at: usize, from: u64, to: u64, flags: u64) -> Option<()> {
        // SAFETY: the context is the kernel's; the helper checks the offset.
        let result = unsafe { bpf_l4_csum_replace(self.context, at as u32, from, to, flags) };
        self.reach();
        (result == 0).then_some(())
    }
}

impl Frame for SkbFrame {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context is the kernel's.
        unsafe { (*self.context).len + self.missing as u32 }
    }

    #[inline(always)]
    fn holds(&self, bytes: u32) -> bool {
        bytes <= self.length()
    }

    #[inline(always)]
    fn ether_type(&self) -> Option<u16> {
        // SAFETY: the context is the kernel's.
        Some(unsafe { (*self.context).protocol } as u16)
    }

    #[inline(always)]
    fn tagged(&self) -> bool {
        // SAFETY: the context is the kernel's.
        unsafe { (*self.context).vlan_present != 0 }
    }

    #[inline(always)]
    fn load<T: Header>(&self, at: usize) -> Option<T> {
        load(self.start, self.end, self.place(at)?)
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, at: usize, bytes: &[u8; N]) -> Option<()> {
        store(self.start, self.end, self.place(at)?, bytes)
    }

    /// Through the helper, which knows where the checksum is kept: in the
    /// packet, in `skb->csum`, or as the pseudo-header's part for the device.
    #[inline(always)]
    fn patch(&mut self, at: usize, patch: &Patch) -> Option<()> {
        let mangled = if patch.zero_is_none {
            u64::from(BPF_F_MARK_MANGLED_0)
        } else {
            0
        };
        if let Some(addresses) = patch.addresses {
            let flags = mangled | u64::from(BPF_F_PSEUDO_HDR);
            self.replace(at - self.missing, 0, u64::from(addresses.0), flags)?;
        }
        let from = u64::from(u16::from_ne_bytes(patch.from_port));
        let to = u64::from(u16::from_ne_bytes(patch.to_port));
        self.replace(at - self.missing, from, to, mangled | 2)
    }

    #[inline(always)]
    fn wire_length(&self, ip_length: u32, headers: u32) -> u32 {
        // SAFETY: the context is the kernel's.
        match unsafe { (*self.context).gso_size } {
            0 => ip_length,
            size => size + headers,
        }
    }
}
