//! Packets a second through `replay`, on one core: parse, find the flow, judge, count; without reading a file. Time is
//! this thread's own, so that a busy machine does not count.
//!
//! `cargo run --release -p guard-tests --example replay_speed`: five runs of each row, the median printed.

use guard::{
    policy,
    replay::{Replay, capture::Frame, compiled, link::LinkType, side::Side},
};
use nix::time::{ClockId, clock_gettime};

const ROUNDS: usize = 5;
const PACKETS: usize = 2_000_000;

fn main() -> anyhow::Result<()> {
    println!("flows    share of new   packets/s");
    for (flows, each) in [(1, PACKETS), (1_000, 2_000), (100_000, 20), (500_000, 4)] {
        let mut runs: Vec<f64> = Vec::new();
        for _ in 0..ROUNDS {
            runs.push(run(flows, each)?);
        }
        runs.sort_by(f64::total_cmp);
        println!("{flows:>7}  {:>12.6}  {:>10.0}   runs {runs:.0?}", 1.0 / each as f64, runs[ROUNDS / 2]);
    }
    Ok(())
}

fn run(flows: usize, each: usize) -> anyhow::Result<f64> {
    let text = "version: 1\nname: speed\nmode: enforce\ninbound: []\noutbound:\n  - { name: web, to: [203.0.112.0/22, 198.51.100.0/24], services: [tcp/443, dns] }\n";
    let policy = policy::load_str("speed.yaml", text)?.policy;
    let compiled = compiled(&policy, 0)?;
    let side = Side::Given(vec!["192.0.2.1/32".parse()?]);
    let mut replay = Replay::new(&compiled, LinkType::Ethernet, side, None, 0);
    let frames: Vec<[u8; 60]> = (0..flows).map(|number| frame(number as u32)).collect();
    let start = seconds()?;
    let mut time = 0;
    for _ in 0..each {
        for data in &frames {
            time += 1000;
            replay.frame(&Frame { time, length: 60, data });
        }
    }
    Ok((flows * each) as f64 / (seconds()? - start))
}

fn seconds() -> anyhow::Result<f64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}

/// UDP to port 53; half of the remotes are listed.
fn frame(number: u32) -> [u8; 60] {
    let mut bytes = [0; 60];
    bytes[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    bytes[14..34].copy_from_slice(&[0x45, 0, 0, 46, 0, 1, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 203, 0, 0, 0]);
    let mixed = number.wrapping_mul(0x9e37_79b1);
    bytes[32] = 112 + (mixed >> 24 & 7) as u8;
    bytes[33] = (mixed >> 16) as u8;
    bytes[34..36].copy_from_slice(&(1024 + (number % 60_000) as u16).to_be_bytes());
    bytes[37] = 53;
    bytes[39] = 26;
    bytes
}
