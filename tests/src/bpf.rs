//! The committed programs, loaded by the test itself: tables filled by hand, packets by BPF_PROG_TEST_RUN. Nothing is
//! attached to anything.

use std::{
    io,
    mem::zeroed,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions, TestRunResult,
    maps::{Map, MapData},
    programs::{Program, ProgramInfo},
};
use guard_common::{
    Direction, Reason,
    abi::{Counter, RuleCounter, Slot, State, counter_index},
    decide::Node,
};

/// The programs as committed, and those that only tests and benches load.
pub static OBJECT: &[u8] = guard::object::OBJECT;
pub static PROBE: &[u8] = aya::include_bytes_aligned!("../ebpf/probe.bpf.o");

const BPF_F_RDONLY_PROG: u32 = 1 << 7;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_F_INNER_MAP: u32 = 1 << 12;

/// One loaded object.
pub struct Programs {
    pub ebpf: Ebpf,
}

impl Programs {
    /// Loads every program of an object. `configure` may override globals and sizes.
    pub fn load<'a>(object: &[u8], configure: impl FnOnce(&mut EbpfLoader<'a>)) -> Result<Self> {
        let mut loaded = Self::load_maps(object, configure)?;
        let names: Vec<String> = loaded
            .ebpf
            .programs()
            .filter(|(name, program)| is_loaded_here(name, program))
            .map(|(name, _)| name.to_owned())
            .collect();
        for name in names {
            let program = loaded.ebpf.program_mut(&name).context("a program vanished")?;
            load_program(program).with_context(|| name.clone())?;
        }
        Ok(loaded)
    }

    /// Makes the maps of an object, and loads none of its programs.
    pub fn load_maps<'a>(object: &[u8], configure: impl FnOnce(&mut EbpfLoader<'a>)) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        // The seal's array of cgroups.
        loader.allow_unsupported_maps();
        configure(&mut loader);
        Ok(Self { ebpf: loader.load(object)? })
    }

    /// Puts a generation's nodes and counters into a slot.
    pub fn fill(&mut self, slot: Slot, nodes: &[Node], rules: u32) -> Result<()> {
        self.fill_nodes(slot, nodes)?;
        self.fill_counters(slot, rules)?;
        Ok(())
    }

    /// New rule counters for a slot.
    pub fn fill_counters(&self, slot: Slot, rules: u32) -> Result<OwnedFd> {
        let counters = create_array(BPF_MAP_TYPE_ARRAY, size_of::<RuleCounter>(), rules.max(1), BPF_F_INNER_MAP)?;
        set_inner(self.map("RULE_COUNTERS")?, slot, counters.as_fd())?;
        Ok(counters)
    }

    /// Takes a slot's tables away.
    pub fn empty(&self, slot: Slot) -> Result<()> {
        delete(self.map("TABLES")?, &u32::from(slot.0))
    }

    /// Only what decides. The array of maps keeps the map that it is given.
    pub fn fill_nodes(&mut self, slot: Slot, nodes: &[Node]) -> Result<()> {
        let table = create_array(BPF_MAP_TYPE_ARRAY, size_of::<Node>(), nodes.len() as u32, TABLE_FLAGS)?;
        update_batch(table.as_fd(), nodes)?;
        set_inner(self.map("TABLES")?, slot, table.as_fd())
    }

    pub fn set_state(&self, state: &State) -> Result<()> {
        update(self.map("STATE")?, &0_u32, state)
    }

    /// Runs a program `repeat` times over one packet.
    pub fn run(&mut self, program: &str, packet: &[u8], context: Option<&[u8]>, repeat: u32) -> Result<TestRunResult> {
        let options = TestRunOptions { data_in: Some(packet), ctx_in: context, repeat, ..TestRunOptions::new() };
        Ok(match self.ebpf.program_mut(program).context("no such program")? {
            Program::SchedClassifier(program) => program.test_run(options)?,
            Program::Xdp(program) => program.test_run(options)?,
            Program::CgroupSkb(program) => program.test_run(options)?,
            _ => anyhow::bail!("{program} cannot be run by BPF_PROG_TEST_RUN"),
        })
    }

    pub fn map(&self, name: &str) -> Result<BorrowedFd<'_>> {
        map_fd(self.ebpf.map(name).with_context(|| format!("no map {name}"))?)
    }

    /// Totals of a reason, of all CPUs.
    pub fn counted(&self, reason: Reason, direction: Direction, dropped: bool) -> Result<Counter> {
        let mut values = vec![Counter::default(); aya::util::nr_cpus().map_err(|(_, error)| error)?];
        lookup(self.map("COUNTERS")?, &counter_index(reason, direction, dropped), values.as_mut_slice())?;
        Ok(values.iter().fold(Counter::default(), |sum, value| Counter {
            packets: sum.packets + value.packets,
            bytes: sum.bytes + value.bytes,
        }))
    }

    /// What the verifier processed, by program; 0 where the kernel does not say (before 5.16).
    pub fn verified_instructions(&self) -> Result<Vec<(String, u32)>> {
        let mut counts = Vec::new();
        for (name, program) in self.ebpf.programs().filter(|(name, program)| is_loaded_here(name, program)) {
            let info: ProgramInfo = program.info()?;
            counts.push((name.to_owned(), info.verified_instruction_count().unwrap_or(0)));
        }
        counts.sort();
        Ok(counts)
    }
}

/// Those at kernel functions are loaded by guard alone: aya knows no such type. The virtual machines try them.
fn is_loaded_here(name: &str, program: &Program) -> bool {
    !matches!(program, Program::RawTracePoint(_)) || name.starts_with("process_")
}

