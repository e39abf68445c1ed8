//! One generation into the kernel: built aside, frozen, read back, then put in force by one 8-byte store.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use guard_common::{
    abi::{RuleCounter, Slot, SlotFlags, SlotInfo, State, StateWord},
    decide::{Header, Node},
};

use super::{
    KernelError,
    load::TABLE_FLAGS,
    settings::Published,
    sys::{self, F_INNER_MAP, MAP_TYPE_ARRAY, Mapping},
};
use crate::policy::compile::Compiled;

/// A change cannot be confirmed when less than this is left of its time.
pub const LAST_MOMENT_MS: u64 = 1000;

/// The `STATE` map, in memory.
#[derive(Debug)]
pub struct StateMap {
    mapping: Mapping,
}

impl StateMap {
    pub fn new(map: BorrowedFd<'_>) -> Result<Self, KernelError> {
        let mapping = Mapping::new(map, size_of::<State>(), true).map_err(KernelError::call("cannot map STATE"))?;
        Ok(Self { mapping })
    }

    fn word_cell(&self) -> &AtomicU64 {
        const _: () = assert!(std::mem::offset_of!(State, word) == 0);
        // SAFETY: the mapping is page-aligned, as long as a State, whose first field is the word; it lives as long as
        // the borrow. Everybody who writes it does so in one 8-byte store.
        unsafe { AtomicU64::from_ptr(self.mapping.as_ptr().cast()) }
    }

    fn cell(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(offset.is_multiple_of(4) && offset + 4 <= size_of::<State>());
        // SAFETY: within the mapping (every caller's offset is a field's of State), aligned by 4, and all fields past
        // the word are 4-byte numbers. Lives as long as the borrow.
        unsafe { AtomicU32::from_ptr(self.mapping.as_ptr().add(offset).cast()) }
    }

    pub fn word(&self) -> StateWord {
        StateWord(self.word_cell().load(Ordering::Acquire))
    }

    pub fn read(&self) -> State {
        let info = |slot: usize| {
            let at = std::mem::offset_of!(State, slots) + slot * size_of::<SlotInfo>();
            SlotInfo {
                generation: self.cell(at).load(Ordering::Acquire),
                flags: SlotFlags(self.cell(at + 4).load(Ordering::Acquire)),
            }
        };
        State {
            word: self.word(),
            abi: self.cell(std::mem::offset_of!(State, abi)).load(Ordering::Acquire),
            reserved: 0,
            slots: [info(0), info(1), info(2), info(3)],
        }
    }

    /// For a map that no program has seen yet.
    pub fn begin(&self) {
        self.cell(std::mem::offset_of!(State, abi)).store(guard_common::abi::VERSION, Ordering::Release);
        self.force(StateWord::TRACKING);
    }

    /// Whatever was there.
    pub fn force(&self, word: StateWord) {
        self.word_cell().store(word.0, Ordering::Release);
    }

    /// Of a slot that no program can see.
    fn write_info(&self, slot: Slot, info: SlotInfo) {
        let at = std::mem::offset_of!(State, slots) + usize::from(slot.0) * size_of::<SlotInfo>();
        self.cell(at).store(info.generation, Ordering::Release);
        self.cell(at + 4).store(info.flags.0, Ordering::Release);
    }

    /// The flip. False: somebody else changed it meanwhile, and nothing was done.
    fn exchange(&self, from: StateWord, to: StateWord) -> bool {
        self.word_cell().compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Keeps what is pending, unless its time is (almost) over.
    pub fn confirm(&self) -> Result<(), KernelError> {
        let word = self.word();
        let deadline = word.deadline_ms().ok_or(KernelError::NotPending)?;
        if now_ms() + LAST_MOMENT_MS > deadline {
            return Err(KernelError::TooLate);
        }
        if self.exchange(word, StateWord::settled(word.active())) { Ok(()) } else { Err(KernelError::NotPending) }
    }

    /// Brings back what held before what is pending.
    pub fn roll_back(&self) -> Result<(), KernelError> {
        let word = self.word();
        if !word.is_pending() || !self.exchange(word, StateWord::settled(word.previous())) {
            return Err(KernelError::NotPending);
        }
        Ok(())
    }

    /// Writes down what the deadline did. False: none had passed.
    pub fn settle(&self) -> bool {
        let word = self.word();
        word.deadline_ms().is_some_and(|deadline| now_ms() >= deadline)
            && self.exchange(word, StateWord::settled(word.previous()))
    }
}

pub fn now_ms() -> u64 {
    sys::boot_ns() / 1_000_000
}

/// The maps that a publish writes.
pub struct Outer<'a> {
    pub tables: BorrowedFd<'a>,
    pub rule_counters: BorrowedFd<'a>,
}

