//! What a whole packet costs at the wire: nanoseconds above an empty program, side by side.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use anyhow::{Result, ensure};
use guard::policy::model::{AddressSet, ServiceRange};
use guard_common::{
    Direction,
    abi::{Interface, Slot, SlotInfo, State, StateWord},
};
use guard_tests::{
    bpf::{OBJECT, Programs, update},
    frame,
    random::{self, Random},
};

use crate::{empty::Empty, series::Series};

/// Runs of one packet, for what a repeated packet shows.
const REPEAT: u32 = 1_000_000;
/// Packets that are each run once, for what only the first packet of a flow shows.
const FIRST: usize = 20_000;
/// BPF_PROG_TEST_RUN gives its packets to the loopback device, which is guarded here as if it were another.
const INTERFACE: u32 = 1;
const LOCAL_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const LOCAL_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
const PORT: u16 = 443;
const NEXT: u32 = -1_i32 as u32;
/// `TC_ACT_REDIRECT`, to no device: how the wire drops at egress.
const DROP: u32 = 7;

/// A flow of which packets are repeated.
#[derive(Clone, Copy)]
enum Known {
    /// Answered: in the table that nearly every packet finds its flow in.
    Udp,
    /// By its handshake.
    Tcp,
    Unanswered,
    Denied,
}

const KNOWN: [(Known, &str); 4] = [
    (Known::Tcp, "known flow, TCP"),
    (Known::Udp, "known flow, UDP"),
    (Known::Unanswered, "known flow, UDP, unanswered"),
    (Known::Denied, "known flow, denied"),
];

pub fn measure(runs: usize) -> Result<Vec<Series>> {
    let mut all = Vec::new();
    println!("a packet at the wire, outbound, 100,000 CIDRs, ns above an empty program (medians of {runs})\n");
    println!("{:<34} {:>8} {:>8}", "", "IPv4", "IPv6");
    let empty = Empty::load()?;
    let mut wire = Wire::load()?;
    for (known, name) in KNOWN {
        let mut line = format!("{name:<34}");
        for ipv6 in [false, true] {
            let mut series = Series::of(format!("{name}, {}", family(ipv6)), "ns");
            let packet = wire.known(known, ipv6)?;
            let allowed = !matches!(known, Known::Denied);
            for _ in 0..runs {
                // Beside each other, so that the machine's mood meets both.
                let nothing = empty.run(&packet, REPEAT)?;
                series.runs.push(wire.run(&packet, REPEAT, allowed)? - nothing);
            }
            line += &format!(" {:>8.0}", series.median());
            all.push(series);
        }
        println!("{line}");
    }
    for (name, listed) in [("first packet, allowed", true), ("first packet, denied", false)] {
        let mut line = format!("{name:<34}");
        for ipv6 in [false, true] {
            let mut series = Series::of(format!("{name}, {}", family(ipv6)), "ns");
            for _ in 0..runs {
                let (mut first, mut nothing) = (Series::of("", "ns"), Series::of("", "ns"));
                for _ in 0..FIRST {
                    let packet = wire.packet(ipv6, listed);
                    first.runs.push(wire.run(&packet, 1, listed)?);
                    nothing.runs.push(empty.run(&packet, 1)?);
                }
                series.runs.push(first.median() - nothing.median());
            }
            line += &format!(" {:>8.0}", series.median());
            all.push(series);
        }
        println!("{line}");
    }
    println!();
    Ok(all)
}

fn family(ipv6: bool) -> &'static str {
    if ipv6 { "IPv6" } else { "IPv4" }
}

/// The committed object with a policy, attached to nothing.
struct Wire {
    programs: Programs,
    random: Random,
    listed: Arc<AddressSet>,
}

impl Wire {
    fn load() -> Result<Self> {
        let mut random = Random(1);
        let listed = Arc::new(random::prefixes(&mut random, 100_000, 100_000));
        let services = [6, 17]
            .map(|protocol| protocol << 16 | u32::from(PORT))
            .map(|service| ServiceRange { first: service, last: service })
            .to_vec();
        let policy = random::policy(vec![random::rule(Direction::Outbound, Arc::clone(&listed), services)]);
        let compiled = random::compiled(&policy, 1)?;
        let mut programs = Programs::load(OBJECT, |_| {})?;
        programs.fill(Slot(0), &compiled.nodes, compiled.rules)?;
        let mut state =
            State { word: StateWord::settled(Slot(0)), abi: guard_common::abi::VERSION, ..State::default() };
        state.slots[0] = SlotInfo { generation: 1, flags: compiled.flags };
        programs.set_state(&state)?;
        let guarded = Interface { flags: Interface::GUARDED, ..Interface::default() };
        update(programs.map("INTERFACES")?, &INTERFACE, &guarded)?;
        Ok(Self { programs, random, listed })
    }

