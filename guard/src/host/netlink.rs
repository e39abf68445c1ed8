//! Dumps over raw netlink: one request, many answers.
//!
//! By hand rather than by the netlink-packet crates: the one for sock_diag wants another netlink-packet-core than the
//! one for routes does, and the headers read here have fixed layouts (linux/netlink.h).

use std::io;

use netlink_sys::{Socket, SocketAddr};

/// `struct nlmsghdr`.
const HEADER: usize = 16;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
/// The kernel could not give one consistent picture: something changed meanwhile.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
/// What iproute2 gives too; the kernel fills at most 32 KiB of it at a time.
const RECEIVE_BYTES: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("netlink socket: {0}")]
    Socket(#[from] io::Error),
    /// The kernel's answer, as an errno.
    #[error("the kernel refused a netlink dump: {0}")]
    Refused(io::Error),
    #[error("a netlink answer is cut short or malformed")]
    Malformed,
    #[error("netlink answers were lost")]
    Overrun,
}

impl NetlinkError {
    /// What was asked for is not there (any more).
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Refused(error) if error.raw_os_error() == Some(libc::ENOENT))
    }

    /// The kernel has no such handler: built without it, or its module is not loaded.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        match self {
            Self::Refused(error) => {
                matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EINVAL | libc::EAFNOSUPPORT)
                )
            }
            Self::Socket(error) => error.raw_os_error() == Some(libc::EPROTONOSUPPORT),
            Self::Malformed | Self::Overrun => false,
        }
    }
}

/// Sends one dump request and hands each answer's message type and payload to `each`.
///
/// Returns false if the kernel says that the picture is not consistent (the caller may ask again).
pub(crate) fn dump(
    protocol: isize,
    message_type: u16,
    body: &[u8],
    mut each: impl FnMut(u16, &[u8]),
) -> Result<bool, NetlinkError> {
    request(protocol, message_type, NLM_F_DUMP, body, &mut each)
}

/// Sends one request that has a single answer.
pub(crate) fn get(
    protocol: isize,
    message_type: u16,
    body: &[u8],
    mut each: impl FnMut(u16, &[u8]),
) -> Result<(), NetlinkError> {
    request(protocol, message_type, 0, body, &mut each).map(|_| ())
}

/// Sends one request that is only acknowledged.
pub(crate) fn command(protocol: isize, message_type: u16, body: &[u8]) -> Result<(), NetlinkError> {
    request(protocol, message_type, NLM_F_ACK, body, &mut |_, _| {}).map(|_| ())
}

fn request(
    protocol: isize,
    message_type: u16,
    flags: u16,
    body: &[u8],
    each: &mut dyn FnMut(u16, &[u8]),
) -> Result<bool, NetlinkError> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;

    let mut message = Vec::with_capacity(HEADER + body.len());
    let length = u32::try_from(HEADER + body.len()).map_err(|_| NetlinkError::Malformed)?;
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&message_type.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend_from_slice(&1u32.to_ne_bytes());
    message.extend_from_slice(&0u32.to_ne_bytes());
    message.extend_from_slice(body);
    socket.send(&message, 0)?;

    let mut consistent = true;
    let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
    loop {
        buffer.clear();
        let received = socket.recv(&mut buffer, 0)?;
        let mut rest = &buffer[..received.min(buffer.len())];
        if rest.is_empty() {
            return Err(NetlinkError::Malformed);
        }
        while let Some(header) = Header::read(rest) {
            let length = header.length as usize;
            if length < HEADER || length > rest.len() {
                return Err(NetlinkError::Malformed);
            }
            consistent &= header.flags & NLM_F_DUMP_INTR == 0;
            let payload = &rest[HEADER..length];
            match header.message_type {
                NLMSG_DONE | NLMSG_ERROR => {
                    return match number(payload, 0).ok_or(NetlinkError::Malformed)? as i32 {
                        code if code < 0 => Err(NetlinkError::Refused(io::Error::from_raw_os_error(-code))),
                        _ => Ok(consistent),
                    };
                }
                NLMSG_OVERRUN => return Err(NetlinkError::Overrun),
                other => each(other, payload),
            }
            if flags & NLM_F_DUMP == 0 {
                return Ok(true);
            }
            rest = &rest[(length.div_ceil(4) * 4).min(rest.len())..];
        }
    }
}

/// The messages of one datagram, as a multicast group sends them: type and payload. Stops at the first malformed one.
pub(super) fn messages(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let header = Header::read(rest)?;
        let length = header.length as usize;
        let payload = rest.get(HEADER..length)?;
        rest = rest.get(length.div_ceil(4) * 4..).unwrap_or_default();
        Some((header.message_type, payload))
    })
}

struct Header {
    length: u32,
    message_type: u16,
    flags: u16,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEADER {
            return None;
        }
        let flags_and_type = number(bytes, 4)?.to_ne_bytes();
        Some(Self {
            length: number(bytes, 0)?,
            message_type: u16::from_ne_bytes([flags_and_type[0], flags_and_type[1]]),
            flags: u16::from_ne_bytes([flags_and_type[2], flags_and_type[3]]),
        })
    }
}

/// A `u32` in the machine's byte order.
pub(crate) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A `u16` in network byte order.
pub(super) fn port(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Attributes (`struct nlattr`): type without its flag bits, and value. Stops at the first malformed one.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.div_ceil(4) * 4..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Appends one attribute, padded.
pub(crate) fn put_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Only addresses and small numbers are sent.
    body.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().div_ceil(4) * 4, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_put() {
        let mut body = Vec::new();
        put_attribute(&mut body, 1, &[1, 2, 3]);
        put_attribute(&mut body, 2, &[4]);
        let read: Vec<_> = attributes(&body).collect();
        assert_eq!(read, [(1, &[1u8, 2, 3][..]), (2, &[4u8][..])]);
    }

    #[test]
    fn a_malformed_attribute_ends_the_list() {
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[0xff, 0xff, 1, 0, 9]).count(), 0);
        assert_eq!(attributes(&[]).count(), 0);
    }
}
