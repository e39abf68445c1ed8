//! Every map. Names and meanings are the contract with userspace; sizes given here are the loader's to change, except
//! for those that index by something fixed.

use core::cell::UnsafeCell;

use aya_ebpf::{
    bindings::{
        BPF_F_INNER_MAP, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_F_RDONLY_PROG, bpf_map_def,
        bpf_map_type::BPF_MAP_TYPE_CGROUP_ARRAY,
    },
    btf_maps::{self, ArrayOfMaps},
    helpers::generated::bpf_current_task_under_cgroup,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
};
use guard_common::{
    Reason,
    abi::{
        Admitted, COUNTERS as COUNTER_SLOTS, ClockReading, Counter, Flow, FlowKeyV4, FlowKeyV6, FragmentKeyV4,
        FragmentKeyV6, FragmentValue, Interface, LOST_SLOTS, NoteKey, Offsets, Owner, Rejects, RuleCounter, SealBpf,
        Slot, State,
    },
    decide::Node,
};

use crate::hand::Hand;

/// Flags of the inner maps of [`TABLES`]: any size, read-only for programs, and mappable, since such arrays lie on
/// pages of their own, aligned (a decision among a million CIDRs took 131 ns instead of 173).
const TABLE_FLAGS: usize = (BPF_F_INNER_MAP | BPF_F_RDONLY_PROG | BPF_F_MMAPABLE) as usize;

/// Template of a generation's nodes.
pub type Table = btf_maps::Array<Node, 1, TABLE_FLAGS>;
/// Template of a generation's rule counters, by rule number. Not per CPU: the kernel gives only plain arrays the flag
/// that lets each inner map have its own size. One flow counts once, so a locked add costs little.
pub type RuleCounters = btf_maps::Array<RuleCounter, 1, { BPF_F_INNER_MAP as usize }>;

#[map]
pub static STATE: Array<State> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// By slot.
#[btf_map]
pub static TABLES: ArrayOfMaps<Table, { Slot::TABLES }> = ArrayOfMaps::new();

/// By slot.
#[btf_map]
pub static RULE_COUNTERS: ArrayOfMaps<RuleCounters, { Slot::TABLES }> = ArrayOfMaps::new();

#[map]
pub static FLOWS_UNANSWERED_INBOUND_V4: LruHashMap<FlowKeyV4, Flow> = LruHashMap::with_max_entries(FLOWS / 2, 0);
#[map]
pub static FLOWS_UNANSWERED_OUTBOUND_V4: LruHashMap<FlowKeyV4, Flow> = LruHashMap::with_max_entries(FLOWS / 2, 0);
#[map]
pub static FLOWS_ESTABLISHED_V4: LruHashMap<FlowKeyV4, Flow> = LruHashMap::with_max_entries(FLOWS, 0);
#[map]
pub static FLOWS_DENIED_V4: LruHashMap<FlowKeyV4, Flow> = LruHashMap::with_max_entries(FLOWS, 0);
#[map]
pub static FLOWS_UNANSWERED_INBOUND_V6: LruHashMap<FlowKeyV6, Flow> = LruHashMap::with_max_entries(FLOWS / 2, 0);
#[map]
pub static FLOWS_UNANSWERED_OUTBOUND_V6: LruHashMap<FlowKeyV6, Flow> = LruHashMap::with_max_entries(FLOWS / 2, 0);
#[map]
pub static FLOWS_ESTABLISHED_V6: LruHashMap<FlowKeyV6, Flow> = LruHashMap::with_max_entries(FLOWS, 0);
#[map]
pub static FLOWS_DENIED_V6: LruHashMap<FlowKeyV6, Flow> = LruHashMap::with_max_entries(FLOWS, 0);

#[map]
pub static FRAGMENTS_V4: LruHashMap<FragmentKeyV4, FragmentValue> = LruHashMap::with_max_entries(FRAGMENTS, 0);
#[map]
pub static FRAGMENTS_V6: LruHashMap<FragmentKeyV6, FragmentValue> = LruHashMap::with_max_entries(FRAGMENTS, 0);

/// What the link has told; jiffies of when.
#[map]
pub static NOTES: LruHashMap<NoteKey, u64> = LruHashMap::with_max_entries(NOTED, 0);

/// By interface index, of guard's own network namespace (and of what was guarded before it was moved away).
#[map]
pub static INTERFACES: HashMap<u32, Interface> = HashMap::with_max_entries(4096, 0);

/// By [`guard_common::abi::counter_index`]; per CPU.
#[map]
pub static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(COUNTER_SLOTS, 0);

/// [`guard_common::abi::Event`]s.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// [`guard_common::abi::ProcessHead`]s and [`guard_common::abi::ProcessEvent`]s.
#[map]
pub static PROCESSES: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Where the kernel keeps what the process programs read.
#[map]
pub static TASK_OFFSETS: Array<Offsets> = Array::with_max_entries(1, 0);

