pub mod bpf;
pub mod probe;
pub mod random;
