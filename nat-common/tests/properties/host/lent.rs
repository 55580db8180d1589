//! Memory handed out mutable from a shared world, as BPF maps do: the host
//! world's only `unsafe`.

use std::cell::UnsafeCell;

/// A value that may be borrowed mutably from a shared place. It has a heap
/// allocation of its own, which stays where it is while its owner moves.
#[derive(Debug)]
pub struct Lent<T>(Box<UnsafeCell<T>>);

impl<T> Lent<T> {
    /// A value to be lent.
    pub fn new(value: T) -> Self {
        Self(Box::new(UnsafeCell::new(value)))
    }

    /// The value. The core holds one half, and one opening, at a time, and ends
    /// no session whose half it holds.
    pub fn lend<'a>(&self) -> &'a mut T {
        // SAFETY: by the rule above there is no other reference, and the value
        // lives: tables outlive the packet's run over them.
        unsafe { &mut *self.0.get() }
    }
}
