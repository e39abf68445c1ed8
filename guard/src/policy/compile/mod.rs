//! A policy to the tables of one generation: pure, no I/O.
//!
//! Four steps, a file each: sets of addresses, each once ([`sets`]); sets that overlap to disjoint intervals with
//! classes ([`sweep`]); the rules of a class to its row ([`rows`]); stages to nodes, equal ones shared ([`tables`]).
//! The format is [`guard_common::decide`]'s. Time and memory are proportional to the policy; what could grow past that
//! (lists that overlap in many ways) has a bound, and [`CompileError`] names the rule that passes it.

mod error;
mod interfaces;
mod remotes;
mod rows;
mod sets;
mod sweep;
mod tables;

use std::{collections::HashMap, net::IpAddr};

use guard_common::{
    Direction, Verdict,
    abi::{self, SlotFlags},
    decide::{Header, Node, Question, Subject, Target, local_class, root_node},
};

pub use self::error::{
    CompileError, Limit, MAX_CLASS_CELLS, MAX_INTERFACE_CLASSES, MAX_NODES, MAX_RANGES, MAX_ROW_STEPS, MAX_RULES,
    MAX_TIME_STEPS,
};
pub use self::interfaces::InterfaceClasses;
use self::{
    interfaces::{Interfaces, PatternId},
    rows::{Context, Live, Rows},
    sets::{SetId, Sets},
    sweep::{ClassId, Classes, sweep},
    tables::Builder,
};
use crate::policy::model::{ContainerHost, Essentials, FlowQuery, Mode, Policy, Refusal, Rule};

/// One moment on two clocks: turns the policy's wall time into the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// Nanoseconds since 1970.
    pub unix_ns: i128,
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub boot_ns: u64,
}

impl Clocks {
    /// Boot time of a moment of wall time; one before boot is 0, one after the end of the clock is `u64::MAX`: never.
    #[must_use]
    pub fn boot_time(self, unix_ns: i128) -> u64 {
        let boot = unix_ns.saturating_sub(self.unix_ns).saturating_add(i128::from(self.boot_ns));
        u64::try_from(boot.max(0)).unwrap_or(u64::MAX)
    }
}

/// One generation's tables. `nodes.as_slice()` is a [`guard_common::decide::Tables`].
#[derive(Debug)]
pub struct Compiled {
    /// What is published; node 0 is the header.
    pub nodes: Vec<Node>,
    pub flags: SlotFlags,
    /// Rules of the policy, those that have expired too: what the rule counters need.
    pub rules: u32,
    pub generation: u32,
    /// [`Policy::sha256`].
    pub policy_sha256: [u8; 32],
    pub size: SizeReport,
    interfaces: Interfaces,
}

/// What a policy's tables are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SizeReport {
    pub nodes: usize,
    pub bytes: usize,
    /// Disjoint intervals of remotes, over both directions and families.
    pub intervals: usize,
    /// Classes of remotes, over both directions.
    pub classes: usize,
    /// Rows and stages of a single line that are shared by all that need them.
    pub rows: usize,
    pub timed_entries: usize,
    pub interface_classes: usize,
    pub local_classes: usize,
}

impl Compiled {
    /// The class of an interface by its name, for [`abi::Interface::class`] and [`Subject::interface`].
    #[must_use]
    pub fn interface_class(&self, name: &str) -> u32 {
        self.interfaces.class(name)
    }

    /// Of all rules with `interface`: enough to class interfaces while this generation holds ([`InterfaceClasses`]).
    #[must_use]
    pub fn interface_patterns(&self) -> Vec<String> {
        self.interfaces.patterns()
    }

    #[must_use]
    pub const fn size_report(&self) -> SizeReport {
        self.size
    }

    /// A flow as people write it, as `decide` asks. What the flow leaves out (interface, our own address) is not known.
    #[must_use]
    pub fn question(&self, flow: &FlowQuery) -> Question {
        let (ipv6, remote) = words(flow.remote);
        let local = flow.local.map(words).and_then(|(ipv6, local)| local_class(self.nodes.as_slice(), ipv6, local));
        let interface = flow.interface.as_deref().map(|name| self.interface_class(name));
        Question {
            direction: flow.direction,
            ipv6,
            remote,
            service: flow.service,
            subject: Subject { interface, local },
        }
    }
}

/// An address as [`Question::remote`] has it, and whether it is IPv6. An IPv4-mapped IPv6 address is IPv4.
#[must_use]
pub fn words(address: IpAddr) -> (bool, [u32; 4]) {
    match address.to_canonical() {
        IpAddr::V4(address) => (false, [u32::from(address), 0, 0, 0]),
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            (true, [(bits >> 96) as u32, (bits >> 64) as u32, (bits >> 32) as u32, bits as u32])
        }
    }
}

