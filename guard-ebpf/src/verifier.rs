//! What is written for the verifier alone.

use guard_common::decide::Question;

/// `value`, of which the verifier no longer knows anything: so paths that came here with different known values are one
/// path from here on. `unknown` is anything that the verifier cannot know. Two instructions, no memory.
#[inline(always)]
pub fn forget(value: u32, unknown: u32) -> u32 {
    let mut value = value;
    // SAFETY: two exclusive ors with the same number give back the value.
    unsafe {
        core::arch::asm!(
            "{value} ^= {unknown}",
            "{value} ^= {unknown}",
            value = inout(reg) value,
            unknown = in(reg) unknown,
            options(pure, nomem, nostack),
        );
    }
    value
}

/// [`forget`] of all that a decision reads: without this the verifier walks a whole decision for every way of coming to
/// it (connect6: 195,834 instructions instead of 14,336).
#[inline(always)]
pub fn forget_question(question: &mut Question, unknown: u32) {
    for word in &mut question.remote {
        *word = forget(*word, unknown);
    }
    question.service = forget(question.service, unknown);
    question.ipv6 = forget(question.ipv6.into(), unknown) & 1 != 0;
}
