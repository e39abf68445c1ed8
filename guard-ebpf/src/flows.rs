//! The flow tables: three a family, so that a flood of one kind evicts nothing of another.

use aya_ebpf::{helpers::generated::bpf_jiffies64, maps::LruHashMap};
use guard_common::abi::{Flow, FlowKeyV4, FlowKeyV6};

use crate::{
    maps::{
        FLOWS_DENIED_V4, FLOWS_DENIED_V6, FLOWS_ESTABLISHED_V4, FLOWS_ESTABLISHED_V6, FLOWS_UNANSWERED_V4,
        FLOWS_UNANSWERED_V6,
    },
    record::add,
};

/// Keys of one family and their tables.
pub trait Key: Sized + 'static {
    fn table(which: Table) -> &'static LruHashMap<Self, Flow>;
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Table {
    Established,
    Unanswered,
    Denied,
}

impl Key for FlowKeyV4 {
    #[inline(always)]
    fn table(which: Table) -> &'static LruHashMap<Self, Flow> {
        match which {
            Table::Established => &FLOWS_ESTABLISHED_V4,
            Table::Unanswered => &FLOWS_UNANSWERED_V4,
            Table::Denied => &FLOWS_DENIED_V4,
        }
    }
}

impl Key for FlowKeyV6 {
    #[inline(always)]
    fn table(which: Table) -> &'static LruHashMap<Self, Flow> {
        match which {
            Table::Established => &FLOWS_ESTABLISHED_V6,
            Table::Unanswered => &FLOWS_UNANSWERED_V6,
            Table::Denied => &FLOWS_DENIED_V6,
        }
    }
}

/// Where a flow is, and its entry. Were the entry reused while it is held (an eviction in between), a count would go to
/// another flow; a verdict is never read from it after that.
#[derive(Clone, Copy)]
pub struct Found {
    pub table: Table,
    pub flow: *mut Flow,
}

#[inline(always)]
pub fn find<K: Key>(key: &K, table: Table) -> Option<Found> {
    K::table(table).get_ptr_mut(key).map(|flow| Found { table, flow })
}

/// Puts a flow into a table. `false`: it could not be recorded.
#[inline(always)]
pub fn insert<K: Key>(key: &K, table: Table, flow: &Flow) -> bool {
    K::table(table).insert(key, flow, 0).is_ok()
}

/// Moves an entry to another table, without a copy on the stack.
#[inline(always)]
pub fn move_to<K: Key>(key: &K, found: &Found, to: Table) -> bool {
    // SAFETY: the entry is a whole `Flow`; the kernel copies it.
    let moved = K::table(to).insert(key, unsafe { &*found.flow }, 0).is_ok();
    if moved {
        let _ = K::table(found.table).remove(key);
    }
    moved
}

/// Adds a packet to a flow's counts.
///
/// # Safety
///
/// `flow` is an entry of a flow table.
#[inline(always)]
pub unsafe fn touch(flow: *mut Flow, direction: usize, packets: u64, bytes: u64) {
    // SAFETY: see above; the index is masked.
    unsafe {
        add(&raw mut (*flow).packets[direction & 1], packets);
        add(&raw mut (*flow).bytes[direction & 1], bytes);
        (*flow).last_seen = bpf_jiffies64();
    }
}
