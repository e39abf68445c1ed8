//! guard and the kernel: the only module that knows aya and raw `bpf(2)`.
//!
//! [`Instance`] is one attached guard, of one network namespace. It lives in the kernel, held by pins under
//! `<bpffs>/guard/<instance>`; every command opens it by these, and none has to run for it to go on. Programs, maps and
//! hooks are as `guard-ebpf` has them; `META` beside them says what was asked for at the start.

mod admission;
mod attach;
mod bpf_events;
mod btf;
mod counters;
mod engine;
mod error;
mod events;
mod features;
mod filters;
mod flows;
pub mod ground;
mod instance;
mod interfaces;
mod load;
mod near;
pub mod objects;
mod pins;
mod processes;
mod publish;
mod release;
mod repair;
mod sealing;
mod settings;
mod status;
mod sys;
mod watch;

pub use admission::introduce_here;
pub use error::KernelError;
pub use features::{Feature, Needed, Offers, must_have, needed, release as kernel_release, tick_hz};
pub use filters::{Filter, filters};
pub use instance::{Instance, Place, preview};
pub use interfaces::{Device, Selection, Why};
pub use pins::check_instance_name;
pub use publish::TableHeader;
pub use release::release;
pub use settings::{Options, Published, Settings, cgroup_root, own_netns};
pub use status::HookStatus;
