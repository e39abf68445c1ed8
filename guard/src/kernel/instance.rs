//! One attached guard: opened by its pins, started where there are none, taken over where there are.

mod adoption;
mod devices;

pub(super) use devices::keys;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use guard_common::abi::{self, Interface, SlotFlags};

use super::{
    KernelError,
    attach::{self, At, HOOKS, Hook},
    features,
    interfaces::{self, Device, Selection, Selector, Why},
    load::{self, Programs},
    near::{self, Judged, Near},
    pins::{Pins, pin_over},
    publish::{self, Outer, StateMap},
    release, sealing,
    settings::{self, META, META_BYTES, META_ENTRIES, Options, Published, Settings},
    sys,
    watch::Seen,
};
use crate::{
    host::sock_diag,
    policy::compile::{Compiled, InterfaceClasses},
};

/// Which instance, and where its pins are.
#[derive(Clone, Debug)]
pub struct Place {
    pub instance: String,
    /// `None`: the bpffs that is mounted, else one made at /sys/fs/bpf.
    pub bpffs: Option<PathBuf>,
}

/// An instance whose maps, programs and links this process holds too.
pub struct Instance {
    pub(super) name: String,
    pub(super) pins: Pins,
    pub(super) settings: Settings,
    pub(super) selector: Selector,
    pub(super) maps: HashMap<String, OwnedFd>,
    /// The `EVENTS` map: a descriptor that is readable when events wait.
    pub(super) events: OwnedFd,
    pub(super) state: StateMap,
    pub(super) programs: Programs,
    /// By the name of their pin.
    pub(super) links: BTreeMap<String, OwnedFd>,
    /// By slot, with the generation that each is of.
    classes: [Option<(u32, InterfaceClasses)>; 3],
    pub(super) near: Option<Near>,
    pub(super) ring: Option<RingBuf<MapData>>,
    /// The rings beside it, by name.
    pub(super) rings: HashMap<&'static str, RingBuf<MapData>>,
    /// What keeps the process programs attached: as long as this process lives.
    pub(super) watching: Vec<OwnedFd>,
    /// When a hook was last put in front of another's: not more than once a second.
    pub(super) contested: Option<Instant>,
    /// When each hook was put in front, by the name of its pin.
    pub(super) contests: HashMap<String, Vec<Instant>>,
    /// What the watch saw last.
    pub(super) seen: Seen,
    /// What passed an interface before it was guarded, in words; nobody was told yet.
    pub(super) appeared: Vec<String>,
}

impl Instance {
    /// Takes over what is there, or starts: loads, pins, attaches; packets are tracked and none is dropped until the
    /// first publish. A start that fails is undone.
    ///
    /// Returns whether it was there already. Belongs to the network namespace of the calling thread.
    pub fn start(place: &Place, options: &Options) -> Result<(Self, bool), KernelError> {
        let pins = Pins::find(place.bpffs.as_deref(), &place.instance)?;
        pins.mount()?;
        if pins.exists()? {
            let mut instance = Self::open(place)?;
            instance.take_over(options)?;
            return Ok((instance, true));
        }
        load::raise_memory_limit();
        features::must_have()?;
        let settings = Settings::new(options)?;
        let selector = Selector::new(&options.selection)?;
        pins.create()?;
        match Self::begin(&place.instance, &pins, settings, selector) {
            Ok(instance) => Ok((instance, false)),
            Err(error) => {
                // What could not be undone is said by the next command that finds it.
                let _ = release::tear_down(&pins);
                Err(KernelError::StartUndone { source: Box::new(error) })
            }
        }
    }

    fn begin(name: &str, pins: &Pins, mut settings: Settings, selector: Selector) -> Result<Self, KernelError> {
        let meta = sys::map_create(META, sys::MAP_TYPE_ARRAY, META_BYTES as u32, META_ENTRIES, 0, None)
            .map_err(KernelError::call("cannot make the map META"))?;
        let path = pins.map(META);
        sys::pin(meta.as_fd(), &path).map_err(KernelError::path("cannot pin", &path))?;
        load::make_outer_maps(pins)?;
        let programs = load::load(pins, &settings, &|name| settings.needs(name))?;
        settings.programs = pin_programs(pins, &programs)?;
        settings::write(meta.as_fd(), 0, &settings, &path)?;
        let maps = open_maps(pins)?;
        let events = events_of(&maps, pins)?;
        let state = StateMap::new(map_of(&maps, pins, "STATE")?)?;
        state.begin();
        let mut instance = Self {
            name: name.to_owned(),
            pins: pins.clone(),
            settings,
            selector,
            maps,
            events,
            state,
            programs,
            links: BTreeMap::new(),
            classes: [None, None, None],
            near: None,
            ring: None,
            rings: HashMap::new(),
            watching: Vec::new(),
            contested: None,
            contests: HashMap::new(),
            seen: Seen::default(),
            appeared: Vec::new(),
        };
        instance.tell_seal()?;
        // The wire first: until then the backstop would hold every socket, were there a policy.
        instance.look_at_interfaces()?;
        instance.attach_cgroup()?;
        instance.learn_sockets()?;
        settings::write(instance.map(META)?, 0, &instance.settings, &path)?;
        Ok(instance)
    }

