//! What the agent sets when it loads the programs; constants from then on.

use aya_ebpf::{Global, helpers::generated::bpf_jiffies64};

/// Ticks are jiffies shifted right by this, so that one is about a second: the
/// agent measures the kernel's HZ. Default: HZ=250, 1.024 s.
#[unsafe(no_mangle)]
static TICK_SHIFT: Global<u32> = Global::new(8);

/// The bit of `skb->mark` that says "checked, to be translated".
#[unsafe(no_mangle)]
static MARK: Global<u32> = Global::new(1 << 13);

/// The bit of `skb->mark` that says "looked at where it came in".
#[unsafe(no_mangle)]
static DECIDED: Global<u32> = Global::new(1 << 12);

/// Buckets of a session table, less one.
#[unsafe(no_mangle)]
static BUCKET_MASK: Global<u32> = Global::new(0);

/// Where flows stand in the session tables: the settings' seed.
#[unsafe(no_mangle)]
static SEED: Global<u64> = Global::new(0);

/// The coarse clock: reading it costs nothing, unlike any clock in nanoseconds.
#[inline(always)]
pub fn tick() -> u32 {
    (jiffies() >> (TICK_SHIFT.load() & 63)) as u32
}

/// The kernel's jiffies.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: a helper without arguments (Linux 5.5), inlined by the verifier.
    unsafe { bpf_jiffies64() }
}

/// The mark's bit.
#[inline(always)]
pub fn mark() -> u32 {
    MARK.load()
}

/// The decided bit.
#[inline(always)]
pub fn decided() -> u32 {
    DECIDED.load()
}

/// Buckets of a session table, less one.
#[inline(always)]
pub fn bucket_mask() -> u32 {
    BUCKET_MASK.load()
}

/// The session tables' seed.
#[inline(always)]
pub fn seed() -> u64 {
    SEED.load()
}
