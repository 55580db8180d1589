//! The bpf(2) calls that are needed, and the `unsafe` around them.
//!
//! Loading and attaching is aya's; it has no batch operations, and its typed
//! maps ask for a trait that types of another crate cannot have.

use std::{
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nat_common::abi::{
    Address, Device, ExcludeKey, FlowKey, Half, Mapping, MappingKey, Name, Pool, Report, Settings,
    Slice,
};

/// `BPF_MAP_TYPE_QUEUE`.
const QUEUE: u32 = 22;

const MAP_CREATE: u32 = 0;
const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_GET_NEXT_KEY: u32 = 4;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_DELETE_BATCH: u32 = 27;

/// Insert or replace.
pub const ANY: u64 = 0;
/// Insert only.
pub const NO_EXIST: u64 = 1;

/// Values that a map may hold: any bytes are valid, and none of them is padding.
///
/// # Safety
/// The type is `repr(C)` or a primitive, `Copy`, with explicit padding only,
/// and every bit pattern is a valid value.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($type:ty),* $(,)?) => {
        // SAFETY: laid out in nat_common::abi (sizes asserted there), or primitive.
        $(unsafe impl Plain for $type {})*
    };
}

plain!(
    (),
    u32,
    u64,
    Address,
    Device,
    ExcludeKey,
    FlowKey,
    Half,
    Mapping,
    MappingKey,
    Name,
    Pool,
    Report,
    Settings,
    Slice,
);

// SAFETY: bytes.
unsafe impl<const N: usize> Plain for [u8; N] {}

/// The element operations' part of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The batch operations' part of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The object operations' part of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoRequest {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapInfo {
    /// `BPF_MAP_TYPE_*`.
    pub map_type: u32,
    /// The kernel's number for it.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub map_flags: u32,
}

fn bpf<T>(command: u32, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: `attributes` is one of this file's repr(C) parts of bpf_attr, whose
    // pointers the callers below keep alive for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as RawFd)
    }
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: a descriptor that the kernel has just given to us alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn path_bytes(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens a pinned map or program.
///
/// # Errors
/// The kernel's.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = path_bytes(path)?;
    let mut object = Object {
        pathname: path.as_ptr() as u64,
        ..Object::default()
    };
    bpf(OBJ_GET, &mut object).map(owned)
}

/// Pins a map.
///
/// # Errors
/// The kernel's.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_bytes(path)?;
    let mut object = Object {
        pathname: path.as_ptr() as u64,
        bpf_fd: fd.as_raw_fd() as u32,
        ..Object::default()
    };
    bpf(OBJ_PIN, &mut object).map(drop)
}

/// A map's shape.
///
/// # Errors
/// The kernel's.
pub fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    let mut request = InfoRequest {
        bpf_fd: fd.as_raw_fd() as u32,
        info_len: size_of::<MapInfo>() as u32,
        info: &raw mut info as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut request)?;
    Ok(info)
}

/// The beginning of `struct bpf_link_info`; for XDP and tcx links the union
/// behind it starts with the device's number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct LinkInfo {
    link_type: u32,
    id: u32,
    program: u32,
    padding: u32,
    ifindex: u32,
    rest: [u32; 3],
}

/// The device that a pinned link is attached to; 0 when it is gone.
///
/// # Errors
/// The kernel's.
pub fn link_ifindex(path: &Path) -> io::Result<u32> {
    let fd = open_pin(path)?;
    let mut info = LinkInfo::default();
    let mut request = InfoRequest {
        bpf_fd: fd.as_raw_fd() as u32,
        info_len: size_of::<LinkInfo>() as u32,
        info: &raw mut info as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut request)?;
    Ok(info.ifindex)
}

/// Creates a queue of 32-bit numbers.
///
/// # Errors
/// The kernel's.
pub fn create_queue(entries: u32) -> io::Result<OwnedFd> {
    let mut create = Create {
        map_type: QUEUE,
        key_size: 0,
        value_size: 4,
        max_entries: entries,
        map_flags: 0,
    };
    bpf(MAP_CREATE, &mut create).map(owned)
}

fn element<K: Plain, V>(fd: BorrowedFd<'_>, key: &K, value: *const V, flags: u64) -> Element {
    // A queue has no keys: the pointer must be null there.
    let key = if size_of::<K>() == 0 {
        0
    } else {
        std::ptr::from_ref(key) as u64
    };
    Element {
        map_fd: fd.as_raw_fd() as u32,
        padding: 0,
        key,
        value: value as u64,
        flags,
    }
}