/// Whether an interface's name matches one of a rule's patterns: `*` any bytes, `?` one byte; commas between them.
#[must_use]
pub fn pattern_matches(patterns: &str, name: &str) -> bool {
    patterns.split(',').any(|pattern| interfaces::matches(pattern.as_bytes(), name.as_bytes()))
}

/// Compiles. Rules that have expired by `clocks` match nothing; `generation` goes into the header.
pub fn compile(policy: &Policy, clocks: Clocks, generation: u32) -> Result<Compiled, CompileError> {
    compile_first(policy, policy.rules.len(), clocks, generation).map_err(|limit| {
        // The rule that makes the difference: with those before it, the policy compiles.
        let (mut fits, mut fails, mut why) = (0, policy.rules.len(), limit);
        while fails - fits > 1 {
            let middle = fits + (fails - fits) / 2;
            match compile_first(policy, middle, clocks, generation) {
                Ok(_) => fits = middle,
                Err(limit) => (fails, why) = (middle, limit),
            }
        }
        let rule = fails - 1;
        let at = &policy.rules[rule];
        CompileError { limit: why, rule, label: at.label(), place: at.place.clone() }
    })
}

fn compile_first(policy: &Policy, count: usize, clocks: Clocks, generation: u32) -> Result<Compiled, Limit> {
    if count > MAX_RULES {
        return Err(Limit::Rules);
    }
    let resolved = Resolved::new(&policy.rules[..count], clocks)?;
    let interfaces = Interfaces::new(&resolved.patterns)?;
    let mut tables = Builder::new();
    let (local_classes, classes_of_local) = locals(&resolved, &mut tables)?;

    let classes_of_interface = resolved.interface_classes(&interfaces);

    let mut size = SizeReport::default();
    let mut rows = Rows::new(
        &resolved.live,
        Context { classes_of: &classes_of_interface, count: interfaces.len() },
        Context { classes_of: &classes_of_local, count: local_classes },
    );
    for direction in [Direction::Inbound, Direction::Outbound] {
        let remotes = remotes::Remotes::new(&policy.rules[..count], &resolved, direction);
        let (mut classes, mut targets) = (Classes::new(), Vec::new());
        let v4 = sweep(&remotes.v4(), &mut classes)?;
        let v6 = sweep(&remotes.v6(), &mut classes)?;
        size.intervals += v4.len() + v6.len();
        size.classes += classes.len();
        for class in 0..classes.len() as ClassId {
            targets.push(rows.row(&mut tables, &remotes.rules(classes.members(class)))?);
        }
        remotes::write_v4(&mut tables, root_node(direction, false), &v4, &targets)?;
        drop(v4);
        remotes::write_v6(&mut tables, root_node(direction, true), &v6, &targets)?;
    }

    let flags = flags(policy, &resolved);
    size.rows = tables.shared_lines();
    size.timed_entries = tables.timed_entries();
    size.interface_classes = interfaces.len() as usize;
    size.local_classes = local_classes as usize;
    let mut nodes = tables.nodes;
    size.nodes = nodes.len();
    size.bytes = nodes.len() * size_of::<Node>();
    let header = &mut nodes[Header::NODE as usize].0;
    header[..6].copy_from_slice(&[
        Header::MAGIC,
        abi::VERSION,
        size.nodes as u32,
        policy.rules.len() as u32,
        generation,
        flags.0,
    ]);
    for (word, bytes) in header[8..].iter_mut().zip(policy.sha256.as_chunks().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    let rules = policy.rules.len() as u32;
    Ok(Compiled { nodes, flags, rules, generation, policy_sha256: policy.sha256, size, interfaces })
}

/// The rules with their sets and patterns as numbers.
struct Resolved<'a> {
    sets: Sets<'a>,
    /// By rule: its remote's set.
    remotes: Vec<SetId>,
    /// By rule; `None`: expired.
    live: Vec<Option<Live<'a>>>,
    /// The distinct patterns of interfaces.
    patterns: Vec<&'a str>,
    /// The distinct conditions on the interface, by the number that [`Live::interface`] has: patterns of which one must
    /// match.
    interfaces: Vec<Vec<PatternId>>,
    /// The distinct sets of our own addresses, by the number that [`Live::local`] has.
    locals: Vec<SetId>,
}

