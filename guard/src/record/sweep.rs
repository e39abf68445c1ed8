//! What becomes of flows, by looking at the kernel's tables from time to time: the doorbell may be lost, an entry may be
//! evicted, and an end rings no bell at all.
//!
//! Pure: it is handed what the tables hold and says what to record and what to forget. Each flow gets one `Begin`, at
//! most one `Cut` and one `End`.

use std::collections::HashMap;

use guard_common::{
    Direction,
    abi::{Flow, TcpState},
    judge::lifetime,
};

use super::{begun_before::BegunBefore, flow::Key};

const SECOND: u64 = 1_000_000_000;
/// A closed connection is recorded as ended when nothing came for this long; its entry stays for its full lifetime, so
/// that late packets still belong to it.
const CLOSED_QUIET: u64 = 2 * SECOND;

/// A doorbell that rings no later than this after a known flow of the same key began is that flow's own. (A flow that
/// follows its predecessor more closely is found by the next look at the tables.)
const SAME_FLOW: u64 = SECOND / 100;

/// Flows that one look tells the store of again; the others wait for the next.
const MOST_GROWN: usize = 2000;

/// Both clocks of the programs, read together.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Nanoseconds since boot.
    pub boot_ns: u64,
    /// As `bpf_jiffies64` gives them.
    pub jiffies: u64,
    /// Jiffies a second.
    pub hz: u32,
}

impl Now {
    /// Nanoseconds since a flow's last packet.
    #[must_use]
    pub fn idle(&self, flow: &Flow) -> u64 {
        let jiffies = self.jiffies.saturating_sub(flow.last_seen);
        jiffies.saturating_mul(SECOND / u64::from(self.hz.max(1)))
    }

    /// Boot time of a flow's last packet, to a jiffy.
    #[must_use]
    pub fn last_ns(&self, flow: &Flow) -> u64 {
        self.boot_ns.saturating_sub(self.idle(flow))
    }
}

/// How an end was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// TCP closed it.
    Closed,
    /// Nothing came for its lifetime.
    Idle,
    /// Gone from the table: what came after the last look is in the totals only.
    Evicted,
    /// Another flow with the same key took its place.
    Replaced,
}

impl How {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Idle => "idle",
            Self::Evicted => "evicted",
            Self::Replaced => "replaced",
        }
    }
}

/// Something to record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Its doorbell was lost (or it began while nobody listened).
    Begin,
    /// The same, of its cut.
    Cut,
    End(How),
}

/// One finding, with the flow as it was last seen.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub finding: Finding,
    pub key: Key,
    pub flow: Flow,
    pub flow_id: u64,
}

/// What one look at the tables gave.
#[derive(Debug, Default)]
pub struct Findings {
    pub found: Vec<Found>,
    /// Flows that go on, and of which there is more than was told: for the store, and no record of theirs.
    pub grown: Vec<Grown>,
    /// Entries whose time is over, and the jiffy when they were last seen: to be deleted from the tables.
    pub expired: Vec<(Key, u64)>,
}

/// A flow that goes on, as it stands now.
#[derive(Clone, Copy, Debug)]
pub struct Grown {
    pub key: Key,
    pub flow: Flow,
    pub flow_id: u64,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    flow: Flow,
    flow_id: u64,
    /// Known from its doorbell only: `flow` holds little more than the first packet.
    from_event: bool,
    begun: bool,
    cut: bool,
    ended: bool,
    /// Number of the look that saw it last.
    seen: u64,
    /// Boot-time nanoseconds of the look that saw its counters move last.
    moved: u64,
    /// What records that have ended have told of it.
    told: Sum,
    /// When the store was told of it last (boot-time nanoseconds), and of how many packets.
    stored: (u64, u64),
}

impl Known {
    fn new(key: &Key, flow: Flow, look: u64) -> Self {
        Self {
            flow,
            flow_id: key.flow_id(flow.first_seen),
            from_event: false,
            begun: false,
            cut: false,
            ended: false,
            seen: look,
            moved: flow.first_seen,
            told: Sum::default(),
            stored: (flow.first_seen, 0),
        }
    }

    fn of_event(key: &Key, flow: Flow, look: u64) -> Self {
        Self { from_event: true, begun: true, ..Self::new(key, flow, look) }
    }