/// The value of a key.
///
/// # Errors
/// The kernel's; `None` is no error.
pub fn look_up<K: Plain, V: Plain>(fd: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::uninit();
    let mut element = element(fd, key, value.as_ptr(), 0);
    element.value = value.as_mut_ptr() as u64;
    match bpf(MAP_LOOKUP_ELEM, &mut element) {
        // SAFETY: the kernel has written the whole value; callers check sizes when opening.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The values of a key on all CPUs.
///
/// # Errors
/// The kernel's.
pub fn look_up_per_cpu(fd: BorrowedFd<'_>, key: u32, cpus: usize) -> io::Result<Vec<u64>> {
    let mut values = vec![0_u64; cpus];
    let mut element = element(fd, &key, values.as_mut_ptr().cast_const(), 0);
    bpf(MAP_LOOKUP_ELEM, &mut element)?;
    Ok(values)
}

/// Sets the value of a key; pushes, for a queue.
///
/// # Errors
/// The kernel's.
pub fn update<K: Plain, V: Plain>(
    fd: BorrowedFd<'_>,
    key: &K,
    value: &V,
    flags: u64,
) -> io::Result<()> {
    bpf(MAP_UPDATE_ELEM, &mut element(fd, key, value, flags)).map(drop)
}

/// Deletes a key; false if it was not there.
///
/// # Errors
/// The kernel's.
pub fn delete<K: Plain>(fd: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    match bpf(
        MAP_DELETE_ELEM,
        &mut element(fd, key, std::ptr::null::<u8>(), 0),
    ) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The key after this one, in the map's own order.
///
/// # Errors
/// The kernel's; `None` at the end is no error.
pub fn next_key<K: Plain>(fd: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = MaybeUninit::<K>::uninit();
    let mut element = Element {
        map_fd: fd.as_raw_fd() as u32,
        key: key.map_or(0, |key| std::ptr::from_ref(key) as u64),
        value: next.as_mut_ptr() as u64,
        ..Element::default()
    };
    match bpf(MAP_GET_NEXT_KEY, &mut element) {
        // SAFETY: the kernel has written the whole key.
        Ok(_) => Ok(Some(unsafe { next.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where a batch look-up of a hash map stands: its bucket.
pub type Cursor = u32;

/// Looks up the next entries of a hash map, as many as there is capacity for;
/// `keys` and `values` are replaced. False at the end (with the last entries).
///
/// # Errors
/// The kernel's; `ENOSPC` when one bucket has more entries than there is capacity for.
pub fn look_up_batch<K: Plain, V: Plain>(
    fd: BorrowedFd<'_>,
    cursor: &mut Option<Cursor>,
    keys: &mut Vec<K>,
    values: &mut Vec<V>,
) -> io::Result<bool> {
    keys.clear();
    values.clear();
    let mut next: Cursor = 0;
    let mut batch = Batch {
        in_batch: cursor
            .as_ref()
            .map_or(0, |cursor| std::ptr::from_ref(cursor) as u64),
        out_batch: &raw mut next as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: keys.capacity().min(values.capacity()) as u32,
        map_fd: fd.as_raw_fd() as u32,
        ..Batch::default()
    };
    let more = match bpf(MAP_LOOKUP_BATCH, &mut batch) {
        Ok(_) => true,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
        Err(error) => return Err(error),
    };
    // SAFETY: the kernel has written `count` entries, no more than the capacity.
    unsafe {
        keys.set_len(batch.count as usize);
        values.set_len(batch.count as usize);
    }
    *cursor = Some(next);
    Ok(more)
}

/// Deletes many keys. Keys that are gone already are skipped.
///
/// # Errors
/// The kernel's.
pub fn delete_batch<K: Plain>(fd: BorrowedFd<'_>, keys: &[K]) -> io::Result<()> {
    let mut rest = keys;
    while !rest.is_empty() {
        let mut batch = Batch {
            keys: rest.as_ptr() as u64,
            count: rest.len() as u32,
            map_fd: fd.as_raw_fd() as u32,
            ..Batch::default()
        };
        match bpf(MAP_DELETE_BATCH, &mut batch) {
            Ok(_) => return Ok(()),
            // The kernel stops at a missing key and says how many came before it.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                rest = &rest[(batch.count as usize + 1).min(rest.len())..];
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
