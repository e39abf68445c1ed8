//! How long a silent flow is remembered: connection tracking's defaults. Idle time only is counted in jiffies.

use crate::{
    abi::{Flow, TcpState},
    judge::FlowView,
    packet::transport::{ICMP, ICMPV6, SCTP, TCP, UDP, UDP_LITE},
};

const GRE: u8 = 47;

/// Seconds.
#[must_use]
#[inline(always)]
pub const fn seconds(protocol: u8, tcp: u8, answered: bool) -> u32 {
    match protocol {
        TCP => tcp_seconds(tcp),
        UDP | UDP_LITE => {
            if answered {
                120
            } else {
                30
            }
        }
        ICMP | ICMPV6 => 30,
        SCTP => {
            if answered {
                210
            } else {
                60
            }
        }
        GRE => {
            if answered {
                180
            } else {
                30
            }
        }
        _ => 600,
    }
}

const ESTABLISHED: u32 = 432_000;

#[inline(always)]
const fn tcp_seconds(state: u8) -> u32 {
    const SYN_SENT: u8 = TcpState::SynSent as u8;
    const SYN_RECEIVED: u8 = TcpState::SynReceived as u8;
    const FIN_WAIT: u8 = TcpState::FinWait as u8;
    const CLOSE_WAIT: u8 = TcpState::CloseWait as u8;
    const LAST_ACK: u8 = TcpState::LastAck as u8;
    const TIME_WAIT: u8 = TcpState::TimeWait as u8;
    const CLOSE: u8 = TcpState::Close as u8;
    match state {
        SYN_SENT => 120,
        SYN_RECEIVED => 60,
        FIN_WAIT => 120,
        CLOSE_WAIT => 60,
        LAST_ACK => 30,
        TIME_WAIT => 120,
        CLOSE => 10,
        _ => ESTABLISHED,
    }
}

/// Whether a flow has been silent for so long that it is as if it were not there.
#[must_use]
#[inline(always)]
pub const fn is_over(flow: &FlowView, protocol: u8, now: u64, hz: u64) -> bool {
    is_silent(flow, seconds(protocol, flow.tcp, flow.flags & Flow::ANSWERED != 0), now, hz)
}

#[must_use]
#[inline(always)]
pub const fn is_silent(flow: &FlowView, seconds: u32, now: u64, hz: u64) -> bool {
    // Another CPU may have seen it a jiffy later than this one.
    now > flow.last_seen && now - flow.last_seen > seconds as u64 * hz
}
