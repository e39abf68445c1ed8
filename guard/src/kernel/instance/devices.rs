//! What an instance does as interfaces, policies and routes come and go: told to the programs, attached to, forgotten.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    os::fd::BorrowedFd,
};

use super::*;

impl Instance {
    /// Every interface of this namespace with what is decided about it.
    pub fn decided(&self) -> Result<Vec<(Device, Why)>, KernelError> {
        let told = self.told()?;
        let mut decided: Vec<(Device, Why)> = interfaces::devices()?
            .into_values()
            .map(|device| {
                let why = self.selector.decide(&device, told.get(&device.index));
                (device, why)
            })
            .collect();
        decided.sort_by_key(|(device, _)| device.index);
        Ok(decided)
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
            if why.guarded()
                && let Err(error) = self.attach_wire(device)
            {
                failed.get_or_insert(error);
                continue;
            }
            // At a first start there was nothing before.
            if why.guarded() && before.is_none() && !told.is_empty() {
                appeared.push(index);
            }
            let guarded = |other: &Device| self.selector.decide(other, told.get(&other.index)).guarded();
            let now = Interface {
                flags: interfaces::flags(device, why, &devices, &guarded),
                class: std::array::from_fn(|slot| self.class(slot, &device.name)),
            };
            flags_told.insert(index, now.flags);
            if raw.get(&index) != Some(&now) {
                sys::update(self.map("INTERFACES")?, &index, &now, sys::ANY)
                    .map_err(KernelError::call(format!("cannot tell the programs of {}", device.name)))?;
            }
            if !why.guarded() && before.is_some_and(|before| before.flags & Interface::GUARDED != 0) {
                self.drop_interface(index)?;
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
        let guarded = |index: u32| told.get(&index).map(|interface| interface.flags & Interface::GUARDED != 0);
        let now = near::near(devices, &guarded)?;
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

pub(in crate::kernel) fn keys<K: sys::Plain + Ord>(map: BorrowedFd<'_>) -> Result<BTreeSet<K>, KernelError> {
    let mut keys = BTreeSet::new();
    let mut key = sys::next_key::<K>(map, None).map_err(KernelError::call("cannot read the near destinations"))?;
    while let Some(current) = key
        && keys.len() <= near::MOST
    {
        keys.insert(current);
        key = sys::next_key(map, Some(&current)).map_err(KernelError::call("cannot read the near destinations"))?;
    }
    Ok(keys)
}

fn change_set<K: sys::Plain + Ord>(
    map: BorrowedFd<'_>,
    before: &BTreeSet<K>,
    now: &BTreeSet<K>,
) -> Result<(), KernelError> {
    // What is near no longer goes first: too few of them only means that more is judged.
    for key in before.difference(now) {
        sys::delete(map, key).map_err(KernelError::call("cannot forget a near destination"))?;
    }
    for key in now.difference(before) {
        sys::update(map, key, &1_u8, sys::ANY).map_err(KernelError::call("cannot tell of a near destination"))?;
    }
    Ok(())
}
