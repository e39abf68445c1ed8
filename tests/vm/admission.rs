//! The seal of `bpf(2)`: what root can do without a lockdown is refused to others while one holds, and guard itself, of
//! whatever binary, is never locked out.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use guard_tests::{
    agent::{Said, ask},
    guard::{Guard, binary},
    process::{Ended, Process, run},
    world::{World, mounts::BPFFS},
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(60);

/// Kinds of programs: xdp, sched_cls; cgroup_skb, and a socket filter.
const REFUSED_KINDS: [&str; 2] = ["6", "3"];
const OTHER_KINDS: [&str; 2] = ["8", "1"];

/// Somebody else, as root, with the pins of this guard before him.
struct Other<'a> {
    world: &'a World,
    pins: String,
}

impl Other<'_> {
    fn bpf(&self, words: &[&str]) -> Result<Said> {
        ask(&self.world.operator, &[&["bpf"], words].concat())
    }

    fn pin(&self, name: &str) -> String {
        format!("{}/{name}", self.pins)
    }

    /// Each call that a lockdown refuses; what it said.
    fn calls(&self) -> Result<Vec<(String, Said)>> {
        let map = self.pin("maps/FLOWS_DENIED_V4");
        let link = self.pin("links/connect4");
        let mut said = Vec::new();
        let mut call = |words: &[&str]| -> Result<()> {
            said.push((words.join(" "), self.bpf(words)?));
            Ok(())
        };
        call(&["open", &map, "rw"])?;
        call(&["by-id", &map, "rw"])?;
        call(&["over", &map])?;
        call(&["open", &self.pin("maps/SEAL_BPF"), "rw"])?;
        call(&["update", &link])?;
        call(&["attach"])?;
        call(&["run", "0"])?;
        call(&["run", "2"])?;
        for kind in REFUSED_KINDS {
            call(&["load", kind])?;
        }
        Ok(said)
    }

    fn command(&self, words: &[&str]) -> Result<Ended> {
        let (name, arguments) = words.split_first().context("no command")?;
        run(self.world.operator.command(format!("/sbin/{name}")).args(arguments), LIMIT)
    }

    /// All of it is refused, links and pins too, and what is harmless is not.
    fn is_refused(&self, when: &str) -> Result<()> {
        for (call, said) in self.calls()? {
            ensure!(said.refused(), "{when}: {call}: {said:?}");
        }
        for link in ["connect4", "seal_bpf", "seal_unlink", "backstop_egress"] {
            let pin = self.pin(&format!("links/{link}"));
            let said = self.bpf(&["detach", &pin])?;
            ensure!(said.refused(), "{when}: detach {link}: {said:?}");
            ensure!(!self.command(&["rm", &pin])?.good(), "{when}: {link} is unpinned");
            let away = self.pin("links/away");
            ensure!(!self.command(&["mv", &pin, &away])?.good(), "{when}: {link} is renamed");
        }
        let over = [self.pin("links/connect4"), self.pin("links/connect6")];
        ensure!(!self.command(&["mv", "-f", &over[0], &over[1]])?.good(), "{when}: a pin takes another's place");
        ensure!(!self.command(&["mv", &self.pins, &format!("{BPFFS}/away")])?.good(), "{when}: all is renamed");
        ensure!(!self.command(&["umount", BPFFS])?.good(), "{when}: unmounted");
        ensure!(!self.command(&["umount", "-l", BPFFS])?.good(), "{when}: unmounted, lazily");

        for kind in OTHER_KINDS {
            let said = self.bpf(&["load", kind])?;
            ensure!(said.good(), "{when}: a harmless program is refused: {said:?}");
        }
        let read = self.bpf(&["open", &self.pin("maps/FLOWS_DENIED_V4"), "ro"])?;
        ensure!(read.good(), "{when}: a map may not be read: {read:?}");
        Ok(())
    }
}

fn sound(guard: &Guard, when: &str) -> Result<()> {
    let status = guard.status()?;
    ensure!(status["enforcing"] == true, "{when}: {status:#}");
    ensure!(!status["missing"].to_string().contains("seal of bpf"), "{when}: {status:#}");
    let hooks = status["hooks"].as_array().context("no hooks")?;
    let seal = hooks.iter().filter(|hook| hook["target"] == "this machine").count();
    ensure!(seal == 6, "{when}: {seal} of its programs stand: {status:#}");
    Ok(())
}

