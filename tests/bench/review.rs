//! What the record store and its reports cost: a day's report, ten million records, and 20,000 new flows a second.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use guard::{
    record::{
        clock::Clock,
        recorder::Recorder,
        sink::{Limits as SinkLimits, Sink},
        sweep::Tracker,
    },
    store::{Begun, FILE, Limits, Recording},
};
use guard_common::{
    Direction, Reason,
    abi::{Event, EventKind, FlowKeyV6, HEAD_BYTES, Owner},
    decide::Outcome,
};
use guard_tests::{
    day::{self, BEGAN, Days, Talk, program},
    random::Random,
};

use crate::series::Series;

const RECORDS: u64 = 10_000_000;
/// What the issue of the review asks for: seconds and bytes.
const MOST: (f64, u64) = (20.0, 300 << 20);
const MOST_DAY: f64 = 0.2;
/// New flows a second, and for how long.
const RATE: u64 = 20_000;
const SECONDS: u64 = 15;

pub fn measure(runs: usize) -> Result<Vec<Series>> {
    let all = [a_day(runs)?, ten_million(runs)?, recording()?];
    Ok(all.into_iter().flatten().collect())
}

fn a_day(runs: usize) -> Result<Vec<Series>> {
    let home = tempfile::tempdir()?;
    day::write(home.path(), true)?;
    let mut series = Series::of("report on a store with a day of 50,000 flows", "s");
    for _ in 0..runs {
        series.runs.push(report(home.path())?.seconds);
    }
    println!("{}: {:.0} ms (at most {:.0})", series.name, series.median() * 1e3, MOST_DAY * 1e3);
    Ok(vec![series])
}

/// Written once a format: it takes minutes, and 2 GB.
fn ten_million(runs: usize) -> Result<Vec<Series>> {
    let home = store_of_many()?;
    let mut time = Series::of(format!("report on {RECORDS} records"), "s");
    let mut processor = Series::of(format!("processor time of a report on {RECORDS} records"), "s");
    let mut memory = Series::of(format!("peak memory of a report on {RECORDS} records"), "bytes");
    for _ in 0..runs.min(3) {
        let cost = report(&home)?;
        time.runs.push(cost.seconds);
        processor.runs.push(cost.processor);
        memory.runs.push(cost.peak as f64);
    }
    let file = home.join(FILE).metadata()?.len();
    println!(
        "{}: {:.1} s (at most {:.0}), {:.1} s of processor time, {:.0} MB (at most {}), of a store of {} MB",
        time.name,
        time.median(),
        MOST.0,
        processor.median(),
        memory.median() / f64::from(1 << 20),
        MOST.1 >> 20,
        file >> 20
    );
    Ok(vec![time, processor, memory])
}

/// A busy host's ninety days: 3,000 groups of 40 programs, and remotes of which a few come ever again.
fn store_of_many() -> Result<PathBuf> {
    let home = binary()?
        .ancestors()
        .nth(2)
        .context("no target directory")?
        .join("bench")
        .join(format!("store-{}", guard::store::VERSION));
    let done = home.join("complete");
    if done.exists() {
        return Ok(home);
    }
    let _ = std::fs::remove_dir_all(&home);
    std::fs::create_dir_all(&home)?;
    let start = Instant::now();
    let mut random = Random(3);
    let mut days = Days::begin(&home, BEGAN - 69 * 86_400_000_000)?;
    let programs: Vec<_> = (0..40)
        .map(|number| Arc::new(program(&format!("/usr/bin/tool{number}"), 1000 + number, "ci", "/usr/bin/dash")))
        .collect();
    let step = 90 * 86_400_000_000 / RECORDS as i64;
    for number in 0..RECORDS {
        let at = BEGAN - 69 * 86_400_000_000 + number as i64 * step;
        let group = random.below(3000) as u32;
        let who = &programs[group as usize % programs.len()];
        let remote = [203, (group >> 8) as u8, group as u8, random.below(250) as u8 + 1];
        let talk = match group % 10 {
            0..3 => Talk::inbound(6, "203.0.113.1", 443, Some(who)),
            3 => Talk::out(6, "203.0.113.1", 443, who).denied(),
            _ => Talk::out(6, "203.0.113.1", [443, 80, 5432, 22][group as usize % 4], who),
        };
        days.put(&talk.to(remote.into()), at)?;
    }
    days.end(BEGAN + 21 * 86_400_000_000)?;
    std::fs::write(&done, "")?;
    println!(
        "writing {RECORDS} records: {:.0} s, {:.0} a second",
        start.elapsed().as_secs_f64(),
        RECORDS as f64 / start.elapsed().as_secs_f64()
    );
    Ok(home)
}

/// Built beside this program.
fn binary() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("guard");
    ensure!(path.exists(), "{} is not there", path.display());
    Ok(path)
}

/// What `guard report --json` took.
struct Cost {
    seconds: f64,
    /// Seconds, user and system.
    processor: f64,
    /// Bytes.
    peak: u64,
}

