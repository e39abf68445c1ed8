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
         Debian's cloud kernel, and Debian 12's userspace. What runs in it is `tests/vm`:\n\n\
         - every machine but the last two kinds below: the programs load within their budgets, `guard run` enforces in a\n  \
           namespace, listed flows pass and others do not (both directions, TCP and UDP, IPv4 and IPv6), and the daemon is\n  \
           killed and taken over from;\n\
         - as it comes: also a lockdown (kept, cut, confirmed, restored; undone by the kernel with the daemon dead), `on_deny`,\n  \
           every way round the seal, a connection that outlives a wrong edit, bpf(2) under a lockdown, containers and\n  \
           this host both ways, and expiry after a clock step;\n\
         - devices over devices, and tunnels: VLAN, QinQ, bond, VRF, ipvlan, MACsec, WireGuard, GRE, IPIP, SIT, VXLAN, SCTP: what\n  \
           is not listed passes neither inside nor outside, each packet is counted once where one frame leaves, and at both\n  \
           levels in a tunnel; made before guard starts, and made anew under it;\n\
         - no type information: guard refuses by name, and leaves nothing behind.\n\n\
         | suite | kernel | machine | result | s |\n|---|---|---|---|---|\n"
    );
    for answer in answers {
        let kernel = answer.kernel.as_deref().unwrap_or("not to be had");
        let machine =
            MACHINES.iter().find(|(name, _)| *name == answer.machine).map_or(answer.machine, |(_, text)| text);
        let _ =
            writeln!(page, "| {} | {kernel} | {machine} | {} | {:.0} |", answer.suite, answer.spoken(), answer.seconds);
    }
    let plain: Vec<&Answer> =
        answers.iter().filter(|answer| answer.machine == "plain" && answer.kernel.is_some()).collect();
    page += "\nUntil all programs are loaded, and from `guard run` to a host that enforces (which loads them too), on emulated\n\
             processors (QEMU's TCG, two of them) beside whatever else ran: no measure of real hardware, where a start is to take a\n\
             second at most, but of one kernel against another.\n\n\
             | kernel | loaded, s | enforcing, s |\n|---|---|---|\n";
    for answer in &plain {
        let of = |seconds: &Option<String>| seconds.clone().unwrap_or_else(|| "-".to_owned());
        let kernel = answer.kernel.as_deref().unwrap_or_default();
        let _ = writeln!(page, "| {kernel} | {} | {} |", of(&answer.loaded), of(&answer.started));
    }
    let mut programs: Vec<&str> = Vec::new();
    for (program, _) in plain.iter().flat_map(|answer| &answer.verified) {
        if !programs.contains(&program.as_str()) {
            programs.push(program);
        }
    }
    page += "\nInstructions that the verifier walked (it gives up at one million; kernels before 5.16 do not tell). `tests/ebpf/budget.json`\n\
             has what it may walk at most, and a machine where it walks more fails.\n\n| program |";
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

const MACHINES: &[(&str, &str)] = &[
    ("plain", "as it comes"),
    ("stacked", "devices over devices, and tunnels"),
    ("ipv6-off", "`ipv6.disable=1`"),
    ("hybrid", "cgroup v1 and v2 together"),
    ("bpf-lsm", "`bpf` among the LSMs"),
    ("no-bpf-lsm", "`bpf` not among the LSMs"),
    ("no-btf", "no type information (the kernel has it; its file in sysfs is covered)"),
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
            loaded: Some("1.50".to_owned()),
            seconds: 12.3,
            ..Answer::of("bookworm-security")
        };
        let odd = Answer {
            machine: "ipv6-off",
            kernel: Some("6.1.0".to_owned()),
            passed: 3,
            ..Answer::of("bookworm-security")
        };
        let missing = Answer { failures: vec!["no such suite".to_owned()], ..Answer::of("trixie") };
        let page = page(&[plain, odd, missing], "2026-01-02", "abc1234");
        assert!(page.contains("on 2026-01-02 at commit abc1234"));
        assert!(page.contains("| bookworm-security | 6.1.0 | as it comes | 6 passed | 12 |"), "{page}");
        assert!(page.contains("| bookworm-security | 6.1.0 | `ipv6.disable=1` | 3 passed | 0 |"), "{page}");
        assert!(page.contains("| trixie | not to be had | as it comes | SKIPPED: no such suite | 0 |"), "{page}");
        assert!(page.contains("| 6.1.0 | 1.50 | - |"), "{page}");
        assert!(page.contains("| program | 6.1.0 |\n|---|---|\n| shield | 100 |"), "{page}");
    }
}
