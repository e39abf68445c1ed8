//! A person at a terminal, over real OpenSSH.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{ChildStdin, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{flows::PASSES, process::Process, servers::Sshd, world::World};

/// A person at a terminal of the server, over OpenSSH. What is run answers by files, since a multiplexer draws its screen
/// as it likes.
pub struct Terminal<'a> {
    pub process: Process,
    keyboard: ChildStdin,
    dir: &'a Path,
    number: u32,
}

impl<'a> Terminal<'a> {
    /// The responder's, logged in as root.
    ///
    /// # Panics
    ///
    /// Where that fails.
    #[must_use]
    pub fn open(sshd: &Sshd, world: &'a World) -> Self {
        let mut command = sshd.client(&world.responder, world.server.v4.into());
        command.args(["-tt", "PS1= exec sh"]).stdin(Stdio::piped()).env("TERM", "xterm");
        let mut process = Process::spawn(&mut command).unwrap();
        let keyboard = process.stdin().unwrap();
        let mut terminal = Self { process, keyboard, dir: world.dir(), number: 0 };
        terminal.run("true");
        terminal
    }

    /// # Panics
    ///
    /// Where the terminal is gone.
    pub fn types(&mut self, line: &str) {
        writeln!(self.keyboard, "{line}").unwrap();
    }

    /// Runs a line in whatever shell has the terminal now: its exit code, and what it said.
    ///
    /// # Panics
    ///
    /// Where no answer comes.
    pub fn run(&mut self, line: &str) -> (i32, String) {
        self.number += 1;
        // A world may have several.
        let name = |what: &str| self.dir.join(format!("{what}-{}-{}", self.process.pid(), self.number));
        let (said, code) = (name("said"), name("code"));
        self.types(&format!("{line} > {} 2>&1; echo $? > {}", said.display(), code.display()));
        let deadline = Instant::now() + PASSES * 6;
        loop {
            if let Ok(Ok(number)) = fs::read_to_string(&code).map(|text| text.trim().parse()) {
                return (number, fs::read_to_string(&said).unwrap());
            }
            assert!(Instant::now() < deadline, "{line}: no answer\n{}", self.process.output());
            thread::sleep(Duration::from_millis(20));
        }
    }
}
