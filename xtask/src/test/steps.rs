//! The ladder: what is checked, in which order, with what it needs.

use super::report::allowed_skips;
use super::{Outcome, Run, leftovers, licences};
use crate::packages::{self, Need};
use crate::{dist, shell, vagrant, vm};
use anyhow::{Context as _, Result, bail};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

pub struct Step {
    pub name: &'static str,
    pub what: &'static str,
    /// Left out of a quick run.
    pub slow: bool,
    pub needs: &'static [Need],
    pub run: fn(&Run) -> Result<Outcome>,
}

const fn step(name: &'static str, what: &'static str, run: fn(&Run) -> Result<Outcome>) -> Step {
    Step { name, what, slow: false, needs: &[], run }
}

/// Cheap and likely to fail first; what needs root, real servers and virtual machines later; what looks at the whole
/// run last.
pub fn all() -> Vec<Step> {
    vec![
        step("format", "rustfmt agrees", |_| plain(shell::cargo().args(["fmt", "--all", "--check"]), 2)),
        step("licences", "what deny.toml says of licences and sources", |_| licences::check()),
        Step {
            slow: true,
            needs: packages::EBPF,
            ..step("ebpf", "the committed object is what its sources give", ebpf)
        },
        Step { needs: packages::BUILD, ..step("clippy", "no warning", clippy) },
        Step { needs: packages::BUILD, ..step("build", "programs and tests, once for all steps", build) },
        Step {
            needs: packages::UNIT,
            ..step("unit", "units, properties, the command line", |run| group(run, Group::Unit))
        },
        Step { needs: packages::BUILD, ..step("doc", "examples in the documentation", doc) },
        Step { needs: packages::PACKAGE, ..step("package", "installs and removes; what its scripts ask", package) },
        Step {
            needs: packages::ROOT,
            ..step("kernel", "loaded programs by BPF_PROG_TEST_RUN, verifier budget", |run| group(run, Group::Kernel))
        },
        Step {
            needs: packages::BUILD,
            ..step("differential", "compiled decision and referee agree", |run| group(run, Group::Differential))
        },
        Step {
            needs: packages::NETWORK,
            ..step("netns", "real servers and traffic in network namespaces", |run| group(run, Group::Netns))
        },
        Step {
            needs: packages::ENGINES,
            ..step("engines", "Docker's and Podman's containers, on a guarded host", |run| group(run, Group::Engines))
        },
        Step {
            slow: true,
            needs: packages::ESCAPE,
            ..step("escape", "attempts to get out and in, each live without guard", |run| group(run, Group::Escape))
        },
        Step { needs: packages::DEMO, ..step("demo", "the demo shows what it says", demo) },
        Step {
            slow: true,
            needs: packages::BUILD,
            ..step("mutants", "small errors, put in on purpose, are caught", |run| group(run, Group::Mutants))
        },
        Step {
            slow: true,
            needs: packages::CORPUS,
            ..step("corpus", "recorded captures through the parser", |run| group(run, Group::Corpus))
        },
        Step {
            slow: true,
            needs: packages::DIST,
            ..step("dist", "the release: static, alone on a read-only root, SBOM", |run| own(run, &["dist"], 30))
        },
        Step {
            slow: true,
            needs: packages::NEWCOMER,
            ..step("newcomer", "README.md's commands, of its package, on a bare Debian 12 and 13", |run| {
                own(run, &["newcomer"], 15)
            })
        },
        Step {
            slow: true,
            needs: packages::VIRTUAL,
            ..step("vm", "guard on Debian's 5.10, 6.1 and 6.12 kernels, in virtual machines", machines)
        },
        Step {
            slow: true,
            needs: packages::VAGRANT,
            ..step("vagrant", "lockdown and reboot, in a machine with a real init", scenarios)
        },
        step("leftovers", "nothing is left behind", |run| leftovers::check(&run.scene)),
    ]
}

/// Another task of this program, whose needs are there already.
fn own(run: &Run, task: &[&str], limit: u64) -> Result<Outcome> {
    plain(Command::new(&run.own).args(task).arg("--no-install"), limit)
}

