//! The compiled eBPF programs, as committed (`guard/ebpf`), checked against their sources by the build script.

/// The ELF object. Aligned as the parser needs it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../ebpf/guard.bpf.o");

/// SHA-256 of [`OBJECT`], lower-case hexadecimal.
pub const OBJECT_SHA256: &str = env!("GUARD_EBPF_SHA256");
