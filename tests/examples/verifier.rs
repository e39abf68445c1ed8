//! Where the verifier spends its instructions: `cargo run -p guard-tests --example verifier -- OBJECT PROGRAM [LOG]`.
//!
//! Prints how often each source line was visited, the most visited first; the whole log goes to LOG.

use std::{
    collections::{BTreeMap, HashSet},
    env, fs,
    os::fd::AsRawFd,
};

use anyhow::{Context, Result};
use aya_obj::{Object, ProgramSection};
use guard_tests::bpf::Programs;

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let path = arguments.next().context("OBJECT is missing")?;
    let name = arguments.next().context("PROGRAM is missing")?;
    let bytes = fs::read(&path)?;
    // The maps, as aya makes them; the program itself is loaded by hand, since aya shows no log of a success.
    let loaded = Programs::load_maps(&bytes, |_| {})?;
    let mut object = Object::parse(&bytes)?;
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let maps: Vec<_> = object.maps.iter().map(|(name, map)| (name.clone(), map.clone())).collect();
    let mut fds = Vec::new();
    for (name, map) in &maps {
        fds.push((name.as_str(), loaded.map(name)?.as_raw_fd(), map));
    }
    object.relocate_maps(fds.into_iter(), &text)?;
    object.relocate_calls(&text)?;
    let program = object.programs.get(&name).context("no such program")?;
    let function = &object.functions[&program.function_key()];
    let kind = match program.section {
        ProgramSection::SchedClassifier => 3,
        ProgramSection::Xdp { .. } => 6,
        ProgramSection::CgroupSkb { .. } => 8,
        ProgramSection::CgroupSockAddr { .. } => 18,
        ProgramSection::CgroupSockopt { .. } => 25,
        ref other => anyhow::bail!("{other:?} is not handled here"),
    };
    let mut attach = 0_u32;
    if let ProgramSection::CgroupSockAddr { attach_type } = program.section {
        attach = aya_obj::generated::bpf_attach_type::from(attach_type) as u32;
    }
    if matches!(program.section, ProgramSection::CgroupSockopt { .. }) {
        attach = 22;
    }
    let mut log = vec![0_u8; 1 << 29];
    let mut attr = [0_u64; 16];
    attr[0] = kind | (function.instructions.len() as u64) << 32;
    attr[1] = function.instructions.as_ptr() as u64;
    let license = c"Dual MIT/GPL";
    attr[2] = license.as_ptr() as u64;
    attr[3] = 2 | (log.len() as u64) << 32;
    attr[4] = log.as_mut_ptr() as u64;
    // kern_version, prog_flags; prog_name (16 bytes); ifindex, expected_attach_type.
    attr[8] = u64::from(attach) << 32;
    // SAFETY: BPF_PROG_LOAD reads the buffers named above, which outlive the call, and writes the log within its length.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, 5, attr.as_mut_ptr(), size_of_val(&attr)) };
    let error = std::io::Error::last_os_error();
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let log = String::from_utf8_lossy(&log[..end]);
    if let Some(path) = arguments.next() {
        fs::write(path, log.as_bytes())?;
    }
    println!("{} instructions", function.instructions.len());
    if fd < 0 {
        println!("refused: {error}");
    }
    for line in log.lines().rev().take(if fd < 0 { 40 } else { 4 }).collect::<Vec<_>>().into_iter().rev() {
        println!("{line}");
    }
    let mut visits: BTreeMap<usize, usize> = BTreeMap::new();
    for line in log.lines() {
        if let Some((number, rest)) = line.split_once(": (")
            && rest.as_bytes().get(2) == Some(&b')')
            && let Ok(number) = number.parse()
        {
            *visits.entry(number).or_default() += 1;
        }
    }
    let mut out = String::new();
    for (number, count) in &visits {
        out += &format!("{number} {count}\n");
    }
    fs::write("/dev/stderr", out)?;
    Ok(())
}
