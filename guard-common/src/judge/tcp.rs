//! TCP by its handshake: connection tracking's states, less its windows. A packet that no connection could send where
//! this one stands is refused; a repeated or late one leaves the state as it is.

use super::{Context, Host, TcpSocket};
use crate::{
    Direction,
    abi::TcpState,
    packet::{
        Packet,
        transport::{ACK, FIN, RST, SYN},
    },
};

/// What a packet does to a known flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It belongs to it, and leaves it in this state.
    To(u8),
    /// It begins another connection with the same ends: the known one is over.
    Anew,
    /// No connection in this state has it.
    Refuse,
}

const NONE: u8 = TcpState::None as u8;
const SYN_SENT: u8 = TcpState::SynSent as u8;
const SYN_RECEIVED: u8 = TcpState::SynReceived as u8;
const ESTABLISHED: u8 = TcpState::Established as u8;
const FIN_WAIT: u8 = TcpState::FinWait as u8;
const CLOSE_WAIT: u8 = TcpState::CloseWait as u8;
const LAST_ACK: u8 = TcpState::LastAck as u8;
const TIME_WAIT: u8 = TcpState::TimeWait as u8;
const CLOSE: u8 = TcpState::Close as u8;

/// Whether a packet that neither opens nor ends anything, either way, leaves the connection as it is.
#[must_use]
#[inline(always)]
pub const fn goes_on(state: u8) -> bool {
    state == ESTABLISHED
}

/// `original`: the packet goes the way of the flow's first.
#[must_use]
#[inline(always)]
pub const fn step(state: u8, flags: u8, original: bool) -> Step {
    // Most packets by far.
    if flags & (SYN | FIN | RST) == 0 && goes_on(state) {
        return Step::To(state);
    }
    if flags & RST != 0 {
        return Step::To(CLOSE);
    }
    if flags & SYN != 0 {
        return if flags & ACK == 0 { syn(state, original) } else { syn_ack(state, original) };
    }
    if flags & FIN != 0 {
        return match state {
            SYN_SENT => Step::Refuse,
            FIN_WAIT | CLOSE_WAIT | LAST_ACK => Step::To(LAST_ACK),
            TIME_WAIT | CLOSE => Step::To(state),
            _ => Step::To(FIN_WAIT),
        };
    }
    match state {
        // The third of the handshake comes from who began it; a lone ACK in answer to SYN is a challenge (RFC 5961).
        SYN_SENT if original => Step::Refuse,
        SYN_RECEIVED if original => Step::To(ESTABLISHED),
        NONE => Step::To(ESTABLISHED),
        FIN_WAIT => Step::To(CLOSE_WAIT),
        LAST_ACK => Step::To(TIME_WAIT),
        _ => Step::To(state),
    }
}

#[inline(always)]
const fn syn(state: u8, original: bool) -> Step {
    match (state, original) {
        (NONE | TIME_WAIT | CLOSE, _) => Step::Anew,
        (_, true) => Step::To(state),
        // Both ends at once (RFC 9293 section 3.5) would let the remote begin: only answers come back.
        (_, false) => Step::Refuse,
    }
}

#[inline(always)]
const fn syn_ack(state: u8, original: bool) -> Step {
    match (state, original) {
        (_, true) => Step::Refuse,
        (NONE | SYN_SENT, false) => Step::To(SYN_RECEIVED),
        (_, false) => Step::To(state),
    }
}

#[inline(always)]
const fn opens(flags: u8) -> bool {
    flags & (SYN | ACK) == SYN
}

/// Whether the packet would find the connection over, and a socket that still holds it knows better
/// ([`Host::tcp_lives`]).
///
/// Whoever knows the two ends can write a RST or a FIN with them: the kernel looks at its number and takes no notice, and
/// nobody tells us. So such a packet ends a flow only as long as its socket agrees: else a SYN after it would begin a new
/// flow, the other way round, and bar the session. Our own SYN is the socket's word already.
#[must_use]
#[inline(always)]
pub const fn is_doubtful(over: bool, state: u8, flags: u8, outbound: bool) -> bool {
    !(opens(flags) && outbound) && (over || matches!(state, TIME_WAIT | CLOSE) || (opens(flags) && state == NONE))
}

/// A flow that a packet begins here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beginning {
    pub direction: Direction,
    pub state: u8,
    /// It began before guard saw it.
    pub adopted: bool,
    /// A socket holds it.
    pub held: bool,
}

/// Of a TCP packet without a flow. `None`: no connection begins so, and none of ours holds it.
#[inline(always)]
pub fn begin<H: Host + ?Sized>(host: &mut H, context: &Context, packet: &Packet) -> Option<Beginning> {
    let flags = packet.tcp_flags;
    let opens = opens(flags);
    // From outside it opens nothing where a socket holds that very connection, whose flow was forgotten or evicted.
    if opens && (context.is_outbound() || !host.tcp_lives(packet, context.direction)) {
        return Some(Beginning { direction: context.direction, state: SYN_SENT, adopted: false, held: false });
    }
    let state = if opens {
        ESTABLISHED
    } else if flags & SYN != 0 {
        SYN_RECEIVED
    } else if flags & RST != 0 {
        CLOSE
    } else if flags & FIN != 0 {
        FIN_WAIT
    } else {
        ESTABLISHED
    };
    let (direction, held) = match host.tcp_socket(packet, context.direction) {
        TcpSocket::Accepted => (Direction::Inbound, true),
        TcpSocket::Connected => (Direction::Outbound, true),
        // Forwarded, or from a raw socket; an answer to nothing in any case where it opens or resets.
        TcpSocket::None if flags & (SYN | RST) != 0 => return None,
        TcpSocket::None => (context.direction, false),
    };
    Some(Beginning { direction, state, adopted: true, held })
}

/// Past its handshake, and not reset.
#[must_use]
#[inline(always)]
pub const fn is_established(state: u8) -> bool {
    state >= ESTABLISHED && state <= TIME_WAIT
}