fn ebpf(run: &Run) -> Result<Outcome> {
    plain(Command::new(&run.own).args(["ebpf", "--check"]), 25)
}

fn demo(run: &Run) -> Result<Outcome> {
    plain(
        Command::new(&run.own).args(["demo", "--no-install"]).env("GUARD_BIN", shell::target().join("debug/guard")),
        5,
    )
}

/// Of the debug binary: what is tried is all around it.
fn package(run: &Run) -> Result<Outcome> {
    programs()?;
    dist::try_package(&shell::target().join("debug/guard"))?;
    group(run, Group::Package)
}

fn clippy(_: &Run) -> Result<Outcome> {
    let mut command = shell::cargo();
    command.args(["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"]);
    plain(&mut command, 20)
}

fn doc(run: &Run) -> Result<Outcome> {
    let ended = shell::run(shell::cargo().args(["test", "--workspace", "--locked", "--doc", "--quiet"]), minutes(10))?;
    judge(run, &[("documentation", ended)])
}

/// Each kernel counts as many tests as its payload ran; a suite that the mirror lacks is skipped by name. So is one
/// that fails and is listed in `xtask/allowed-skips.txt`: what is known not to work yet stays in sight.
fn machines(run: &Run) -> Result<Outcome> {
    let (mut passed, mut failed, mut why) = (0, 0, Vec::new());
    let mut skips = std::fs::OpenOptions::new().create(true).append(true).open(&run.skips)?;
    let listed = allowed_skips()?;
    for answer in vm::load(&[])? {
        let name = format!("vm-{}", answer.suite);
        if answer.kernel.is_none() || !answer.failures.is_empty() && listed.contains(&name) {
            let why: Vec<_> = answer.failures.iter().map(|why| why.lines().next().unwrap_or_default()).collect();
            writeln!(skips, "{name}\t{}", why.join("; "))?;
            // Its place among the passed ones, which the report takes away again.
            passed += 1;
            continue;
        }
        passed += answer.passed;
        failed += u32::try_from(answer.failures.len())?;
        why.extend(answer.failures.iter().map(|failure| format!("{} {}: {failure}", answer.suite, answer.machine)));
    }
    Ok(if failed == 0 {
        Outcome::Passed { tests: passed }
    } else {
        Outcome::Failed { passed, failed, why: why.join("; ") }
    })
}

/// Those that CI has the time for. One whose machine cannot be had here is skipped by name, never passed; so is one that
/// fails and is listed in `xtask/allowed-skips.txt`, as with [`machines`].
fn scenarios(run: &Run) -> Result<Outcome> {
    let (mut passed, mut failed, mut why) = (0, 0, Vec::new());
    let mut skips = std::fs::OpenOptions::new().create(true).append(true).open(&run.skips)?;
    let listed = allowed_skips()?;
    for answer in vagrant::test(&["lockdown", "reboot"].map(str::to_owned))? {
        let name = format!("vagrant-{}", answer.scenario);
        match answer.ended {
            vagrant::Ended::Passed => passed += 1,
            vagrant::Ended::Failed if listed.contains(&name) => {
                println!("\n!! FAILED, and known to at times: {}\n", answer.scenario);
                writeln!(skips, "{name}\tit FAILED")?;
                passed += 1;
            }
            vagrant::Ended::Failed => {
                failed += 1;
                why.push(answer.scenario);
            }
            vagrant::Ended::NotRun(reason) => {
                println!("\n!! NOT RUN: {}: {reason}\n", answer.scenario);
                let line = reason.lines().next().unwrap_or_default();
                writeln!(skips, "{name}\t{line}")?;
                // Its place among the passed ones, which the report takes away again.
                passed += 1;
            }
        }
    }
    Ok(if failed == 0 {
        Outcome::Passed { tests: passed }
    } else {
        Outcome::Failed { passed, failed, why: why.join(", ") }
    })
}

fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