/// [`guard_common::abi::AnswerEvent`]s.
#[map]
pub static ANSWERS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// By reason: jiffies of the last [`guard_common::abi::EventKind::PacketDenied`].
#[map]
pub static LIMITS: Array<u64> = Array::with_max_entries(Reason::SLOTS as u32, 0);

/// By [`guard_common::abi::Lost`]; per CPU.
#[map]
pub static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(LOST_SLOTS, 0);

/// What was answered; per CPU.
#[map]
pub static REJECTS: PerCpuArray<Rejects> = PerCpuArray::with_max_entries(1, 0);

/// By direction: packets that were judged between this host and those behind it, of `COUNTERS`; outbound those that were let
/// out. Per CPU.
#[map]
pub static HOST_SIDE: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

/// By socket cookie: which process asked, at the socket layer.
#[map]
pub static OWNERS: LruHashMap<u64, Owner> = LruHashMap::with_max_entries(FLOWS, 0);

/// Destinations that cross no guarded interface, for the socket layer: [`guard_common::abi::Near`]; the address in network
/// order. Filled from the routes.
#[map]
pub static NEAR_V4: LpmTrie<u32, u8> = LpmTrie::with_max_entries(16_384, BPF_F_NO_PREALLOC);
#[map]
pub static NEAR_V6: LpmTrie<[u32; 4], u8> = LpmTrie::with_max_entries(16_384, BPF_F_NO_PREALLOC);

/// Socket cookies of guard's own network namespace, where [`Features::NETNS_COOKIE_SKB`] or
/// [`Features::NETNS_COOKIE_SOCKOPT`] is off.
///
/// [`Features::NETNS_COOKIE_SKB`]: guard_common::abi::Features::NETNS_COOKIE_SKB
/// [`Features::NETNS_COOKIE_SOCKOPT`]: guard_common::abi::Features::NETNS_COOKIE_SOCKOPT
#[map]
pub static SOCKETS: HashMap<u64, u8> = HashMap::with_max_entries(FLOWS, BPF_F_NO_PREALLOC);

/// One element: the cgroup whose tasks the seal at kernel functions holds.
#[map]
pub static SEAL_CGROUP: CgroupArray = CgroupArray(UnsafeCell::new(bpf_map_def {
    type_: BPF_MAP_TYPE_CGROUP_ARRAY,
    key_size: 4,
    value_size: 4,
    max_entries: 1,
    map_flags: 0,
    id: 0,
    pinning: 0,
}));

/// `BPF_MAP_TYPE_CGROUP_ARRAY` (4.8), which aya does not have.
#[repr(transparent)]
pub struct CgroupArray(UnsafeCell<bpf_map_def>);

// SAFETY: the kernel's own; programs hand its address to helpers and touch nothing of it.
unsafe impl Sync for CgroupArray {}

impl CgroupArray {
    /// Whether the task that runs now is in the cgroup or below. Where that cannot be told, it is.
    #[inline(always)]
    pub fn holds_current(&self) -> bool {
        // SAFETY: the helper takes such a map (4.9).
        unsafe { bpf_current_task_under_cgroup(self.0.get().cast(), 0) != 0 }
    }
}

/// One element: what the seal of `bpf(2)` goes by.
#[map]
pub static SEAL_BPF: Array<SealBpf> = Array::with_max_entries(1, 0);

/// By process: who has shown the key.
#[map]
pub static ADMITTED: LruHashMap<u32, Admitted> = LruHashMap::with_max_entries(1024, 0);

/// By id: maps and programs of guard's own.
#[map]
pub static OWN_MAPS: HashMap<u32, u8> = HashMap::with_max_entries(256, BPF_F_NO_PREALLOC);
#[map]
pub static OWN_PROGRAMS: HashMap<u32, u8> = HashMap::with_max_entries(256, BPF_F_NO_PREALLOC);

/// By inode, of the file system that [`SEAL_BPF`] names: the directories that guard's pins are in.
#[map]
pub static OWN_DIRECTORIES: HashMap<u64, u8> = HashMap::with_max_entries(16, BPF_F_NO_PREALLOC);

/// By process (upper half) and kind of what was refused; jiffies of when it was told.
#[map]
pub static SEAL_BPF_TOLD: LruHashMap<u64, u64> = LruHashMap::with_max_entries(1024, 0);

/// The packet in hand.
#[map]
pub static HAND: PerCpuArray<Hand> = PerCpuArray::with_max_entries(1, 0);

/// The last reading of the `clock` program.
#[map]
pub static CLOCK: Array<ClockReading> = Array::with_max_entries(1, 0);

const FLOWS: u32 = 65_536;
const FRAGMENTS: u32 = 8_192;
const NOTED: u32 = 16_384;
