//! Who runs this command, as far as the host knows. Labels for whoever reads the history, never proof: root can claim
//! to be anybody.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{picture::Picture, processes::Processes};

/// A person, and how that is known. Field names are stable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    /// `--as`, else who called sudo, else the login user, else the user.
    pub name: String,
    /// How that is known: `as`, `sudo`, `login` or `user`.
    pub by: String,
    pub uid: u32,
    /// `/proc/self/loginuid`: who logged in, whatever became of the session since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    /// Fingerprint of the SSH key of this session, where sshd logged or exposed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Where the fingerprint is from: `exposed` (sshd's ExposeAuthInfo), `log` or `journal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_by: Option<String>,
}

impl Person {
    /// Who runs this command. `named`: what `--as` says.
    #[must_use]
    pub fn now(named: Option<&str>) -> Self {
        let uid = nix::unistd::getuid().as_raw();
        let name_of = |uid: u32| {
            nix::unistd::User::from_uid(uid.into()).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
        };
        let login_uid = fs::read_to_string("/proc/self/loginuid")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .filter(|&uid| uid != u32::MAX);
        let sudo = std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty());
        let (name, by) = match (named, sudo, login_uid) {
            (Some(name), ..) => (name.to_owned(), "as"),
            (None, Some(name), _) => (name, "sudo"),
            (None, None, Some(uid)) => (name_of(uid), "login"),
            (None, None, None) => (name_of(uid), "user"),
        };
        let key = exposed_key().map(|key| (key, "exposed")).or_else(logged_key);
        let (key, key_by) = key.map(|(key, by)| (key, by.to_owned())).unzip();
        Self { name, by: by.to_owned(), uid, login_uid, key, key_by }
    }

    /// `kim (sudo, key SHA256:…)`; the caller makes it harmless.
    #[must_use]
    pub fn spoken(&self) -> String {
        match &self.key {
            Some(key) => format!("{} ({}, key {key})", self.name, self.by),
            None => format!("{} ({})", self.name, self.by),
        }
    }
}

/// `SSH_USER_AUTH` names a file with the keys that this session was let in by (sshd's ExposeAuthInfo).
fn exposed_key() -> Option<String> {
    use base64::{Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::STANDARD_NO_PAD};
    use sha2::{Digest, Sha256};
    let file = std::env::var_os("SSH_USER_AUTH")?;
    let text = fs::read_to_string(file).ok()?;
    // `publickey ssh-ed25519 AAAA…`
    let blob = text.lines().find_map(|line| line.strip_prefix("publickey ")?.split_whitespace().nth(1))?;
    let digest = Sha256::digest(STANDARD.decode(blob).ok()?);
    Some(format!("SHA256:{}", STANDARD_NO_PAD.encode(digest)))
}

/// As syslog writes what sshd says.
const LOGS: [&str; 3] = ["/var/log/auth.log", "/var/log/secure", "/var/log/messages"];
/// Where journald keeps its files, one directory a machine.
const JOURNALS: [&str; 2] = ["/var/log/journal", "/run/log/journal"];
/// Of each file the newest so many bytes are read.
const LOG_BYTES: u64 = 8 << 20;
const JOURNAL_BYTES: u64 = 128 << 20;

/// What sshd wrote when it let this session in: found by the session's own address and port.
fn logged_key() -> Option<(String, &'static str)> {
    let logs: Vec<PathBuf> = LOGS.iter().map(PathBuf::from).filter(|path| path.exists()).collect();
    let journals: Vec<PathBuf> = JOURNALS.iter().flat_map(|root| journals_of(Path::new(root))).collect();
    if logs.is_empty() && journals.is_empty() {
        return None;
    }
    let clients = clients();
    let in_files = |files: &[PathBuf], most, by: &'static str| {
        let texts = files.iter().filter_map(|path| end_of(path, most).ok());
        texts.into_iter().find_map(|text| clients.iter().find_map(|client| key_in(&text, *client))).map(|key| (key, by))
    };
    if clients.is_empty() {
        return None;
    }
    in_files(&logs, LOG_BYTES, "log").or_else(|| in_files(&journals, JOURNAL_BYTES, "journal"))
}

/// The other ends of what carries this terminal, and of the nearest ancestor's `SSH_CONNECTION`: sudo drops the variable,
/// and the shell above it still has it.
fn clients() -> Vec<SocketAddr> {
    let Ok(picture) = Picture::read() else { return Vec::new() };
    let mut clients: Vec<SocketAddr> = picture.session(&[]).carriers.iter().map(|carrier| carrier.remote).collect();
    clients.extend(by_environment(&picture.processes, std::process::id()));
    clients.dedup();
    clients
}

