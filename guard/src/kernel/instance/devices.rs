//! What an instance does as interfaces, policies and routes come and go: told to the programs, attached to, forgotten.

use std::os::fd::BorrowedFd;

use super::*;

impl Instance {
    /// Every interface of this namespace with what is decided about it.
    pub fn decided(&self) -> Result<Vec<(Device, Why)>, KernelError> {
        Ok(decided(&self.selector, interfaces::devices()?, &self.told()?))
    }

    /// Interfaces where what passes between containers or VMs and this host can be judged (`container_host`), and whether the
    /// programs are told that it is to be.
    pub fn host_sides(&self) -> Result<BTreeMap<u32, bool>, KernelError> {
        let told = self.told()?;
        let is_told = |index| told.get(&index).is_some_and(|told| told.flags & Interface::HOST_SIDE != 0);
        let sides = host_sides(&self.selector, &interfaces::devices()?, &told);
        Ok(sides.into_iter().map(|index| (index, is_told(index))).collect())
    }

    /// Whether a generation that judges, may judge again, or was built last asks for it. One that is being published is built
    /// before it judges, so what it needs is there by then, whoever looks meanwhile.
    pub(in crate::kernel) fn wants_host_sides(&self) -> bool {
        let state = self.state.read();
        let newest = state.slots.iter().max_by_key(|slot| slot.generation);
        let judging = [state.word.active(), state.word.previous()].map(|slot| &state.slots[usize::from(slot.0 & 3)]);
        judging.into_iter().chain(newest).any(|slot| slot.flags.has(SlotFlags::CONTAINER_HOST))
    }

    pub(in crate::kernel) fn guarded_here(&self) -> Result<Vec<Device>, KernelError> {
        Ok(self.decided()?.into_iter().filter(|(_, why)| why.guarded()).map(|(device, _)| device).collect())
    }

    /// Looks at the interfaces again: attaches to those that are to be guarded, tells the programs of them, forgets
    /// those that are gone, and learns the routes. An interface that cannot be attached to is left unknown to the
    /// programs, so that the backstop holds its sockets; the others are still looked at.
    pub fn look_at_interfaces(&mut self) -> Result<(), KernelError> {
        self.learn_classes()?;
        let devices = interfaces::devices()?;
        let raw = self.told()?;
        // What was guarded stays so, whatever somebody wrote into the map meanwhile.
        let mut told = raw.clone();
        for (index, flags) in self.seen.flags.iter().filter(|(_, flags)| *flags & Interface::GUARDED != 0) {
            told.entry(*index).or_insert(Interface { flags: 0, class: [u32::MAX; 3] }).flags |=
                flags & Interface::GUARDED;
        }
        let wants_host_sides = self.wants_host_sides();
        let sides = if wants_host_sides { host_sides(&self.selector, &devices, &told) } else { BTreeSet::new() };
        let mut failed = None;
        let mut appeared = Vec::new();
        let mut flags_told = BTreeMap::new();
        let mut indexes: Vec<u32> = devices.keys().copied().collect();
        indexes.sort_unstable();
        for index in indexes {
            let device = &devices[&index];
            let before = told.get(&index);
            let why = self.selector.decide(device, before);
            if why == Why::Undecided {
                continue;
            }
            let guarded = |other: &Device| self.selector.decide(other, told.get(&other.index)).guarded();
            let mut flags = interfaces::flags(device, why, &devices, &guarded);
            if sides.contains(&index) {
                flags |= Interface::HOST_SIDE;
            } else if !why.guarded() && sides.contains(&device.master) {
                flags |= Interface::MEMBER;
            }
            let attached = if why.guarded() {
                self.attach_wire(device)
            } else if flags & Interface::HOST_SIDE != 0 {
                self.attach_host_side(device)
            } else {
                Ok(())
            };
            if let Err(error) = attached {
                failed.get_or_insert(error);
                continue;
            }
            // At a first start there was nothing before.
            if why.guarded() && before.is_none() && !told.is_empty() {
                appeared.push(index);
            }
            let now = Interface { flags, class: std::array::from_fn(|slot| self.class(slot, &device.name)) };
            flags_told.insert(index, now.flags);
            if raw.get(&index) != Some(&now) {
                sys::update(self.map("INTERFACES")?, &index, &now, sys::ANY)
                    .map_err(KernelError::call(format!("cannot tell the programs of {}", device.name)))?;
            }
            if !why.guarded() && before.is_some_and(|before| before.flags & Interface::GUARDED != 0) {
                self.drop_interface(index)?;
            }
            // After the flags: by then what is guarded has the wire's own.
            if flags & Interface::HOST_SIDE == 0
                && before.is_some_and(|before| before.flags & Interface::HOST_SIDE != 0)
            {
                self.detach_host_side(device)?;
            }
        }
        for (index, before) in &told {
            if !devices.contains_key(index) && !self.lives_elsewhere(*index) {
                self.drop_interface(*index)?;
                sys::delete(self.map("INTERFACES")?, index).map_err(KernelError::call("cannot forget an interface"))?;
            } else if !devices.contains_key(index) && before.flags & Interface::GUARDED == 0 {
                sys::delete(self.map("INTERFACES")?, index).map_err(KernelError::call("cannot forget an interface"))?;
            }
        }
        self.seen.flags = flags_told;
        self.seen.host_sides = wants_host_sides;
        self.count_before(&appeared)?;
        self.learn_routes(&devices)?;
        failed.map_or(Ok(()), Err)
    }