/// A program whose exit status is all of its answer.
fn plain(command: &mut Command, limit: u64) -> Result<Outcome> {
    let ended = shell::run(command, minutes(limit))?;
    Ok(if ended.good { Outcome::Passed { tests: 1 } } else { Outcome::Failed { passed: 0, failed: 1, why: ended.how } })
}

/// Which step runs a test program: by its name, so that one that fits nowhere still runs, with the units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Unit,
    Package,
    Kernel,
    Differential,
    Mutants,
    Netns,
    Engines,
    Escape,
    Corpus,
}

impl Group {
    fn of(package: &str, target: &str) -> Self {
        if package != "guard-tests" {
            return Self::Unit;
        }
        if target.split('_').any(|word| word == "kernel") {
            return Self::Kernel;
        }
        match target.split('_').next().unwrap_or(target) {
            "package" => Self::Package,
            "verifier" => Self::Kernel,
            "differential" | "referee" => Self::Differential,
            "mutants" => Self::Mutants,
            "netns" => Self::Netns,
            "engines" => Self::Engines,
            "escape" => Self::Escape,
            "corpus" => Self::Corpus,
            _ => Self::Unit,
        }
    }
}

struct TestProgram {
    target: String,
    group: Group,
    path: PathBuf,
    /// Where cargo would run it.
    dir: PathBuf,
}

/// Set by the build, so that each test program is built once and run by exactly one step.
static PROGRAMS: OnceLock<Vec<TestProgram>> = OnceLock::new();

fn build(_: &Run) -> Result<Outcome> {
    programs()?;
    Ok(Outcome::Passed { tests: 1 })
}

fn programs() -> Result<&'static [TestProgram]> {
    if let Some(programs) = PROGRAMS.get() {
        return Ok(programs);
    }
    let bins = shell::run(shell::cargo().args(["build", "--workspace", "--bins", "--locked", "--quiet"]), minutes(20))?;
    if !bins.good {
        bail!("the programs do not build ({})", bins.how);
    }
    let json = shell::output(shell::cargo().args([
        "test",
        "--workspace",
        "--locked",
        "--no-run",
        "--quiet",
        "--message-format=json-render-diagnostics",
    ]))?;
    let mut programs = Vec::new();
    for line in json.lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("cargo's JSON")?;
        let Some(path) = message["executable"].as_str().filter(|_| message["profile"]["test"] == true) else {
            continue;
        };
        let target = message["target"]["name"].as_str().context("a target without a name")?;
        let manifest = Path::new(message["manifest_path"].as_str().context("a target without a manifest")?);
        let dir = manifest.parent().context("a manifest without a directory")?.to_path_buf();
        let package = message["package_id"].as_str().unwrap_or_default();
        let package = if package.contains("guard-tests") { "guard-tests" } else { "" };
        programs.push(TestProgram {
            target: target.to_owned(),
            group: Group::of(package, target),
            path: path.into(),
            dir,
        });
    }
    programs.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(PROGRAMS.get_or_init(|| programs))
}

fn group(run: &Run, group: Group) -> Result<Outcome> {
    let mut ended = Vec::new();
    let wanted = |program: &&TestProgram| program.group == group && !(run.quick && is_left_out(program));
    for program in programs()?.iter().filter(wanted) {
        println!("\n   {}", program.target);
        let mut command = Command::new(&program.path);
        command
            .current_dir(&program.dir)
            .env("CARGO_MANIFEST_DIR", &program.dir)
            .env("GUARD_SKIPS", &run.skips)
            .env("GUARD_BIN", shell::target().join("debug/guard"));
        if !run.install {
            command.env("GUARD_NO_INSTALL", "1");
        }
        let mut first = shell::run(&mut command, minutes(20))?;
        let unsteady = &mut *run.unsteady.borrow_mut();
        let may = matches!(group, Group::Netns | Group::Engines);
        if may
            && again_alone(&mut first, unsteady, |names| {
                shell::run(command.arg("--exact").args(names).args(["--test-threads", "1"]), minutes(10))
            })?
        {
            println!("   {}: what failed beside others passed alone", program.target);
        }
        ended.push((program.target.as_str(), first));
    }
    if ended.is_empty() {
        return Ok(Outcome::Skipped("no such tests yet".into()));
    }
    judge(run, &ended)
}

