//! Looks at what guard has in the kernel: often and cheaply whether anything moved, and then, or every second, at all of
//! it: maps against what was told, programs of others, and what the interfaces counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use guard_common::{
    Direction,
    abi::{Interface, Slot},
};
use sha2::{Digest, Sha256};

use super::{
    Instance, KernelError, attach::HOOKS, bpf_events::BpfEvents, instance::keys, interfaces, near, objects,
    publish::map_table, sealing, sys,
};
use crate::{
    daemon::difference::{Counted, Difference, Kind, LoadedProgram},
    host::{
        netlink::{attributes, dump, number},
        processes,
    },
};

/// `enum bpf_prog_type`: what can change, drop or send packets, or stand in for a part of another program. sched_cls is tc's,
/// tcx's and netkit's.
const MEDDLING: [u32; 16] = [3, 4, 6, 8, 9, 10, 11, 12, 13, 16, 18, 19, 25, 28, 30, 32];

/// Larger tables are looked through less often.
const EACH_TIME: usize = 1 << 20;

/// So long at most a program is not told of, because a guard command is at work that may have loaded it: the verifier takes a
/// lockdown 15 s in an emulated machine.
const HELD_BACK: Duration = Duration::from_secs(20);

/// And so many; what comes beyond them is counted.
const MOST_WAITING: usize = 1024;

/// A program that was loaded, and is not told of yet.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    tag: String,
    program: LoadedProgram,
}

/// What was there at the last look.
#[derive(Debug, Default)]
pub struct Seen {
    /// Flags that the programs were told, by interface.
    pub flags: BTreeMap<u32, u32>,
    /// Whether the host's sides of bridges were attached to.
    pub host_sides: bool,
    /// Of each slot's tables: the generation, the map's id, and the digest of its nodes.
    tables: BTreeMap<u8, (u32, u32, [u8; 32])>,
    /// Programs that others loaded, as the kernel tells of them; `None`: not asked for yet.
    events: Option<Option<BpfEvents>>,
    loaded: Vec<Waiting>,
    /// Where it does not: the highest id that was looked at.
    last_program: Option<u32>,
    looks: usize,
}

impl Instance {
    /// Whether nothing moved that can be seen without much ado: our links, and who is first in line. Takes microseconds.
    #[must_use]
    pub fn all_still(&self) -> bool {
        let tcx = self.settings.offers.tcx;
        self.links.iter().all(|(name, link)| {
            let Ok(info) = sys::info_of_link(link.as_fd()) else { return false };
            if info.target == 0 {
                return false;
            }
            let wire = HOOKS.iter().find(|hook| {
                hook.at_tc().is_some()
                    && tcx
                    && name.strip_prefix(hook.program).is_some_and(|rest| rest.starts_with('_'))
            });
            // An interface that lives elsewhere cannot be asked from here.
            wire.is_none_or(|hook| {
                sys::query(info.target as u32, hook.attach_type())
                    .map_or(true, |programs| programs.first() == Some(&info.program_id))
            })
        })
    }

    /// What the programs are told, against what guard told them; put back where it differs.
    pub fn check_maps(&mut self) -> Result<Vec<Difference>, KernelError> {
        let mut found = Vec::new();
        if self.seen.host_sides != self.wants_host_sides() {
            // Another process has published a policy that asks for them, or for them no more.
            self.look_at_interfaces()?;
        }
        self.tell_seal()?;
        let told = self.told()?;
        let devices = interfaces::devices()?;
        for (index, flags) in self.seen.flags.clone() {
            let now = told.get(&index);
            if now.is_some_and(|now| now.flags == flags) {
                continue;
            }
            let name = devices.get(&index).map_or_else(|| format!("interface {index}"), |device| device.name.clone());
            let (what, value) = match now {
                Some(now) => ("has other flags", Interface { flags, ..*now }),
                // Its classes are not known: look_at_interfaces writes them again.
                None => ("is gone", Interface { flags, class: [u32::MAX; 3] }),
            };
            sys::update(self.map("INTERFACES")?, &index, &value, sys::ANY)
                .map_err(KernelError::call("cannot tell the programs of an interface"))?;
            let what = format!("what the programs were told of {name} {what}; put back");
            found.push(Difference::new(Kind::MapsChanged, format!("INTERFACES {name}"), what).repaired());
        }
        if !found.is_empty() {
            self.look_at_interfaces()?;
        }
        found.extend(self.check_near()?);
        if self.programs.contains_key("seal_option") {
            // The kernel lets nobody read which cgroup it is: said again each time.
            sealing::hold(self.map(sealing::CGROUP)?, &self.settings)?;
        }
        found.extend(self.check_tables()?);
        Ok(found)
    }

