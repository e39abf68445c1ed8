//! What this kernel offers, found by trying, never by its version.

use guard_common::abi;
use serde::{Deserialize, Serialize};

use super::sys::{self, Instruction};
use crate::host::translation;

/// One thing that guard would use, and what is lost where the kernel has it not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    pub name: &'static str,
    pub found: bool,
    /// Without it guard does not start.
    pub required: bool,
    pub lost_without: &'static str,
}

/// What came of trying something that guard cannot do without.
#[derive(Debug)]
pub struct Needed {
    pub name: &'static str,
    /// Why the kernel said no.
    pub refused: Option<std::io::Error>,
    /// The kernel that had it first, for people; never asked about.
    pub since: &'static str,
}

impl Needed {
    /// This process may not; whether the kernel has it is then not known.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        let code = self.refused.as_ref().and_then(std::io::Error::raw_os_error);
        matches!(code, Some(libc::EPERM | libc::EACCES))
    }
}

/// Tries all that guard does not start without. Attaches nothing.
#[must_use]
pub fn needed() -> Vec<Needed> {
    let one = |name, since, tried: std::io::Result<()>| Needed { name, since, refused: tried.err() };
    let program = |kind, expected| sys::load(kind, expected, 0, &[set(0, 1), EXIT]).map(drop);
    let map = |flags| sys::map_create("guard_probe", sys::MAP_TYPE_ARRAY, 8, 1, flags, None).map(drop);
    vec![
        one("bpf programs", "4.1", program(SCHED_CLS, 0)),
        one("type information (BTF)", "5.4, and CONFIG_DEBUG_INFO_BTF", kernel_btf()),
        one("cgroup programs", "4.17", program(CGROUP_SOCK_ADDR, INET4_CONNECT).and(program(CGROUP_SKB, 0))),
        one("cgroup socket options", "5.3", program(CGROUP_SOCKOPT, SETSOCKOPT)),
        one("jiffies in programs", "5.6", sys::load(SCHED_CLS, 0, 0, &[call(JIFFIES), set(0, 1), EXIT]).map(drop)),
        one("maps that programs only read, and mapped memory", "5.5", map(sys::F_RDONLY_PROG | sys::F_MMAPABLE)),
        one("ring buffer", "5.8", sys::ring_create(MAP_TYPE_RINGBUF, 4096).map(drop)),
        one("inner maps of any size", "5.10", map(sys::F_INNER_MAP)),
    ]
}

/// The error that says why this kernel is none for guard, if it is not.
pub fn must_have() -> Result<(), super::KernelError> {
    let refused: Vec<Needed> = needed().into_iter().filter(|needed| needed.refused.is_some()).collect();
    match refused.first() {
        None => Ok(()),
        // Who may not ask learns that, and nothing about the kernel.
        Some(Needed { name, refused: Some(error), .. }) if refused.iter().all(Needed::is_forbidden) => {
            let source = std::io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EPERM));
            Err(super::KernelError::Call { what: format!("the kernel refuses {name}"), source })
        }
        Some(_) => {
            let lacks = refused.iter().filter(|needed| !needed.is_forbidden());
            let lacks: Vec<String> = lacks.map(|needed| format!("{} (Linux {})", needed.name, needed.since)).collect();
            Err(super::KernelError::TooOld { release: release(), lacks: lacks.join(", ") })
        }
    }
}

/// As `uname -r` has it, for people.
#[must_use]
pub fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