    /// Where the kernel cannot say whose a packet is: the sockets that were made before the programs looked.
    pub(super) fn learn_sockets(&self) -> Result<(), KernelError> {
        if self.settings.offers.netns_cookie_skb {
            return Ok(());
        }
        let map = self.map("SOCKETS")?;
        for socket in sock_diag::sockets()?.all.iter().filter(|socket| socket.cookie != 0) {
            match sys::update(map, &socket.cookie, &1_u8, sys::ANY) {
                // The rest is left to the wire, as are those that come later.
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) => break,
                result => result.map_err(KernelError::call("cannot tell the programs of a socket"))?,
            }
        }
        Ok(())
    }

    /// One that runs already, of this network namespace and this guard's ABI.
    pub fn open(place: &Place) -> Result<Self, KernelError> {
        let pins = Pins::find(place.bpffs.as_deref(), &place.instance)?;
        if !pins.exists()? {
            return Err(KernelError::NotRunning(place.instance.clone()));
        }
        load::raise_memory_limit();
        let maps = open_maps(&pins)?;
        let events = events_of(&maps, &pins)?;
        let state = StateMap::new(map_of(&maps, &pins, "STATE")?)?;
        let found = state.read().abi;
        if found != abi::VERSION {
            return Err(KernelError::ForeignAbi { found, expected: abi::VERSION });
        }
        let damaged = |why: &str| KernelError::Damaged { path: pins.directory().to_owned(), why: why.to_owned() };
        let settings: Settings = settings::read(map_of(&maps, &pins, META)?, 0, &pins.map(META))?
            .ok_or_else(|| damaged("its start was interrupted"))?;
        if settings.netns != settings::own_netns()? {
            return Err(KernelError::OtherNamespace(place.instance.clone()));
        }
        let mut programs = Programs::new();
        for name in settings.programs.keys() {
            // One whose pin is gone is found by its link, or loaded anew by `repair`.
            let path = pins.program(name);
            if let Some(program) = sys::pinned(&path).map_err(KernelError::path("cannot open", &path))? {
                programs.insert(name.clone(), program);
            }
        }
        let links = pins.links()?.into_iter().collect();
        let selector = Selector::new(&settings.selection)?;
        Ok(Self {
            name: place.instance.clone(),
            pins,
            settings,
            selector,
            maps,
            events,
            state,
            programs,
            links,
            classes: [None, None, None],
            near: None,
            ring: None,
            rings: HashMap::new(),
            watching: Vec::new(),
            contested: None,
            contests: HashMap::new(),
            seen: Seen::default(),
            appeared: Vec::new(),
        })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its maps, programs and links are pinned.
    #[must_use]
    pub fn pin_directory(&self) -> &std::path::Path {
        self.pins.directory()
    }

    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Which slots judge, now and after a deadline: one load, for whoever waits.
    #[must_use]
    pub fn word(&self) -> abi::StateWord {
        self.state.word()
    }

    /// The generation in a slot; 0: none.
    #[must_use]
    pub fn generation_in(&self, slot: abi::Slot) -> u32 {
        self.state.read().slots.get(usize::from(slot.0)).map_or(0, |info| info.generation)
    }

    /// The number that the next policy gets.
    #[must_use]
    pub fn next_generation(&self) -> u32 {
        publish::next_generation(&self.state.read())
    }

    /// Puts a policy in force: built aside, frozen, read back, then one 8-byte store. With `within` the kernel itself
    /// undoes it then, unless [`Self::confirm`] comes. On an error the old policy stays in force.
    pub fn publish(&mut self, compiled: &Compiled, within: Option<Duration>) -> Result<(), KernelError> {
        let outer = Outer { tables: self.map("TABLES")?, rule_counters: self.map("RULE_COUNTERS")? };
        let (slot, published) = publish::build(&self.state, &outer, compiled)?;
        // Who looks at the interfaces from now on finds the patterns there.
        settings::write(self.map(META)?, 1 + u32::from(slot.0), &published, &self.pins.map(META))?;
        self.write_classes(usize::from(slot.0), &published)?;
        if self.wants_host_sides() && !self.seen.host_sides {
            // Before it judges. One that cannot be attached to leaves the old policy in force.
            self.look_at_interfaces()?;
        }
        self.tell_seal()?;
        publish::flip(&self.state, slot, within)
    }

    pub fn confirm(&mut self) -> Result<(), KernelError> {
        self.settle();
        self.state.confirm()
    }

    pub fn roll_back(&mut self) -> Result<(), KernelError> {
        self.state.roll_back()
    }

    /// Completes a rollback whose deadline has passed; true if there was one.
    pub fn settle(&mut self) -> bool {
        self.state.settle()
    }

    /// What was published into a slot (0 to 2).
    pub fn published(&self, slot: u8) -> Result<Option<Published>, KernelError> {
        settings::read(self.map(META)?, 1 + u32::from(slot), &self.pins.map(META))
    }

    pub(super) fn map(&self, name: &str) -> Result<BorrowedFd<'_>, KernelError> {
        map_of(&self.maps, &self.pins, name)
    }

    /// What the programs were told of each interface.
    pub(super) fn told(&self) -> Result<BTreeMap<u32, Interface>, KernelError> {
        let entries = sys::entries::<u32, Interface>(self.map("INTERFACES")?)
            .map_err(KernelError::call("cannot read INTERFACES"))?;
        Ok(entries.into_iter().collect())
    }

    /// Attaches what is missing on an interface that is to be guarded.
    pub(super) fn attach_wire(&mut self, device: &Device) -> Result<(), KernelError> {
        self.attach_hooks(device, Interface::GUARDED)
    }

    /// The same, of the host's side of a bridge.
    pub(super) fn attach_host_side(&mut self, device: &Device) -> Result<(), KernelError> {
        self.attach_hooks(device, Interface::HOST_SIDE)
    }

    fn attach_hooks(&mut self, device: &Device, flags: u32) -> Result<(), KernelError> {
        let tcx = self.settings.offers.tcx;
        if !tcx {
            self.attach_filters(device, flags)?;
        }
        for hook in HOOKS.iter().filter(|hook| hook.belongs_on(flags) && (tcx || hook.at_tc().is_none())) {
            if !self.holds(&hook.pin_name(device.index)) && self.has(hook.program_for(device.ethernet))? {
                self.attach(hook, device.index, device.ethernet)?;
            }
        }
        Ok(())
    }

    /// Takes the host's side of a bridge out again.
    pub(super) fn detach_host_side(&mut self, device: &Device) -> Result<(), KernelError> {
        for hook in HOOKS {
            let At::Host(direction) = hook.at else { continue };
            // Where the wire's own stands by now, it took this one's place.
            if !self.settings.offers.tcx
                && super::filters::is_first(device.index, direction, &self.tag_of(hook.program))?
            {
                attach::detach_filter(direction, &device.name);
            }
            self.drop_link(&hook.pin_name(device.index))?;
        }
        Ok(())
    }

    /// Whether a program is loaded; one that only some interfaces need is loaded now.
    fn has(&mut self, program: &str) -> Result<bool, KernelError> {
        if !self.programs.contains_key(program) && settings::is_for_some(program) {
            self.load_again(program)?;
        }
        Ok(self.programs.contains_key(program))
    }

    fn attach_filters(&mut self, device: &Device, flags: u32) -> Result<(), KernelError> {
        for hook in HOOKS.iter().filter(|hook| hook.belongs_on(flags)) {
            let Some(direction) = hook.at_tc() else { continue };
            let program = hook.program_for(device.ethernet);
            if self.has(program)? && !super::filters::is_first(device.index, direction, &self.tag_of(program))? {
                attach::attach_filter(&self.pins, program, direction, &device.name)?;
            }
        }
        Ok(())
    }

    /// Of the instructions that were loaded; empty for a program that was not.
    pub(super) fn tag_of(&self, program: &str) -> String {
        self.settings.programs.get(program).cloned().unwrap_or_default()
    }

    pub(super) fn attach_cgroup(&mut self) -> Result<(), KernelError> {
        if self.programs.contains_key("seal_option") {
            sealing::hold(self.map(sealing::CGROUP)?, &self.settings)?;
        }
        for hook in cgroup_hooks() {
            if !self.holds(&hook.pin_name(0)) && self.programs.contains_key(hook.program) {
                self.attach(hook, 0, true)?;
            }
        }
        Ok(())
    }

    /// Whether there is a link that is still attached: one that this process holds, or one that another has pinned.
    pub(super) fn holds(&mut self, name: &str) -> bool {
        let attached = |link: &OwnedFd| sys::info_of_link(link.as_fd()).is_ok_and(|info| info.target != 0);
        if self.links.get(name).is_some_and(attached) {
            return true;
        }
        match sys::pinned(&self.pins.link(name)) {
            Ok(Some(link)) if attached(&link) => {
                self.links.insert(name.to_owned(), link);
                true
            }
            _ => false,
        }
    }

    pub(super) fn attach(&mut self, hook: &Hook, interface: u32, ethernet: bool) -> Result<(), KernelError> {
        let Some(program) = self.programs.get(hook.program_for(ethernet)) else { return Ok(()) };
        let link = attach::attach_link(&self.pins, hook, program.as_fd(), &self.settings, interface)?;
        self.links.insert(hook.pin_name(interface), link);
        Ok(())
    }

    /// Loads one program (once more: so can it stand in front of itself).
    pub(super) fn load_again(&mut self, program: &str) -> Result<(), KernelError> {
        let loaded = load::load(&self.pins, &self.settings, &|name| name == program)?;
        self.settings.programs.extend(pin_programs(&self.pins, &loaded)?);
        self.programs.extend(loaded);
        settings::write(self.map(META)?, 0, &self.settings, &self.pins.map(META))
    }

    fn drop_interface(&mut self, index: u32) -> Result<(), KernelError> {
        for hook in HOOKS {
            if hook.of_interface() {
                self.drop_link(&hook.pin_name(index))?;
            }
        }
        Ok(())
    }

    fn drop_links(&mut self, which: impl Fn(&Hook) -> bool) -> Result<(), KernelError> {
        let names: Vec<String> = self
            .links
            .keys()
            .filter(|name| HOOKS.iter().any(|hook| which(hook) && is_link_of(name, hook)))
            .cloned()
            .collect();
        names.iter().try_for_each(|name| self.drop_link(name))
    }

    fn drop_link(&mut self, name: &str) -> Result<(), KernelError> {
        self.links.remove(name);
        let path = self.pins.link(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(KernelError::path("cannot unpin", &path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Interfaces, each with what is decided about it.
pub type Decided = Vec<(Device, Why)>;

/// What would be guarded, were an instance started now with this selection, and where containers or VMs would be behind this
/// host ([`Instance::host_sides`]). Attaches nothing.
pub fn preview(selection: &Selection) -> Result<(Decided, BTreeSet<u32>), KernelError> {
    let selector = Selector::new(selection)?;
    let (devices, told) = (interfaces::devices()?, BTreeMap::new());
    let sides = devices::host_sides(&selector, &devices, &told);
    Ok((devices::decided(&selector, devices, &told), sides))
}

fn cgroup_hooks() -> impl Iterator<Item = &'static Hook> {
    HOOKS.iter().filter(|hook| !hook.of_interface())
}

fn is_link_of(name: &str, hook: &Hook) -> bool {
    match hook.at {
        At::Cgroup(_) | At::Function => name == hook.program,
        _ => name
            .strip_prefix(hook.program)
            .and_then(|rest| rest.strip_prefix('_'))
            .is_some_and(|index| index.bytes().all(|byte| byte.is_ascii_digit())),
    }
}

/// Pins each under its name; their tags.
fn pin_programs(pins: &Pins, programs: &Programs) -> Result<BTreeMap<String, String>, KernelError> {
    let mut tags = BTreeMap::new();
    for (name, program) in programs {
        pin_over(program.as_fd(), &pins.program(name))?;
        let info =
            sys::info_of_program(program.as_fd()).map_err(KernelError::call(format!("cannot read of {name}")))?;
        tags.insert(name.clone(), info.tag_text());
    }
    Ok(tags)
}

fn open_maps(pins: &Pins) -> Result<HashMap<String, OwnedFd>, KernelError> {
    let directory = pins.map("");
    let mut maps = HashMap::new();
    for entry in fs::read_dir(&directory).map_err(KernelError::path("cannot list", &directory))? {
        let entry = entry.map_err(KernelError::path("cannot list", &directory))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if let Some(map) = sys::pinned(&entry.path()).map_err(KernelError::path("cannot open", &entry.path()))? {
            maps.insert(name, map);
        }
    }
    Ok(maps)
}

fn map_of<'a>(maps: &'a HashMap<String, OwnedFd>, pins: &Pins, name: &str) -> Result<BorrowedFd<'a>, KernelError> {
    maps.get(name)
        .map(AsFd::as_fd)
        .ok_or_else(|| KernelError::Damaged { path: pins.map(name), why: "the map is not pinned there".to_owned() })
}

fn events_of(maps: &HashMap<String, OwnedFd>, pins: &Pins) -> Result<OwnedFd, KernelError> {
    map_of(maps, pins, "EVENTS")?.try_clone_to_owned().map_err(KernelError::call("cannot open EVENTS"))
}
