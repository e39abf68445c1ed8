//! Attempts to get out of a guarded host, and into it, past the policy: each is first shown to work without guard, then
//! tried in enforce mode, and judged by captures outside the host. Who tries is root inside, in the guarded cgroup.
//!
//! ```text
//! escape [WORD]...              the table: all attempts, or those whose names hold one of the words
//! escape --inside N PHASE       one attempt, inside (see `scene`)
//! escape --held N               one that begins before guard does
//! escape --flood               one that goes on, for what happens to guard meanwhile
//! escape --victim               what listens inside
//! ```

mod attempt;
mod cgroups;
mod containers;
mod controls;
mod devices;
mod frames;
mod held;
mod link;
mod mark;
mod moments;
mod scene;
mod sockets;
mod tools;
mod victim;

use std::{io::BufRead, process::ExitCode};

use anyhow::{Context, Result, bail, ensure};
use guard_tests::{guard::Guard, new_world, witness::packet_socket};

use crate::{
    attempt::{Act, Attempt, Direction, Expected},
    mark::Mark,
    scene::{Outcome, Scene},
};

/// What a small server has; no attempt is for any of it but where its name says so.
pub const POLICY: &str = "version: 1\nname: escape\nmode: enforce\n\
    groups: { responder: [198.51.100.7, \"2001:db8:17::7\"], router: [192.0.2.1, \"2001:db8:2::1\"] }\n\
    inbound:\n  - { name: ssh, from: responder, services: tcp/22 }\n  - { name: web, from: any, services: tcp/80 }\n\
    outbound:\n  - { name: updates, to: responder, services: tcp/443 }\n  - { name: dns, to: router, services: dns }\n";

fn table() -> Vec<Attempt> {
    [
        frames::all(),
        link::all(),
        sockets::all(),
        held::all(),
        cgroups::all(),
        tools::all(),
        devices::all(),
        containers::all(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["--inside", number, phase] => inside(number, phase).map(|()| true),
        ["--held", number] => held(number).map(|()| true),
        ["--flood"] => moments::flood().map(|()| true),
        ["--victim"] => victim::run().map(|()| true),
        _ => suite(&words),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn suite(words: &[&str]) -> Result<bool> {
    let Some(world) = new_world("escape") else {
        println!("\ntest result: ok. 0 passed; 0 failed; 0 ignored");
        return Ok(true);
    };
    let words: Vec<&str> = words.iter().filter(|word| !word.starts_with("--")).copied().collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word));
    let attempts = table();
    let mut names: Vec<String> = attempts.iter().map(title).collect();
    names.sort();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("two attempts are called {}", twice[0]);
    }

    let mut scene = Scene::set(&world, &attempts)?;
    let open = scene.phase(&attempts, 0, wanted)?;
    scene.forget();
    let mut guard = Guard::start(&world, POLICY)?;
    let shut = scene.phase(&attempts, 1, wanted)?;

    let (mut passed, mut failed) = (0, Vec::new());
    println!("{:<3} {:<78} {:<5} {:<28} seen", "", "attempt", "live", "expected");
    for ((attempt, open), shut) in attempts.iter().zip(&open).zip(&shut) {
        let (Some(open), Some(shut)) = (open, shut) else { continue };
        let (expected, wrong) = judge(attempt, open, shut);
        let seen = if shut.seen { "passed" } else { "nothing" };
        println!("{:<3} {:<78} {:<5} {expected:<28} {seen}", way(attempt), attempt.name, open.seen);
        match wrong {
            None => passed += 1,
            Some(why) => failed.push((title(attempt), why)),
        }
    }
    // What passes by design then is blocked where the policy says so.
    let done = guard.reload(&format!("{POLICY}container_host: guard\n"), &[])?;
    ensure!(done.good(), "{}", done.text());
    let judged = scene.phase(&attempts, 2, |name| name.contains(containers::CALLED) && wanted(name))?;
    for (attempt, (open, shut)) in attempts.iter().zip(open.iter().zip(&judged)) {
        let (Some(open), Some(shut)) = (open, shut) else { continue };
        let name = format!("{} (container_host: guard)", attempt.name);
        println!(
            "{:<3} {name:<78} {:<5} {:<28} {}",
            way(attempt),
            open.seen,
            "blocked",
            if shut.seen { "passed" } else { "nothing" }
        );
        if shut.seen {
            failed.push((name, "PASSED although the policy does not list it".to_owned()));
        } else {
            passed += 1;
        }
    }
    let done = guard.reload(POLICY, &[])?;
    ensure!(done.good(), "{}", done.text());
    let mut others = controls::all(&world, &guard, &mut scene);
    if wanted("moment") {
        others.extend(moments::all(&world, &mut guard));
    }
    for (name, done) in others {
        println!("    {name:<78} {:<5} {:<28} {}", "", "passes", if done.is_ok() { "passed" } else { "not" });
        match done {
            Ok(()) => passed += 1,
            Err(error) => failed.push((name.to_owned(), format!("{error:#}"))),
        }
    }
    println!();
    for (name, why) in &failed {
        println!("{name}: {why}");
    }
    for (name, _) in &failed {
        println!("test {name} ... FAILED");
    }
    let result = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("\ntest result: {result}. {passed} passed; {} failed; 0 ignored", failed.len());
    Ok(failed.is_empty())
}