/// So many tests of a run may fail once: more than a machine's bad moment explains, and something is wrong.
const UNSTEADY: usize = 2;

/// Tests with real servers and engines wait for what others do, and a shared machine has bad moments. So of these a few
/// that failed are run once more, alone; where they pass, `first` is as if they had, and the report names them, as
/// UNSTEADY: to be looked into, never to be got used to.
fn again_alone(
    first: &mut shell::Ended,
    unsteady: &mut Vec<String>,
    again: impl FnOnce(&[&str]) -> Result<shell::Ended>,
) -> Result<bool> {
    let (failed, before) = (failing(&first.output), Counts::of(&first.output));
    // One that died or was ended has not said how many failed, and has not run them all.
    let ran_all = usize::try_from(before.failed)? == failed.len();
    if first.good || failed.is_empty() || !ran_all || failed.len() + unsteady.len() > UNSTEADY {
        return Ok(false);
    }
    println!("\n!! FAILED, once more alone: {}\n", failed.join(" "));
    let again = again(&failed)?;
    let counted = Counts::of(&again.output);
    if !again.good || usize::try_from(counted.passed)? != failed.len() {
        return Ok(false);
    }
    unsteady.extend(failed.iter().map(|name| (*name).to_owned()));
    let output = format!("test result: ok. {} passed; {} ignored", before.passed + counted.passed, before.ignored);
    *first = shell::Ended { output, ..again };
    Ok(true)
}

/// Not in a quick run: the long comparisons in the kernel, and all but the heart of what runs in namespaces.
fn is_left_out(program: &TestProgram) -> bool {
    const HEART: [&str; 7] = [
        "netns_verdicts",
        "netns_reload",
        "netns_hooks",
        "netns_takeover",
        "netns_sessions",
        "netns_records",
        "netns_lockdown",
    ];
    let target = program.target.as_str();
    match program.group {
        Group::Kernel => matches!(target, "differential_kernel" | "kernel_packets"),
        Group::Netns => !HEART.contains(&target),
        _ => false,
    }
}

/// Adds up what the programs say of themselves; one that says nothing counts as one test. A test that fails and is listed
/// as `program::test` in `xtask/allowed-skips.txt` counts as skipped: what is known not to work yet stays in sight.
fn judge(run: &Run, ended: &[(&str, shell::Ended)]) -> Result<Outcome> {
    let listed = allowed_skips()?;
    let mut skips = std::fs::OpenOptions::new().create(true).append(true).open(&run.skips)?;
    let (mut passed, mut failed, mut why) = (0, 0, Vec::new());
    for (name, ended) in ended {
        let mut counted = Counts::of(&ended.output);
        let failing = failing(&ended.output);
        let known = |test: &&str| listed.contains(&format!("{name}::{test}"));
        let excused = !ended.good && !failing.is_empty() && failing.iter().all(known);
        if excused {
            for test in &failing {
                writeln!(skips, "{name}::{test}\tknown to fail")?;
            }
            // Their places among the passed ones, which the report takes away again.
            counted.passed += counted.failed;
            counted.failed = 0;
        } else if !ended.good && counted.failed == 0 {
            // It died, or something failed outside a test.
            counted.failed = 1;
        }
        if ended.good && counted == Counts::default() && !ended.output.contains("test result:") {
            counted.passed = 1;
        }
        passed += counted.passed;
        failed += counted.failed;
        if !ended.good && !excused {
            why.push(format!("{name} ({}): {}", ended.how, failing.join(" ")));
        }
        if counted.ignored > 0 {
            failed += counted.ignored;
            why.push(format!("{name}: {} ignored (a test runs or says why it cannot)", counted.ignored));
        }
    }
    Ok(if failed == 0 {
        Outcome::Passed { tests: passed }
    } else {
        Outcome::Failed { passed, failed, why: why.join(", ") }
    })
}

