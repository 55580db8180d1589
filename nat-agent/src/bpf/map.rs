//! A pinned map with keys and values of known types.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, Result, ensure};

use super::sys::{self, Plain};

/// Entries a batch operation handles at a time.
const BATCH: usize = 4096;

/// A map of `K` to `V`.
#[derive(Debug)]
pub struct Map<K, V> {
    fd: OwnedFd,
    types: PhantomData<(K, V)>,
}

impl<K: Plain, V: Plain> Map<K, V> {
    /// Opens a pin.
    ///
    /// # Errors
    /// It cannot be opened, or holds keys or values of another size.
    pub fn open(path: &Path) -> Result<Self> {
        let fd = sys::open_pin(path).with_context(|| format!("open {}", path.display()))?;
        let info = sys::map_info(fd.as_fd())?;
        let (key, value) = (size_of::<K>() as u32, size_of::<V>() as u32);
        ensure!(
            info.key_size == key && info.value_size == value,
            "{} holds keys of {} and values of {} bytes, not {key} and {value}",
            path.display(),
            info.key_size,
            info.value_size,
        );
        Ok(Self {
            fd,
            types: PhantomData,
        })
    }

    /// The value of a key.
    ///
    /// # Errors
    /// The kernel's.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        sys::look_up(self.fd(), key)
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// The kernel's; the map may be full.
    pub fn set(&self, key: &K, value: &V) -> io::Result<()> {
        sys::update(self.fd(), key, value, sys::ANY)
    }

    /// Adds a key; false if it was there.
    ///
    /// # Errors
    /// The kernel's; the map may be full.
    pub fn add(&self, key: &K, value: &V) -> io::Result<bool> {
        match sys::update(self.fd(), key, value, sys::NO_EXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes a key; false if it was not there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete(&self, key: &K) -> io::Result<bool> {
        sys::delete(self.fd(), key)
    }

    /// Deletes many keys; those that are gone already are skipped.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete_all(&self, keys: &[K]) -> io::Result<()> {
        keys.chunks(BATCH)
            .try_for_each(|keys| sys::delete_batch(self.fd(), keys))
    }

    /// Calls `visit` for every entry of a hash map, in batches. Entries that
    /// come or go meanwhile may be seen or not.
    ///
    /// # Errors
    /// The kernel's.
    pub fn for_each(&self, mut visit: impl FnMut(&K, &V)) -> io::Result<()> {
        let mut capacity = BATCH;
        let (mut keys, mut values) = (Vec::with_capacity(capacity), Vec::with_capacity(capacity));
        let mut cursor = None;
        loop {
            match sys::look_up_batch(self.fd(), &mut cursor, &mut keys, &mut values) {
                Ok(more) => {
                    keys.iter()
                        .zip(&values)
                        .for_each(|(key, value)| visit(key, value));
                    if !more {
                        return Ok(());
                    }
                }
                // One bucket is longer than the buffers.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    capacity *= 2;
                    keys = Vec::with_capacity(capacity);
                    values = Vec::with_capacity(capacity);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// All entries, by key order of the map: for maps without batch operations too.
    ///
    /// # Errors
    /// The kernel's.
    pub fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        let mut key = sys::next_key::<K>(self.fd(), None)?;
        while let Some(current) = key {
            if let Some(value) = self.get(&current)? {
                entries.push((current, value));
            }
            key = sys::next_key(self.fd(), Some(&current))?;
        }
        Ok(entries)
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