    /// Interfaces that the programs judge from now on: what passed them before, by their own count. The most that it can
    /// have been.
    fn count_before(&mut self, appeared: &[u32]) -> Result<(), KernelError> {
        if appeared.is_empty() {
            return Ok(());
        }
        let devices = interfaces::devices()?;
        for device in appeared.iter().filter_map(|index| devices.get(index)) {
            let Device { name, received, sent, .. } = device;
            if received + sent > 0 {
                self.appeared.push(format!(
                    "{name} is guarded now; up to {received} packets in and {sent} out passed it before, unjudged on the wire"
                ));
            }
        }
        Ok(())
    }

    /// Moved to another network namespace: its tcx links went with it, and go on judging.
    fn lives_elsewhere(&mut self, index: u32) -> bool {
        // Each is held from now on, so all are asked.
        let wire = HOOKS.iter().filter(|hook| matches!(hook.at, At::Wire(_)));
        wire.map(|hook| self.holds(&hook.pin_name(index))).filter(|holds| *holds).count() != 0
    }

    /// The classes of each slot's generation, whoever published it.
    fn learn_classes(&mut self) -> Result<(), KernelError> {
        let state = self.state.read();
        for slot in 0..3 {
            let generation = state.slots[usize::from(slot)].generation;
            if generation != 0 && self.classes[usize::from(slot)].as_ref().is_none_or(|(of, _)| *of != generation) {
                let published = self.published(slot)?.filter(|published| published.generation == generation);
                self.classes[usize::from(slot)] = published
                    .and_then(|published| InterfaceClasses::new(&published.interface_patterns))
                    .map(|classes| (generation, classes));
            }
        }
        Ok(())
    }

    fn class(&self, slot: usize, name: &str) -> u32 {
        match &self.classes[slot] {
            Some((_, classes)) => classes.class(name),
            // No rule that names an interface matches one of this class.
            None if self.state.read().slots[slot].flags.has(SlotFlags::BY_INTERFACE) => u32::MAX,
            None => 0,
        }
    }