fn kernel_btf() -> std::io::Result<()> {
    let bytes = std::fs::read("/sys/kernel/btf/vmlinux")?;
    match super::btf::Btf::new(&bytes) {
        Some(_) => Ok(()),
        None => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

/// All of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Offers {
    pub tcx: bool,
    pub fmod_ret: bool,
    pub bpf_seal: bool,
    pub netns_cookie: bool,
    pub netns_cookie_skb: bool,
    pub netns_cookie_sockopt: bool,
    pub current_sockopt: bool,
    pub coarse_clock: bool,
    pub ring_buffer: bool,
    /// Not a feature: destinations outside, of this host's own connections, are rewritten (see [`translation`]).
    pub local_dnat: bool,
}

const SCHED_CLS: u32 = 3;
const CGROUP_SKB: u32 = 8;
const CGROUP_SOCK_ADDR: u32 = 18;
const CGROUP_SOCKOPT: u32 = 25;
const INET4_CONNECT: u32 = 10;
const SETSOCKOPT: u32 = 22;
pub const TCX_INGRESS: u32 = 46;

const GET_CURRENT_PID_TGID: i32 = 14;
const GET_NETNS_COOKIE: i32 = 122;
const KTIME_GET_COARSE_NS: i32 = 160;
const JIFFIES: i32 = 118;

const MAP_TYPE_RINGBUF: u32 = 27;

const EXIT: Instruction = (0x95, 0, 0, 0);

const fn set(register: u8, value: i32) -> Instruction {
    (0xb7, register, 0, value)
}

const fn call(helper: i32) -> Instruction {
    (0x85, 0, 0, helper)
}

impl Offers {
    /// Loads a few programs of a handful of instructions; attaches none but, for a moment, those that change nothing at the
    /// functions of the seal.
    #[must_use]
    pub fn probe() -> Self {
        let helper = |kind, expected, helper| sys::load(kind, expected, 0, &[call(helper), set(0, 1), EXIT]).is_ok();
        Self {
            // Loopback is number 1 in every network namespace; asking changes nothing.
            tcx: sys::query(1, TCX_INGRESS).is_ok(),
            fmod_ret: super::sealing::works(),
            bpf_seal: super::sealing::works_for_bpf(),
            netns_cookie: sys::netns_cookie().is_ok() && helper(CGROUP_SOCK_ADDR, INET4_CONNECT, GET_NETNS_COOKIE),
            netns_cookie_skb: helper(SCHED_CLS, 0, GET_NETNS_COOKIE) && helper(CGROUP_SKB, 0, GET_NETNS_COOKIE),
            netns_cookie_sockopt: helper(CGROUP_SOCKOPT, SETSOCKOPT, GET_NETNS_COOKIE),
            current_sockopt: helper(CGROUP_SOCKOPT, SETSOCKOPT, GET_CURRENT_PID_TGID),
            coarse_clock: helper(SCHED_CLS, 0, KTIME_GET_COARSE_NS)
                && helper(CGROUP_SOCK_ADDR, INET4_CONNECT, KTIME_GET_COARSE_NS),
            ring_buffer: ring_buffer(),
            local_dnat: translation::of_own_packets().is_some(),
        }
    }

    /// The `FEATURES` global of the programs.
    #[must_use]
    pub fn bits(&self) -> u32 {
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        bit(self.coarse_clock, abi::Features::COARSE_CLOCK)
            | bit(self.netns_cookie_skb, abi::Features::NETNS_COOKIE_SKB)
            | bit(self.netns_cookie_sockopt, abi::Features::NETNS_COOKIE_SOCKOPT)
            | bit(self.current_sockopt, abi::Features::CURRENT_SOCKOPT)
            | bit(self.local_dnat, abi::Features::LOCAL_DNAT)
            // Where it is not needed it changes nothing: an option's length of 0 means "as it came".
            | abi::Features::OPTLEN_ZERO
    }

    #[must_use]
    pub fn list(&self) -> Vec<Feature> {
        let feature = |name, found, lost_without| Feature { name, found, required: false, lost_without };
        vec![
            feature(
                "tcx",
                self.tcx,
                "clsact filters instead: a filter of a lower priority number can be put before guard's, and an interface \
                 that is moved to another network namespace is guarded no longer",
            ),
            feature(
                "fmod_ret seal",
                self.fmod_ret,
                "the seal is a cgroup setsockopt program: 32-bit system calls, sockets prepared before the start and later \
                 cgroup programs can pass it",
            ),
            feature(
                "fmod_ret seal of bpf(2)",
                self.bpf_seal,
                "this kernel lets guard refuse nobody's bpf() calls in a lockdown (no fmod_ret, and BPF LSM is not used): who \
                 detaches, writes to guard's maps, removes pins or loads programs is noticed, not stopped",
            ),
            feature(
                "netns_cookie",
                self.netns_cookie,
                "the socket layer cannot tell whose socket asks, and leaves every verdict to the wire",
            ),
            feature(
                "netns_cookie_skb",
                self.netns_cookie_skb,
                "the backstop knows this namespace's sockets by a set that userspace begins; one that was missed is left \
                 to the wire",
            ),
            feature(
                "netns_cookie_sockopt",
                self.netns_cookie_sockopt,
                "the seal cannot tell whose socket asks; it holds for every namespace of its cgroup all the same",
            ),
            feature("current_sockopt", self.current_sockopt, "a sealed socket option is recorded without its process"),
            feature("coarse_clock", self.coarse_clock, "25 ns more for each new flow"),
            Feature {
                required: true,
                ..feature("ring_buffer", self.ring_buffer, "guard does not start: events need it (Linux 5.8)")
            },
        ]
    }
}

fn ring_buffer() -> bool {
    sys::ring_create(MAP_TYPE_RINGBUF, 4096).is_ok()
}

/// Jiffies a second: the kernel's clock of idle times. The coarse clocks tick with it, and the kernel gives their
/// resolution as exactly one tick (kernel/time/posix-timers.c, `posix_get_coarse_res`; since Linux 2.6.32). To measure it
/// took 300 for 250 on a busy machine.
pub fn tick_hz() -> std::io::Result<u32> {
    let tick = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)?;
    let nanoseconds = u64::try_from(tick.tv_nsec()).unwrap_or(0);
    if tick.tv_sec() != 0 || nanoseconds == 0 {
        return Err(std::io::Error::from_raw_os_error(libc::ERANGE));
    }
    // Of 300 the tick is 3,333,333 ns: to the nearest.
    Ok(((1_000_000_000 + nanoseconds / 2) / nanoseconds) as u32)
}
