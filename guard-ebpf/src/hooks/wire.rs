//! The wire layer: tcx ingress and egress (Linux 6.6), or clsact filters (5.10). The authority on what passes.

use aya_ebpf::{macros::classifier, programs::TcContext};
use guard_common::Direction;

/// `TCX_NEXT`, and `TC_ACT_UNSPEC` for clsact: later programs run, and none means pass.
const NEXT: i32 = -1;

#[classifier]
pub fn wire_ingress(context: TcContext) -> i32 {
    wire(&context, Direction::Inbound)
}

#[classifier]
pub fn wire_egress(context: TcContext) -> i32 {
    wire(&context, Direction::Outbound)
}

#[inline(always)]
fn wire(_context: &TcContext, _direction: Direction) -> i32 {
    NEXT
}