const fn way(attempt: &Attempt) -> &'static str {
    match attempt.direction {
        Direction::Out => "out",
        Direction::In => "in",
    }
}

fn title(attempt: &Attempt) -> String {
    format!("{} {}", way(attempt), attempt.name)
}

/// What was expected, for people, and what is wrong, if anything is.
fn judge(attempt: &Attempt, open: &Outcome, shut: &Outcome) -> (String, Option<String>) {
    let not_live = || {
        let why = open.did.as_ref().err().map(|error| format!(": {error:#}")).unwrap_or_default();
        Some(format!("does not work without guard, and so proves nothing{why}"))
    };
    let wrong = match attempt.expected {
        Expected::NotHere(_) if open.seen => Some("works on this kernel after all".to_owned()),
        Expected::NotHere(_) => None,
        _ if !open.seen => not_live(),
        Expected::Blocked if shut.seen => Some("PASSED although the policy does not list it".to_owned()),
        Expected::Allowed(_) | Expected::Gap(_) if !shut.seen => {
            let why = shut.did.as_ref().err().map(|error| format!(": {error:#}")).unwrap_or_default();
            Some(format!("does not pass any more{why}"))
        }
        _ => None,
    };
    let expected = match attempt.expected {
        Expected::Blocked => "blocked".to_owned(),
        Expected::Allowed(why) => format!("allowed: {why}"),
        Expected::Gap(why) => format!("GAP: {why}"),
        Expected::NotHere(why) => format!("not on this kernel: {why}"),
    };
    (expected, wrong)
}

fn inside(number: &str, phase: &str) -> Result<()> {
    let mark = Mark { phase: phase.parse()?, number: number.parse()? };
    match &table().get(usize::from(mark.number)).context("no such attempt")?.act {
        Act::Inside(act) => act(&mark),
        Act::FramesOut(frames) => {
            let socket = packet_socket(nix::net::if_::if_nametoindex("eth0")?)?;
            for frame in frames(&mark) {
                sockets::send(&socket, &frame)?;
            }
            Ok(())
        }
        _ => bail!("not done inside"),
    }
}

fn held(number: &str) -> Result<()> {
    let number: u16 = number.parse()?;
    let table = table();
    let Act::Held(act) = &table.get(usize::from(number)).context("no such attempt")?.act else { bail!("not held") };
    // The act asks for a mark once it is ready, and again once it has done it.
    let mut before: Option<u8> = None;
    let mut lines = std::io::stdin().lock().lines();
    let mut marks = std::iter::from_fn(|| {
        match before {
            None => println!("ready"),
            Some(phase) => println!("done {phase}"),
        }
        let phase = lines.next()?.ok()?.parse().ok()?;
        before = Some(phase);
        Some(Mark { phase, number })
    });
    act(&mut marks)
}
