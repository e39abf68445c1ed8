//! Bytes of a packet in the kernel, and what an `sk_buff` says beside them.

use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::generated::{bpf_get_socket_cookie, bpf_skb_load_bytes},
};
use guard_common::{
    abi::{ANSWER_BYTES, HEAD_BYTES},
    packet::{
        Bytes, Packet,
        bytes::LIMIT,
        transport::{TCP, UDP},
    },
};

use crate::verifier::forget;

/// Bytes that lie in one piece in memory: direct packet access, for skbs and XDP alike.
#[derive(Clone, Copy)]
pub struct Direct {
    data: usize,
    end: usize,
    unknown: u32,
}

/// A load of network-order bytes from `$pointer`, which may be unaligned: the target has no unaligned loads, and would
/// go byte by byte.
macro_rules! load {
    ($size:literal, $pointer:expr) => {{
        let value: u64;
        // SAFETY: the caller has compared the pointer's end with the packet's.
        unsafe {
            core::arch::asm!(
                concat!("{value} = *(", $size, " *)({pointer} + 0)"),
                value = lateout(reg) value,
                pointer = in(reg) $pointer,
                options(pure, readonly, nostack),
            );
        }
        value
    }};
}

impl Direct {
    /// `unknown`: anything that the verifier cannot know.
    #[inline(always)]
    pub const fn new(data: usize, end: usize, unknown: u32) -> Self {
        Self { data, end, unknown }
    }

    #[inline(always)]
    pub fn of_skb(skb: *mut __sk_buff) -> Self {
        // SAFETY: the kernel's context.
        unsafe { Self::new((*skb).data as usize, (*skb).data_end as usize, (*skb).len) }
    }

    #[inline(always)]
    fn at(&self, at: u32, size: usize) -> Option<usize> {
        if at > LIMIT {
            return None;
        }
        // The verifier wants an offset bounded before it is added, in the register that is added; LLVM would compare
        // another copy, or nothing where it knows the bound already.
        let mut at = at as usize;
        // SAFETY: changes nothing: LIMIT is less than the mask.
        unsafe { core::arch::asm!("{at} &= 0x1fff", at = inout(reg) at, options(pure, nomem, nostack)) };
        let pointer = self.data + at;
        if pointer + size > self.end { None } else { Some(pointer) }
    }
}

impl Bytes for Direct {
    #[inline(always)]
    fn u8(&self, at: u32) -> Option<u8> {
        self.at(at, 1).map(|pointer| load!("u8", pointer) as u8)
    }

    #[inline(always)]
    fn u16(&self, at: u32) -> Option<u16> {
        self.at(at, 2).map(|pointer| u16::from_be(load!("u16", pointer) as u16))
    }

    #[inline(always)]
    fn u32(&self, at: u32) -> Option<u32> {
        self.at(at, 4).map(|pointer| u32::from_be(load!("u32", pointer) as u32))
    }

    #[inline(always)]
    fn forget(&self, value: u32) -> u32 {
        forget(value, self.unknown)
    }
}

/// The first `SIZE` bytes of an skb, which are known to lie in one piece: one comparison with the packet's end for all of
/// them, where [`Direct`] has one for each.
#[derive(Clone, Copy)]
pub struct Head<const SIZE: usize>(usize);

impl<const SIZE: usize> Head<SIZE> {
    #[inline(always)]
    pub fn of_skb(skb: *mut __sk_buff) -> Option<Self> {
        // SAFETY: the kernel's context.
        let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
        if data + SIZE > end { None } else { Some(Self(data)) }
    }

    /// Constant offsets: the comparison is gone when it is compiled.
    #[inline(always)]
    const fn at(&self, at: u32, size: usize) -> Option<usize> {
        if at as usize + size > SIZE { None } else { Some(self.0 + at as usize) }
    }
}

impl<const SIZE: usize> Bytes for Head<SIZE> {
    #[inline(always)]
    fn u8(&self, at: u32) -> Option<u8> {
        self.at(at, 1).map(|pointer| load!("u8", pointer) as u8)
    }

    #[inline(always)]
    fn u16(&self, at: u32) -> Option<u16> {
        self.at(at, 2).map(|pointer| u16::from_be(load!("u16", pointer) as u16))
    }

    #[inline(always)]
    fn u32(&self, at: u32) -> Option<u32> {
        self.at(at, 4).map(|pointer| u32::from_be(load!("u32", pointer) as u32))
    }
}

/// Bytes of an skb wherever they lie, by a helper: for headers that are not in its linear part.
#[derive(Clone, Copy)]
pub struct Loaded {
    skb: *mut __sk_buff,
    unknown: u32,
}

impl Loaded {
    /// `unknown`: anything that the verifier cannot know.
    #[inline(always)]
    pub const fn new(skb: *mut __sk_buff, unknown: u32) -> Self {
        Self { skb, unknown }
    }

    #[inline(always)]
    fn load<T: Copy + Default>(&self, at: u32) -> Option<T> {
        let mut value = T::default();
        // SAFETY: the helper writes as many bytes as `value` has, or zeroes.
        let result =
            unsafe { bpf_skb_load_bytes(self.skb.cast(), at, ptr::from_mut(&mut value).cast(), size_of::<T>() as u32) };
        if result == 0 { Some(value) } else { None }
    }
}

impl Bytes for Loaded {
    #[inline(always)]
    fn u8(&self, at: u32) -> Option<u8> {
        self.load(at)
    }

    #[inline(always)]
    fn u16(&self, at: u32) -> Option<u16> {
        self.load(at).map(u16::from_be)
    }

