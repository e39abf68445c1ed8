//! Captures: the packets go past the judge, as in `replay`, under a policy that allows all; its flows are what was seen.

use std::{net::IpAddr, path::Path, sync::Arc};

use guard_common::{
    Direction,
    abi::{Flow, TcpState},
};

use super::{
    super::{
        group::Remote,
        observed::{Fate, Observed},
    },
    Format, InputError, Options, Summary,
    raw::REFUSED,
};
use crate::{
    policy,
    record::flow::{Key, TCP},
    replay::{Opened, Replay, capture::Reader, compiled},
};

/// Flows that are held at once (about 200 bytes each); more are told in parts.
const MOST_HELD: usize = 500_000;

pub fn read(
    path: &Path,
    reader: Reader,
    options: Options<'_>,
    sink: &mut dyn FnMut(Observed),
) -> Result<Summary, InputError> {
    let mut summary = Summary::new(path, Format::Capture);
    let everything = policy::load_str("observing.yaml", crate::review::OBSERVING_POLICY)
        .map_err(|found| InputError::BuiltIn(found.render(false)))?;
    let mut opened = Opened::new(reader, options.local);
    let compiled =
        compiled(&everything.policy, opened.first).map_err(|error| InputError::BuiltIn(error.to_string()))?;
    let link = opened.reader().link();
    let mut replay = Replay::new(&compiled, link, opened.side.clone(), None, opened.first);
    let host: Arc<str> = "".into();
    let mut put = |replay: &Replay<'_>, key: Key, flow: &Flow| {
        summary.flows += 1;
        sink(observed(replay, key, flow, &host));
    };
    let mut in_parts = 0;
    opened.each(|frame, read| {
        replay.frame(frame);
        if replay.packets & 0xffff == 0
            && let Some(progress) = options.progress
        {
            progress(read);
        }
        if replay.held() >= MOST_HELD {
            for (key, flow) in replay.take_flows() {
                in_parts += 1;
                put(&replay, key, &flow);
            }
        }
    });
    for (key, flow) in replay.take_flows() {
        put(&replay, key, &flow);
    }
    summary.in_parts = in_parts;
    summary.read = replay.packets;
    summary.foreign = replay.skipped.foreign;
    summary.both_local = replay.skipped.both_local;
    summary.local = replay.side().to_string();
    summary.broken = opened.reader().broken().map(ToString::to_string);
    Ok(summary)
}

fn observed(replay: &Replay<'_>, key: Key, flow: &Flow, host: &Arc<str>) -> Observed {
    let direction = Direction::from_u8(flow.direction);
    let micros = |unix_ns: i128| i64::try_from(unix_ns / 1000).unwrap_or(0);
    let first = micros(replay.unix_ns(flow.first_seen));
    let answered = flow.flags & Flow::ANSWERED != 0;
    let refused = answered && was_refused(&key, direction, flow);
    let listening = (direction == Direction::Inbound && key.protocol() == TCP && answered).then_some(!refused);
    Observed {
        flow_id: key.flow_id(flow.first_seen),
        host: Arc::clone(host),
        machine: "".into(),
        first,
        last: micros(replay.last_ns(flow)).max(first),
        direction,
        key,
        interface: None,
        fate: Fate::Seen,
        rule: None,
        reason: if refused { REFUSED.into() } else { "seen".into() },
        generation: 0,
        packets: flow.packets,
        bytes: flow.bytes,
        answered,
        adopted: flow.flags & Flow::ADOPTED != 0,
        listening,
        who: None,
        names: Vec::new(),
        remote_group: Remote::network_of(key.remote()),
        head: Vec::new(),
    }
}

/// It got nothing but resets: bare headers, where a SYN is answered with options.
fn was_refused(key: &Key, direction: Direction, flow: &Flow) -> bool {
    let header = if matches!(key.remote(), IpAddr::V4(_)) { 40 } else { 60 };
    let back = match direction {
        Direction::Inbound => Direction::Outbound,
        Direction::Outbound => Direction::Inbound,
    } as usize;
    key.protocol() == TCP && flow.tcp == TcpState::Close as u8 && flow.bytes[back] == flow.packets[back] * header
}