/// Names of the tests that failed.
fn failing(output: &str) -> Vec<&str> {
    let names = output.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    names.collect()
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u32,
    failed: u32,
    ignored: u32,
}

impl Counts {
    fn of(output: &str) -> Self {
        let mut sum = Self::default();
        for line in output.lines().filter_map(|line| line.trim().strip_prefix("test result: ")) {
            for part in line.split(['.', ';']) {
                let mut words = part.split_whitespace();
                let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u32>), words.next()) else {
                    continue;
                };
                match what {
                    "passed" => sum.passed += count,
                    "failed" => sum.failed += count,
                    "ignored" => sum.ignored += count,
                    _ => {}
                }
            }
        }
        sum
    }
}

/// Reads and empties the file in which tests say that they cannot run here.
pub fn take_skips(path: &Path) -> Result<Vec<(String, String)>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    std::fs::remove_file(path)?;
    Ok(text
        .lines()
        .map(|line| line.split_once('\t').unwrap_or((line, "no reason given")))
        .map(|(name, reason)| (name.to_owned(), reason.to_owned()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up() {
        let output = "running 3 tests\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; \
                      finished in 0.01s\n\ntest result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured\n";
        assert_eq!(Counts::of(output), Counts { passed: 4, failed: 2, ignored: 1 });
    }

    #[test]
    fn failing_tests_are_named() {
        let output = "test a::one ... ok\ntest two ... FAILED\n\ntest result: FAILED. 1 passed; 1 failed\n";
        assert_eq!(failing(output), ["two"]);
    }

    #[test]
    fn what_failed_beside_others_is_run_again_alone_and_named() {
        let ended = |good, output: &str| shell::Ended { good, how: String::new(), output: output.to_owned() };
        let first = || ended(false, "test one ... FAILED\ntest result: FAILED. 4 passed; 1 failed; 1 ignored\n");
        let mut unsteady = Vec::new();

        let mut died = ended(false, "test one ... FAILED\n");
        assert!(!again_alone(&mut died, &mut unsteady, |_| unreachable!()).unwrap(), "the rest did not run");
        let mut found = first();
        let failed_again = again_alone(&mut found, &mut unsteady, |_| Ok(first())).unwrap();
        assert!(!failed_again && !found.good && unsteady.is_empty());
        let ran_none = |_: &[&str]| Ok(ended(true, "test result: ok. 0 passed; 0 failed"));
        assert!(!again_alone(&mut found, &mut unsteady, ran_none).unwrap());

        let passes = |names: &[&str]| {
            assert_eq!(names, ["one"]);
            Ok(ended(true, "test result: ok. 1 passed; 0 failed"))
        };
        assert!(again_alone(&mut found, &mut unsteady, passes).unwrap() && found.good);
        assert_eq!(Counts::of(&found.output), Counts { passed: 5, failed: 0, ignored: 1 });
        assert!(again_alone(&mut first(), &mut unsteady, passes).unwrap());
        assert!(!again_alone(&mut first(), &mut unsteady, |_| unreachable!()).unwrap(), "a third is too many");
        assert_eq!(unsteady, ["one", "one"]);
    }

    #[test]
    fn a_test_program_belongs_to_one_step() {
        assert_eq!(Group::of("guard-tests", "netns_replies"), Group::Netns);
        assert_eq!(Group::of("guard-tests", "engines"), Group::Engines);
        assert_eq!(Group::of("guard-tests", "kernel"), Group::Kernel);
        assert_eq!(Group::of("guard-tests", "differential_kernel"), Group::Kernel);
        assert_eq!(Group::of("guard-tests", "something_new"), Group::Unit);
        assert_eq!(Group::of("guard", "netns"), Group::Unit);
    }

    #[test]
    fn skips_are_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skips");
        std::fs::write(&path, "seal by fmod_ret\tno BTF\n").unwrap();
        assert_eq!(take_skips(&path).unwrap(), [("seal by fmod_ret".to_owned(), "no BTF".to_owned())]);
        assert!(take_skips(&path).unwrap().is_empty());
    }
}
