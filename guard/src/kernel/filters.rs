//! clsact filters, read back: which programs stand at an interface's ingress and egress, in which order.

use guard_common::Direction;

use super::{KernelError, attach::FILTER_PRIORITY};
use crate::host::netlink::{attributes, dump, number};

/// One bpf filter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Filter {
    /// Lower ones run first.
    pub priority: u16,
    pub handle: u32,
    /// 0: not a bpf filter.
    pub program: u32,
    /// Hash of the program's instructions, hex.
    pub tag: String,
    pub kind: String,
}

const ROUTE: isize = 0;
const GET_FILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_TAG: u16 = 10;
const TCA_BPF_ID: u16 = 11;

/// In the order in which they run; none where there is no clsact.
pub fn filters(interface: u32, direction: Direction) -> Result<Vec<Filter>, KernelError> {
    let parent: u32 = match direction {
        Direction::Inbound => 0xffff_fff2,
        Direction::Outbound => 0xffff_fff3,
    };
    // struct tcmsg: family and padding, index, handle, parent, info.
    let mut body = [0; 20];
    body[4..8].copy_from_slice(&interface.to_ne_bytes());
    body[12..16].copy_from_slice(&parent.to_ne_bytes());
    let mut filters = Vec::new();
    let result = dump(ROUTE, GET_FILTER, &body, |_, payload| {
        let (Some(handle), Some(info)) = (number(payload, 8), number(payload, 16)) else { return };
        let mut filter =
            Filter { priority: (info >> 16) as u16, handle, program: 0, tag: String::new(), kind: String::new() };
        for (kind, value) in attributes(payload.get(20..).unwrap_or_default()) {
            match kind {
                TCA_KIND => {
                    filter.kind = String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
                }
                TCA_OPTIONS => {
                    for (kind, value) in attributes(value) {
                        match kind {
                            TCA_BPF_ID => filter.program = number(value, 0).unwrap_or(0),
                            TCA_BPF_TAG => filter.tag = value.iter().map(|byte| format!("{byte:02x}")).collect(),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        // Each kind of filter is told once more without a handle, as a whole.
        if handle != 0 {
            filters.push(filter);
        }
    });
    match result {
        Ok(_) => {}
        Err(error) if error.is_absent() => {}
        Err(error) => return Err(error.into()),
    }
    filters.sort();
    Ok(filters)
}

/// Whether the first one is the program with this tag, at guard's priority.
pub fn is_first(interface: u32, direction: Direction, tag: &str) -> Result<bool, KernelError> {
    let filters = filters(interface, direction)?;
    Ok(filters.first().is_some_and(|filter| filter.priority == FILTER_PRIORITY && filter.tag == tag))
}
