//! Takes everything down, on purpose only. Works on the pins of any version.

use std::{collections::HashMap, os::fd::AsFd};

use guard_common::abi::{self, StateWord};

use super::{
    KernelError, Place, attach, filters, interfaces,
    pins::Pins,
    publish::StateMap,
    settings::{self, META, Settings},
    sys,
};

/// Detaches and unpins all of an instance. Afterwards nothing is guarded, and another start begins anew.
pub fn release(place: &Place) -> Result<(), KernelError> {
    let pins = Pins::find(place.bpffs.as_deref(), &place.instance)?;
    if !pins.exists()? {
        return Err(KernelError::NotRunning(place.instance.clone()));
    }
    tear_down(&pins)
}

pub(super) fn tear_down(pins: &Pins) -> Result<(), KernelError> {
    // One flip first: every hook lets go at the same moment, in whatever order they are taken down.
    if let Ok(Some(map)) = sys::pinned(&pins.map("STATE"))
        && let Ok(state) = StateMap::new(map.as_fd())
        && state.read().abi == abi::VERSION
    {
        state.force(StateWord::TRACKING);
    }
    let links: HashMap<_, _> = pins.links().unwrap_or_default().into_iter().collect();
    for link in links.values() {
        // Before 5.9 a link goes with its last descriptor, which are this one and the pin; others hold none.
        let _ = sys::link_detach(link.as_fd());
    }
    if let Some(settings) = settings_of(pins)
        && !settings.offers.tcx
    {
        for device in interfaces::devices()?.into_values() {
            for hook in attach::HOOKS {
                let Some(direction) = hook.at_tc() else { continue };
                let Some(tag) = settings.programs.get(hook.program_for(device.ethernet)) else { continue };
                if filters::filters(device.index, direction)?.iter().any(|filter| filter.tag == *tag) {
                    attach::detach_filter(direction, &device.name);
                }
            }
        }
    }
    pins.remove()
}

fn settings_of(pins: &Pins) -> Option<Settings> {
    let meta = sys::pinned(&pins.map(META)).ok()??;
    settings::read(meta.as_fd(), 0, &pins.map(META)).ok()?
}