/// Loads one program of any type that guard has.
pub fn load_program(program: &mut Program) -> Result<()> {
    match program {
        Program::SchedClassifier(program) => program.load()?,
        Program::Xdp(program) => program.load()?,
        Program::CgroupSkb(program) => program.load()?,
        Program::CgroupSockAddr(program) => program.load()?,
        Program::CgroupSockopt(program) => program.load()?,
        Program::CgroupSock(program) => program.load()?,
        Program::RawTracePoint(program) => program.load()?,
        _ => anyhow::bail!("a program of an unexpected type"),
    }
    Ok(())
}

fn map_fd(map: &Map) -> Result<BorrowedFd<'_>> {
    let data: &MapData = match map {
        Map::Array(data)
        | Map::ArrayOfMaps(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::LpmTrie(data)
        | Map::RingBuf(data)
        | Map::CgroupArray(data) => data,
        _ => anyhow::bail!("a map of an unexpected type"),
    };
    Ok(data.fd().as_fd())
}

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const TABLE_FLAGS: u32 = BPF_F_INNER_MAP | BPF_F_RDONLY_PROG | BPF_F_MMAPABLE;

/// The beginning of `union bpf_attr`, as each command used here reads it.
#[repr(C)]
union Attr {
    create: Create,
    element: Element,
    batch: Batch,
    whole: [u8; 128],
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Element {
    map_fd: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

fn bpf(command: libc::c_long, attr: &mut Attr) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is as long as stated, and what it points at lives until the call returns (each caller's borrow).
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<Attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn attr() -> Attr {
    // SAFETY: every field is an integer, for which zero is a value.
    unsafe { zeroed() }
}

fn create_array(map_type: u32, value_size: usize, max_entries: u32, map_flags: u32) -> Result<OwnedFd> {
    let mut attr = attr();
    attr.create = Create { map_type, key_size: 4, value_size: value_size as u32, max_entries, map_flags };
    let fd = bpf(BPF_MAP_CREATE, &mut attr).context("BPF_MAP_CREATE")?;
    // SAFETY: the kernel has just given us this descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn set_inner(outer: BorrowedFd<'_>, slot: Slot, inner: BorrowedFd<'_>) -> Result<()> {
    update(outer, &u32::from(slot.0), &(inner.as_raw_fd() as u32))
}

/// Sets one element. `V` is plain data of the map's value size.
pub fn update<K, V>(map: BorrowedFd<'_>, key: &K, value: &V) -> Result<()> {
    let mut attr = attr();
    attr.element = Element {
        map_fd: map.as_raw_fd() as u32,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_ref(value) as u64,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr).context("BPF_MAP_UPDATE_ELEM")?;
    Ok(())
}

/// Reads one element into `value`, whose size is the map's (per CPU maps: one value a possible CPU).
pub fn lookup<K, V: ?Sized>(map: BorrowedFd<'_>, key: &K, value: &mut V) -> Result<()> {
    let mut attr = attr();
    attr.element = Element {
        map_fd: map.as_raw_fd() as u32,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_mut(value).cast::<u8>() as u64,
        flags: 0,
    };
    bpf(BPF_MAP_LOOKUP_ELEM, &mut attr).context("BPF_MAP_LOOKUP_ELEM")?;
    Ok(())
}

/// Takes one element out; it may be gone already.
pub fn delete<K>(map: BorrowedFd<'_>, key: &K) -> Result<()> {
    let mut attr = attr();
    attr.element = Element { map_fd: map.as_raw_fd() as u32, key: std::ptr::from_ref(key) as u64, value: 0, flags: 0 };
    match bpf(BPF_MAP_DELETE_ELEM, &mut attr) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error).context("BPF_MAP_DELETE_ELEM"),
        _ => Ok(()),
    }
}

/// Every key. Nothing else may change the map.
pub fn keys<K: Copy + Default>(map: BorrowedFd<'_>) -> Result<Vec<K>> {
    let mut keys: Vec<K> = Vec::new();
    loop {
        let mut next = K::default();
        let mut attr = attr();
        attr.element = Element {
            map_fd: map.as_raw_fd() as u32,
            key: keys.last().map_or(0, |key| std::ptr::from_ref(key) as u64),
            value: (&raw mut next) as u64,
            flags: 0,
        };
        match bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) {
            Ok(_) => keys.push(next),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
            Err(error) => return Err(error).context("BPF_MAP_GET_NEXT_KEY"),
        }
    }
}

/// Sets the first elements of an array.
pub fn update_batch<V>(map: BorrowedFd<'_>, values: &[V]) -> Result<()> {
    let keys: Vec<u32> = (0..values.len() as u32).collect();
    let mut attr = attr();
    attr.batch = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: values.len() as u32,
        map_fd: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_BATCH, &mut attr).context("BPF_MAP_UPDATE_BATCH")?;
    Ok(())
}

/// Reads the first `count` elements of an array (per CPU: all CPUs' values of each, one after the other).
pub fn lookup_batch<V>(map: BorrowedFd<'_>, count: u32, values: &mut [V]) -> Result<()> {
    let mut keys = vec![0_u32; count as usize];
    let mut next = 0_u32;
    let mut attr = attr();
    attr.batch = Batch {
        in_batch: 0,
        out_batch: (&raw mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count,
        map_fd: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
        // The end of the map was reached.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other.map(drop).context("BPF_MAP_LOOKUP_BATCH"),
    }
}
