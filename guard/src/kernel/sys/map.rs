//! Maps: made, filled, read, frozen, and in this process's memory.

use std::{
    fs, io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
};

use super::*;

/// Plain data that may be copied between maps and memory: no padding, any bytes are a value.
///
/// # Safety
/// Only for types of which both are true.
pub unsafe trait Plain: Copy + Default {}

macro_rules! plain {
    ($($type:ty),*) => {
        // SAFETY: integers, or `repr(C)` structs of integers whose size asserts in guard-common leave no padding.
        $(unsafe impl Plain for $type {})*
    };
}
plain!(
    u8,
    u32,
    u64,
    [u32; 4],
    guard_common::decide::Node,
    abi::Interface,
    abi::Counter,
    abi::RuleCounter,
    abi::Rejects,
    abi::Flow,
    abi::FlowKeyV4,
    abi::FlowKeyV6,
    abi::Owner,
    abi::Offsets,
    abi::ClockReading,
    abi::SealBpf,
    LpmKey<u32>,
    LpmKey<[u32; 4]>
);

/// Key of an LPM trie: bits that count, then the address in network order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct LpmKey<A> {
    pub bits: u32,
    pub address: A,
}

/// An array, or an array of maps, with 4-byte keys. `name`: at most 15 letters, digits or `_`.
pub fn map_create(
    name: &str,
    kind: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let name = &name.as_bytes()[..name.len().min(15)];
    let mut attr =
        Attr::new().u32(0, kind).u32(4, 4).u32(8, value_size).u32(12, entries).u32(16, flags).bytes(28, name);
    if let Some(inner) = inner {
        attr = attr.fd(20, inner);
    }
    bpf(MAP_CREATE, &mut attr).map(own)
}

/// A ring buffer of `bytes` (a power of two, whole pages; 5.8), to see whether there are any.
pub fn ring_create(kind: u32, bytes: u32) -> io::Result<OwnedFd> {
    bpf(MAP_CREATE, &mut Attr::new().u32(0, kind).u32(12, bytes)).map(own)
}

/// 5.2. From now on nobody changes it from userspace.
pub fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    bpf(MAP_FREEZE, &mut Attr::new().fd(0, map)).map(drop)
}

fn element<K: Plain>(map: BorrowedFd<'_>, key: &K, value: *const u8, flags: u64) -> Attr {
    Attr::new().fd(0, map).pointer(8, std::ptr::from_ref(key)).pointer(16, value).u64(24, flags)
}

/// `K` and `V` are what the map was made with.
pub fn update<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, value: &V, flags: u64) -> io::Result<()> {
    bpf(MAP_UPDATE_ELEM, &mut element(map, key, std::ptr::from_ref(value).cast(), flags)).map(drop)
}

pub fn update_bytes(map: BorrowedFd<'_>, key: u32, value: &[u8]) -> io::Result<()> {
    bpf(MAP_UPDATE_ELEM, &mut element(map, &key, value.as_ptr(), ANY)).map(drop)
}

pub fn lookup<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = V::default();
    found(bpf(MAP_LOOKUP_ELEM, &mut element(map, key, std::ptr::from_mut(&mut value).cast(), 0)))
        .map(|ok| ok.then_some(value))
}

/// What the first elements of an array of maps are: ids; empty ones are left out.
pub fn entries_of_array(map: BorrowedFd<'_>, count: u32) -> io::Result<Vec<u32>> {
    (0..count).filter_map(|at| lookup::<u32, u32>(map, &at).transpose()).collect()
}

pub fn lookup_bytes(map: BorrowedFd<'_>, key: u32, value: &mut [u8]) -> io::Result<bool> {
    found(bpf(MAP_LOOKUP_ELEM, &mut element(map, &key, value.as_mut_ptr(), 0)))
}

/// Of a map with one value a possible CPU; `V` a multiple of 8 bytes.
pub fn lookup_per_cpu<V: Plain>(map: BorrowedFd<'_>, key: u32, cpus: usize) -> io::Result<Vec<V>> {
    let mut values = vec![V::default(); cpus];
    bpf(MAP_LOOKUP_ELEM, &mut element(map, &key, values.as_mut_ptr().cast(), 0))?;
    Ok(values)
}

/// False: it was not there.
pub fn delete<K: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    found(bpf(MAP_DELETE_ELEM, &mut element(map, key, std::ptr::null(), 0)))
}

