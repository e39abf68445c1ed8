//! What the tests share: worlds of network namespaces, real servers, witnesses, the guard binary, the loaded programs.

pub mod af_xdp;
pub mod agent;
pub mod bpf;
pub mod browser;
pub mod budget;
pub mod cases;
pub mod corpus;
pub mod day;
pub mod differential;
pub mod echo;
pub mod engines;
pub mod faults;
pub mod flows;
pub mod frame;
pub mod generate;
pub mod guard;
pub mod keystrokes;
pub mod other_bpf;
pub mod parity;
pub mod parity_kernel;
pub mod probe;
pub mod process;
pub mod random;
pub mod raw_bpf;
pub mod referee;
pub mod servers;
pub mod session;
pub mod sizes;
pub mod skip;
pub mod terminal;
pub mod unpacked;
pub mod ways;
pub mod witness;
pub mod world;

/// A [`world::World`], or `None` with a visible line where this machine cannot make one.
///
/// # Panics
///
/// Where it should have been possible.
#[must_use]
pub fn new_world(test: &str) -> Option<world::World> {
    if !skip::is_root() {
        skip::skip(test, "network namespaces need root");
        return None;
    }
    if let Err(error) = world::cgroup::root() {
        skip::skip(test, &error.to_string());
        return None;
    }
    Some(world::World::create().expect("a world of network namespaces"))
}
