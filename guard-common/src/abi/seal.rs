//! The seal of `bpf(2)`: who is guard, and what is refused to others.

/// In the place of a command of `bpf(2)`: shows the key, whose two words are the attributes. The kernel knows no such
/// command and answers EINVAL; where the key is the seal's, the answer is [`SEAL_BPF_TAKEN`].
pub const SEAL_BPF_SHOW: u32 = 0x6764_0001;
/// EALREADY.
pub const SEAL_BPF_TAKEN: i32 = 114;

/// The one element of the `SEAL_BPF` array.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SealBpf {
    /// Zero: not set, and nobody can show it.
    pub key: [u64; 2],
    /// The file system of the pins, as the kernel numbers devices within (`major << 20 | minor`).
    pub device: u32,
    pub reserved: u32,
}

/// Value of the `ADMITTED` hash, by process (thread group) id in the initial pid namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Admitted {
    /// Boot-time nanoseconds of the process's start.
    pub started: u64,
    /// Where the kernel keeps its memory's description: another one after it executes something.
    pub memory: u64,
}

/// What was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refused {
    /// A link detached, or its program replaced.
    Link = 1,
    /// A program of a kind that could go round guard, loaded.
    Load = 2,
    /// Such a program attached or detached.
    Attach = 3,
    /// A program run over a packet (`BPF_PROG_TEST_RUN`), with live frames too.
    Run = 4,
    /// A map of guard's opened for writing, or a program loaded over it.
    Map = 5,
    /// A pin of guard's removed or renamed, or its file system unmounted.
    Pin = 6,
}

impl Refused {
    /// `None` for a number that none has.
    #[must_use]
    pub const fn from_u64(number: u64) -> Option<Self> {
        Some(match number {
            1 => Self::Link,
            2 => Self::Load,
            3 => Self::Attach,
            4 => Self::Run,
            5 => Self::Map,
            6 => Self::Pin,
            _ => return None,
        })
    }

    /// For people.
    #[must_use]
    pub const fn why(self) -> &'static str {
        match self {
            Self::Link => "to detach a link or to replace its program",
            Self::Load => "to load a BPF program of a kind that could go round guard",
            Self::Attach => "to attach or detach such a program",
            Self::Run => "to run a BPF program over a packet (BPF_PROG_TEST_RUN)",
            Self::Map => "to open a map of guard's for writing, or to load a program over it",
            Self::Pin => "to remove or rename a pin of guard's, or to unmount its file system",
        }
    }
}

const _: () = assert!(size_of::<SealBpf>() == 24 && size_of::<Admitted>() == 16);
