//! Packets a second of `guard replay`, on one core: a capture of our own making, from file to verdicts.

use std::{
    fs::File,
    io::{BufWriter, Write},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::Instant,
};

use anyhow::{Result, anyhow, ensure};
use guard::replay::{Opened, Replay, capture::Reader, compiled};
use guard_tests::{frame, random::Random};

use crate::series::Series;

const PACKETS: u32 = 2_000_000;
const FLOWS: usize = 20_000;
const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const POLICY: &str = "version: 1\nname: bench\nmode: enforce\ninbound:\n  - { name: web, from: 198.51.100.0/25, services: [http, https] }\noutbound: []\n";

pub fn measure(runs: usize) -> Result<Vec<Series>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("load.pcap");
    write(&path)?;
    let loaded = guard::policy::load_str("bench.yaml", POLICY).map_err(|_| anyhow!("the policy is not valid"))?;
    let mut series = Series::of(format!("replay of {PACKETS} packets of {FLOWS} flows"), "packets/s");
    for _ in 0..runs {
        let start = Instant::now();
        let mut opened = Opened::new(Reader::open(&path, None)?, &[format!("{LOCAL}/32").parse()?]);
        let tables = compiled(&loaded.policy, opened.first)?;
        let link = opened.reader().link();
        let mut replay = Replay::new(&tables, link, opened.side.clone(), None, opened.first);
        let mut judged = 0_u32;
        opened.each(|frame, _| judged += u32::from(replay.frame(frame).is_some()));
        ensure!(judged == PACKETS, "{judged} of {PACKETS} packets were judged");
        series.runs.push(f64::from(PACKETS) / start.elapsed().as_secs_f64());
    }
    println!("{}: {:.2} M packets/s (median of {runs})\n", series.name, series.median() / 1e6);
    Ok(vec![series])
}

/// A pcap file (draft-ietf-opsawg-pcap: little-endian, microseconds, Ethernet) of small datagrams, half of them allowed.
fn write(path: &Path) -> Result<()> {
    let mut random = Random(1);
    let frames: Vec<Vec<u8>> = (0..FLOWS)
        .map(|_| {
            let remote = IpAddr::V4(Ipv4Addr::from(0xc633_6400 | (random.next() as u32 & 0xff)));
            let port = 1024 + (random.next() as u16 % 60_000);
            let data = frame::tcp((remote, port), (LOCAL.into(), 443), frame::SYN, 1, 0, &[]);
            frame::ethernet_ip(
                [2, 0, 0, 0, 0, 1],
                [2, 0, 0, 0, 0, 2],
                &frame::ip(remote, LOCAL.into(), frame::TCP, &data),
            )
        })
        .collect();
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&0xa1b2_c3d4_u32.to_le_bytes())?;
    for word in [2_u16, 4] {
        file.write_all(&word.to_le_bytes())?;
    }
    for word in [0_u32, 0, 65_535, 1] {
        file.write_all(&word.to_le_bytes())?;
    }
    for number in 0..PACKETS {
        let frame = random_of(&mut random, &frames);
        for word in [1_900_000_000 + number / 1_000_000, number % 1_000_000, frame.len() as u32, frame.len() as u32] {
            file.write_all(&word.to_le_bytes())?;
        }
        file.write_all(frame)?;
    }
    Ok(file.flush()?)
}

fn random_of<'a>(random: &mut Random, list: &'a [Vec<u8>]) -> &'a [u8] {
    &list[random.below(list.len() as u64) as usize]
}
