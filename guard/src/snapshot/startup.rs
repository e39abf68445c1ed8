//! What starts by itself: cron tables, units and timers, start scripts. Listed with hashes; not judged, but for what anybody
//! could have changed.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    io::Read as _,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use serde_json::{Map, json};
use sha2::{Digest as _, Sha256};

use super::{
    Context,
    decode::hex,
    lines::{Lines, put_text},
};

const PLACES: &[&str] = &[
    "/etc/crontab",
    "/etc/anacrontab",
    "/etc/cron.d",
    "/etc/cron.hourly",
    "/etc/cron.daily",
    "/etc/cron.weekly",
    "/etc/cron.monthly",
    "/var/spool/cron",
    "/etc/systemd/system",
    "/etc/systemd/user",
    "/run/systemd/system",
    "/run/systemd/transient",
    "/usr/local/lib/systemd",
    "/etc/init.d",
    "/etc/rc.local",
    "/etc/profile.d",
    "/etc/ld.so.preload",
    "/etc/modules-load.d",
    "/etc/udev/rules.d",
];
/// In each user's home.
const IN_HOMES: &[&str] = &[
    ".config/systemd/user",
    ".config/autostart",
    ".profile",
    ".bash_profile",
    ".bash_login",
    ".bashrc",
    ".zshenv",
    ".zshrc",
    ".ssh/rc",
];
const MOST_FILES: usize = 10_000;
/// Larger ones are listed without their hash.
const MOST_BYTES: u64 = 256 * 1024;

pub fn section(_: &Context, lines: &Lines) -> Result<(), String> {
    // The last first. Homes may lie on a server that does not answer: after all else.
    let mut places = in_homes(&fs::read("/etc/passwd").unwrap_or_default());
    places.extend(PLACES.iter().rev().map(PathBuf::from));
    let mut count = 0;
    while let Some(place) = places.pop() {
        let Ok(about) = fs::symlink_metadata(&place) else { continue };
        if about.is_dir() {
            match fs::read_dir(&place) {
                Ok(entries) => places.extend(entries.flatten().map(|entry| entry.path())),
                Err(error) => lines.note(format!("{}: {error}", place.display())),
            }
            continue;
        }
        count += 1;
        if count > MOST_FILES {
            lines.note(format!("more than {MOST_FILES} files: the rest is not listed"));
            break;
        }
        let mut object = Map::new();
        put_text(&mut object, "path", place.as_os_str().as_bytes());
        let mut marks = Vec::new();
        if about.is_symlink() {
            if let Ok(target) = fs::read_link(&place) {
                put_text(&mut object, "target", target.as_os_str().as_bytes());
            }
        } else {
            if about.mode() & 0o002 != 0 {
                marks.push("writable_by_all");
            }
            if about.is_file() && about.size() <= MOST_BYTES {
                object.insert("sha256".into(), hash(&place).into());
            }
        }
        if place == Path::new("/etc/ld.so.preload") && about.size() > 0 {
            marks.push("loaded_into_every_program");
        }
        for (name, value) in [
            ("bytes", json!(about.size())),
            ("mode", format!("{:o}", about.mode()).into()),
            ("uid", about.uid().into()),
            ("changed", about.ctime().into()),
            ("modified", about.mtime().into()),
            ("suspicious", json!(marks)),
        ] {
            object.insert(name.to_owned(), value);
        }
        lines.put(&object.into());
    }
    Ok(())
}

/// By the lines of /etc/passwd (passwd(5)); what is damaged names no home.
fn in_homes(passwd: &[u8]) -> Vec<PathBuf> {
    let homes: BTreeSet<&OsStr> = passwd
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b':').nth(5))
        .filter(|home| home.starts_with(b"/"))
        .map(OsStr::from_bytes)
        .collect();
    homes.iter().flat_map(|home| IN_HOMES.iter().map(|file| Path::new(home).join(file))).collect()
}

/// Without a mark on the file that it was read, where that is allowed.
fn hash(path: &Path) -> Option<String> {
    let open = |flags: i32| {
        let flags = flags | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
    };
    let file = open(libc::O_NOATIME).or_else(|_| open(0)).ok()?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).ok()?;
    Some(hex(&Sha256::digest(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_home_is_looked_into_once() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\ngit:x:998:998::/srv/git:/bin/sh\nb:x:1:1::/srv/git:/bin/sh\nbroken\nc:x:1:1::none:";
        let places = in_homes(passwd);
        assert_eq!(places.len(), 2 * IN_HOMES.len());
        assert!(places.contains(&PathBuf::from("/srv/git/.config/systemd/user")), "{places:?}");
    }
}
