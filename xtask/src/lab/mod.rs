//! Hosts and a network of our own, for the demo and the measurements: nothing of it is left when it ends, however it
//! ends.

pub mod host;
pub mod sandbox;