    /// Its end was recorded, and was none: whoever knows a session's ends can write a RST with them, and the session goes
    /// on. What comes from here on is another record's.
    fn go_on(&mut self, key: &Key, now: &Now) {
        self.told = Sum { packets: self.flow.packets, bytes: self.flow.bytes };
        self.flow_id = key.flow_id(now.boot_ns);
        (self.begun, self.ended) = (false, false);
    }

    /// The store is told of a flow again when it is twice as old, but not within seconds, and each minute later on: what
    /// is open for days is not one packet until its end, and a crowd of short ones costs nothing.
    fn has_grown(&self, now: &Now) -> bool {
        const AGES: (u64, u64) = (2 * SECOND, 60 * SECOND);
        let (when, packets) = self.stored;
        let wait = when.saturating_sub(self.flow.first_seen).clamp(AGES.0, AGES.1);
        self.begun && !self.ended && total(&self.flow) != packets && now.boot_ns.saturating_sub(when) >= wait
    }

    /// The flow, less what was told of it.
    fn untold(&self) -> Flow {
        let mut flow = self.flow;
        for direction in 0..2 {
            flow.packets[direction] = flow.packets[direction].saturating_sub(self.told.packets[direction]);
            flow.bytes[direction] = flow.bytes[direction].saturating_sub(self.told.bytes[direction]);
        }
        flow
    }
}

/// Packets and bytes of all flows that were ever seen, by packet direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
}

impl Sum {
    fn add(&mut self, flow: &Flow) {
        for direction in 0..2 {
            self.packets[direction] += flow.packets[direction];
            self.bytes[direction] += flow.bytes[direction];
        }
    }
}

/// Every flow that is held, and the sum of those that are gone.
#[derive(Debug, Default)]
pub struct Tracker {
    known: HashMap<Key, Known>,
    look: u64,
    gone: Sum,
    /// Flows that earlier records have begun; asked only for flows that no doorbell has told of.
    begun_before: BegunBefore,
}

impl Tracker {
    #[must_use]
    pub fn new(begun_before: BegunBefore) -> Self {
        Self { begun_before, ..Self::default() }
    }

    /// The doorbell rang for a flow's beginning. `flow` is what the event tells of it. Returns the flow's id; `None`
    /// where its beginning was recorded already.
    pub fn began(&mut self, key: Key, flow: Flow) -> Option<u64> {
        let look = self.look;
        let Some(known) = self.known.get_mut(&key) else {
            let known = Known::of_event(&key, flow, look);
            self.known.insert(key, known);
            return Some(known.flow_id);
        };
        if !known.begun {
            known.begun = true;
            known.flow.first_outcome = flow.first_outcome;
            return Some(known.flow_id);
        }
        // The doorbell's time is a little after the table's: two readings of the clock.
        if flow.first_seen <= known.flow.first_seen.saturating_add(SAME_FLOW) {
            return None;
        }
        // Another flow with this key. The old one is not looked for any more.
        self.gone.add(&known.flow);
        *known = Known::of_event(&key, flow, look);
        Some(known.flow_id)
    }

    /// The socket layer refused: by a flow of its own, that no packet has. A refusal by a newer policy is told again.
    pub fn refused(&mut self, key: Key, flow: Flow) -> u64 {
        let look = self.look;
        let known = self.known.entry(key).or_insert_with(|| Known::of_event(&key, flow, look));
        known.begun = true;
        known.flow_id
    }

    /// The doorbell rang for a flow's cut. `None` where that was recorded already.
    pub fn cut(&mut self, key: Key, flow: Flow) -> Option<u64> {
        let look = self.look;
        let begun_before = &self.begun_before;
        let known = self.known.entry(key).or_insert_with(|| {
            let known = Known::of_event(&key, flow, look);
            // It rang when nobody listened; a former process has recorded its beginning.
            Known { flow_id: begun_before.of_tuple(&key, &flow).unwrap_or(known.flow_id), ..known }
        });
        if known.cut {
            return None;
        }
        known.cut = true;
        Some(known.flow_id)
    }

