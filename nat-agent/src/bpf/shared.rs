//! Arrays that agent and programs change at the same time, mapped into memory:
//! the agent must not overwrite a word that a packet changes (a system call
//! replaces whole values).

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    ptr::NonNull,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nat_common::abi::{Block, Bucket, Client, Page};

use super::sys;

/// Longer than any packet takes through a program: what it read before is no longer in use.
pub const GRACE: Duration = Duration::from_millis(5);

/// Values that may be shared with the programs.
///
/// # Safety
/// `repr(C)`, any bytes valid, a size that is a multiple of 8, and every field
/// that a program writes is a `Word`, a `Cell` or `Lent`.
pub unsafe trait Share {}

// SAFETY: laid out for this in nat_common::abi.
unsafe impl Share for Block {}
// SAFETY: as above.
unsafe impl Share for Page {}
// SAFETY: as above.
unsafe impl Share for Client {}

// SAFETY: as above.
unsafe impl Share for Bucket {}

/// An array map in memory.
#[derive(Debug)]
pub struct Shared<T> {
    start: NonNull<T>,
    entries: u32,
}

// SAFETY: the mapping belongs to no thread.
unsafe impl<T> Send for Shared<T> {}

impl<T: Share> Shared<T> {
    /// Maps a pinned array.
    ///
    /// # Errors
    /// It cannot be opened or mapped, or holds values of another size.
    pub fn open(path: &Path) -> Result<Self> {
        let fd = sys::open_pin(path).with_context(|| format!("open {}", path.display()))?;
        let info = sys::map_info(fd.as_fd())?;
        ensure!(
            info.value_size as usize == size_of::<T>(),
            "{} holds values of {} bytes, not {}",
            path.display(),
            info.value_size,
            size_of::<T>(),
        );
        let bytes = info.max_entries as usize * size_of::<T>();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of the whole array; the kernel checks size and rights.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("map {} into memory", path.display()));
        }
        let start = NonNull::new(start.cast()).context("mapped at address 0")?;
        Ok(Self {
            start,
            entries: info.max_entries,
        })
    }

    /// Entries in the array.
    pub fn len(&self) -> u32 {
        self.entries
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// An entry; `None` past the end.
    pub fn get(&self, index: u32) -> Option<&T> {
        // SAFETY: within the mapping, which lives as long as self; what programs
        // write at the same time are words and cells.
        (index < self.entries).then(|| unsafe { self.start.add(index as usize).as_ref() })
    }

    /// Replaces an entry that no program uses at the time.
    pub fn set(&self, index: u32, value: T) {
        if index < self.entries {
            // SAFETY: within the mapping, aligned.
            unsafe { self.start.add(index as usize).write_volatile(value) };
        }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of this size; no reference outlives self.
        unsafe {
            libc::munmap(
                self.start.as_ptr().cast(),
                self.entries as usize * size_of::<T>(),
            )
        };
    }
}