    fn check_near(&mut self) -> Result<Vec<Difference>, KernelError> {
        let Some(near) = self.near.clone() else { return Ok(Vec::new()) };
        let found = near::Near { v4: keys(self.map("NEAR_V4")?)?, v6: keys(self.map("NEAR_V6")?)? };
        if found == near {
            return Ok(Vec::new());
        }
        let more = found.v4.keys().filter(|key| !near.v4.contains_key(key)).count()
            + found.v6.keys().filter(|key| !near.v6.contains_key(key)).count();
        // What is believed to be there is what is there: the next look at the routes makes it what it should be.
        self.near = Some(found);
        self.look_at_interfaces()?;
        let what = format!("destinations that the socket layer leaves to others were changed ({more} added); put back");
        Ok(vec![Difference::new(Kind::MapsChanged, "NEAR", what).repaired()])
    }

    /// The tables of each generation are frozen when they are published; another map in their slot, or other bytes in it,
    /// is somebody else's work.
    fn check_tables(&mut self) -> Result<Vec<Difference>, KernelError> {
        let mut found = Vec::new();
        self.seen.looks = self.seen.looks.wrapping_add(1);
        let state = self.state.read();
        // What judges, and what a deadline would bring back. What else is there is written over before it judges.
        let judging = [state.word.active(), state.word.previous()];
        for slot in (0..Slot::TABLES as u8).map(Slot).filter(|slot| judging.contains(slot)) {
            let generation = state.slots[usize::from(slot.0)].generation;
            let Some(published) = self.published(slot.0)?.filter(|published| published.generation == generation) else {
                continue;
            };
            let Some(table) = super::publish::table_of(self.map("TABLES")?, slot)? else { continue };
            let id = sys::info_of_map(table.as_fd()).map_err(KernelError::call("cannot read of a slot's tables"))?.id;
            let bytes = published.nodes as usize * size_of::<guard_common::decide::Node>();
            // What was seen first of a generation is held against all that comes after.
            let known = self.seen.tables.get(&slot.0).filter(|(of, ..)| *of == generation).copied();
            let same = id == published.map_id && known.is_none_or(|(_, before, _)| before == id);
            // So that a look at large tables costs no more a second than one at small ones.
            if same && known.is_some() && !self.seen.looks.is_multiple_of(bytes / EACH_TIME + 1) {
                continue;
            }
            let what = if same {
                let mapping = map_table(table.as_fd(), published.nodes as usize)?;
                let digest: [u8; 32] = Sha256::digest(mapping.frozen_bytes()).into();
                match known {
                    Some((.., then)) if then != digest => "have other contents than were published",
                    _ => {
                        self.seen.tables.insert(slot.0, (generation, id, digest));
                        continue;
                    }
                }
            } else {
                "are another map than was published"
            };
            let what = format!("the tables of generation {generation} {what}");
            found.push(Difference::new(Kind::MapsChanged, format!("TABLES {}", slot.0), what));
        }
        Ok(found)
    }

    /// Hears of programs that were loaded since the last call: by the kernel's own events, else by their ids, which rise.
    /// Whether any waits to be told, and how many events were lost.
    pub fn hear_of_programs(&mut self) -> (bool, u64) {
        let events = self.seen.events.get_or_insert_with(|| BpfEvents::open().ok());
        let (loaded, mut lost) = match events {
            Some(events) => {
                let (loaded, lost) = events.drain();
                (loaded.into_iter().map(|loaded| (loaded.id, loaded.pid)).collect(), lost)
            }
            None => (self.new_ids(), 0),
        };
        for (id, pid) in loaded {
            // One that is gone already stands nowhere; what is only tried (by bpftool, systemd, guard doctor) goes as fast.
            let Ok(Some(program)) = objects::program(id) else { continue };
            if !MEDDLING.contains(&program.kind_number) || is_systemds(program.kind_number, &program.name, pid) {
                continue;
            }
            if self.seen.loaded.len() >= MOST_WAITING {
                lost += 1;
                continue;
            }
            let what = format!("{} program {id} \"{}\" by uid {}", program.kind, program.name, program.uid);
            let told = LoadedProgram { id, what, by: processes::named(pid) };
            self.seen.loaded.push(Waiting { since: Instant::now(), tag: program.tag, program: told });
        }
        (!self.seen.loaded.is_empty(), lost)
    }