    /// One look: all that the tables hold now.
    pub fn look(&mut self, held: impl IntoIterator<Item = (Key, Flow)>, now: &Now) -> Findings {
        self.look += 1;
        let mut findings = Findings::default();
        for (key, flow) in held {
            self.see(key, flow, now, &mut findings);
        }
        let look = self.look;
        let gone = &mut self.gone;
        self.known.retain(|key, known| {
            // A doorbell may ring between the dump of the tables and now: one look's grace.
            if known.seen + u64::from(known.from_event) >= look {
                return true;
            }
            if !known.ended && known.begun {
                findings.found.push(Found {
                    finding: Finding::End(How::Evicted),
                    key: *key,
                    flow: known.untold(),
                    flow_id: known.flow_id,
                });
            }
            gone.add(&known.flow);
            false
        });
        findings
    }

    /// Sum over all flows ever seen: those that are gone, and those that are held.
    #[must_use]
    pub fn sum(&self) -> Sum {
        let mut sum = self.gone;
        self.known.values().for_each(|known| sum.add(&known.flow));
        sum
    }

    #[must_use]
    pub fn held(&self) -> usize {
        self.known.len()
    }

    fn see(&mut self, key: Key, flow: Flow, now: &Now, findings: &mut Findings) {
        let look = self.look;
        let fresh = Known::new(&key, flow, look);
        let begun_before = &self.begun_before;
        let known = self.known.entry(key).or_insert_with(|| match begun_before.find(&key, &flow) {
            Some((flow_id, ended)) => Known { flow_id, begun: true, cut: flow.cut_generation != 0, ended, ..fresh },
            None => fresh,
        });
        let same = if known.from_event {
            flow.first_seen <= known.flow.first_seen
        } else {
            flow.first_seen == known.flow.first_seen
        };
        if !same && flow.first_seen > known.flow.first_seen {
            if known.begun && !known.ended {
                findings.found.push(Found {
                    finding: Finding::End(How::Replaced),
                    key,
                    flow: known.untold(),
                    flow_id: known.flow_id,
                });
            }
            self.gone.add(&known.flow);
            *known = fresh;
        } else if known.seen == look && !known.from_event && total(&known.flow) > total(&flow) {
            // It moved from one table to another while they were read; the fuller entry is the later one.
            return;
        }
        let closed = flow.tcp == TcpState::TimeWait as u8 || flow.tcp == TcpState::Close as u8;
        if total(&known.flow) != total(&flow) {
            known.moved = now.boot_ns;
            if known.ended && !closed {
                known.go_on(&key, now);
            }
        }
        known.flow = flow;
        known.from_event = false;
        known.seen = look;

        let found = |finding, known: &Known| Found { finding, key, flow: known.untold(), flow_id: known.flow_id };
        // Judged by a policy for the first time, not only tracked.
        if !known.begun && flow.generation != 0 {
            known.begun = true;
            findings.found.push(found(Finding::Begin, known));
        }
        if flow.cut_generation != 0 && !known.cut {
            known.cut = true;
            findings.found.push(found(Finding::Cut, known));
        }
        // The socket layer keeps no time of the last refusal.
        let idle = match flow.flags & Flow::AT_SOCKET {
            0 => now.idle(&flow),
            _ => now.boot_ns.saturating_sub(known.moved),
        };
        let over = idle > lifetime(&key, &flow);
        if !known.ended && (over || (closed && idle >= CLOSED_QUIET)) {
            known.ended = true;
            if known.begun {
                findings.found.push(found(Finding::End(if closed { How::Closed } else { How::Idle }), known));
            }
        }
        if over {
            findings.expired.push((key, flow.last_seen));
        }
        if known.has_grown(now) && findings.grown.len() < MOST_GROWN {
            known.stored = (now.boot_ns, total(&flow));
            findings.grown.push(Grown { key, flow: known.untold(), flow_id: known.flow_id });
        }
    }
}

fn total(flow: &Flow) -> u64 {
    flow.packets[0] + flow.packets[1]
}

/// How long a flow is kept after its last packet, in nanoseconds: as long as the programs take it for alive.
#[must_use]
pub fn lifetime(key: &Key, flow: &Flow) -> u64 {
    if flow.flags & Flow::AT_SOCKET != 0 {
        // Long enough that a client's retries belong to one record.
        return 120 * SECOND;
    }
    u64::from(lifetime::seconds(key.protocol(), flow.tcp, flow.flags & Flow::ANSWERED != 0)) * SECOND
}

/// The direction that a flow's value names.
#[must_use]
pub const fn direction(flow: &Flow) -> Direction {
    Direction::from_u8(flow.direction)
}

#[cfg(test)]
mod tests;