    /// Of all interfaces in one slot, before it is put in force.
    pub(super) fn write_classes(&self, slot: usize, published: &Published) -> Result<(), KernelError> {
        let classes = InterfaceClasses::new(&published.interface_patterns)
            .ok_or(KernelError::ReadBack { what: "interface patterns" })?;
        let devices = interfaces::devices()?;
        for (index, before) in self.told()? {
            // One that lives elsewhere has a name that is not known here.
            let mut now = before;
            now.class[slot] = match devices.get(&index) {
                Some(device) => classes.class(&device.name),
                None if published.interface_patterns.is_empty() => 0,
                None => u32::MAX,
            };
            if now != before {
                sys::update(self.map("INTERFACES")?, &index, &now, sys::EXIST)
                    .map_err(KernelError::call("cannot tell the programs of an interface's class"))?;
            }
        }
        Ok(())
    }

    fn learn_routes(&mut self, devices: &HashMap<u32, Device>) -> Result<(), KernelError> {
        let told = self.told()?;
        let judged = |index: u32| {
            told.get(&index).map(|interface| match interface.flags & (Interface::GUARDED | Interface::HOST_SIDE) {
                0 => Judged::No,
                Interface::HOST_SIDE => Judged::HostSide,
                _ => Judged::Guarded,
            })
        };
        let now = near::near(devices, &judged)?;
        let before = match self.near.take() {
            Some(before) => before,
            None => Near { v4: keys(self.map("NEAR_V4")?)?, v6: keys(self.map("NEAR_V6")?)? },
        };
        change_set(self.map("NEAR_V4")?, &before.v4, &now.v4)?;
        change_set(self.map("NEAR_V6")?, &before.v6, &now.v6)?;
        self.near = Some(now);
        Ok(())
    }
}

pub(super) fn decided(
    selector: &Selector,
    devices: HashMap<u32, Device>,
    told: &BTreeMap<u32, Interface>,
) -> Vec<(Device, Why)> {
    let mut decided: Vec<(Device, Why)> = devices
        .into_values()
        .map(|device| {
            let why = selector.decide(&device, told.get(&device.index));
            (device, why)
        })
        .collect();
    decided.sort_by_key(|(device, _)| device.index);
    decided
}

/// Devices that containers or VMs are behind, and that are not guarded themselves.
pub(super) fn host_sides(
    selector: &Selector,
    devices: &HashMap<u32, Device>,
    told: &BTreeMap<u32, Interface>,
) -> BTreeSet<u32> {
    let guarded = |other: &Device| selector.decide(other, told.get(&other.index)).guarded();
    let is = |device: &&Device| {
        let before = told.get(&device.index);
        interfaces::is_host_side(device, selector.decide(device, before), before, devices, &guarded)
    };
    devices.values().filter(is).map(|device| device.index).collect()
}

pub(in crate::kernel) fn keys<K: sys::Plain + Ord>(map: BorrowedFd<'_>) -> Result<BTreeMap<K, u8>, KernelError> {
    let what = || KernelError::call("cannot read the near destinations");
    let mut keys = BTreeMap::new();
    let mut key = sys::next_key::<K>(map, None).map_err(what())?;
    while let Some(current) = key
        && keys.len() <= near::MOST
    {
        // One that went meanwhile stands for nothing.
        let how = sys::lookup::<K, u8>(map, &current).map_err(what())?;
        keys.insert(current, how.unwrap_or(0));
        key = sys::next_key(map, Some(&current)).map_err(what())?;
    }
    Ok(keys)
}

fn change_set<K: sys::Plain + Ord>(
    map: BorrowedFd<'_>,
    before: &BTreeMap<K, u8>,
    now: &BTreeMap<K, u8>,
) -> Result<(), KernelError> {
    // What is near no longer goes first: too few of them only means that more is judged.
    for key in before.keys().filter(|key| !now.contains_key(key)) {
        sys::delete(map, key).map_err(KernelError::call("cannot forget a near destination"))?;
    }
    for (key, how) in now.iter().filter(|(key, how)| before.get(key) != Some(how)) {
        sys::update(map, key, how, sys::ANY).map_err(KernelError::call("cannot tell of a near destination"))?;
    }
    Ok(())
}
