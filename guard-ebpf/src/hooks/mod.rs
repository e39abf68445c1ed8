//! One file a hook. Programs of one hook share their file.

mod backstop;
mod clock;
mod host;
mod processes;
mod seal;
mod seal_bpf;
mod seal_function;
mod shield;
mod socket;
mod sockets;
mod wire;
