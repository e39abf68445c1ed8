//! The loaded programs of the wire as one of the judges: packets by BPF_PROG_TEST_RUN, on devices of a network namespace
//! of its own that nothing else is in. Nothing is attached.
//!
//! The kernel's clock cannot be turned. To wait, everything that is kept is made older instead: flows, fragments, notes,
//! the deadline, and the tables, whose rules end at moments of that clock.

use std::{
    fs::File,
    io::Write as _,
    net::SocketAddr,
    os::fd::{AsFd, FromRawFd, OwnedFd},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::{MapData, RingBuf};
use guard::policy::compile::{Clocks, compile};
use guard_common::{
    Direction, Reason, Verdict,
    abi::{
        COUNTERS, Counter, Event, EventKind, Flow, FlowKeyV4, FlowKeyV6, FragmentKeyV4, FragmentKeyV6, FragmentValue,
        Interface, NoteKey, RuleCounter, Slot, SlotInfo, State, StateWord, VERSION,
    },
    judge::FlowTable,
    packet::Link,
};
use nix::sched::{CloneFlags, setns, unshare};

use crate::{
    bpf::{OBJECT, Programs, delete, keys, load_program, lookup, lookup_batch, update, update_batch},
    differential::CLOCKS,
    parity::{Books, DEVICES, Judge, Publish, Ruling, Scene, held, memory, packet::Packet},
};

const PROGRAMS: [&str; 4] = ["wire_ingress", "wire_egress", "wire_ingress_l3", "wire_egress_l3"];
/// More than a scene has flows: the tables of a real one are larger.
const ENTRIES: u32 = 2048;
/// Waits end at least so far from any bound.
const LATE: Duration = Duration::from_secs(4);

/// A network namespace with the scenes' devices and sockets. It goes with the last that holds it.
pub struct Place {
    net: File,
    _sockets: Vec<OwnedFd>,
}

impl Place {
    pub fn make() -> Result<Arc<Self>> {
        thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let mut batch = "link set lo up\naddress add 192.0.2.1/32 dev lo\naddress add 2001:db8:2::1/128 dev lo nodad\n"
                .to_owned();
            for (name, index, _) in DEVICES.iter().filter(|device| device.1 != 1) {
                batch.push_str(&format!("link add {name} index {index} type veth peer name peer{index}\nlink set {name} up\nlink set peer{index} up\n"));
            }
            batch.push_str("route add 198.51.100.0/24 dev eth0\nroute add 2001:db8:17::/48 dev eth0\n");
            let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
            ip.stdin.take().context("no standard input")?.write_all(batch.as_bytes())?;
            ensure!(ip.wait()?.success(), "the devices cannot be made");
            let mut sockets = Vec::new();
            for held in held() {
                if held.accepted {
                    sockets.push(socket(held.local, None)?);
                }
                sockets.push(socket(held.local, Some(held.remote))?);
            }
            Ok(Arc::new(Self { net: File::open("/proc/thread-self/ns/net")?, _sockets: sockets }))
        })
        .join()
        .map_err(|_| anyhow!("the place could not be made"))?
    }
}

/// A listening socket, or one that holds a connection with nobody: TCP_REPAIR connects without a packet.
fn socket(local: (std::net::IpAddr, u16), remote: Option<(std::net::IpAddr, u16)>) -> Result<OwnedFd> {
    let family = if local.0.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: plain calls; each pointer is to a value that lives until its call returns, and the descriptor is ours.
    unsafe {
        let fd = libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        ensure!(fd >= 0, "socket: {}", std::io::Error::last_os_error());
        let socket = OwnedFd::from_raw_fd(fd);
        let (level, option) = if remote.is_some() {
            (libc::IPPROTO_TCP, libc::TCP_REPAIR)
        } else {
            (libc::SOL_SOCKET, libc::SO_REUSEADDR)
        };
        let one = 1_i32;
        let set = libc::setsockopt(fd, level, option, (&raw const one).cast(), 4);
        ensure!(set == 0, "setsockopt: {}", std::io::Error::last_os_error());
        let address = |end: (std::net::IpAddr, u16)| nix::sys::socket::SockaddrStorage::from(SocketAddr::from(end));
        nix::sys::socket::bind(fd, &address(local)).with_context(|| format!("bind {local:?}"))?;
        match remote {
            Some(remote) => {
                nix::sys::socket::connect(fd, &address(remote)).with_context(|| format!("connect {remote:?}"))?;
            }
            None => nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(1)?)?,
        }
        Ok(socket)
    }
}