    /// Nanoseconds a run; the verdict must be what it should.
    fn run(&mut self, packet: &[u8], repeat: u32, allowed: bool) -> Result<f64> {
        let result = self.programs.run("wire_egress", packet, None, repeat)?;
        let expected = if allowed { NEXT } else { DROP };
        ensure!(result.return_value == expected, "verdict {}, not {expected}", result.return_value);
        Ok(result.duration.as_nanos() as f64)
    }

    /// A unicast address that no range holds.
    fn unlisted(&mut self) -> u32 {
        loop {
            let address = 0x0100_0000 + self.random.below(0xdf00_0000) as u32;
            let after = self.listed.v4.partition_point(|(first, _)| *first <= address);
            if after == 0 || self.listed.v4[after - 1].1 < address {
                return address;
            }
        }
    }

    /// The outbound packet of a flow that is known from then on.
    fn known(&mut self, known: Known, ipv6: bool) -> Result<Vec<u8>> {
        const SYN: u8 = 0x02;
        const ACK: u8 = 0x10;
        let flow = self.flow(ipv6, !matches!(known, Known::Denied));
        let packet = match known {
            Known::Tcp => {
                self.run(&flow.tcp(SYN), 1, true)?;
                self.receive(&flow.reversed().tcp(SYN | ACK))?;
                flow.tcp(ACK)
            }
            Known::Udp => {
                self.run(&flow.udp(), 1, true)?;
                self.receive(&flow.reversed().udp())?;
                flow.udp()
            }
            Known::Unanswered | Known::Denied => flow.udp(),
        };
        self.run(&packet, 1, !matches!(known, Known::Denied))?;
        Ok(packet)
    }

    /// An answer, which must pass.
    fn receive(&mut self, packet: &[u8]) -> Result<()> {
        let result = self.programs.run("wire_ingress", packet, None, 1)?;
        ensure!(result.return_value == NEXT, "the answer did not pass: {}", result.return_value);
        Ok(())
    }

    /// Of another flow each time.
    fn packet(&mut self, ipv6: bool, listed: bool) -> Vec<u8> {
        self.flow(ipv6, listed).udp()
    }

    fn flow(&mut self, ipv6: bool, listed: bool) -> Ends {
        let (remote, local): (IpAddr, IpAddr) = if ipv6 {
            let (first, _) = self.listed.v6[self.random.below(self.listed.v6.len() as u64) as usize];
            // No listed one begins so.
            let other = 0x2001_0db8_u128 << 96 | u128::from(self.random.next());
            (Ipv6Addr::from(if listed { first } else { other }).into(), LOCAL_V6.into())
        } else {
            let (first, _) = self.listed.v4[self.random.below(self.listed.v4.len() as u64) as usize];
            let remote = if listed { first } else { self.unlisted() };
            (Ipv4Addr::from(remote).into(), LOCAL_V4.into())
        };
        let port = 1024 + (self.random.next() as u16 % 60_000);
        Ends { from: (local, port), to: (remote, PORT) }
    }
}

/// A flow as its packet has it.
#[derive(Clone, Copy)]
struct Ends {
    from: (IpAddr, u16),
    to: (IpAddr, u16),
}

impl Ends {
    const fn reversed(self) -> Self {
        Self { from: self.to, to: self.from }
    }

    fn udp(self) -> Vec<u8> {
        self.frame(frame::UDP, &frame::udp(self.from, self.to, &[0; 18]))
    }

    fn tcp(self, flags: u8) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend(self.from.1.to_be_bytes());
        segment.extend(self.to.1.to_be_bytes());
        segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0x40, 0, 0, 0, 0, 0]);
        self.frame(frame::TCP, &segment)
    }

    fn frame(self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let packet = frame::ip(self.from.0, self.to.0, protocol, payload);
        frame::ethernet_ip([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], &packet)
    }
}
