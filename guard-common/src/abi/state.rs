//! Which generation judges now, and the deadline after which the one before it does.

/// The one element of the `STATE` map. `word` is written last, in one 8-byte store: that is the atomic flip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct State {
    pub word: StateWord,
    /// [`super::VERSION`] of whoever made the map.
    pub abi: u32,
    pub reserved: u32,
    /// By slot number; the last one stands for "no policy" and stays zero. Written only while no program can see it.
    pub slots: [SlotInfo; Slot::COUNT],
}

/// What a packet needs to know of a generation before it looks anything up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SlotInfo {
    /// Counts up with every publish, for the life of the pinned maps; 0 is "judged by none".
    pub generation: u32,
    pub flags: SlotFlags,
}

/// Index of a generation's tables in the array of maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot(pub u8);

impl Slot {
    /// Three slots for tables (active, previous, next) and [`Slot::NONE`].
    pub const COUNT: usize = 4;
    pub const TABLES: usize = 3;
    /// No policy: packets are tracked and pass.
    pub const NONE: Self = Self(3);
}

/// One word that a packet reads once:
///
/// | bits | |
/// |---|---|
/// | 0-1 | active slot |
/// | 2-3 | previous slot: what holds after the deadline |
/// | 4 | a deadline is pending |
/// | 16-63 | the deadline in milliseconds since boot |
///
/// The default has slot 0 in both places, which no fresh map must ever be left with: see [`StateWord::TRACKING`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct StateWord(pub u64);

impl StateWord {
    /// Neither active nor previous: every packet is tracked, none is dropped.
    pub const TRACKING: Self = Self::settled(Slot::NONE);

    #[must_use]
    pub const fn settled(active: Slot) -> Self {
        Self((active.0 & 3) as u64 | ((active.0 & 3) as u64) << 2)
    }

    #[must_use]
    pub const fn pending(active: Slot, previous: Slot, deadline_ms: u64) -> Self {
        Self((active.0 & 3) as u64 | ((previous.0 & 3) as u64) << 2 | 1 << 4 | deadline_ms << 16)
    }

    #[must_use]
    pub const fn active(self) -> Slot {
        Slot((self.0 & 3) as u8)
    }

    #[must_use]
    pub const fn previous(self) -> Slot {
        Slot((self.0 >> 2 & 3) as u8)
    }

    /// Milliseconds since boot.
    #[must_use]
    pub const fn deadline_ms(self) -> Option<u64> {
        if self.is_pending() { Some(self.0 >> 16) } else { None }
    }

    #[must_use]
    pub const fn is_pending(self) -> bool {
        self.0 & 1 << 4 != 0
    }

    /// The slot that judges at `now_ns` (since boot): every hook asks this, and nothing else.
    #[must_use]
    pub const fn effective_slot(self, now_ns: u64) -> Slot {
        if self.is_pending() && now_ns / 1_000_000 >= self.0 >> 16 { self.previous() } else { self.active() }
    }
}

/// What a generation asks of the hooks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct SlotFlags(pub u32);

impl SlotFlags {
    pub const ENFORCE_INBOUND: u32 = 1;
    pub const ENFORCE_OUTBOUND: u32 = 1 << 1;
    /// An inbound flow that began before guard needs a named remote.
    pub const LOCKDOWN: u32 = 1 << 2;
    /// The policy has rules with `interface`: its class must be looked up.
    pub const BY_INTERFACE: u32 = 1 << 3;
    /// The policy has rules with `local`: our own address must be classed.
    pub const BY_LOCAL: u32 = 1 << 4;
    /// What leaves for somebody behind this host, and is denied, is answered (`on_deny`).
    pub const REJECT_OUTBOUND: u32 = 1 << 5;
    /// What passes between this host and the containers and VMs behind it is judged (`container_host`).
    pub const CONTAINER_HOST: u32 = 1 << 6;
    // Essentials that are on.
    pub const ARP: u32 = 1 << 8;
    pub const EAPOL: u32 = 1 << 9;
    pub const LACP: u32 = 1 << 10;
    pub const STP: u32 = 1 << 11;
    pub const LLDP: u32 = 1 << 12;
    pub const MACSEC: u32 = 1 << 13;
    pub const PPPOE: u32 = 1 << 14;
    pub const NEIGHBOUR_DISCOVERY: u32 = 1 << 15;
    pub const MLD: u32 = 1 << 16;
    pub const DHCPV4: u32 = 1 << 17;
    pub const DHCPV6: u32 = 1 << 18;
    pub const ICMP_ERRORS: u32 = 1 << 19;
    pub const LOOPBACK: u32 = 1 << 20;

    #[must_use]
    pub const fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }

    /// Whether packets of this direction are dropped when they are denied.
    #[must_use]
    pub const fn enforces(self, direction: crate::Direction) -> bool {
        self.0 & (Self::ENFORCE_INBOUND << direction as u32) != 0
    }
}

const _: () = assert!(size_of::<State>() == 48 && align_of::<State>() == 8);
