//! The crate's only `unsafe`: headers read from bytes, and shared words.

use core::{cell::UnsafeCell, fmt, mem::MaybeUninit};

use crate::abi::FlowKey;
use network_types::{
    arp::ArpHdr, eth::EthHdr, icmp::Icmpv4Hdr, ip::Ipv4Hdr, tcp::TcpHdr, udp::UdpHdr,
};

/// A header that any bytes are a valid value of.
///
/// # Safety
/// The type is `repr(C)`, has no padding, and every bit pattern is valid.
pub unsafe trait Header: Copy {}

// SAFETY: all are repr(C) structures of integers and byte arrays without padding.
unsafe impl Header for EthHdr {}
// SAFETY: as above.
unsafe impl Header for Ipv4Hdr {}
// SAFETY: as above.
unsafe impl Header for UdpHdr {}
// SAFETY: as above.
unsafe impl Header for ArpHdr {}
// SAFETY: as above.
unsafe impl Header for TcpHdr {}
// SAFETY: as above.
unsafe impl Header for Icmpv4Hdr {}
// SAFETY: bytes.
unsafe impl<const N: usize> Header for [u8; N] {}

/// The header at the start of `bytes`, if they hold a whole one.
#[inline(always)]
pub fn read<T: Header>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    let mut header = MaybeUninit::<T>::uninit();
    // SAFETY: both sides hold size_of::<T>() bytes and do not overlap; `Header`
    // promises that any bytes make a valid T.
    unsafe {
        core::ptr::copy_nonoverlapping(bytes.as_ptr(), header.as_mut_ptr().cast(), bytes.len());
        Some(header.assume_init())
    }
}

/// A flow's key from its bytes, in two words.
#[inline(always)]
pub fn flow_key(words: [u64; 2]) -> FlowKey {
    let words = [opaque(words[0]), opaque(words[1])];
    // SAFETY: same size; any bytes make a key.
    unsafe { core::mem::transmute(words) }
}

/// A flow's key as two words: the addresses; the ports, then the protocol.
#[inline(always)]
pub fn flow_words(key: &FlowKey) -> [u64; 2] {
    // SAFETY: same size, and a key has no bytes that were never written.
    unsafe { core::mem::transmute(*key) }
}

/// The value itself, of which the compiler knows nothing any more. It leaves out
/// checks that it has proved; the verifier, which follows registers and not
/// reasons, must see them.
#[inline(always)]
pub fn opaque(value: u64) -> u64 {
    imp::opaque(value)
}

/// A 64-bit word that packet path (on all CPUs) and agent change together.
///
/// `core`'s atomics have no read-modify-write operations on the BPF target;
/// the instructions exist since Linux 5.12.
#[repr(transparent)]
#[derive(Default)]
pub struct Word(UnsafeCell<u64>);

// SAFETY: every access below is atomic.
unsafe impl Sync for Word {}

impl Word {
    /// A word with this value.
    pub const fn new(value: u64) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Its value now.
    #[inline(always)]
    pub fn load(&self) -> u64 {
        // SAFETY: the pointer is the cell's own, and an aligned 64-bit load is one instruction.
        unsafe { self.0.get().read_volatile() }
    }

    /// Clears the bits that are not in `mask`; the value before.
    #[inline(always)]
    pub fn fetch_and(&self, mask: u64) -> u64 {
        imp::fetch_and(&self.0, mask)
    }

    /// Sets the bits in `bits`; the value before.
    #[inline(always)]
    pub fn fetch_or(&self, bits: u64) -> u64 {
        imp::fetch_or(&self.0, bits)
    }

    /// Replaces `from` by `to`; false if the value was another.
    #[cfg(not(target_arch = "bpf"))]
    pub fn replace(&self, from: u64, to: u64) -> bool {
        imp::replace(&self.0, from, to)
    }
}

/// A 32-bit [`Word`].
#[repr(transparent)]
#[derive(Default)]
pub struct Word32(UnsafeCell<u32>);

// SAFETY: every access below is atomic.
unsafe impl Sync for Word32 {}

impl Word32 {
    /// A word with this value.
    pub const fn new(value: u32) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Its value now.
    #[inline(always)]
    pub fn load(&self) -> u32 {
        // SAFETY: the pointer is the cell's own, and an aligned 32-bit load is one instruction.
        unsafe { self.0.get().read_volatile() }
    }

    /// Clears the bits that are not in `mask`; the value before.
    #[inline(always)]
    pub fn fetch_and(&self, mask: u32) -> u32 {
        imp::fetch_and_32(&self.0, mask)
    }

    /// Sets the bits in `bits`; the value before.
    #[inline(always)]
    pub fn fetch_or(&self, bits: u32) -> u32 {
        imp::fetch_or_32(&self.0, bits)
    }

    /// Adds, and wraps around; the value before.
    #[inline(always)]
    pub fn fetch_add(&self, value: u32) -> u32 {
        imp::fetch_add_32(&self.0, value)
    }

    /// Replaces `from` by `to`; false if the value was another.
    #[inline(always)]
    pub fn replace(&self, from: u32, to: u32) -> bool {
        imp::replace_32(&self.0, from, to)
    }
}

/// Memory that comes out mutable from a shared place, as that of maps does.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Lent<T>(UnsafeCell<T>);

// SAFETY: what packets on several CPUs write at the same time (counters, ticks)
// may be lost, but never tears; see `lend`.
unsafe impl<T: Send> Sync for Lent<T> {}