    /// Those that wait, but for guard's own instructions, whoever loaded them: where they stand is looked at by itself.
    /// `settled`: no other guard command is at work; else only those that have waited longer than any works.
    pub fn loaded_programs(&mut self, settled: bool) -> Vec<LoadedProgram> {
        // A lockdown loads its programs, then writes down which they are. Where that cannot be read, all of them are told
        // once they have waited: whoever damages it silences nothing.
        let settled = settled && self.catch_up().is_ok();
        let own: BTreeSet<&String> = self.settings.programs.values().collect();
        let (told, waiting) = self
            .seen
            .loaded
            .drain(..)
            .filter(|waiting| !own.contains(&waiting.tag))
            .partition::<Vec<_>, _>(|waiting| settled || waiting.since.elapsed() > HELD_BACK);
        self.seen.loaded = waiting;
        told.into_iter().map(|waiting| waiting.program).collect()
    }

    /// Not asked for yet counts as heard.
    #[must_use]
    pub const fn hears_of_programs(&self) -> bool {
        !matches!(self.seen.events, Some(None))
    }

    fn new_ids(&mut self) -> Vec<(u32, u32)> {
        let mut last = match self.seen.last_program {
            Some(last) => last,
            // The first look only learns.
            None => objects::ids(objects::Kind::Program).ok().and_then(|(ids, _)| ids.last().copied()).unwrap_or(0),
        };
        let mut new = Vec::new();
        while let Ok(Some(id)) = sys::next_id(objects::Kind::Program, last) {
            new.push((id, 0));
            last = id;
        }
        self.seen.last_program = Some(last);
        new
    }

    /// Programs of others at guard's hooks.
    pub fn foreign_programs(&self) -> Result<BTreeSet<String>, KernelError> {
        Ok(self.other_programs()?.into_iter().map(|other| other.table).collect())
    }

    /// Counts of the guarded interfaces, and of the wire layer.
    pub fn counted(&self) -> Result<Counted, KernelError> {
        let mut counted = Counted::default();
        let guarded = self.guarded_here()?;
        for device in &guarded {
            counted.interfaces.push(device.index);
            counted.names.push(device.name.clone());
            counted.sent += device.sent;
            counted.received += device.received;
        }
        // struct tcmsg: family and padding, index, handle, parent, info.
        dump(ROUTE, GET_QDISC, &[0; 20], |_, payload| {
            let Some((index, parent)) = number(payload, 4).zip(number(payload, 12)) else { return };
            if parent == TC_H_ROOT && counted.interfaces.contains(&index) {
                counted.queued += u64::from(waiting(payload.get(20..).unwrap_or_default()));
            }
        })?;
        for (_, direction, dropped, counter) in self.counters()? {
            match direction {
                Direction::Outbound if !dropped => counted.judged_out += counter.packets,
                Direction::Outbound => {}
                Direction::Inbound => counted.judged_in += counter.packets,
            }
        }
        // No uplink has counted what stayed between this host and its containers.
        let [inbound, outbound] = self.host_side_packets()?;
        counted.judged_in = counted.judged_in.saturating_sub(inbound);
        counted.judged_out = counted.judged_out.saturating_sub(outbound);
        Ok(counted)
    }
}

/// What systemd makes for a unit with `IPAddressAllow=` or `IPAddressDeny=` (its src/core/bpf-firewall.c), at each of its
/// starts: it stands in the unit's own cgroup and can only drop. By the first process; what anybody else calls so is told.
fn is_systemds(kind: u32, name: &str, pid: u32) -> bool {
    const CGROUP_SKB: u32 = 8;
    pid == 1 && kind == CGROUP_SKB && matches!(name, "sd_fw_ingress" | "sd_fw_egress")
}

const ROUTE: isize = 0;
const GET_QDISC: u16 = 38;
const TC_H_ROOT: u32 = 0xffff_ffff;
const TCA_STATS2: u16 = 7;
const TCA_STATS_QUEUE: u16 = 3;

/// Packets in a queue, and those that it dropped (struct gnet_stats_queue: length, backlog, drops).
fn waiting(payload: &[u8]) -> u32 {
    let stats = attributes(payload).find(|(kind, _)| *kind == TCA_STATS2).map_or(&[][..], |(_, value)| value);
    let queue = attributes(stats).find(|(kind, _)| *kind == TCA_STATS_QUEUE).map_or(&[][..], |(_, value)| value);
    number(queue, 0).unwrap_or(0).wrapping_add(number(queue, 8).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_process_loads_systemds_own_unnoticed() {
        assert!(is_systemds(8, "sd_fw_egress", 1));
        for (kind, name, pid) in
            [(8, "sd_fw_egress", 2), (8, "sd_fw_egress", 0), (3, "sd_fw_egress", 1), (8, "sd_fw_x", 1)]
        {
            assert!(!is_systemds(kind, name, pid), "{kind} {name} {pid}");
        }
    }
}
