//! The object into the kernel: maps, pinned as they are made (or those that are pinned already), and programs.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    sync::Mutex,
};

use aya::{EbpfLoader, VerifierLogLevel, programs::Program};
use guard_common::{
    abi::{RuleCounter, Slot},
    decide::Node,
};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use super::{
    KernelError,
    pins::Pins,
    sealing,
    settings::Settings,
    sys::{self, F_INNER_MAP, F_MMAPABLE, F_RDONLY_PROG, MAP_TYPE_ARRAY, MAP_TYPE_ARRAY_OF_MAPS},
};
use crate::object::OBJECT;

/// Of the inner maps of `TABLES`: any size, read-only for programs; mappable, so that they lie on pages of their own.
pub const TABLE_FLAGS: u32 = F_INNER_MAP | F_RDONLY_PROG | F_MMAPABLE;

/// In the environment: a program that is refused is refused with the verifier's log, which may take minutes.
const VERIFIER_LOG: &str = "GUARD_VERIFIER_LOG";

/// Programs by name, loaded and held.
pub type Programs = HashMap<String, OwnedFd>;

/// Every map of the object that programs and userspace share, by name.
pub fn map_names() -> Result<Vec<String>, KernelError> {
    let object = aya_obj::Object::parse(OBJECT)
        .map_err(|error| KernelError::Load { what: "the eBPF object".to_owned(), message: error.to_string() })?;
    let mut names: Vec<String> = object.maps.into_keys().filter(|name| !name.starts_with('.')).collect();
    names.sort();
    Ok(names)
}

/// Before 5.11 maps count against the limit of locked memory.
pub fn raise_memory_limit() {
    // Where it cannot be raised, making the maps says so.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}

/// The arrays of maps, made by hand and pinned: 6.1 refuses inner maps without type information under an outer one
/// whose template has it, as aya would make it.
pub fn make_outer_maps(pins: &Pins) -> Result<(), KernelError> {
    for (name, value_size, flags) in
        [("TABLES", size_of::<Node>(), TABLE_FLAGS), ("RULE_COUNTERS", size_of::<RuleCounter>(), F_INNER_MAP)]
    {
        let failed = || KernelError::call(format!("cannot make the map {name}"));
        let template =
            sys::map_create("guard_template", MAP_TYPE_ARRAY, value_size as u32, 1, flags, None).map_err(failed())?;
        let slots = Slot::TABLES as u32;
        let outer =
            sys::map_create(name, MAP_TYPE_ARRAY_OF_MAPS, 4, slots, 0, Some(template.as_fd())).map_err(failed())?;
        let path = pins.map(name);
        sys::pin(outer.as_fd(), &path).map_err(KernelError::path("cannot pin", &path))?;
    }
    Ok(())
}

/// Loads the programs that are wanted, against the pinned maps; makes and pins those maps that are not there.
pub fn load(pins: &Pins, settings: &Settings, wanted: &dyn Fn(&str) -> bool) -> Result<Programs, KernelError> {
    let names = map_names()?;
    let features = settings.offers.bits();
    // Nobody needs to guess it: only root can put a mark on what comes in.
    let mark = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0) as u32 | 1;
    let mut loader = EbpfLoader::new();
    // The seal's array of cgroups is of a kind that aya makes and does not know.
    loader.allow_unsupported_maps();
    // aya asks once more where a load fails, with the log; every step of the wire's in it takes the kernel minutes, and the
    // failure may be one of a moment (ENOMEM). A host must not stay open for that.
    if std::env::var_os(VERIFIER_LOG).is_none() {
        loader.verifier_log_level(VerifierLogLevel::STATS);
    }
    loader
        .override_global("NETNS_COOKIE", &settings.netns_cookie, true)
        .override_global("HZ", &settings.hz, true)
        .override_global("REJECT_MARK", &mark, true)
        .override_global("FEATURES", &features, true);
    for name in &names {
        loader.map_pin_path(name, pins.map(name));
        if name.starts_with("FLOWS_UNANSWERED_") {
            loader.map_max_entries(name, (settings.flows / 2).max(1));
        } else if name.starts_with("FLOWS_") || name == "OWNERS" || name == "SOCKETS" {
            loader.map_max_entries(name, settings.flows);
        }
    }
    // Without it the verifier walks the functions of the wire's programs at each call: for minutes, and in vain. Every kernel
    // that guard runs on knows it; that it does not may be the failure of a moment.
    if !aya::features().btf().is_some_and(|btf| btf.btf_func_global()) {
        return Err(KernelError::Load {
            what: "cannot load guard's programs".to_owned(),
            message: "the kernel did not take their type information (BTF); if it has any (guard doctor), try again"
                .to_owned(),
        });
    }
    let failed =
        |what: &str, error: &dyn std::error::Error| KernelError::Load { what: what.to_owned(), message: chain(error) };
    let mut ebpf = loader.load(OBJECT).map_err(|error| failed("cannot make guard's maps", &error))?;
    let mut queue: Vec<(String, &mut Program)> = ebpf
        .programs_mut()
        .filter(|(name, _)| wanted(name))
        .map(|(name, program)| (name.to_owned(), program))
        .collect();
    // The wire's and the shield take the verifier 0.4 s each, all others together 0.05 s: those first, two at a time.
    queue.sort_by_key(|(name, _)| name.starts_with("wire") || name == "shield");
    let queue = Mutex::new(queue);
    let next = || queue.lock().ok().and_then(|mut queue| queue.pop());
    let work = || -> Result<Programs, KernelError> {
        let mut programs = Programs::new();
        while let Some((name, program)) = next() {
            if let Some(fd) = load_one(&name, program)? {
                programs.insert(name, fd);
            }
        }
        Ok(programs)
    };
    let (here, there) = std::thread::scope(|scope| {
        let other = scope.spawn(work);
        (work(), other.join())
    });
    let mut programs = here?;
    let there = there.map_err(|_| failed("cannot load guard's programs", &std::fmt::Error))?;
    programs.extend(there?);
    programs.extend(sealing::load(pins, settings, wanted)?);
    Ok(programs)
}

/// `None`: of a kind that guard does not load so.
fn load_one(name: &str, program: &mut Program) -> Result<Option<OwnedFd>, KernelError> {
    let what = || format!("the kernel refused guard's program {name} ({VERIFIER_LOG}=1 shows the verifier's reason)");
    let loaded = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        // Others of that kind are the seal's, which are loaded as what they are (`sealing`).
        Program::RawTracePoint(program) if name.starts_with("process_") => program.load(),
        _ => return Ok(None),
    };
    loaded.map_err(|error| failed(&what(), &error))?;
    let fd = program.fd().map_err(|error| failed(&what(), &error))?;
    fd.as_fd().try_clone_to_owned().map(Some).map_err(KernelError::call(what()))
}

fn failed(what: &str, error: &dyn std::error::Error) -> KernelError {
    KernelError::Load { what: what.to_owned(), message: chain(error) }
}

/// An error with all that caused it; the verifier's log stands in there, of which the end matters.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    const MOST: usize = 2000;
    if text.len() > MOST {
        let from = (text.len() - MOST..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.replace_range(..from, "…");
    }
    text
}
