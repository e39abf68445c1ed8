//! Bytes of a packet in the kernel, and what its `sk_buff` says beside them.

use core::ptr;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_skb_load_bytes, bpf_skb_pull_data},
};

/// Bytes that lie in one piece in memory: direct packet access, for skbs and XDP alike.
#[derive(Clone, Copy)]
pub struct Direct {
    data: usize,
    end: usize,
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
    #[inline(always)]
    pub const fn new(data: usize, end: usize) -> Self {
        Self { data, end }
    }

    #[inline(always)]
    fn at(&self, at: u32, size: usize) -> Option<usize> {
        let pointer = self.data + at as usize;
        if pointer + size > self.end { None } else { Some(pointer) }
    }

    #[inline(always)]
    pub fn u8(&self, at: u32) -> Option<u8> {
        self.at(at, 1).map(|pointer| load!("u8", pointer) as u8)
    }

    #[inline(always)]
    pub fn u16(&self, at: u32) -> Option<u16> {
        self.at(at, 2).map(|pointer| u16::from_be(load!("u16", pointer) as u16))
    }

    #[inline(always)]
    pub fn u32(&self, at: u32) -> Option<u32> {
        self.at(at, 4).map(|pointer| u32::from_be(load!("u32", pointer) as u32))
    }
}

/// Bytes of an skb wherever they lie, by a helper: for headers that are not in its linear part.
#[derive(Clone, Copy)]
pub struct Loaded {
    skb: *mut __sk_buff,
}

impl Loaded {
    #[inline(always)]
    pub const fn new(skb: *mut __sk_buff) -> Self {
        Self { skb }
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

    #[inline(always)]
    pub fn u8(&self, at: u32) -> Option<u8> {
        self.load(at)
    }

    #[inline(always)]
    pub fn u16(&self, at: u32) -> Option<u16> {
        self.load(at).map(u16::from_be)
    }

    #[inline(always)]
    pub fn u32(&self, at: u32) -> Option<u32> {
        self.load(at).map(u32::from_be)
    }
}
