//! Which package a program is of, and whether it is as the package has it: from the package database's own files. No
//! program of the host is run.
//!
//! It tells an agent from something that only calls itself so. It is no proof against an intruder with root, who can
//! write the database too; the screen says whose word it is.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use md5::{Digest as _, Md5};
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;
use sha2::Sha256;

/// Larger programs are not read.
const LARGEST: u64 = 1 << 30;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Intact {
    Yes,
    /// What runs is not what the package brought.
    No,
    /// The database has no checksum of it, or it cannot be read.
    Unknown,
}

/// A program's package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Owner {
    pub package: String,
    pub intact: Intact,
}

/// Both databases, below another root in tests.
pub struct Packages {
    root: PathBuf,
}

impl Default for Packages {
    fn default() -> Self {
        Self { root: "/".into() }
    }
}

impl Packages {
    #[cfg(test)]
    pub fn below(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// `exe`: as the process has it; `running`: what is read for the checksum (`/proc/PID/exe`).
    #[must_use]
    pub fn owner(&self, exe: &Path, running: &Path) -> Option<Owner> {
        let names = names(exe);
        self.of_dpkg(&names, running).or_else(|| self.of_rpm(&names, running))
    }

    fn of_dpkg(&self, names: &[String], running: &Path) -> Option<Owner> {
        let directory = self.root.join("var/lib/dpkg/info");
        for entry in fs::read_dir(&directory).ok()?.flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "list") {
                continue;
            }
            let Ok(text) = fs::read(&path) else { continue };
            let Some(name) = names.iter().find(|name| has_line(&text, name.as_bytes())) else { continue };
            let package = path.file_stem()?.to_string_lossy().into_owned();
            let sums = fs::read_to_string(path.with_extension("md5sums")).unwrap_or_default();
            let wanted = sums.lines().find_map(|line| {
                let (sum, file) = line.split_once("  ")?;
                (format!("/{file}") == *name).then_some(sum)
            });
            let intact = match (wanted, read(running)) {
                (Some(wanted), Some(bytes)) => same(wanted, &hex(&Md5::digest(bytes))),
                _ => Intact::Unknown,
            };
            return Some(Owner { package: package.split(':').next().unwrap_or_default().to_owned(), intact });
        }
        None
    }

    /// The database of rpm since Fedora 33 and RHEL 9.
    fn of_rpm(&self, names: &[String], running: &Path) -> Option<Owner> {
        let path = ["usr/lib/sysimage/rpm/rpmdb.sqlite", "var/lib/rpm/rpmdb.sqlite"].map(|place| self.root.join(place));
        let path = path.iter().find(|path| path.exists())?;
        // Read-only and immutable: no journal is made or waited for.
        let uri = format!("file:{}?immutable=1", path.display());
        let database =
            Connection::open_with_flags(uri, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI).ok()?;
        let mut statement = database.prepare("SELECT blob FROM Packages").ok()?;
        let mut rows = statement.query([]).ok()?;
        while let Ok(Some(row)) = rows.next() {
            let Ok(blob) = row.get_ref(0).and_then(|value| Ok(value.as_blob()?)) else { continue };
            let Some(header) = rpm::Header::read(blob) else { continue };
            let Some(at) = header.file(names) else { continue };
            let wanted = header.digest(at);
            let intact = match (wanted, header.algorithm(), read(running)) {
                (Some(wanted), 8, Some(bytes)) => same(wanted, &hex(&Sha256::digest(bytes))),
                (Some(wanted), 1, Some(bytes)) => same(wanted, &hex(&Md5::digest(bytes))),
                _ => Intact::Unknown,
            };
            return Some(Owner { package: header.name().to_owned(), intact });
        }
        None
    }
}