fn report(home: &Path) -> Result<Cost> {
    let start = Instant::now();
    let child =
        Command::new(binary()?).args(["report", "--json", "--state-dir"]).arg(home).stdout(Stdio::null()).spawn()?;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    let mut status = 0;
    // SAFETY: both pointers lead to memory of ours that lives as long as the call; the child is ours and not waited for.
    let ended = unsafe { libc::wait4(child.id().cast_signed(), &mut status, 0, usage.as_mut_ptr()) };
    let seconds = start.elapsed().as_secs_f64();
    ensure!(ended == child.id().cast_signed(), "wait4: {}", std::io::Error::last_os_error());
    ensure!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) <= 1, "guard report ended with {status:#x}");
    // SAFETY: wait4 succeeded and has filled it.
    let usage = unsafe { usage.assume_init() };
    let processor = [usage.ru_utime, usage.ru_stime].iter().map(|t| t.tv_sec as f64 + t.tv_usec as f64 / 1e6).sum();
    Ok(Cost { seconds, processor, peak: u64::try_from(usage.ru_maxrss)? << 10 })
}

/// Events as the ring buffer brings them, to records, `flows.jsonl` and the store.
fn recording() -> Result<Vec<Series>> {
    let home = tempfile::tempdir()?;
    let begun = Begun { host: "bench".into(), machine: String::new(), boot: "b".into(), at: 0 };
    let store = Arc::new(Recording::start(&home.path().join(FILE), Limits::default(), begun));
    let sink = Sink::open(home.path().join("flows.jsonl"), SinkLimits::default());
    let mut recorder = Recorder::new(sink, Tracker::default(), Clock::read()?);
    recorder.observe(Box::new(Arc::clone(&store)));
    let boot = guard::record::clock::boot_now();
    let (start, before) = (Instant::now(), processor_time());
    let mut sent = 0u64;
    while sent < RATE * SECONDS {
        let due = start.elapsed().as_micros() as u64 * RATE / 1_000_000;
        while sent < due.min(RATE * SECONDS) {
            recorder.event(&event(sent, boot + start.elapsed().as_nanos() as u64));
            sent += 1;
        }
        recorder.flush();
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = start.elapsed();
    let reached = sent as f64 / took.as_secs_f64();
    let waits = Instant::now();
    while store.status().written + store.status().overflow + store.status().lost < sent
        && waits.elapsed() < Duration::from_secs(60)
    {
        std::thread::sleep(Duration::from_millis(50));
    }
    // A busy machine may not reach the rate: what a flow costs is measured, and what so many would is reckoned.
    let each = (processor_time() - before).as_secs_f64() / sent as f64;
    let (status, counts) = (store.status(), recorder.sink.counts().clone());
    let lost = status.overflow + status.lost;
    println!(
        "recording {sent} new flows, {reached:.0} a second ({RATE} wanted): {:.1} us of processor time each, so {:.2} cores at \
         {RATE} a second; store: {} written, {} came too fast, {} lost; flows.jsonl: {counts:?}",
        each * 1e6,
        each * RATE as f64,
        status.written,
        status.overflow,
        status.lost
    );
    let series = |name: String, unit: &'static str, value: f64| {
        let mut series = Series::of(name, unit);
        series.runs.push(value);
        series
    };
    Ok(vec![
        series(format!("new flows recorded a second ({RATE} wanted)"), "flows/s", reached),
        series("processor time of recording a new flow".to_owned(), "s", each),
        series(
            format!("processor time of recording {RATE} new flows a second, reckoned from that"),
            "cores",
            each * RATE as f64,
        ),
        series("records lost at the rate reached".to_owned(), "records", lost as f64),
    ])
}

/// Outbound and denied, by ourselves, each to another address.
fn event(number: u64, time: u64) -> Event {
    Event {
        kind: EventKind::FlowBegan as u8,
        family: 4,
        direction: Direction::Outbound as u8,
        dropped: 1,
        outcome: Outcome::without_rule(Reason::NotListed),
        generation: 1,
        ifindex: 0,
        time,
        socket_cookie: number,
        key: FlowKeyV6 {
            remote: [0xcb00_0000 | (number as u32 & 0xf_ffff), 0, 0, 0],
            local: [0xc000_0201, 0, 0, 0],
            remote_port: 443,
            local_port: 32_768 + (number % 28_000) as u16,
            protocol_scope: 6,
        },
        owner: Owner { pid: std::process::id(), ..Owner::default() },
        packet_bytes: 60,
        head_bytes: 60,
        head: [0x45; HEAD_BYTES],
    }
}

/// Of all threads, user and system.
fn processor_time() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    usage.map_or(Duration::ZERO, |usage| {
        [usage.user_time(), usage.system_time()]
            .into_iter()
            .map(|time| Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()).cast_unsigned()))
            .sum()
    })
}
