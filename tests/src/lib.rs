

pub mod bpf;
