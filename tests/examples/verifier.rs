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
    let features = aya_obj::btf::BtfFeatures::new(true, true, true, true, true, true, true, true);
    let btf = object.fixup_and_sanitize_btf(&features)?.context("the object has no BTF")?.to_bytes();
    let mut attr = [0_u64; 16];
    attr[0] = btf.as_ptr() as u64;
    attr[2] = btf.len() as u64;
    // SAFETY: BPF_BTF_LOAD reads the buffer named above, which outlives the call.
    let btf = unsafe { libc::syscall(libc::SYS_bpf, 18, attr.as_mut_ptr(), size_of_val(&attr)) };
    anyhow::ensure!(btf >= 0, "BPF_BTF_LOAD: {}", std::io::Error::last_os_error());
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
    attr[3] = 6 | (log.len() as u64) << 32;
    attr[4] = log.as_mut_ptr() as u64;
    // kern_version, prog_flags; prog_name (16 bytes); ifindex, expected_attach_type.
    attr[8] = u64::from(attach) << 32;
    let (functions, lines) = (function.func_info.func_info_bytes(), function.line_info.line_info_bytes());
    attr[9] = btf as u64 | (function.func_info_rec_size as u64) << 32;
    attr[10] = functions.as_ptr() as u64;
    attr[11] = function.func_info.len() as u64 | (function.line_info_rec_size as u64) << 32;
    attr[12] = lines.as_ptr() as u64;
    attr[13] = function.line_info.len() as u64;
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
    // By function, and by source line.
    let mut functions: BTreeMap<String, usize> = BTreeMap::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let (mut within, mut place) = (name.clone(), String::new());
    for line in log.lines() {
        if let Some(rest) = line.strip_prefix("Validating ") {
            within = rest.split('(').next().unwrap_or(rest).to_owned();
        } else if let Some(text) = line.strip_prefix("; ") {
            place = text.to_owned();
        } else if let Some((number, rest)) = line.split_once(": (")
            && rest.as_bytes().get(2) == Some(&b')')
            && number.parse::<u32>().is_ok()
        {
            *functions.entry(within.clone()).or_default() += 1;
            *places.entry(format!("{within}: {place}")).or_default() += 1;
        }
    }
    let mut functions: Vec<_> = functions.into_iter().collect();
    functions.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (function, count) in functions {
        println!("{count:8} {function}");
    }
    let mut places: Vec<_> = places.into_iter().collect();
    places.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (place, count) in places.iter().take(40) {
        println!("{count:8} {place}");
    }
    Ok(())
}
