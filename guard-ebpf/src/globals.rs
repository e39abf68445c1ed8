//! What the loader sets before it loads the programs: constants to the verifier, which cuts what they switch off. So a
//! helper that an older kernel lacks stands behind a switch and is never seen there.

use aya_ebpf::Global;
use guard_common::abi;

/// [`guard_common::abi::VERSION`] of the object, for whoever looks at it from outside.
#[unsafe(no_mangle)]
pub static ABI_VERSION: Global<u32> = Global::new(abi::VERSION);

/// `SO_NETNS_COOKIE` of guard's own network namespace.
#[unsafe(no_mangle)]
pub static NETNS_COOKIE: Global<u64> = Global::new(0);

/// Jiffies a second.
#[unsafe(no_mangle)]
pub static HZ: Global<u32> = Global::new(250);

/// The mark of an answer that goes back in to whoever is behind this host: any number but 0, which is none. Drawn anew at
/// each load.
#[unsafe(no_mangle)]
pub static REJECT_MARK: Global<u32> = Global::new(0);

/// How a packet socket shows that it goes round the qdisc: the 8 bytes at `BYPASS_OFFSET` of its `struct packet_sock`,
/// masked, are `BYPASS_VALUE`. Where the kernel's type information does not tell, no socket shows it.
#[unsafe(no_mangle)]
pub static BYPASS_OFFSET: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
pub static BYPASS_MASK: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
pub static BYPASS_VALUE: Global<u64> = Global::new(1);

/// Offset of `sk` in `struct socket`.
#[unsafe(no_mangle)]
pub static SOCKET_SK: Global<u64> = Global::new(0);

/// [`abi::Features`].
#[unsafe(no_mangle)]
pub static FEATURES: Global<u32> = Global::new(0);
