//! The package on a bare Debian: what README.md says to type, typed.
//!
//! Each command of README.md must be one that is known here, with what it answers, and the other way about; so neither can
//! change without the other. They are typed in README.md's order: it is one session, from no policy to taking guard down.

use super::readme::Readme;
use super::session::{Running, Session};
use anyhow::{Context as _, Result, bail, ensure};
use std::time::Duration;

enum Then {
    /// Ends with this status, and says this.
    Ends(i32, &'static str),
    /// Is ready, is left running while there is traffic, and is ended like a service, or runs on.
    Runs { ready: &'static str, on: bool },
}
use Then::{Ends, Runs};

/// As README.md has it: words in capitals are what a person puts in.
const TYPED: &[(&str, Then)] = &[
    ("guard check policy.yaml", Ends(0, "valid")),
    ("guard test policy.yaml", Ends(0, "2 tests passed")),
    ("guard explain policy.yaml 'out tcp 203.0.113.9:4444'", Ends(1, "no rule lists it")),
    ("guard replay policy.yaml capture.pcapng", Ends(0, "1 of 2 flows would have been cut")),
    ("guard observe", Runs { ready: "guard is ready: OBSERVING", on: false }),
    ("guard suggest", Ends(0, "services: tcp/4444")),
    ("guard export nft policy.yaml", Ends(0, "table inet guard")),
    ("guard doctor", Ends(0, "guard can run here")),
    ("guard run policy.yaml --audit", Runs { ready: "guard is ready: AUDIT", on: false }),
    ("guard run policy.yaml", Runs { ready: "guard is ready: ENFORCING", on: true }),
    ("guard status", Ends(0, "ENFORCING in and out")),
    ("guard snapshot -o - > case.tar", Ends(0, "state saved")),
    ("guard report", Ends(1, "to review")),
    ("guard review --from conn.log", Ends(1, "out tcp/4444 to 203.0.113.9")),
    ("guard show ID", Ends(0, "203.0.113.9")),
    ("guard ack ID --note WHY", Ends(0, "")),
    ("guard allow FLOW --for 2h", Ends(0, "allowed until")),
    ("guard deny REMOTE", Ends(0, "denied until it is undone")),
    ("guard note TEXT", Ends(0, "noted")),
    ("guard timeline", Ends(0, "allow #1")),
    ("guard handover", Ends(0, "HANDOVER")),
    // Nobody came in over the network, so there is no way in that it could keep.
    ("guard lockdown", Ends(3, "nothing was changed")),
    ("guard reload", Ends(0, "")),
    ("guard confirm", Ends(1, "nothing waits to be confirmed")),
    ("guard rollback", Ends(1, "nothing is unconfirmed")),
    ("guard restore", Ends(3, "no lockdown holds here")),
    ("guard release", Ends(0, "nothing of guard is attached any more")),
];

const MINUTE: Duration = Duration::from_secs(60);

/// Returns how many commands were typed.
pub fn follow(session: &Session, readme: &Readme) -> Result<usize> {
    let install = readme.commands("apt-get install ./guard_")?;
    for command in &install {
        let (code, said) = session.ask(command, MINUTE)?;
        ensure!(code == Some(0), "`{command}` ends with {code:?}:\n{said}");
        println!("  {command}");
    }
    let shown = readme.shown("guard explain policy.yaml 'out tcp 203.0.113.9:4444'")?;
    let mut running = None;
    let commands = readme.commands("guard check policy.yaml")?;
    for (command, known) in commands.iter().zip(TYPED.iter().map(Some).chain(std::iter::repeat(None))) {
        let Some((_, then)) = known.filter(|(known, _)| known == command) else {
            let known = known.map_or("nothing", |(known, _)| known);
            bail!(
                "README.md says `{command}` where {known:?} is tried: they go together (xtask/src/newcomer/package.rs)"
            );
        };
        let line = filled(session, command)?;
        let said = one(session, &line, then, &mut running).with_context(|| format!("`{line}`"))?;
        ensure!(
            !command.starts_with("guard explain") || said.trim_end() == shown.trim_end(),
            "README.md shows another answer of `{line}`:\n{shown}-- it is\n{said}"
        );
        println!("  {line}");
    }
    ensure!(
        commands.len() == TYPED.len(),
        "README.md says {} of the {} commands that are tried",
        commands.len(),
        TYPED.len()
    );
    running.context("nothing runs at the end")?.ended(MINUTE)?;
    session.removed()?;
    Ok(install.len() + commands.len())
}

fn one(session: &Session, line: &str, then: &Then, running: &mut Option<Running>) -> Result<String> {
    match then {
        Ends(wanted, text) => {
            let (code, said) = session.ask(line, MINUTE)?;
            ensure!(
                code == Some(*wanted) && said.contains(text),
                "ends with {code:?}, not {wanted}, or without {text:?}:\n{said}"
            );
            Ok(said)
        }
        Runs { ready, on } => {
            let started = session.start(line, ready, MINUTE)?;
            session.traffic()?;
            // What was seen is written every second.
            std::thread::sleep(Duration::from_millis(2500));
            match on {
                true => *running = Some(started),
                false => started.stop(MINUTE)?,
            }
            Ok(String::new())
        }
    }
}

fn filled(session: &Session, command: &str) -> Result<String> {
    let mut line = command
        .replace("FLOW", "'out tcp 203.0.113.9:4444'")
        .replace("REMOTE", "203.0.113.9")
        .replace("WHY", "'known to the newcomer'")
        .replace("TEXT", "'a word for the next shift'");
    if line.contains(" ID") {
        // As the report begins its lines.
        let (_, report) = session.ask("guard report", MINUTE)?;
        let id = |line: &str| {
            let word = line.split_once("  ")?.0;
            (word.len() == 4 && word.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| word.to_owned())
        };
        let wanted = report
            .lines()
            .find(|line| line.contains("203.0.113.9"))
            .or_else(|| report.lines().find(|line| id(line).is_some()));
        let id = wanted.and_then(id).with_context(|| format!("the report names no group:\n{report}"))?;
        line = line.replace(" ID", &format!(" {id}"));
    }
    Ok(line)
}
