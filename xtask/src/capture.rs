//! A capture of two flows of the README's host, for what reads captures: a session from the responders, and a call to
//! somewhere that no rule lists.

use std::net::Ipv4Addr;

const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const RESPONDER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// Of the first packet, in microseconds: 2026-01-01.
const TIME: u64 = 1_767_225_600_000_000;

/// As a pcapng file: a section, an interface of Ethernet, a packet each (draft-ietf-opsawg-pcapng, sections 4.1 to 4.3).
pub fn pcapng() -> Vec<u8> {
    let mut section = vec![0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0];
    section.extend(u64::MAX.to_le_bytes());
    let mut file = block(0x0a0d_0d0a, &section);
    file.extend(block(1, &[1, 0, 0, 0, 0xff, 0xff, 0, 0]));
    let packets = [syn(RESPONDER, HOST, 40_000, 22), syn(HOST, ELSEWHERE, 40_001, 4444)];
    for (at, packet) in (TIME..).zip(packets) {
        let length = packet.len() as u32;
        let fields = [0, (at >> 32) as u32, at as u32, length, length];
        let mut body: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
        body.extend(packet);
        file.extend(block(6, &body));
    }
    file
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let padded = body.len().next_multiple_of(4);
    let length = padded as u32 + 12;
    let mut block = [kind.to_le_bytes(), length.to_le_bytes()].concat();
    block.extend(body);
    block.resize(8 + padded, 0);
    block.extend(length.to_le_bytes());
    block
}

/// The first packet of a TCP connection, on Ethernet.
fn syn(from: Ipv4Addr, to: Ipv4Addr, from_port: u16, to_port: u16) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0];
    ip.extend(from.octets());
    ip.extend(to.octets());
    let sum: u32 = ip.as_chunks::<2>().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend(ip);
    frame.extend(from_port.to_be_bytes());
    frame.extend(to_port.to_be_bytes());
    // Sequence 1; five words of header; SYN; a window.
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xfa, 0xf0, 0, 0, 0, 0]);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_form_of_a_capture() {
        let file = pcapng();
        assert_eq!(file.len() % 4, 0);
        let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        let (mut at, mut kinds) = (0, Vec::new());
        while at < file.len() {
            kinds.push(word(at));
            assert_eq!(word(at + 4), word(at + word(at + 4) - 4), "both lengths of the block at {at}");
            at += word(at + 4);
        }
        assert_eq!(kinds, [0x0a0d_0d0a, 1, 6, 6]);
    }
}
