//! Where a packet's bytes come from.

/// Bytes of one frame, numbered from its first. Numbers are read in network order and given in host order.
///
/// Implemented by slices here, and in the kernel by direct packet access and by `bpf_skb_load_bytes`.
pub trait Bytes {
    /// `None` where the byte is not there: beyond the end, or at or beyond [`LIMIT`] where the source stops there.
    fn u8(&self, at: u32) -> Option<u8>;
    fn u16(&self, at: u32) -> Option<u16>;
    fn u32(&self, at: u32) -> Option<u32>;

    /// `value` itself. In the kernel: a value of which the verifier knows nothing any more, so that the turns of a loop
    /// whose offsets would all differ are one turn to it.
    #[inline(always)]
    fn forget(&self, value: u32) -> u32 {
        value
    }
}

/// No header that is looked at begins or ends beyond this offset: what would is refused. It bounds what the verifier has
/// to believe of an offset.
pub const LIMIT: u32 = 4096;

impl Bytes for [u8] {
    #[inline(always)]
    fn u8(&self, at: u32) -> Option<u8> {
        self.get(at as usize).copied()
    }

    #[inline(always)]
    fn u16(&self, at: u32) -> Option<u16> {
        Some(u16::from_be_bytes(*self.get(at as usize..)?.first_chunk()?))
    }

    #[inline(always)]
    fn u32(&self, at: u32) -> Option<u32> {
        Some(u32::from_be_bytes(*self.get(at as usize..)?.first_chunk()?))
    }
}
