//! An instance that is there already goes on under another process, with what that one was asked for.

use std::os::fd::AsFd;

use super::{Instance, cgroup_hooks, is_link_of, open_maps, pin_programs};
use crate::{
    host::translation,
    kernel::{
        KernelError,
        attach::{self, At, HOOKS},
        interfaces::{self, Selector},
        load, sealing,
        settings::{self, META, Options, Settings},
        sys,
    },
};

impl Instance {
    /// The daemon's part of adoption: what was asked for now, and this guard's programs in the place of an older one's.
    pub(super) fn take_over(&mut self, options: &Options) -> Result<(), KernelError> {
        self.selector = Selector::new(&options.selection)?;
        let old = self.settings.clone();
        self.settings.selection = options.selection.clone();
        self.settings.shield = options.shield;
        (self.settings.cgroup, self.settings.cgroup_id) = options.cgroup()?;
        self.settings.offers.local_dnat = translation::of_own_packets().is_some();
        let other_object = old.object_sha256 != crate::object::OBJECT_SHA256;
        if other_object {
            // One that the older guard did not know of.
            self.settings.offers.bpf_seal = sealing::works_for_bpf();
        }
        let translated = old.offers.local_dnat != self.settings.offers.local_dnat;
        if other_object || translated || old.shield != options.shield {
            self.replace_programs()?;
        }
        self.tell_seal()?;
        self.move_to_cgroup()?;
        settings::write(self.map(META)?, 0, &self.settings, &self.pins.map(META))?;
        if !self.settings.shield {
            self.drop_links(|hook| hook.at == At::Xdp)?;
        }
        self.look_at_interfaces()?;
        self.attach_cgroup()
    }

    /// Rules that change where this host's own packets go come and go while guard runs (kube-proxy's do): its programs are
    /// loaded anew with what holds now, each in the other's place. Whether there are such rules, where that changed.
    pub fn follow_translation(&mut self) -> Result<Option<bool>, KernelError> {
        let now = translation::of_own_packets().is_some();
        if now == self.settings.offers.local_dnat {
            return Ok(None);
        }
        // Another process may have told them just now.
        self.catch_up()?;
        if now == self.settings.offers.local_dnat {
            return Ok(None);
        }
        self.settings.offers.local_dnat = now;
        self.replace_programs()?;
        Ok(Some(now))
    }

    /// Links of another cgroup give way to ones of this one: also those that an earlier start left half-way. Each new one
    /// first: sockets in both see no gap.
    fn move_to_cgroup(&mut self) -> Result<(), KernelError> {
        let mut moved = false;
        for hook in cgroup_hooks().filter(|hook| hook.at != At::Function) {
            let link = self.links.get(&hook.pin_name(0)).and_then(|link| sys::info_of_link(link.as_fd()).ok());
            if link.is_some_and(|link| link.target != self.settings.cgroup_id) {
                self.attach(hook, 0, true)?;
                moved = true;
            }
        }
        if moved {
            // What was made there before the programs looked.
            self.learn_sockets()?;
        }
        Ok(())
    }

    /// Loads this guard's programs and puts them into the links that are there: each atomically, no packet unjudged.
    fn replace_programs(&mut self) -> Result<(), KernelError> {
        let old = &self.settings.programs;
        let wanted = |name: &str| self.settings.needs(name) || (old.contains_key(name) && settings::is_for_some(name));
        let programs = load::load(&self.pins, &self.settings, &wanted)?;
        let tags = pin_programs(&self.pins, &programs)?;
        // Of an older guard, which made not all of them.
        self.maps = open_maps(&self.pins)?;
        if programs.contains_key("seal_option") {
            sealing::hold(self.map(sealing::CGROUP)?, &self.settings)?;
        }
        let seals_bpf = programs.contains_key(sealing::OF_BPF);
        if seals_bpf {
            // The key before the programs that ask for it: the older guard may have had neither, and a lockdown may hold.
            self.show_to_seal()?;
        }
        for hook in HOOKS.iter().filter(|hook| hook.at == At::Function) {
            // Such a link cannot be updated: the new one stands beside the old, which then goes.
            if let Some(program) = programs.get(hook.program) {
                let link = attach::attach_link(&self.pins, hook, program.as_fd(), &self.settings, 0)?;
                self.links.insert(hook.pin_name(0), link);
            }
        }
        if seals_bpf {
            self.show_to_seal()?;
        }
        for (name, link) in &self.links {
            let failed = || KernelError::call(format!("cannot replace the program of {name}"));
            let Some(hook) = HOOKS.iter().find(|hook| is_link_of(name, hook)) else { continue };
            if hook.at == At::Function {
                continue;
            }
            // What runs there now says which of two it is.
            let id = sys::info_of_link(link.as_fd()).map_err(failed())?.program_id;
            let tag = sys::program_by_id(id)
                .and_then(|program| sys::info_of_program(program.as_fd()))
                .map_err(failed())?
                .tag_text();
            let l3 = hook.without_ethernet.is_some_and(|l3| old.get(l3) == Some(&tag));
            let Some(program) = programs.get(hook.program_for(!l3)) else { continue };
            sys::link_update(link.as_fd(), program.as_fd()).map_err(failed())?;
        }
        self.programs = programs;
        self.settings.programs = tags;
        crate::object::OBJECT_SHA256.clone_into(&mut self.settings.object_sha256);
        env!("CARGO_PKG_VERSION").clone_into(&mut self.settings.version);
        if !self.settings.offers.tcx {
            let told = self.told()?;
            for device in interfaces::devices()?.into_values() {
                let flags = told.get(&device.index).map_or(0, |interface| interface.flags);
                self.attach_filters(&device, flags)?;
            }
        }
        settings::write(self.map(META)?, 0, &self.settings, &self.pins.map(META))
    }

    /// Another process may have taken this instance over with other settings (a lockdown does): what it set holds here, too.
    pub fn catch_up(&mut self) -> Result<(), KernelError> {
        let settings: Option<Settings> = settings::read(self.map(META)?, 0, &self.pins.map(META))?;
        let Some(settings) = settings.filter(|settings| *settings != self.settings) else { return Ok(()) };
        self.selector = Selector::new(&settings.selection)?;
        // Also those of the same instructions: they may have been loaded anew.
        for name in settings.programs.keys() {
            let path = self.pins.program(name);
            if let Some(program) = sys::pinned(&path).map_err(KernelError::path("cannot open", &path))? {
                self.programs.insert(name.clone(), program);
            }
        }
        self.settings = settings;
        self.seen.flags.clear();
        self.links = self.pins.links()?.into_iter().collect();
        Ok(())
    }
}
