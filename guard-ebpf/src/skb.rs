//! Bytes of a packet in the kernel.

use core::ptr;

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use guard_common::packet::{Bytes, bytes::LIMIT};

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
        let result = unsafe {
            bpf_skb_load_bytes(self.skb.cast(), at, ptr::from_mut(&mut value).cast(), size_of::<T>() as u32)
        };
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
