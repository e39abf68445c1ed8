pub mod bpf;
pub mod differential;
pub mod generate;
pub mod probe;
pub mod random;
pub mod referee;
