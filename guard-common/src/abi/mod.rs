//! Every type that crosses the border between kernel and userspace: `repr(C)`, no hidden padding, sizes asserted.
//!
//! Byte order: host order for every number; see the crate's doc. Bump [`VERSION`] with any change of a layout or a
//! meaning here: pinned maps of another version are not adopted.

mod counters;
mod event;
mod flow;
mod globals;
mod interface;
mod process;
mod reject;
mod seal;
mod state;

pub use counters::{COUNTERS, Counter, LOST_SLOTS, Lost, RuleCounter, counter_index};
pub use event::{Event, EventKind, HEAD_BYTES, Owner};
pub use flow::{Flow, FlowKeyV4, FlowKeyV6, FragmentKeyV4, FragmentKeyV6, FragmentValue, NoteKey, NoteKind, TcpState};
pub use globals::{ClockReading, Features};
pub use interface::{Interface, Near};
pub use process::{
    ANSWER_BYTES, AnswerEvent, Offsets, PROCESS_ARGUMENT_BYTES, PROCESS_CGROUP_BYTES, PROCESS_CGROUP_LEVELS,
    PROCESS_FILE_NAME_BYTES, PROCESS_PATH_BYTES, ProcessEvent, ProcessHead, ProcessKind,
};
pub use reject::Rejects;
pub use seal::{Admitted, Refused, SEAL_BPF_SHOW, SEAL_BPF_TAKEN, SealBpf};
pub use state::{Slot, SlotFlags, SlotInfo, State, StateWord};

/// Version of all layouts in this module and in [`crate::decide`].
pub const VERSION: u32 = 3;