impl<'a> Resolved<'a> {
    fn new(rules: &'a [Rule], clocks: Clocks) -> Result<Self, Limit> {
        let mut resolved = Self {
            sets: Sets::default(),
            remotes: vec![],
            live: vec![],
            patterns: vec![],
            interfaces: vec![],
            locals: vec![],
        };
        let mut pattern_ids: HashMap<&str, PatternId> = HashMap::new();
        let mut interface_ids: HashMap<&str, u32> = HashMap::new();
        let mut local_ids: HashMap<SetId, u32> = HashMap::new();
        for rule in rules {
            if rule.expires.is_some_and(|expires| expires <= clocks.unix_ns) {
                resolved.remotes.push(SetId::MAX);
                resolved.live.push(None);
                continue;
            }
            resolved.remotes.push(resolved.sets.intern(&rule.remote.set)?);
            let interface = rule.interface.as_deref().map(|condition| {
                *interface_ids.entry(condition).or_insert_with(|| {
                    let id = |pattern| {
                        *pattern_ids.entry(pattern).or_insert_with(|| {
                            resolved.patterns.push(pattern);
                            resolved.patterns.len() as PatternId - 1
                        })
                    };
                    resolved.interfaces.push(condition.split(',').map(id).collect());
                    resolved.interfaces.len() as u32 - 1
                })
            });
            let local = match &rule.local {
                None => None,
                Some(set) => {
                    let set = resolved.sets.intern(set)?;
                    Some(*local_ids.entry(set).or_insert_with(|| {
                        resolved.locals.push(set);
                        resolved.locals.len() as u32 - 1
                    }))
                }
            };
            let until = rule.expires.map(|expires| clocks.boot_time(expires)).filter(|until| *until != u64::MAX);
            resolved.live.push(Some(Live {
                deny: rule.action == Verdict::Deny,
                names: rule.action == Verdict::Allow && rule.remote.named,
                services: &rule.services,
                interface,
                local,
                until,
            }));
        }
        Ok(resolved)
    }
}

impl Resolved<'_> {
    /// By condition on the interface, the classes in which one of its patterns matches, sorted.
    fn interface_classes(&self, interfaces: &Interfaces) -> Vec<Vec<ClassId>> {
        let classes = |patterns: &Vec<PatternId>| {
            let mut classes: Vec<ClassId> =
                patterns.iter().flat_map(|pattern| &interfaces.classes_of[*pattern as usize]).copied().collect();
            classes.sort_unstable();
            classes.dedup();
            classes
        };
        self.interfaces.iter().map(classes).collect()
    }
}

/// The classes of our own addresses: how many, and by set those that it holds.
fn locals(resolved: &Resolved, tables: &mut Builder) -> Result<(u32, Vec<Vec<ClassId>>), Limit> {
    let sets = |id: &SetId| resolved.sets.list[*id as usize];
    let mut classes = Classes::new();
    let v4: Vec<_> = (0..).zip(resolved.locals.iter().map(|id| sets(id).v4.as_slice())).collect();
    let v6: Vec<_> = (0..).zip(resolved.locals.iter().map(|id| sets(id).v6.as_slice())).collect();
    let (v4, v6) = (sweep(&v4, &mut classes)?, sweep(&v6, &mut classes)?);
    let targets: Vec<Target> = (0..classes.len() as u32).map(|class| Target(Target::END | class)).collect();
    remotes::write_v4(tables, Header::LOCAL_V4, &v4, &targets)?;
    remotes::write_v6(tables, Header::LOCAL_V6, &v6, &targets)?;
    let mut classes_of = vec![Vec::new(); resolved.locals.len()];
    for class in 1..classes.len() as ClassId {
        for set in classes.members(class) {
            classes_of[*set as usize].push(class);
        }
    }
    Ok((classes.len() as u32, classes_of))
}

fn flags(policy: &Policy, resolved: &Resolved) -> SlotFlags {
    // Written out in full, so that an essential that is added cannot be forgotten here.
    let Essentials {
        loopback,
        arp,
        eapol,
        lacp,
        stp,
        lldp,
        macsec,
        pppoe,
        neighbour_discovery,
        mld,
        dhcp,
        dhcpv6,
        icmp_errors,
    } = policy.essentials;
    let flags = [
        (policy.inbound == Mode::Enforce, SlotFlags::ENFORCE_INBOUND),
        (policy.outbound == Mode::Enforce, SlotFlags::ENFORCE_OUTBOUND),
        (policy.lockdown, SlotFlags::LOCKDOWN),
        (policy.on_deny == Refusal::Reject, SlotFlags::REJECT_OUTBOUND),
        (policy.container_host == ContainerHost::Guard, SlotFlags::CONTAINER_HOST),
        (!resolved.patterns.is_empty(), SlotFlags::BY_INTERFACE),
        (!resolved.locals.is_empty(), SlotFlags::BY_LOCAL),
        (loopback, SlotFlags::LOOPBACK),
        (arp, SlotFlags::ARP),
        (eapol, SlotFlags::EAPOL),
        (lacp, SlotFlags::LACP),
        (stp, SlotFlags::STP),
        (lldp, SlotFlags::LLDP),
        (macsec, SlotFlags::MACSEC),
        (pppoe, SlotFlags::PPPOE),
        (neighbour_discovery, SlotFlags::NEIGHBOUR_DISCOVERY),
        (mld, SlotFlags::MLD),
        (dhcp, SlotFlags::DHCPV4),
        (dhcpv6, SlotFlags::DHCPV6),
        (icmp_errors, SlotFlags::ICMP_ERRORS),
    ];
    SlotFlags(flags.iter().filter(|(on, _)| *on).fold(0, |bits, (_, flag)| bits | flag))
}
