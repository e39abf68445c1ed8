//! What the machines said, as a page that is committed: `docs/kernels.md`.

use super::Answer;
use crate::shell;
use anyhow::Result;
use std::fmt::Write as _;
use std::process::Command;

const PAGE: &str = "docs/kernels.md";

/// Writes the page, and says where.
pub fn write(answers: &[Answer]) -> Result<()> {
    let commit = shell::output(Command::new("git").args(["rev-parse", "--short", "HEAD"]))?;
    let changed = !shell::output(Command::new("git").args(["status", "--porcelain", "-uno"]))?.is_empty();
    let date = shell::output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let commit = format!("{}{}", commit.trim(), if changed { ", with changes" } else { "" });
    std::fs::write(shell::root().join(PAGE), page(answers, date.trim(), &commit))?;
    println!("\nwritten to {PAGE}");
    Ok(())
}

fn page(answers: &[Answer], date: &str, commit: &str) -> String {
    let mut page = format!(
        "# Kernels\n\n\
         Written by `cargo xtask vm test --write` on {date} at commit {commit}. Each line is a virtual machine of its own with\n\
         Debian's kernel: the programs are loaded, `guard run` enforces in a namespace, listed flows pass and others do not (both\n\
         directions, TCP and UDP, IPv4 and IPv6); on the machines that are not odd also a connection that outlives a wrong edit,\n\
         every way round the seal, and expiry after a clock step. Emulated processors: the seconds are not a measure of guard.\n\n\
         | suite | kernel | odd by | result | s |\n|---|---|---|---|---|\n"
    );
    for answer in answers {
        let kernel = answer.kernel.as_deref().unwrap_or("not to be had");
        let odd = ODDITIES.iter().find(|(name, _)| *name == answer.odd).map_or(answer.odd, |(_, text)| text);
        let _ = writeln!(page, "| {} | {kernel} | {odd} | {} | {:.0} |", answer.suite, answer.spoken(), answer.seconds);
    }
    let plain: Vec<&Answer> =
        answers.iter().filter(|answer| answer.odd.is_empty() && answer.kernel.is_some()).collect();
    let mut programs: Vec<&str> = Vec::new();
    for (program, _) in plain.iter().flat_map(|answer| &answer.verified) {
        if !programs.contains(&program.as_str()) {
            programs.push(program);
        }
    }
    page += "\nInstructions that the verifier walked (it gives up at one million):\n\n| program |";
    for answer in &plain {
        let _ = write!(page, " {} |", answer.kernel.as_deref().unwrap_or_default());
    }
    page += "\n|---|";
    page += &"---|".repeat(plain.len());
    page.push('\n');
    for program in programs {
        let _ = write!(page, "| {program} |");
        for answer in &plain {
            let count = answer.verified.iter().find(|(name, _)| name == program).map_or("-", |(_, count)| count);
            let _ = write!(page, " {count} |");
        }
        page.push('\n');
    }
    page
}

const ODDITIES: &[(&str, &str)] = &[
    ("ipv6-off", "`ipv6.disable=1`"),
    ("hybrid", "cgroup v1 and v2 together"),
    ("bpf-lsm", "`bpf` among the LSMs"),
    ("no-bpf-lsm", "`bpf` not among the LSMs"),
    ("no-btf", "no type information: refused by name"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_every_machine_and_program() {
        let plain = Answer {
            kernel: Some("6.1.0".to_owned()),
            passed: 6,
            verified: vec![("shield".to_owned(), "100".to_owned())],
            seconds: 12.3,
            ..Answer::of("bookworm-security")
        };
        let odd =
            Answer { odd: "ipv6-off", kernel: Some("6.1.0".to_owned()), passed: 3, ..Answer::of("bookworm-security") };
        let missing = Answer { failures: vec!["no such suite".to_owned()], ..Answer::of("trixie") };
        let page = page(&[plain, odd, missing], "2026-01-02", "abc1234");
        assert!(page.contains("on 2026-01-02 at commit abc1234"));
        assert!(page.contains("| bookworm-security | 6.1.0 |  | 6 passed | 12 |"), "{page}");
        assert!(page.contains("| bookworm-security | 6.1.0 | `ipv6.disable=1` | 3 passed | 0 |"), "{page}");
        assert!(page.contains("| trixie | not to be had |  | SKIPPED: no such suite | 0 |"), "{page}");
        assert!(page.contains("| program | 6.1.0 |\n|---|---|\n| shield | 100 |"), "{page}");
    }
}