pub fn next_key<K: Plain>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = K::default();
    let mut attr = Attr::new()
        .fd(0, map)
        .pointer(8, key.map_or(std::ptr::null(), std::ptr::from_ref))
        .pointer(16, std::ptr::from_mut(&mut next));
    found(bpf(MAP_GET_NEXT_KEY, &mut attr)).map(|ok| ok.then_some(next))
}

/// Sets the first elements of an array (5.6; else one by one).
pub fn fill<V: Plain>(map: BorrowedFd<'_>, values: &[V]) -> io::Result<()> {
    let keys: Vec<u32> = (0..values.len() as u32).collect();
    let mut attr =
        Attr::new().pointer(16, keys.as_ptr()).pointer(24, values.as_ptr()).u32(32, values.len() as u32).fd(36, map);
    match bpf(MAP_UPDATE_BATCH, &mut attr) {
        Ok(_) if attr.read_u32(32) as usize == values.len() => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EIO)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) || error.raw_os_error() == Some(ENOTSUPP) => {
            (0_u32..).zip(values).try_for_each(|(key, value)| update(map, &key, value, ANY))
        }
        Err(error) => Err(error),
    }
}

/// The kernel's own number, which userspace has no name for.
const ENOTSUPP: i32 = 524;

/// All entries of a hash, as far as one pass over a table in use can tell: by batches (5.6), else one by one.
pub fn entries<K: Plain, V: Plain>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    match entries_by_batch(map) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | ENOTSUPP)) => entries_one_by_one(map),
        other => other,
    }
}

fn entries_by_batch<K: Plain, V: Plain>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut all = Vec::new();
    let mut room = 4096_usize;
    // The kernel's place in the table: a bucket's number, though it copies a whole key's worth for other maps.
    let (mut place, mut next) = ([0_u64; 8], [0_u64; 8]);
    let mut begun = false;
    loop {
        let (mut keys, mut values) = (vec![K::default(); room], vec![V::default(); room]);
        let mut attr = Attr::new()
            .pointer(0, if begun { place.as_ptr() } else { std::ptr::null() })
            .pointer(8, next.as_mut_ptr())
            .pointer(16, keys.as_mut_ptr())
            .pointer(24, values.as_mut_ptr())
            .u32(32, room as u32)
            .fd(36, map);
        let result = bpf(MAP_LOOKUP_BATCH, &mut attr);
        let count = attr.read_u32(32) as usize;
        let last = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // A bucket holds more than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                room *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        all.extend(keys.into_iter().zip(values).take(count));
        if last {
            return Ok(all);
        }
        place = next;
        begun = true;
    }
}

fn entries_one_by_one<K: Plain, V: Plain>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    // A key that goes away between two steps starts the walk anew: bounded by the table's size twice over.
    let most = 2 * info_of_map(map)?.entries as usize;
    let mut all = Vec::new();
    let mut key = next_key::<K>(map, None)?;
    while let Some(current) = key
        && all.len() < most
    {
        if let Some(value) = lookup(map, &current)? {
            all.push((current, value));
        }
        key = next_key(map, Some(&current))?;
    }
    Ok(all)
}

/// What `/proc/self/fdinfo` says of a map: whether it is frozen, and the memory that it holds, in bytes.
pub fn frozen_and_memory(map: BorrowedFd<'_>) -> io::Result<(bool, u64)> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)).and_then(|value| value.trim().parse::<u64>().ok())
    };
    Ok((field("frozen:") == Some(1), field("memlock:").unwrap_or(0)))
}

/// A map's values in this process's memory (5.5, `BPF_F_MMAPABLE`).
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory belongs to the mapping, wherever it is used from; writers synchronise by atomics or by locks of
// their own.
unsafe impl Send for Mapping {}

impl Mapping {
    pub fn new(map: BorrowedFd<'_>, length: usize, writable: bool) -> io::Result<Self> {
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: asks for a new mapping, which overlaps nothing.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, map.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { start, length })
    }

    /// Page-aligned.
    pub const fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Of a frozen map that programs cannot write: nothing changes it while this lives.
    pub const fn frozen_bytes(&self) -> &[u8] {
        // SAFETY: mapped for this long, and unchanging as the comment says; even changing bytes are bytes.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: unmaps what `new` mapped; nothing borrows it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
