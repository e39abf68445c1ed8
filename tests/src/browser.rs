//! A headless Chromium that is told what to do through a pipe (DevTools protocol), to try a page as a person does who has no
//! mouse.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

/// Killed on drop.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    to: File,
    from: BufReader<File>,
    number: u64,
    session: Option<String>,
}

impl Browser {
    /// Opens a file in a window of a phone's width.
    pub fn open(page: &Path, profile: &Path) -> Result<Self> {
        let (commands, to) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let (from, answers) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let mut command = Command::new("chromium");
        command
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--disable-background-networking", "--remote-debugging-pipe", "--window-size=390,844"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let ends = [commands.as_raw_fd(), answers.as_raw_fd()];
        // SAFETY: between fork and exec only system calls are made; nothing is allocated and no lock is taken.
        unsafe { command.pre_exec(move || as_3_and_4(ends)) };
        let child = command.spawn().context("chromium")?;
        let as_file = |end: OwnedFd| File::from(end);
        let mut browser =
            Self { child, to: as_file(to), from: BufReader::new(as_file(from)), number: 0, session: None };
        drop((commands, answers));
        let url = format!("file://{}", page.display());
        let target = browser.ask("Target.createTarget", &json!({ "url": url }))?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.ask("Target.attachToTarget", &attach)?;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while browser.says("document.readyState + location.protocol")? != "completefile:" {
            ensure!(std::time::Instant::now() < deadline, "the page is not loaded");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Ok(browser)
    }

    /// One command of the protocol, and its result.
    pub fn ask(&mut self, method: &str, parameters: &Value) -> Result<Value> {
        self.number += 1;
        let mut message = json!({ "id": self.number, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut bytes = serde_json::to_vec(&message)?;
        bytes.push(0);
        self.to.write_all(&bytes)?;
        loop {
            let mut answer = Vec::new();
            ensure!(self.from.read_until(0, &mut answer)? > 0, "chromium ended");
            answer.pop();
            let answer: Value = serde_json::from_slice(&answer)?;
            if answer["id"] == self.number {
                ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return Ok(answer["result"].clone());
            }
        }
    }

    /// What an expression is in the page, as text.
    pub fn says(&mut self, expression: &str) -> Result<String> {
        let asked = json!({ "expression": format!("String({expression})"), "returnByValue": true });
        let answer = self.ask("Runtime.evaluate", &asked)?;
        answer["result"]["value"].as_str().map(str::to_owned).with_context(|| format!("{expression}: {answer}"))
    }

    /// A key, down and up: its name and what it types.
    pub fn presses(&mut self, key: &str, code: u32, text: &str) -> Result<()> {
        for kind in ["keyDown", "keyUp"] {
            let typed = if kind == "keyDown" { text } else { "" };
            self.ask(
                "Input.dispatchKeyEvent",
                &json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": typed }),
            )?;
        }
        Ok(())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // With all that it has started: they are a process group of their own.
        let group = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Where Chromium looks for them. Above both first, each where nothing is yet, so that neither overwrites the other.
fn as_3_and_4(ends: [i32; 2]) -> std::io::Result<()> {
    let mut above = [0; 2];
    for (end, place) in ends.into_iter().zip(&mut above) {
        // SAFETY: a descriptor of ours; the new one is closed by exec.
        *place = nix::errno::Errno::result(unsafe { libc::fcntl(end, libc::F_DUPFD_CLOEXEC, 20) })?;
    }
    for (from, place) in above.into_iter().zip([3, 4]) {
        // SAFETY: as above; what had the numbers 3 and 4 belongs to the parent, and is closed by exec here.
        nix::errno::Errno::result(unsafe { libc::dup2(from, place) })?;
    }
    Ok(())
}