impl<T> Lent<T> {
    /// A value to be lent.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The value. A packet borrows one at a time; other CPUs see the same memory.
    #[expect(clippy::mut_from_ref, reason = "memory shared by all CPUs, see above")]
    #[inline(always)]
    pub fn lend(&self) -> &mut T {
        // SAFETY: the value is plain integers, written a field at a time; nobody
        // relies on what another CPU writes meanwhile.
        unsafe { &mut *self.0.get() }
    }
}

impl<T: Copy> Lent<T> {
    /// A copy, while others may write.
    #[inline(always)]
    pub fn read(&self) -> T {
        // SAFETY: aligned, inside the cell; any bytes are a valid value of what is lent.
        unsafe { self.0.get().read_volatile() }
    }
}

impl fmt::Debug for Word32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.load())
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.load())
    }
}

#[cfg(target_arch = "bpf")]
mod imp {
    use core::{arch::asm, cell::UnsafeCell};

    #[inline(always)]
    pub fn opaque(value: u64) -> u64 {
        let mut value = value;
        // SAFETY: a register moved to itself. (With no instruction the line would
        // be noted twice at one place, which the kernel refuses.)
        unsafe { asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack)) };
        value
    }

    #[inline(always)]
    pub fn fetch_and(word: &UnsafeCell<u64>, mask: u64) -> u64 {
        let mut value = mask;
        // SAFETY: one atomic instruction on the cell's own eight bytes.
        unsafe {
            asm!("{0} = atomic_fetch_and((u64 *)({1} + 0), {0})", inout(reg) value, in(reg) word.get());
        }
        value
    }

    #[inline(always)]
    pub fn fetch_or(word: &UnsafeCell<u64>, bits: u64) -> u64 {
        let mut value = bits;
        // SAFETY: one atomic instruction on the cell's own eight bytes.
        unsafe {
            asm!("{0} = atomic_fetch_or((u64 *)({1} + 0), {0})", inout(reg) value, in(reg) word.get());
        }
        value
    }

    #[inline(always)]
    pub fn fetch_and_32(word: &UnsafeCell<u32>, mask: u32) -> u32 {
        let mut value = mask;
        // SAFETY: one atomic instruction on the cell's own four bytes.
        unsafe {
            asm!("{0} = atomic_fetch_and((u32 *)({1} + 0), {0})", inout(wreg) value, in(reg) word.get());
        }
        value
    }

    #[inline(always)]
    pub fn fetch_or_32(word: &UnsafeCell<u32>, bits: u32) -> u32 {
        let mut value = bits;
        // SAFETY: one atomic instruction on the cell's own four bytes.
        unsafe {
            asm!("{0} = atomic_fetch_or((u32 *)({1} + 0), {0})", inout(wreg) value, in(reg) word.get());
        }
        value
    }

    #[inline(always)]
    pub fn replace_32(word: &UnsafeCell<u32>, from: u32, to: u32) -> bool {
        let mut value = from;
        // SAFETY: one atomic instruction on the cell's own four bytes; it takes and leaves the
        // value in w0.
        unsafe {
            asm!(
                "w0 = cmpxchg32_32({0} + 0, w0, {1})",
                in(reg) word.get(),
                in(wreg) to,
                inout("w0") value,
            );
        }
        value == from
    }

    #[inline(always)]
    pub fn fetch_add_32(word: &UnsafeCell<u32>, value: u32) -> u32 {
        let mut value = value;
        // SAFETY: one atomic instruction on the cell's own four bytes.
        unsafe {
            asm!("{0} = atomic_fetch_add((u32 *)({1} + 0), {0})", inout(wreg) value, in(reg) word.get());
        }
        value
    }
}

#[cfg(not(target_arch = "bpf"))]
mod imp {
    use core::{
        cell::UnsafeCell,
        sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
    };

    pub const fn opaque(value: u64) -> u64 {
        value
    }

    fn atomic(word: &UnsafeCell<u64>) -> &AtomicU64 {
        // SAFETY: same size and alignment, the cell allows shared mutation, and
        // nobody accesses it in another way than atomically.
        unsafe { AtomicU64::from_ptr(word.get()) }
    }

    pub fn fetch_and(word: &UnsafeCell<u64>, mask: u64) -> u64 {
        atomic(word).fetch_and(mask, SeqCst)
    }

    pub fn fetch_or(word: &UnsafeCell<u64>, bits: u64) -> u64 {
        atomic(word).fetch_or(bits, SeqCst)
    }

    pub fn replace(word: &UnsafeCell<u64>, from: u64, to: u64) -> bool {
        atomic(word)
            .compare_exchange(from, to, SeqCst, SeqCst)
            .is_ok()
    }

    fn atomic_32(word: &UnsafeCell<u32>) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(word.get()) }
    }

    pub fn fetch_and_32(word: &UnsafeCell<u32>, mask: u32) -> u32 {
        atomic_32(word).fetch_and(mask, SeqCst)
    }

    pub fn fetch_or_32(word: &UnsafeCell<u32>, bits: u32) -> u32 {
        atomic_32(word).fetch_or(bits, SeqCst)
    }

    pub fn replace_32(word: &UnsafeCell<u32>, from: u32, to: u32) -> bool {
        atomic_32(word)
            .compare_exchange(from, to, SeqCst, SeqCst)
            .is_ok()
    }

    pub fn fetch_add_32(word: &UnsafeCell<u32>, value: u32) -> u32 {
        atomic_32(word).fetch_add(value, SeqCst)
    }
}
