//! Directions, verdicts and their reasons: one list, which counters, `explain`, reports and tests share.

/// Whose packet it is, or who began the flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    /// Towards this host: the remote is the source.
    #[default]
    Inbound = 0,
    /// From this host: the remote is the destination.
    Outbound = 1,
}

impl Direction {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }

    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Inbound => Self::Outbound,
            Self::Outbound => Self::Inbound,
        }
    }

    /// The inverse of `self as u8`; everything but 0 is outbound.
    #[must_use]
    pub const fn from_u8(value: u8) -> Self {
        if value == 0 { Self::Inbound } else { Self::Outbound }
    }
}

/// Whether a packet may pass. In audit mode a denied packet passes all the same; it is still *denied*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Verdict {
    Deny = 0,
    Allow = 1,
}

impl Verdict {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
        }
    }
}

macro_rules! reasons {
    ($($(#[$meta:meta])* $name:ident = $number:literal, $verdict:ident, $text:literal, $why:literal;)*) => {
        /// Why a packet got its verdict. Each reason has exactly one verdict.
        ///
        /// The numbers are part of the ABI: they index the kernel's counters. New reasons go at the end.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $($(#[$meta])* $name = $number,)* }

        impl Reason {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The stable name, as in `--json` and records.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// One sentence for people.
            #[must_use]
            pub const fn why(self) -> &'static str {
                match self { $(Self::$name => $why,)* }
            }

            #[must_use]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$name => Verdict::$verdict,)* }
            }

            /// `None` for a number that no reason has.
            #[must_use]
            pub const fn from_u8(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    // By the policy.
    NotListed = 0, Deny, "not_listed", "no rule lists it";
    RuleAllow = 1, Allow, "rule_allow", "a rule allows it";
    RuleDeny = 2, Deny, "rule_deny", "a deny rule forbids it";
    // By design: essential traffic (SECURITY.md lists each).
    Loopback = 3, Allow, "loopback", "it stays on this host";
    Arp = 4, Allow, "arp", "ARP: a host needs it to stay on its network";
    Eapol = 5, Allow, "eapol", "EAPOL: port authentication (IEEE 802.1X)";
    Lacp = 6, Allow, "lacp", "LACP: link aggregation (IEEE 802.1AX)";
    Stp = 7, Allow, "stp", "spanning tree, for a bridge of this host";
    Lldp = 8, Allow, "lldp", "LLDP: switched on in the policy";
    Macsec = 9, Allow, "macsec", "MACsec frame; what it carries is judged on the device above";
    Pppoe = 10, Allow, "pppoe", "PPPoE frame; what it carries is judged on the device above";
    NeighbourDiscovery = 11, Allow, "neighbour_discovery", "IPv6 neighbour discovery (RFC 4861)";
    Mld = 12, Allow, "mld", "multicast listener discovery (RFC 3810)";
    Dhcpv4 = 13, Allow, "dhcpv4", "DHCP for this host's own address (RFC 2131)";
    Dhcpv6 = 14, Allow, "dhcpv6", "DHCPv6 on the link (RFC 8415)";
    IcmpError = 15, Allow, "icmp_error", "an ICMP error about a flow that is allowed";
    // Neither judged nor dropped, on purpose.
    Fragment = 16, Allow, "fragment", "a later fragment of an allowed packet";
    Tracking = 17, Allow, "tracking", "guard is starting or has no policy in force: recorded, not judged";
    NotGuarded = 18, Allow, "not_guarded", "the interface is not guarded";
    // What cannot be a flow that the policy knows.
    Truncated = 19, Deny, "truncated", "the packet ends before its headers do";
    BadIpv4 = 20, Deny, "bad_ipv4", "malformed IPv4 header";
    BadIpv6 = 21, Deny, "bad_ipv6", "malformed IPv6 header";
    ExtensionChain = 22, Deny, "extension_chain", "IPv6 extension headers that cannot be followed";
    SourceRoute = 23, Deny, "source_route", "source routing: the header does not name the true destination";
    BadTransport = 24, Deny, "bad_transport", "malformed transport header";
    EtherType = 25, Deny, "ethertype", "neither IPv4 nor IPv6, and not essential";
    FragmentNoFirst = 26, Deny, "fragment_no_first", "a fragment that came before its first";
    FragmentTiny = 27, Deny, "fragment_tiny", "a first fragment too short for its transport header";
    FragmentConflict = 28, Deny, "fragment_conflict", "a second, different first fragment";
    IcmpRedirect = 29, Deny, "icmp_redirect", "ICMP redirects are never let through";
    IcmpErrorUnknown = 30, Deny, "icmp_error_unknown", "an ICMP error about no flow of this host";
    EssentialMalformed = 31, Deny, "essential_malformed", "essential traffic, but not in the one form that is allowed";
    UnnamedRemote = 32, Deny, "unnamed_remote", "began before the lockdown, and its remote is not named in the policy";
    // When something failed here: denied, counted, said.
    TableFault = 33, Deny, "table_fault", "a look-up in guard's own tables failed";
    FlowTableFull = 34, Deny, "flow_table_full", "the flow could not be recorded";
    FragmentTableFull = 35, Deny, "fragment_table_full", "the fragment could not be recorded";
    UnknownInterface = 36, Deny, "unknown_interface", "an interface that guard does not know yet";
    // From a socket.
    Sealed = 37, Deny, "sealed", "a socket option or family that goes round the firewall";
    EssentialOff = 38, Deny, "essential_off", "essential traffic that the policy switches off";
    NoHandshake = 39, Deny, "no_handshake", "TCP that cannot belong to a connection";
    IcmpAnswerUnknown = 40, Deny, "icmp_answer_unknown", "an ICMP answer that nobody here asked for";
    BpfRefused = 41, Deny, "bpf_refused", "a bpf() call, or the removal of a pin, that would loosen a lockdown";
}

impl Reason {
    /// How many counters a table indexed by reason needs; a power of two, so that programs can mask.
    pub const SLOTS: usize = 64;
}

const _: () = assert!(Reason::ALL.len() <= Reason::SLOTS);