pub fn others() -> Result<()> {
    let world = World::create().context("a world")?;
    let mut guard = Guard::start(&world, super::POLICY)?;
    sound(&guard, "started")?;
    let other = Other { world: &world, pins: format!("{BPFFS}/guard/{}", guard.instance()) };
    for (call, said) in other.calls()? {
        ensure!(!said.refused(), "without a lockdown: {call}: {said:?}");
    }

    // It ends with its generation, by the kernel's deadline and nobody's help.
    let lockdown = super::POLICY.replace("mode: enforce", "mode: enforce\nlockdown: true");
    let done = guard.reload(&lockdown, &["--cut-me", "--confirm-within", "20s"])?;
    ensure!(done.good(), "reload: {}", done.text());
    guard.signal(Signal::SIGSTOP)?;
    ensure!(other.bpf(&["load", "6"])?.refused(), "a lockdown that waits for its confirmation refuses nothing");
    let start = Instant::now();
    while other.bpf(&["load", "6"])?.refused() {
        ensure!(start.elapsed() < LIMIT, "refused, though the deadline is over");
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("guard-vm: bpf: refused until the deadline, {:?}", start.elapsed());
    guard.signal(Signal::SIGCONT)?;

    // guard's own: the change, its confirmation, and another change.
    let done = guard.reload(&lockdown, &["--cut-me", "--confirm-within", "5m"])?;
    ensure!(done.good(), "reload: {}", done.text());
    other.is_refused("unconfirmed")?;
    guard.tell("confirm", &[])?;
    other.is_refused("confirmed")?;
    sound(&guard, "confirmed")?;
    let done = guard.reload(&lockdown.replace("name: vm", "name: second"), &["--cut-me"])?;
    ensure!(done.good(), "reload: {}", done.text());

    // Counted, and told with who it was.
    let refused = guard.packets("bpf_refused", "outbound", true)?;
    ensure!(refused >= 40, "only {refused} are counted");
    let told = guard.wait_records(|record| record["guard"]["kind"] == "bpf_refused")?;
    println!("guard-vm: bpf: {refused} refused; told: {}", told[0]["guard"]);
    let by = told[0]["guard"]["by"].as_str().unwrap_or_default();
    ensure!(by.contains("guard-test-age"), "by whom: {}", told[0]);
    guard.wait_records(|record| record["guard"]["event"] == "bpf_refused")?;

    // With the daemon dead nothing is loosened, and the next takes over.
    guard.kill()?;
    other.is_refused("with the daemon dead")?;
    guard.run(&[])?;
    sound(&guard, "taken over")?;
    other.is_refused("taken over")?;

    // A copy in another place, as after an upgrade: it takes over, changes the policy, and ends it.
    guard.kill()?;
    let copy = world.dir().join("another-guard");
    std::fs::copy(binary()?, &copy)?;
    let mut daemon = by_copy(&guard, &copy)?;
    daemon.wait_line(LIMIT, |line| line.contains("is ready"))?;
    other.is_refused("under another binary")?;
    sound(&guard, "under another binary")?;

    // Who has studied guard shows its key: this is what the seal does not stop.
    let said = other.bpf(&["show-and-load", &other.pin("maps/SEAL_BPF"), "6"])?;
    ensure!(said.good(), "the key is not what opens: {said:?}");
    ensure!(other.bpf(&["load", "6"])?.refused(), "it opens for others than the one who showed it");

    let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    let mut command = world.operator.command(&copy);
    command.args(["release", "--instance", guard.instance(), "--host", &host, "--state-dir"]).arg(guard.state_dir());
    let ended = run(&mut command, LIMIT)?;
    ensure!(ended.good(), "released by another binary: {}", ended.text());
    for kind in REFUSED_KINDS {
        let said = other.bpf(&["load", kind])?;
        ensure!(said.good(), "refused after release: {said:?}");
    }
    Ok(())
}

fn by_copy(guard: &Guard, copy: &Path) -> Result<Process> {
    let asked = guard.run_command(&[])?;
    let mut command = guard.inside().command(copy);
    command.args(asked.get_args()).env("NO_COLOR", "1");
    Process::spawn(&mut command)
}