    #[inline(always)]
    fn u32(&self, at: u32) -> Option<u32> {
        self.load(at).map(u32::from_be)
    }

    #[inline(always)]
    fn forget(&self, value: u32) -> u32 {
        forget(value, self.unknown)
    }
}

#[inline(always)]
pub fn length(skb: *const __sk_buff) -> u32 {
    // SAFETY: the kernel's context; so below.
    unsafe { (*skb).len }
}

#[inline(always)]
pub fn ifindex(skb: *const __sk_buff) -> u32 {
    // SAFETY: as above.
    unsafe { (*skb).ifindex }
}

/// 0 where it has no socket.
#[inline(always)]
pub fn socket_cookie(skb: *mut __sk_buff) -> u64 {
    // SAFETY: the helper takes an skb.
    unsafe { bpf_get_socket_cookie(skb.cast()) }
}

/// Packets and bytes as on the wire: an skb may be a train of segments, each of which has its own headers.
#[inline(always)]
pub fn on_the_wire(skb: *mut __sk_buff, packet: &Packet) -> (u32, u32) {
    // SAFETY: as above.
    if unsafe { (*skb).gso_size } == 0 {
        return (1, length(skb));
    }
    let mut headers = u32::from(packet.transport_at);
    match packet.protocol {
        TCP => {
            let offset = Loaded::new(skb, length(skb)).u8(headers + 12).unwrap_or(0x50);
            headers += u32::from(offset >> 4) * 4;
        }
        UDP => headers += 8,
        _ => {}
    }
    train(skb, headers)
}

/// The same where it is known how long the headers are that each segment has.
#[inline(always)]
pub fn train(skb: *mut __sk_buff, headers: u32) -> (u32, u32) {
    // SAFETY: as above.
    let (length, segments, size) = unsafe { ((*skb).len, (*skb).gso_segs, (*skb).gso_size) };
    if size == 0 {
        return (1, length);
    }
    // Some drivers leave the number out.
    let segments = if segments == 0 { length.saturating_sub(headers) / size + 1 } else { segments };
    (segments, length + (segments - 1) * headers)
}

/// Copies the packet's beginning; returns how much.
///
/// # Safety
///
/// `to` is writable.
#[inline(always)]
pub unsafe fn load_head(skb: *mut __sk_buff, from: u32, to: *mut [u8; HEAD_BYTES]) -> u32 {
    let length = length(skb);
    if length <= from {
        return 0;
    }
    let rest = length - from;
    // Less one, in 8 bits, and one more: the verifiers of 5.10 and 6.1 see 1 to 256 then, and LLVM cannot undo it.
    let mut size = u64::from(if rest > HEAD_BYTES as u32 { HEAD_BYTES as u32 } else { rest }) - 1;
    // SAFETY: arithmetic on one register; then at most as many bytes as `to` has.
    unsafe {
        core::arch::asm!(
            "{size} &= 255",
            "{size} += 1",
            size = inout(reg) size,
            options(pure, nomem, nostack),
        );
        if bpf_skb_load_bytes(skb.cast(), from, to.cast(), size as u32) == 0 { size as u32 } else { 0 }
    }
}

/// Copies what comes after a header; returns how much.
///
/// # Safety
///
/// `to` is writable.
#[inline(always)]
pub unsafe fn load_answer(skb: *mut __sk_buff, from: u32, to: *mut [u8; ANSWER_BYTES]) -> u32 {
    let length = length(skb);
    if length <= from {
        return 0;
    }
    let rest = length - from;
    let mut size = u64::from(if rest > ANSWER_BYTES as u32 { ANSWER_BYTES as u32 } else { rest }) - 1;
    // SAFETY: as in `load_head`.
    unsafe {
        core::arch::asm!(
            "{size} &= 2047",
            "{size} += 1",
            size = inout(reg) size,
            options(pure, nomem, nostack),
        );
        if bpf_skb_load_bytes(skb.cast(), from, to.cast(), size as u32) == 0 { size as u32 } else { 0 }
    }
}

/// The same of a frame at XDP, whose bytes a helper can load only since 5.18: eight at a time, and what is left one by one.
///
/// # Safety
///
/// `frame` is the program's context, `to` is writable and aligned to 8.
#[inline(always)]
pub unsafe fn copy_head(frame: *mut xdp_md, from: u32, to: *mut [u8; HEAD_BYTES]) -> u32 {
    // SAFETY: the kernel's context; each load lies before the frame's end, and each store within `to`.
    unsafe {
        let bytes = Direct::new((*frame).data as usize, (*frame).data_end as usize, 0);
        let Some(start) = bytes.at(from, 1) else { return 0 };
        let mut copied = 0;
        while copied < HEAD_BYTES && start + copied + 8 <= bytes.end {
            ptr::write_volatile(to.cast::<u64>().byte_add(copied), load!("u64", start + copied));
            copied += 8;
        }
        while copied < HEAD_BYTES && start + copied < bytes.end {
            ptr::write_volatile(to.cast::<u8>().add(copied), load!("u8", start + copied) as u8);
            copied += 1;
        }
        copied as u32
    }
}

/// Words as they lie in the packet.
///
/// # Safety
///
/// `skb` is the program's context.
#[inline(always)]
pub unsafe fn load<const WORDS: usize>(skb: *mut __sk_buff, at: u32) -> Option<[u32; WORDS]> {
    let mut words = [0; WORDS];
    // SAFETY: the helper takes the context, and as many bytes as the array has.
    let result = unsafe { bpf_skb_load_bytes(skb.cast(), at, words.as_mut_ptr().cast(), 4 * WORDS as u32) };
    if result == 0 { Some(words) } else { None }
}
