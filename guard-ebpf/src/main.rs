//! The programs that run in the kernel: one file a hook, each thin; what they share beside them.
//!
//! The decision, the parser and the way of a packet are `guard_common`'s, the same source as in userspace.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod generation;
mod globals;
mod hand;
mod hooks;
mod kernel;
mod maps;
mod parts;
mod record;
mod reject;
mod short;
mod skb;
mod tables;
mod verifier;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Every helper used so far may be called under any licence; the tracing hooks may not be loaded without this.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
