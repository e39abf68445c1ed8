//! A second copy of a confirmed lockdown, outside the state directory and with a checksum: where that directory is lost, the
//! host still starts closed to all but the ways in.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    base::{self, Choices},
    mark::{self, Confirmed, Mark},
};
use crate::{
    cli::InstanceArgs,
    policy::{effective, model::Policy},
};

/// Names another place, for trying it out.
const PLACE: &str = "GUARD_RECOVERY";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    pub mark: Mark,
    /// YAML that needs no other file.
    pub policy: String,
}

#[derive(Debug, thiserror::Error)]
pub enum MarkerError {
    #[error("{what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{0} is damaged: its checksum does not hold. It says that this host was locked down, and no longer from where one \
         may come in"
    )]
    Damaged(PathBuf),
}

/// `/etc/guard/recovery`; `None` for an instance with a state directory of its own: it is tried out, and leaves nothing there.
#[must_use]
pub fn path(instance: &InstanceArgs) -> Option<PathBuf> {
    if let Some(place) = std::env::var_os(PLACE) {
        return Some(place.into());
    }
    if instance.state_dir.is_some() {
        return None;
    }
    let name = if instance.instance == "default" { String::new() } else { format!("-{}", instance.instance) };
    Some(Path::new("/etc/guard").join(format!("recovery{name}")))
}

/// In place of an older one.
pub fn write(path: &Path, mark: &Mark, policy: &Policy) -> Result<(), MarkerError> {
    let recovery = Recovery { mark: mark.clone(), policy: effective::yaml(policy) };
    let line = serde_json::to_string(&recovery).map_err(|error| failed("cannot write", path, error.into()))?;
    let text = format!("{line}\n{}\n", sum(&line));
    let draft = path.with_extension("new");
    let write = || -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|source| failed("cannot write", path, source))
}

/// `None`: there is none.
pub fn read(path: &Path) -> Result<Option<Recovery>, MarkerError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(MarkerError::Damaged(path.to_owned())),
        Err(source) => return Err(failed("cannot read", path, source)),
    };
    let damaged = || MarkerError::Damaged(path.to_owned());
    let (line, rest) = text.split_once('\n').ok_or_else(damaged)?;
    if rest.trim_end() != sum(line) {
        return Err(damaged());
    }
    serde_json::from_str(line).map(Some).map_err(|_| damaged())
}

/// For a host that was locked down, and nothing tells any more who may come in: the SSH ports (`tcp/22`), and nothing else.
#[must_use]
pub fn without_ways(ssh: &[String]) -> Recovery {
    let choices = Choices { ssh: ssh.to_vec(), ..Choices::default() };
    let clock = Confirmed::now("guard");
    let mark = Mark {
        by: "guard".to_owned(),
        at: clock.at,
        at_boot_ns: crate::record::clock::boot_now().to_string(),
        ways: mark::any(),
        ports: ssh.iter().filter_map(|service| service.strip_prefix("tcp/")?.parse().ok()).collect(),
        confirmed: Some(clock),
        ..Mark::default()
    };
    Recovery { mark, policy: base::ssh_only(&choices) }
}

/// The lockdown is over.
pub fn remove(path: &Path) -> Result<(), MarkerError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("cannot remove", path, error)),
        _ => Ok(()),
    }
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> MarkerError {
    MarkerError::Io { what, path: path.to_owned(), source }
}

fn sum(line: &str) -> String {
    effective::hex(&Sha256::digest(line.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::load_str;

    #[test]
    fn it_comes_back_whole_or_is_told_to_be_damaged() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("guard/recovery");
        assert_eq!(read(&path).unwrap(), None);
        let text = "version: 1\nname: lockdown\nmode: enforce\nlockdown: true\ninbound:\n  \
                    - { name: way in, from: 198.51.100.7, services: ssh }\noutbound: []\n";
        let policy = load_str("lockdown.yaml", text).unwrap().policy;
        let mark = Mark { by: "kim".to_owned(), ..Mark::default() };
        write(&path, &mark, &policy).unwrap();
        let back = read(&path).unwrap().unwrap();
        assert_eq!(back.mark, mark);
        let again = load_str("lockdown.yaml", &back.policy).unwrap().policy;
        assert!(again.lockdown && again.rules.len() == 1, "{}", back.policy);
        let whole = fs::read(&path).unwrap();
        for at in [0, whole.len() / 2, whole.len() - 2] {
            let mut other = whole.clone();
            other[at] ^= 1;
            fs::write(&path, &other).unwrap();
            assert!(matches!(read(&path), Err(MarkerError::Damaged(_))), "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(matches!(read(&path), Err(MarkerError::Damaged(_))), "cut at {at}");
        }
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }
}
