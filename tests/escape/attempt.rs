//! One row of the table.

use anyhow::Result;

use crate::{
    mark::{Mark, Sign},
    scene::Scene,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Out,
    In,
}

/// What is expected in enforce mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Blocked,
    /// Passes, and is meant to.
    Allowed(&'static str),
    /// Passes, and had better not: SECURITY.md says so.
    Gap(&'static str),
    /// Does not work on this kernel even without guard.
    NotHere(&'static str),
}

pub type Inside = Box<dyn Fn(&Mark) -> Result<()>>;
pub type Outside = Box<dyn Fn(&Scene, &Mark) -> Result<()>>;
pub type Frames = Box<dyn Fn(&Mark) -> Vec<Vec<u8>>>;
/// Takes one mark after the other, from before guard starts on.
pub type Held = Box<dyn Fn(&mut dyn Iterator<Item = Mark>) -> Result<()>>;

/// What is done, and where.
pub enum Act {
    /// By a program of ours, as root in the guarded cgroup and network namespace.
    Inside(Inside),
    /// The same, by a packet socket on `eth0`.
    FramesOut(Frames),
    /// By a shell, with the tools that are installed: `{text}`, `{port}` and `{self}` are replaced.
    Script(String),
    /// By a program that made its sockets before guard was started.
    Held(Held),
    /// By hosts outside, towards the programs that listen inside.
    Outside(Outside),
    /// The same, as frames on the server's own link.
    FramesIn(Frames),
}

pub struct Attempt {
    pub name: String,
    pub direction: Direction,
    pub act: Act,
    pub sign: Sign,
    pub expected: Expected,
}

impl Attempt {
    #[must_use]
    pub fn out(name: impl Into<String>, act: Act) -> Self {
        Self { name: name.into(), direction: Direction::Out, act, sign: Sign::Text, expected: Expected::Blocked }
    }

    #[must_use]
    pub fn into_host(name: impl Into<String>, act: Act) -> Self {
        Self { direction: Direction::In, ..Self::out(name, act) }
    }

    #[must_use]
    pub fn sign(self, sign: Sign) -> Self {
        Self { sign, ..self }
    }

    #[must_use]
    pub fn expect(self, expected: Expected) -> Self {
        Self { expected, ..self }
    }
}

/// `out v4 NAME`.
#[must_use]
pub fn name(ipv6: bool, name: &str) -> String {
    format!("v{} {name}", if ipv6 { 6 } else { 4 })
}
