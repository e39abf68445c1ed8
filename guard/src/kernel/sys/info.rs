//! What the kernel tells of an object: `BPF_OBJ_GET_INFO_BY_FD`.

use std::{io, os::fd::BorrowedFd};

use super::{Attr, OBJ_GET_INFO_BY_FD, bpf};

/// As much of an object's information as `words` has room for. Pointers that it holds on the way in are to memory of the
/// sizes that stand beside them.
pub fn raw_info(object: BorrowedFd<'_>, words: &mut [u64]) -> io::Result<()> {
    let mut attr = Attr::new().fd(0, object).u32(4, size_of_val(words) as u32).pointer(8, words.as_mut_ptr());
    bpf(OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// As much of an object's information as is asked for, in words of 8 bytes.
fn info<const N: usize>(object: BorrowedFd<'_>) -> io::Result<[u64; N]> {
    let mut info = [0_u64; N];
    let mut attr = Attr::new().fd(0, object).u32(4, size_of::<[u64; N]>() as u32).pointer(8, info.as_mut_ptr());
    bpf(OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// The 32 bits at an offset of what [`raw_info`] gave.
pub fn half(words: &[u64], offset: usize) -> u32 {
    let word = words[offset / 8].to_ne_bytes();
    let at = offset % 8;
    u32::from_ne_bytes([word[at], word[at + 1], word[at + 2], word[at + 3]])
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapInfo {
    pub kind: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub entries: u32,
}

pub fn info_of_map(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let words = info::<5>(map)?;
    Ok(MapInfo {
        kind: half(&words, 0),
        id: half(&words, 4),
        key_size: half(&words, 8),
        value_size: half(&words, 12),
        entries: half(&words, 16),
    })
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    pub id: u32,
    /// Hash of the instructions: equal for two loads of one object.
    pub tag: [u8; 8],
    pub name: String,
}

impl ProgramInfo {
    /// Hex.
    #[must_use]
    pub fn tag_text(&self) -> String {
        self.tag.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

pub fn info_of_program(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let words = info::<10>(program)?;
    let name: Vec<u8> = words[8..10].iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    Ok(ProgramInfo {
        id: half(&words, 4),
        tag: words[1].to_ne_bytes(),
        name: String::from_utf8_lossy(&name).into_owned(),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    pub id: u32,
    pub program_id: u32,
    /// Interface index (tcx, XDP), the cgroup's id, or the kind of attachment to a function, which lasts as long as its
    /// link; 0: detached, though the link is still there.
    pub target: u64,
}

const LINK_TYPE_CGROUP: u32 = 3;

pub fn info_of_link(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let words = info::<4>(link)?;
    let target = if half(&words, 0) == LINK_TYPE_CGROUP { words[2] } else { u64::from(half(&words, 16)) };
    Ok(LinkInfo { id: half(&words, 4), program_id: half(&words, 8), target })
}
