//! Kernel and machine: modules, command line, clocks, mounts, who is logged in.

use std::{fs, io::Read, os::unix::fs::OpenOptionsExt, path::Path};

use serde_json::{Map, Value, json};

use super::{
    Context,
    lines::{Lines, put_text},
    network::host_name,
};

/// Of one small file.
const MOST_BYTES: u64 = 4 << 20;

/// A file's start; a FIFO or a terminal in its place does not hold anybody up.
pub fn small(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    file.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    small(path.as_ref()).ok().map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

pub fn modules(context: &Context, lines: &Lines) -> Result<(), String> {
    let path = context.proc.join("modules");
    let list = match fs::read_to_string(&path) {
        Ok(list) => list,
        // A kernel without modules has no such file.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    let mut names = Vec::new();
    for line in list.lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let field = |at: usize| fields.get(at).copied().unwrap_or_default();
        let taint = text(format!("/sys/module/{}/taint", field(0))).filter(|taint| !taint.is_empty());
        let mut marks = Vec::new();
        if taint.is_some() {
            marks.push("taints_the_kernel");
        }
        lines.put(&json!({
            "name": field(0), "bytes": field(1).parse::<u64>().ok(), "used_by": field(3), "state": field(4),
            "taint": taint, "suspicious": marks,
        }));
        names.push(field(0));
    }
    // A loaded module (one that has a state) that the list leaves out hides itself.
    for entry in fs::read_dir("/sys/module").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let gone = || !entry.path().join("initstate").exists();
        if entry.path().join("initstate").exists() && !names.contains(&name.as_str()) && !gone() {
            lines.put(&json!({ "name": name, "suspicious": ["not_in_the_list_of_modules"] }));
        }
    }
    Ok(())
}

/// Settings that tell what the kernel allows, or that an intruder changes.
const SETTINGS: &[&str] = &[
    "kernel/core_pattern",
    "kernel/modprobe",
    "kernel/modules_disabled",
    "kernel/kexec_load_disabled",
    "kernel/unprivileged_bpf_disabled",
    "kernel/yama/ptrace_scope",
    "kernel/kptr_restrict",
    "kernel/dmesg_restrict",
    "kernel/randomize_va_space",
    "kernel/ftrace_enabled",
    "fs/binfmt_misc/status",
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/core/bpf_jit_enable",
];

pub fn kernel(context: &Context, lines: &Lines) -> Result<(), String> {
    let uname = nix::sys::utsname::uname().map_err(|error| error.to_string())?;
    let of = |name: &str| text(context.proc.join(name));
    let clock = |clock: libc::clockid_t| {
        nix::time::clock_gettime(nix::time::ClockId::from_raw(clock))
            .map(|time| time.tv_sec() * 1_000_000_000 + time.tv_nsec())
            .ok()
    };
    let settings: Map<String, Value> =
        SETTINGS.iter().map(|name| ((*name).to_owned(), of(&format!("sys/{name}")).into())).collect();
    lines.put(&json!({
        "host": host_name().ok(),
        "release": uname.release().to_string_lossy(),
        "version": uname.version().to_string_lossy(),
        "machine": uname.machine().to_string_lossy(),
        "command_line": of("cmdline"),
        "boot_id": of("sys/kernel/random/boot_id"),
        "tainted": of("sys/kernel/tainted"),
        "uptime": of("uptime"),
        "load": of("loadavg"),
        "lockdown": text("/sys/kernel/security/lockdown"),
        "security_modules": text("/sys/kernel/security/lsm"),
        "clock_source": text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        // Nanoseconds, read one after the other.
        "clocks_ns": {
            "real": clock(libc::CLOCK_REALTIME),
            "tai": clock(libc::CLOCK_TAI),
            "boot": clock(libc::CLOCK_BOOTTIME),
            "monotonic": clock(libc::CLOCK_MONOTONIC),
        },
        "time_namespace_offsets": of("self/timens_offsets"),
        "settings": settings,
        "suspicious": [],
    }));
    Ok(())
}