/// Highest generation that any slot has had, and one more.
pub fn next_generation(state: &State) -> u32 {
    state.slots.iter().map(|slot| slot.generation).max().unwrap_or(0) + 1
}

/// Where the next generation goes: neither in force, nor what a deadline would bring back, and of those left the one
/// that was so longest ago. By now no program can see it: whoever read it from the state had ended before the publish
/// after that one, which waited for all that ran (`build` puts an inner map in place, and the kernel then waits).
fn free_slot(state: &State) -> Slot {
    let taken = [state.word.active(), state.word.previous()];
    (0..Slot::TABLES as u8)
        .map(Slot)
        .filter(|slot| !taken.contains(slot))
        .min_by_key(|slot| state.slots[usize::from(slot.0)].generation)
        // Two taken leave one of three.
        .unwrap_or(Slot(0))
}

/// Checks, builds, reads back; puts nothing in force. An error leaves the old generation as it was.
pub fn build(state: &StateMap, outer: &Outer<'_>, compiled: &Compiled) -> Result<(Slot, Published), KernelError> {
    state.settle();
    let before = state.read();
    if let Some(deadline) = before.word.deadline_ms() {
        return Err(KernelError::Pending { seconds_left: deadline.saturating_sub(now_ms()).div_ceil(1000) });
    }
    let expected = next_generation(&before);
    if compiled.generation != expected {
        return Err(KernelError::Generation { found: compiled.generation, expected });
    }
    let slot = free_slot(&before);
    let nodes = compiled.nodes.as_slice();
    let table = make("guard_table", size_of::<Node>(), nodes.len() as u32, TABLE_FLAGS)?;
    sys::fill(table.as_fd(), nodes).map_err(KernelError::call("cannot fill the policy's tables"))?;
    sys::freeze(table.as_fd()).map_err(KernelError::call("cannot freeze the policy's tables"))?;
    let counters = make("guard_counters", size_of::<RuleCounter>(), compiled.rules.max(1), F_INNER_MAP)?;

    // What programs will read, from the kernel's own pages.
    // SAFETY: nodes are 64 bytes without padding, aligned; as many as stated.
    let meant = unsafe { std::slice::from_raw_parts(nodes.as_ptr().cast::<u8>(), size_of_val(nodes)) };
    if map_table(table.as_fd(), nodes.len())?.frozen_bytes() != meant {
        return Err(KernelError::ReadBack { what: "tables" });
    }

    let put = |outer, inner: &OwnedFd, what: &'static str| {
        let fd = std::os::fd::AsRawFd::as_raw_fd(inner) as u32;
        sys::update(outer, &u32::from(slot.0), &fd, sys::ANY)
            .map_err(KernelError::call("cannot put tables into their slot"))?;
        let id = sys::lookup::<u32, u32>(outer, &u32::from(slot.0)).map_err(KernelError::call("cannot read a slot"))?;
        let own = sys::info_of_map(inner.as_fd()).map_err(KernelError::call("cannot read a map's id"))?.id;
        if id == Some(own) { Ok(()) } else { Err(KernelError::ReadBack { what }) }
    };
    put(outer.rule_counters, &counters, "rule counters")?;
    put(outer.tables, &table, "slot")?;
    state.write_info(slot, SlotInfo { generation: compiled.generation, flags: compiled.flags });
    let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    let published = Published {
        generation: compiled.generation,
        map_id: sys::info_of_map(table.as_fd()).map_err(KernelError::call("cannot read a map's id"))?.id,
        nodes: nodes.len() as u32,
        rules: compiled.rules,
        at: at.to_string(),
        interface_patterns: compiled.interface_patterns(),
    };
    Ok((slot, published))
}