pub struct Kernel {
    place: Arc<Place>,
    /// The thread that is in the place.
    entered: Option<thread::ThreadId>,
    programs: Programs,
    events: RingBuf<MapData>,
    hz: u64,
    cpus: usize,
    began: Instant,
    counted: Vec<(u64, u64)>,
    at_begin: Vec<(u64, u64)>,
    state: State,
    classes: [[u32; Slot::TABLES]; DEVICES.len()],
    /// By slot.
    published: [Option<Publish>; Slot::TABLES],
    counters: Vec<(Publish, OwnedFd)>,
    next: u8,
    /// Nanoseconds that were waited since the scene began.
    waited: u64,
}

impl Kernel {
    pub fn load(place: &Arc<Place>) -> Result<Self> {
        let hz = guard::kernel::tick_hz()?;
        let small = FLOWS.iter().flat_map(|(_, v4, v6)| [*v4, *v6]);
        let others = ["FRAGMENTS_V4", "FRAGMENTS_V6", "NOTES", "OWNERS"];
        let mut programs = Programs::load_maps(OBJECT, |loader| {
            loader.override_global("HZ", &hz, true);
            for map in small.chain(others) {
                loader.map_max_entries(map, ENTRIES);
            }
            loader.map_max_entries("EVENTS", 1 << 18);
        })?;
        let events = RingBuf::try_from(programs.ebpf.take_map("EVENTS").context("no events")?)?;
        for name in PROGRAMS {
            load_program(programs.ebpf.program_mut(name).context("no such program")?)?;
        }
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let empty = vec![(0, 0); COUNTERS as usize];
        Ok(Self {
            place: Arc::clone(place),
            entered: None,
            programs,
            events,
            hz: hz.into(),
            cpus,
            began: Instant::now(),
            counted: empty.clone(),
            at_begin: empty,
            state: State::default(),
            classes: [[0; Slot::TABLES]; DEVICES.len()],
            published: [None; Slot::TABLES],
            counters: Vec::new(),
            next: 0,
            waited: 0,
        })
    }

    fn totals(&self) -> Result<Vec<(u64, u64)>> {
        let mut all = vec![Counter::default(); COUNTERS as usize * self.cpus];
        lookup_batch(self.programs.map("COUNTERS")?, COUNTERS, &mut all)?;
        let sum = |cpus: &[Counter]| cpus.iter().fold((0, 0), |sum, one| (sum.0 + one.packets, sum.1 + one.bytes));
        Ok(all.chunks(self.cpus).map(sum).collect())
    }

    fn put_state(&self) -> Result<()> {
        self.programs.set_state(&self.state)
    }

    fn put_interfaces(&self) -> Result<()> {
        for (device, class) in DEVICES.iter().zip(self.classes) {
            if let Some(flags) = device.2 {
                update(self.programs.map("INTERFACES")?, &device.1, &Interface { flags, class })?;
            }
        }
        Ok(())
    }

    fn map(&self, name: &str) -> Result<std::os::fd::BorrowedFd<'_>> {
        self.programs.map(name)
    }

    /// The tables of a slot, as they stand now.
    fn fill(&mut self, scene: &Scene, slot: usize, publish: &Publish) -> Result<()> {
        let policy = &scene.policies[publish.policy];
        let ends = policy.rules.iter().any(|rule| rule.expires.is_some());
        // The scene's own are of a clock that stands elsewhere.
        let made;
        let compiled = if ends {
            let unix_ns = CLOCKS.unix_ns + i128::from(self.waited);
            made = compile(policy, Clocks { unix_ns, boot_ns: boot_ns() }, publish.generation)?;
            &made
        } else {
            &scene.compiled[publish.policy]
        };
        for (device, classes) in DEVICES.iter().zip(&mut self.classes) {
            classes[slot] = compiled.interface_class(device.0);
        }
        self.programs.fill_nodes(Slot(slot as u8), &compiled.nodes)
    }

    /// Every element of a table, changed.
    fn change<K: Copy + Default, V: Copy + Default>(&self, name: &str, change: impl Fn(&mut V)) -> Result<()> {
        let map = self.map(name)?;
        for key in keys::<K>(map)? {
            let mut value = V::default();
            lookup(map, &key, &mut value)?;
            change(&mut value);
            update(map, &key, &value)?;
        }
        Ok(())
    }

    fn clear<K: Copy + Default>(&self, name: &str) -> Result<()> {
        let map = self.map(name)?;
        keys::<K>(map)?.iter().try_for_each(|key| delete(map, key))
    }

    /// What rang; one at most.
    fn event(&mut self) -> Result<Option<Event>> {
        let mut event = None;
        while let Some(item) = self.events.next() {
            ensure!(item.len() == size_of::<Event>(), "an event of {} bytes", item.len());
            // SAFETY: as long as an event, which is plain data; the ring aligns to 8.
            let read = unsafe { std::ptr::read_unaligned(item.as_ptr().cast::<Event>()) };
            ensure!(event.replace(read).is_none(), "two events of one packet");
        }
        Ok(event)
    }
}