/// Where /bin is a link to /usr/bin, a package may list its files under either.
fn names(exe: &Path) -> Vec<String> {
    let name = exe.display().to_string();
    let other = match name.strip_prefix("/usr/") {
        Some(rest) if ["bin/", "sbin/", "lib/"].iter().any(|place| rest.starts_with(place)) => Some(format!("/{rest}")),
        _ => None,
    };
    std::iter::once(name).chain(other).collect()
}

fn has_line(text: &[u8], wanted: &[u8]) -> bool {
    text.split(|byte| *byte == b'\n').any(|line| line == wanted)
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let file = fs::File::open(path).ok()?;
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn same(wanted: &str, found: &str) -> Intact {
    if wanted.eq_ignore_ascii_case(found) { Intact::Yes } else { Intact::No }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An rpm header as the database keeps it (lib/header.c of rpm): two counts, an index of 16-byte entries, the store.
mod rpm {
    const NAME: u32 = 1000;
    const FILE_DIGESTS: u32 = 1035;
    const DIR_INDEXES: u32 = 1116;
    const BASE_NAMES: u32 = 1117;
    const DIR_NAMES: u32 = 1118;
    const DIGEST_ALGORITHM: u32 = 5011;
    const MOST_ENTRIES: usize = 4096;

    pub struct Header<'a> {
        index: &'a [u8],
        store: &'a [u8],
    }

    impl<'a> Header<'a> {
        pub fn read(blob: &'a [u8]) -> Option<Self> {
            let entries = number(blob, 0)? as usize;
            if entries > MOST_ENTRIES {
                return None;
            }
            let (index, store) = blob.get(8..)?.split_at_checked(entries * 16)?;
            Some(Self { index, store: store.get(..number(blob, 4)? as usize)? })
        }

        /// Where a tag's values begin, and how many they are.
        fn entry(&self, tag: u32) -> Option<(&'a [u8], usize)> {
            let entry = self.index.chunks_exact(16).find(|entry| number(entry, 0) == Some(tag))?;
            Some((self.store.get(number(entry, 8)? as usize..)?, number(entry, 12)? as usize))
        }

        fn strings(&self, tag: u32) -> impl Iterator<Item = &'a str> {
            let (bytes, count) = self.entry(tag).unwrap_or_default();
            bytes.split(|byte| *byte == 0).take(count).map(|text| std::str::from_utf8(text).unwrap_or_default())
        }

        fn numbers(&self, tag: u32) -> impl Iterator<Item = u32> {
            let (bytes, count) = self.entry(tag).unwrap_or_default();
            bytes.as_chunks::<4>().0.iter().take(count).map(|four| u32::from_be_bytes(*four))
        }

        pub fn name(&self) -> &'a str {
            self.strings(NAME).next().unwrap_or_default()
        }

        /// The position of a file among the package's.
        pub fn file(&self, names: &[String]) -> Option<usize> {
            let directories: Vec<&str> = self.strings(DIR_NAMES).collect();
            self.strings(BASE_NAMES).zip(self.numbers(DIR_INDEXES)).position(|(base, directory)| {
                let directory = directories.get(directory as usize).copied().unwrap_or_default();
                names.iter().any(|name| name.strip_prefix(directory) == Some(base))
            })
        }

        pub fn digest(&self, at: usize) -> Option<&'a str> {
            self.strings(FILE_DIGESTS).nth(at).filter(|digest| !digest.is_empty())
        }

        /// PGP's number: 1 MD5, 8 SHA-256.
        pub fn algorithm(&self) -> u32 {
            self.numbers(DIGEST_ALGORITHM).next().unwrap_or(1)
        }
    }

    fn number(bytes: &[u8], at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dpkg_knows_its_files_and_whether_they_changed() {
        let root = tempfile::tempdir().unwrap();
        let info = root.path().join("var/lib/dpkg/info");
        fs::create_dir_all(&info).unwrap();
        let program = root.path().join("agent");
        fs::write(&program, "agent").unwrap();
        fs::write(info.join("rsyslog:amd64.list"), "/.\n/usr/sbin\n/usr/sbin/rsyslogd\n").unwrap();
        // printf agent | md5sum
        fs::write(info.join("rsyslog:amd64.md5sums"), "b33aed8f3134996703dc39f9a7c95783  usr/sbin/rsyslogd\n").unwrap();
        fs::write(info.join("old.list"), "/sbin/older\n").unwrap();
        let packages = Packages { root: root.path().to_owned() };
        let owner = |exe: &str| packages.owner(Path::new(exe), &program);
        assert_eq!(owner("/usr/sbin/rsyslogd"), Some(Owner { package: "rsyslog".into(), intact: Intact::Yes }));
        assert_eq!(owner("/usr/sbin/older"), Some(Owner { package: "old".into(), intact: Intact::Unknown }));
        assert_eq!(owner("/usr/sbin"), Some(Owner { package: "rsyslog".into(), intact: Intact::Unknown }));
        assert_eq!(owner("/usr/sbin/rsyslog"), None);
        fs::write(&program, "other").unwrap();
        assert_eq!(owner("/usr/sbin/rsyslogd").unwrap().intact, Intact::No);
    }

    /// The layout that rpm writes, made by hand: index entries of (tag, type, offset, count), then the store.
    fn rpm_header(digest: &str) -> Vec<u8> {
        let mut store = Vec::new();
        let mut index = Vec::new();
        let mut put = |tag: u32, kind: u32, values: Vec<u8>, count: u32| {
            for word in [tag, kind, store.len() as u32, count] {
                index.extend(word.to_be_bytes());
            }
            store.extend(values);
        };
        put(1000, 6, b"falcon-sensor\0".to_vec(), 1);
        put(1035, 8, format!("\0{digest}\0").into_bytes(), 2);
        put(1116, 4, [0_u32.to_be_bytes(), 1_u32.to_be_bytes()].concat(), 2);
        put(1117, 8, b"CrowdStrike\0falcon-sensor\0".to_vec(), 2);
        put(1118, 8, b"/opt/\0/opt/CrowdStrike/\0".to_vec(), 2);
        put(5011, 4, 8_u32.to_be_bytes().to_vec(), 1);
        let mut blob = Vec::new();
        blob.extend((index.len() as u32 / 16).to_be_bytes());
        blob.extend((store.len() as u32).to_be_bytes());
        blob.extend(index);
        blob.extend(store);
        blob
    }

    #[test]
    fn rpm_knows_its_files_and_whether_they_changed() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("var/lib/rpm");
        fs::create_dir_all(&place).unwrap();
        let program = root.path().join("agent");
        fs::write(&program, "agent").unwrap();
        let database = Connection::open(place.join("rpmdb.sqlite")).unwrap();
        database.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)", []).unwrap();
        // printf agent | sha256sum
        let digest = hex(&Sha256::digest(b"agent"));
        database.execute("INSERT INTO Packages (blob) VALUES (?1)", [rpm_header(&digest)]).unwrap();
        database.execute("INSERT INTO Packages (blob) VALUES (?1)", [vec![1_u8, 2, 3]]).unwrap();
        drop(database);
        let packages = Packages { root: root.path().to_owned() };
        let owner = |exe: &str| packages.owner(Path::new(exe), &program);
        let falcon = "/opt/CrowdStrike/falcon-sensor";
        assert_eq!(owner(falcon), Some(Owner { package: "falcon-sensor".into(), intact: Intact::Yes }));
        assert_eq!(owner("/opt/CrowdStrike/other"), None);
        fs::write(&program, "other").unwrap();
        assert_eq!(owner(falcon).unwrap().intact, Intact::No);
    }

    #[test]
    fn a_header_that_is_cut_is_none() {
        let blob = rpm_header("00");
        for length in 0..blob.len() {
            // Never a panic; a header that is whole is found only in full.
            assert!(rpm::Header::read(&blob[..length]).is_none());
        }
    }
}