/// Puts a built slot in force. With `within`, the kernel undoes it then by itself.
pub fn flip(state: &StateMap, slot: Slot, within: Option<Duration>) -> Result<(), KernelError> {
    let before = state.word();
    let after = match within {
        None => StateWord::settled(slot),
        Some(time) => {
            let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            StateWord::pending(slot, before.active(), now_ms().saturating_add(ms).min((1 << 48) - 1))
        }
    };
    if before.is_pending() || !state.exchange(before, after) {
        return Err(KernelError::Pending { seconds_left: 0 });
    }
    if state.word() == after { Ok(()) } else { Err(KernelError::ReadBack { what: "state" }) }
}

fn make(name: &str, value_size: usize, entries: u32, flags: u32) -> Result<OwnedFd, KernelError> {
    let what = || format!("cannot make {name} of {entries} entries ({} KiB)", entries as usize * value_size / 1024);
    sys::map_create(name, MAP_TYPE_ARRAY, value_size as u32, entries, flags, None).map_err(KernelError::call(what()))
}

/// A generation's nodes, as they lie in the kernel.
pub fn map_table(table: BorrowedFd<'_>, nodes: usize) -> Result<Mapping, KernelError> {
    Mapping::new(table, nodes * size_of::<Node>(), false).map_err(KernelError::call("cannot read the tables back"))
}

/// What stands in the header of a slot's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableHeader {
    pub nodes: u32,
    pub rules: u32,
    pub generation: u32,
    pub flags: SlotFlags,
    pub policy_sha256: [u8; 32],
}

/// `None`: the slot is empty.
pub fn table_of(tables: BorrowedFd<'_>, slot: Slot) -> Result<Option<OwnedFd>, KernelError> {
    let failed = || KernelError::call("cannot open a slot's tables");
    let Some(id) = sys::lookup::<u32, u32>(tables, &u32::from(slot.0)).map_err(failed())? else { return Ok(None) };
    sys::map_by_id(id).map(Some).map_err(failed())
}

pub fn header_of(table: BorrowedFd<'_>) -> Result<Option<TableHeader>, KernelError> {
    let node =
        sys::lookup::<u32, Node>(table, &Header::NODE).map_err(KernelError::call("cannot read a slot's header"))?;
    let Some(Node(words)) = node.filter(|node| node.0[0] == Header::MAGIC) else { return Ok(None) };
    let mut policy_sha256 = [0; 32];
    for (bytes, word) in policy_sha256.as_chunks_mut::<4>().0.iter_mut().zip(&words[8..]) {
        *bytes = word.to_be_bytes();
    }
    Ok(Some(TableHeader {
        nodes: words[2],
        rules: words[3],
        generation: words[4],
        flags: SlotFlags(words[5]),
        policy_sha256,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(word: StateWord, generations: [u32; 3]) -> State {
        let mut state = State { word, ..State::default() };
        for (slot, generation) in state.slots.iter_mut().zip(generations) {
            slot.generation = generation;
        }
        state
    }

    #[test]
    fn the_slot_longest_out_of_force_is_next() {
        assert_eq!(free_slot(&state(StateWord::TRACKING, [0, 0, 0])), Slot(0));
        assert_eq!(free_slot(&state(StateWord::settled(Slot(0)), [4, 3, 2])), Slot(2));
        // After a rollback to slot 1, slot 2 was in force a moment ago.
        assert_eq!(free_slot(&state(StateWord::settled(Slot(1)), [3, 4, 5])), Slot(0));
        assert_eq!(free_slot(&state(StateWord::pending(Slot(0), Slot(1), 9), [9, 8, 7])), Slot(2));
        assert_eq!(next_generation(&state(StateWord::settled(Slot(1)), [3, 4, 5])), 6);
    }
}