const FLOWS: [(FlowTable, &str, &str); 4] = [
    (FlowTable::Established, "FLOWS_ESTABLISHED_V4", "FLOWS_ESTABLISHED_V6"),
    (FlowTable::UnansweredInbound, "FLOWS_UNANSWERED_INBOUND_V4", "FLOWS_UNANSWERED_INBOUND_V6"),
    (FlowTable::UnansweredOutbound, "FLOWS_UNANSWERED_OUTBOUND_V4", "FLOWS_UNANSWERED_OUTBOUND_V6"),
    (FlowTable::Denied, "FLOWS_DENIED_V4", "FLOWS_DENIED_V6"),
];

impl Judge for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn begin(&mut self, _: &Scene) -> Result<()> {
        let here = thread::current().id();
        if self.entered != Some(here) {
            setns(&self.place.net, CloneFlags::CLONE_NEWNET)?;
            self.entered = Some(here);
        }
        self.began = Instant::now();
        for (_, v4, v6) in FLOWS {
            self.clear::<FlowKeyV4>(v4)?;
            self.clear::<FlowKeyV6>(v6)?;
        }
        self.clear::<FragmentKeyV4>("FRAGMENTS_V4")?;
        self.clear::<FragmentKeyV6>("FRAGMENTS_V6")?;
        self.clear::<NoteKey>("NOTES")?;
        while self.event()?.is_some() {}
        self.counted = self.totals()?;
        self.at_begin.clone_from(&self.counted);
        self.published = [None; Slot::TABLES];
        self.counters.clear();
        self.waited = 0;
        self.state = State { word: StateWord::TRACKING, abi: VERSION, ..State::default() };
        self.put_interfaces()?;
        self.put_state()
    }

    fn publish(&mut self, scene: &Scene, publish: &Publish) -> Result<()> {
        let slot = Slot(self.next);
        self.next = (self.next + 1) % Slot::TABLES as u8;
        let counters = self.programs.fill_counters(slot, scene.compiled[publish.policy].rules)?;
        self.counters.push((*publish, counters));
        if publish.broken {
            self.programs.empty(slot)?;
        } else {
            self.fill(scene, usize::from(slot.0), publish)?;
        }
        self.published[usize::from(slot.0)] = Some(*publish);
        self.put_interfaces()?;
        let now = boot_ns();
        self.state.slots[usize::from(slot.0)] =
            SlotInfo { generation: publish.generation, flags: memory::flags(scene, publish) };
        self.state.word = memory::word(self.state.word, slot, publish, now, |after| now + after);
        self.put_state()
    }

    fn track(&mut self) -> Result<()> {
        self.state.word = StateWord::TRACKING;
        self.put_state()
    }

    fn confirm(&mut self) -> Result<()> {
        self.state.word = StateWord::settled(self.state.word.active());
        self.put_state()
    }

    fn wait(&mut self, scene: &Scene, nanoseconds: u64) -> Result<()> {
        self.waited += nanoseconds;
        let jiffies = nanoseconds / 1_000_000_000 * self.hz;
        for (_, v4, v6) in FLOWS {
            let older = |flow: &mut Flow| {
                flow.last_seen -= jiffies;
                if flow.until != u64::MAX {
                    flow.until = flow.until.saturating_sub(nanoseconds);
                }
            };
            self.change::<FlowKeyV4, Flow>(v4, older)?;
            self.change::<FlowKeyV6, Flow>(v6, older)?;
        }
        let older = |fragment: &mut FragmentValue| fragment.seen -= jiffies;
        self.change::<FragmentKeyV4, FragmentValue>("FRAGMENTS_V4", older)?;
        self.change::<FragmentKeyV6, FragmentValue>("FRAGMENTS_V6", older)?;
        self.change::<NoteKey, u64>("NOTES", |noted| *noted -= jiffies)?;
        let word = self.state.word;
        if let Some(deadline) = word.deadline_ms() {
            let deadline = deadline.saturating_sub(nanoseconds / 1_000_000);
            self.state.word = StateWord::pending(word.active(), word.previous(), deadline);
        }
        for slot in 0..Slot::TABLES {
            if let Some(publish) = self.published[slot].filter(|publish| !publish.broken)
                && scene.policies[publish.policy].rules.iter().any(|rule| rule.expires.is_some())
            {
                self.fill(scene, slot, &publish)?;
            }
        }
        self.put_interfaces()?;
        self.put_state()
    }

    fn packet(&mut self, _: &Scene, packet: &Packet) -> Result<Ruling> {
        /// `TCX_NEXT`; `TCX_DROP` at ingress, `TCX_REDIRECT` to no device at egress.
        const NEXT: u32 = u32::MAX;
        const DROP: [u32; 2] = [2, 7];
        /// Where `struct __sk_buff` has the interface.
        const IFINDEX: usize = 40;
        let device = &DEVICES[packet.device];
        let name = match (packet.direction, memory::link(device)) {
            (Direction::Inbound, Link::Ethernet) => PROGRAMS[0],
            (Direction::Outbound, Link::Ethernet) => PROGRAMS[1],
            (Direction::Inbound, Link::None) => PROGRAMS[2],
            (Direction::Outbound, Link::None) => PROGRAMS[3],
        };
        // Each may be reported.
        update_batch(self.map("LIMITS")?, &[0_u64; Reason::SLOTS])?;
        let mut context = [0_u8; 192];
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&device.1.to_ne_bytes());
        let run = self.programs.run(name, &packet.bytes, Some(&context), 1).with_context(|| format!("{packet:?}"))?;
        let dropped = run.return_value == DROP[packet.direction as usize];
        ensure!(dropped || run.return_value == NEXT, "{name} gave {}", run.return_value);

        let before = std::mem::take(&mut self.counted);
        self.counted = self.totals()?;
        let changed = self.counted.iter().zip(&before).enumerate().filter(|(_, (now, before))| now != before);
        let changed: Vec<_> = changed.map(|(index, (now, then))| (index, now.0 - then.0, now.1 - then.1)).collect();
        let [(index, 1, bytes)] = changed[..] else { anyhow::bail!("counted {changed:?} for one packet: {packet:?}") };
        let reason = Reason::from_u8((index >> 2) as u8).context("a counter of no reason")?;
        ensure!(bytes == packet.bytes.len() as u64, "counted {bytes} bytes: {packet:?}");
        ensure!(index >> 1 & 1 == packet.direction as usize, "counted another direction: {packet:?}");
        ensure!((index & 1 == 1) == dropped, "{} counted as {index}", run.return_value);

        let event = self.event()?;
        if let Some(event) = &event {
            ensure!(event.outcome.reason() == reason, "{event:?} of a packet counted as {reason:?}");
            ensure!(event.dropped == u8::from(dropped), "{event:?}");
            ensure!(event.ifindex == device.1 && event.packet_bytes as usize == packet.bytes.len(), "{event:?}");
            let head = event.head_bytes != 0;
            ensure!(head == (reason.verdict() == Verdict::Deny), "the beginning of the packet: {event:?}");
        }
        let kind = |event: &Event| match event.kind {
            1 => Ok(EventKind::FlowBegan),
            2 => Ok(EventKind::FlowCut),
            5 => Ok(EventKind::PacketDenied),
            other => Err(anyhow!("an event of kind {other}")),
        };
        Ok(Ruling {
            reason,
            rule: event.as_ref().map(|event| event.outcome.rule()),
            dropped,
            event: event.as_ref().map(kind).transpose()?,
        })
    }

    fn end(&mut self, _: &Scene) -> Result<Books> {
        let mut books = Books::default();
        for (table, v4, v6) in FLOWS {
            let mut flow = Flow::default();
            for key in keys::<FlowKeyV4>(self.map(v4)?)? {
                lookup(self.map(v4)?, &key, &mut flow)?;
                memory::add(&mut books, memory::ends_v4(&key), table, &flow);
            }
            for key in keys::<FlowKeyV6>(self.map(v6)?)? {
                lookup(self.map(v6)?, &key, &mut flow)?;
                memory::add(&mut books, memory::ends_v6(&key), table, &flow);
            }
        }
        let since = self.counted.iter().zip(&self.at_begin).map(|(now, then)| (now.0 - then.0, now.1 - then.1));
        books.totals = memory::totals(&since.collect::<Vec<_>>());
        for (publish, counters) in &self.counters {
            for rule in keys::<u32>(counters.as_fd())? {
                let mut counter = RuleCounter::default();
                lookup(counters.as_fd(), &rule, &mut counter)?;
                if counter.flows > 0 {
                    books.rules.push(((publish.generation, rule), counter.flows));
                }
            }
        }
        memory::sort(&mut books);
        Ok(books)
    }

    fn is_late(&self) -> bool {
        self.began.elapsed() > LATE
    }
}

fn boot_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a value that lives until the call returns.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
