//! What a program's parts hand to one another about one packet, through a per-CPU map: so each part is a function of
//! its own to the verifier, which walks it once and knows nothing of the ways that lead there. (Such global functions
//! take nothing but the context and numbers before Linux 5.12.)
//!
//! Programs at one hook never interrupt one another on a CPU: both tc hooks and generic XDP run with bottom halves off.

use guard_common::{
    Direction, Reason, Verdict,
    abi::{Flow, Slot, SlotFlags},
    decide::Outcome,
    judge::{Answer, Asked, Context, FlowTable, Judgement, Ring, Settled},
    packet::{Packet, transport::UDP},
};

use crate::{generation::Generation, maps::HAND};

#[repr(C)]
pub struct Hand {
    pub packet: Packet,
    /// By the judge, of the policy.
    pub asked: Asked,
    pub answer: Answer,
    /// The packet's flow, once it is found or begun.
    pub held: Flow,
    /// Of the context.
    pub ifindex: u32,
    pub generation: u32,
    flags: u32,
    pub packets: u32,
    pub bytes: u32,
    /// Of the judgement.
    pub outcome: u32,
    pub direction: u8,
    slot: u8,
    pub dropped: u8,
    pub decided: u8,
    /// [`Ring`].
    pub ring: u8,
    pub judged_direction: u8,
    /// [`Settled`]: a reason, and whether that is the end.
    settled_as: u8,
    is_settled: u8,
    /// Where a flow with this key stands: [`FlowTable`]; anything else: nowhere.
    from: u8,
    /// As [`guard_common::judge::flow::find`] has it.
    absent: u8,
    reserved: [u8; 6],
}

impl Hand {
    #[inline(always)]
    pub fn get() -> Option<&'static mut Self> {
        // SAFETY: this CPU's own element; see above.
        HAND.get_ptr_mut(0).map(|hand| unsafe { &mut *hand })
    }

    /// What is known before the packet is parsed. Nothing of it stays on the stack, which all parts share: 512 bytes
    /// for the longest chain of calls (before Linux 6.13).
    #[inline(always)]
    pub fn begin(&mut self, direction: Direction, ifindex: u32, generation: &Generation) {
        self.direction = direction as u8;
        self.ifindex = ifindex;
        self.slot = generation.slot.0;
        self.generation = generation.number;
        self.flags = generation.flags.0;
        self.absent = 0;
        self.set_settled(Settled::Policy(Reason::NotListed));
    }

    #[inline(always)]
    pub fn context(&self) -> Context {
        Context {
            direction: Direction::from_u8(self.direction),
            ifindex: self.ifindex,
            slot: Slot(self.slot),
            generation: self.generation,
            flags: SlotFlags(self.flags),
            packets: self.packets,
            bytes: self.bytes,
        }
    }

    /// An answer of a name server that was asked by a flow which this host began and the policy allowed.
    #[inline(always)]
    pub fn is_answer(&self) -> bool {
        self.packet.source_port == 53
            && self.packet.protocol == UDP
            && self.direction == Direction::Inbound as u8
            && self.judged_direction == Direction::Outbound as u8
            && matches!(Outcome(self.outcome).verdict(), Verdict::Allow)
            && !self.packet.is(Packet::FRAGMENT)
    }

    /// Whether a policy is in force.
    #[inline(always)]
    pub fn is_judging(&self) -> bool {
        self.slot < Slot::NONE.0
    }

    /// Of [`guard_common::abi::counter_index`].
    #[inline(always)]
    pub fn counter_index(&self) -> u32 {
        (self.outcome >> 24) << 2 | u32::from(self.direction & 1) << 1 | u32::from(self.dropped & 1)
    }

    #[inline(always)]
    pub fn set_settled(&mut self, settled: Settled) {
        let (reason, is_settled) = match settled {
            Settled::As(reason) => (reason, 1),
            Settled::Policy(reason) => (reason, 0),
        };
        self.settled_as = reason as u8;
        self.is_settled = is_settled;
    }

    #[inline(always)]
    pub fn settled(&self) -> Settled {
        let reason = Reason::from_u8(self.settled_as).unwrap_or(Reason::TableFault);
        if self.is_settled != 0 { Settled::As(reason) } else { Settled::Policy(reason) }
    }

    #[inline(always)]
    pub fn set_absent(&mut self) {
        self.absent = 1;
    }

    #[inline(always)]
    pub fn is_absent(&self) -> bool {
        self.absent != 0
    }

    #[inline(always)]
    pub fn set_from(&mut self, from: Option<FlowTable>) {
        self.from = from.map_or(u8::MAX, |table| table as u8);
    }

    #[inline(always)]
    pub fn from(&self) -> Option<FlowTable> {
        FlowTable::from_u8(self.from)
    }

    #[inline(always)]
    pub fn set_judgement(&mut self, judgement: &Judgement) {
        self.outcome = judgement.outcome.0;
        self.dropped = judgement.dropped.into();
        self.decided = judgement.decided.into();
        self.ring = judgement.ring as u8;
        self.judged_direction = judgement.direction as u8;
    }
    /// What [`Hand::set_judgement`] has kept.
    #[inline(always)]
    pub fn judgement(&self) -> Judgement {
        Judgement {
            outcome: Outcome(self.outcome),
            dropped: self.dropped != 0,
            decided: self.decided != 0,
            ring: Ring::from_u8(self.ring),
            direction: Direction::from_u8(self.judged_direction),
        }
    }
}