fn by_environment(processes: &Processes, pid: u32) -> Option<SocketAddr> {
    processes.ancestors(pid).find_map(|process| {
        let environment = fs::read(format!("/proc/{}/environ", process.pid)).ok()?;
        let value = environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"SSH_CONNECTION="))?;
        super::session::parse_ssh_connection(std::str::from_utf8(value).ok()?).map(|(_, remote)| remote)
    })
}

/// journald's own files of the system, the one that is being written first.
fn journals_of(root: &Path) -> Vec<PathBuf> {
    let Ok(machines) = fs::read_dir(root) else { return Vec::new() };
    machines.flatten().map(|machine| machine.path().join("system.journal")).filter(|path| path.exists()).collect()
}

fn end_of(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The newest `Accepted publickey for kim from 198.51.100.7 port 50022 ssh2: ED25519 SHA256:…` of a client. In a journal
/// such short messages lie as plain text.
fn key_in(text: &[u8], client: SocketAddr) -> Option<String> {
    const ACCEPTED: &[u8] = b"Accepted publickey for ";
    let needle = format!(" from {} port {} ssh2: ", client.ip().to_canonical(), client.port());
    let mut end = text.len();
    while let Some(at) = rfind(&text[..end], ACCEPTED) {
        let line = &text[at..text.len().min(at + 512)];
        let line = line.split(|byte| *byte == b'\n' || *byte == 0).next().unwrap_or_default();
        if let Some(place) = rfind(line, needle.as_bytes()) {
            let rest = String::from_utf8_lossy(&line[place + needle.len()..]).into_owned();
            let key = rest.split_whitespace().find(|word| word.starts_with("SHA256:"))?;
            let sound = |byte: u8| byte.is_ascii_alphanumeric() || b":+/=".contains(&byte);
            // In a journal the next object's bytes follow: a SHA-256 in base64 has 43 characters.
            let key: String = key.bytes().take_while(|byte| sound(*byte)).take(7 + 43).map(char::from).collect();
            return Some(key);
        }
        end = at;
    }
    None
}

fn rfind(text: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut end = text.len().checked_sub(needle.len())? + 1;
    loop {
        let at = text[..end].iter().rposition(|byte| *byte == first)?;
        if text[at..].starts_with(needle) {
            return Some(at);
        }
        end = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "SHA256:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg";

    #[test]
    fn the_newest_login_of_this_client_names_the_key() {
        let line = |port: u32, key: &str| {
            format!(
                "Nov 24 03:14:08 db1 sshd[3121]: Accepted publickey for kim from 198.51.100.7 port {port} ssh2: ED25519 {key}\n"
            )
        };
        let client = "198.51.100.7:50022".parse().unwrap();
        let log = [line(50022, "SHA256:old"), line(50022, KEY), line(50023, "SHA256:other")].concat();
        assert_eq!(key_in(log.as_bytes(), client).as_deref(), Some(KEY));
        assert_eq!(key_in(log.as_bytes(), "198.51.100.7:5002".parse().unwrap()), None);
        assert_eq!(key_in(b"Accepted publickey for ", client), None);
        assert_eq!(key_in(b"", client), None);
        let mapped = "[::ffff:198.51.100.7]:50022".parse().unwrap();
        assert_eq!(key_in(log.as_bytes(), mapped).as_deref(), Some(KEY));
    }

    #[test]
    fn a_journal_has_other_bytes_around_it() {
        let mut journal = vec![0xff, 0, 1];
        let text = format!(
            "MESSAGE=Accepted publickey for kim from 2001:db8::7 port 50022 ssh2: ED25519-CERT {KEY} ID kim (serial 0) CA"
        );
        journal.extend(text.bytes());
        journal.extend([0, 0, 7, 200]);
        assert_eq!(key_in(&journal, "[2001:db8::7]:50022".parse().unwrap()).as_deref(), Some(KEY));
        let torn =
            [format!("Accepted publickey for kim from 2001:db8::7 port 1 ssh2: ED25519 {KEY}").as_bytes(), &[7, 8]]
                .concat();
        assert_eq!(key_in(&torn, "[2001:db8::7]:1".parse().unwrap()).as_deref(), Some(KEY));
    }
}