pub fn mounts(context: &Context, lines: &Lines) -> Result<(), String> {
    // Process 1's, where it can be read: a container's mounts are not the host's.
    let places = ["1/mountinfo", "self/mountinfo"].map(|name| context.proc.join(name));
    let bytes = places.iter().find_map(|place| fs::read(place).ok()).ok_or("the mount table cannot be read")?;
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let Some(dash) = fields.iter().position(|field| *field == b"-") else { continue };
        let mut object = Map::new();
        for (name, at) in [
            ("root", 3),
            ("mount_point", 4),
            ("options", 5),
            ("type", dash + 1),
            ("source", dash + 2),
            ("super_options", dash + 3),
        ] {
            put_text(&mut object, name, &unescaped(fields.get(at).copied().unwrap_or_default()));
        }
        let point = object["mount_point"].as_str().unwrap_or_default();
        let mut marks = Vec::new();
        // The old way to hide a process: something mounted over its directory.
        if point
            .strip_prefix("/proc/")
            .is_some_and(|rest| rest.split('/').next().is_some_and(|part| part.parse::<u32>().is_ok()))
        {
            marks.push("hides_a_process");
        }
        object.insert("suspicious".into(), json!(marks));
        lines.put(&object.into());
    }
    Ok(())
}

/// `\040` and the like.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// `struct utmp` of glibc on x86_64 (utmp(5)).
const UTMP: usize = 384;

pub fn sessions(_: &Context, lines: &Lines) -> Result<(), String> {
    let utmp = small(Path::new("/run/utmp")).unwrap_or_default();
    for record in utmp.chunks_exact(UTMP) {
        logged_in(record, lines);
    }
    for (what, place) in [("session", "/run/systemd/sessions"), ("user", "/run/systemd/users")] {
        for entry in fs::read_dir(place).into_iter().flatten().flatten() {
            // FIFOs (`*.ref`) lie there too.
            if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            let Some(file) = text(entry.path()) else { continue };
            let fields: Map<String, Value> = file
                .lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(|line| line.split_once('='))
                .map(|(name, value)| (name.to_lowercase(), value.into()))
                .collect();
            lines.put(&json!({ "source": "logind", "what": what, "id": entry.file_name().to_string_lossy(), "fields": fields }));
        }
    }
    Ok(())
}

fn logged_in(record: &[u8], lines: &Lines) {
    const USER_PROCESS: i16 = 7;
    if record.len() < UTMP || i16::from_le_bytes([record[0], record[1]]) != USER_PROCESS {
        return;
    }
    let cut = |bytes: &[u8]| bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
    let number = |at: usize| i32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
    let mut object = Map::new();
    object.insert("source".into(), "utmp".into());
    object.insert("pid".into(), number(4).into());
    object.insert("since".into(), number(340).into());
    for (name, from, to) in [("line", 8, 40), ("user", 44, 76), ("host", 76, 332)] {
        put_text(&mut object, name, &cut(&record[from..to]));
    }
    lines.put(&object.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_read_as_glibc_wrote_it() {
        let mut record = [0_u8; UTMP];
        record[0] = 7;
        record[4..8].copy_from_slice(&4410_i32.to_le_bytes());
        record[8..13].copy_from_slice(b"pts/3");
        record[44..47].copy_from_slice(b"kim");
        record[76..88].copy_from_slice(b"198.51.100.7");
        record[340..344].copy_from_slice(&1_767_323_045_i32.to_le_bytes());
        let lines = Lines::default();
        logged_in(&record, &lines);
        let section = lines.close("sessions", Some(Ok(())), std::time::Duration::ZERO);
        let expected = json!({ "source": "utmp", "pid": 4410, "since": 1_767_323_045, "line": "pts/3", "user": "kim", "host": "198.51.100.7" });
        assert_eq!(serde_json::from_slice::<Value>(&section.bytes).unwrap(), expected);
    }

    #[test]
    fn blanks_in_mount_points_come_back() {
        assert_eq!(unescaped(br"/a\040b\134\0"), br"/a b\\0");
    }
}
