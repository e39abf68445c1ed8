//! AWS VPC flow logs: version 2, and custom formats that name the same fields in a header line.
//!
//! Each record tells one direction of a flow for one aggregation interval, and not who began it. Records of both
//! directions that lie close together are one flow here; it was begun by whoever sent first, or, within one interval,
//! by whoever has the port that is not a service's.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, BufRead},
    net::IpAddr,
    sync::Arc,
};

use super::{
    super::observed::Fate,
    Summary,
    lines::{self, Lines},
    place::Placer,
    raw::{Raw, is_tcp, micros},
};

/// Flows that wait for their other direction or their next interval.
const MOST_WAITING: usize = 200_000;
/// Aggregation intervals are 10 minutes at most; what is quiet for longer than this is another flow.
const IDLE_US: i64 = 20 * 60 * 1_000_000;
/// Linux's ephemeral ports begin here; other systems' later.
const FIRST_EPHEMERAL: u16 = 32768;

const VERSION_2: [&str; 14] = [
    "version",
    "account-id",
    "interface-id",
    "srcaddr",
    "dstaddr",
    "srcport",
    "dstport",
    "protocol",
    "packets",
    "bytes",
    "start",
    "end",
    "action",
    "log-status",
];

/// A header, or a record of version 2, perhaps behind the time that CloudWatch puts before it.
pub fn looks_like(line: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(line) else { return false };
    let words: Vec<&str> = words(text).collect();
    is_header(&words)
        || (words.len() == VERSION_2.len() && words[0] == "2" && matches!(words[13], "OK" | "NODATA" | "SKIPDATA"))
}

fn is_header(words: &[&str]) -> bool {
    words.contains(&"srcaddr") && words.contains(&"dstaddr")
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut words = text.split_ascii_whitespace().peekable();
    if words.peek().is_some_and(|word| word.ends_with('Z') && word.contains('T')) {
        words.next();
    }
    words
}

pub fn read(lines: &mut Lines<impl BufRead>, summary: &mut Summary, placer: &mut Placer<'_>) -> Option<io::Error> {
    let mut columns = Columns::of(&VERSION_2);
    let mut waiting = Waiting::default();
    let end = lines::each(lines, summary, |line, summary| {
        let text = std::str::from_utf8(line).map_err(|_| "it is not UTF-8")?;
        let words: Vec<&str> = words(text).collect();
        if is_header(&words) {
            columns = Columns::of(&words);
            summary.read -= 1;
            return Ok(());
        }
        match columns.one_way(&words)? {
            Some(one) => {
                if let Some(oldest) = waiting.put(one) {
                    summary.in_parts += 1;
                    placer.place(oldest);
                }
            }
            None => summary.other += 1,
        }
        for over in waiting.idle() {
            placer.place(over);
        }
        Ok(())
    });
    for rest in waiting.rest() {
        placer.place(rest);
    }
    end
}

/// Where each field stands.
#[derive(Clone, Copy, Debug, Default)]
struct Columns {
    source: Option<usize>,
    destination: Option<usize>,
    source_port: Option<usize>,
    destination_port: Option<usize>,
    protocol: Option<usize>,
    packets: Option<usize>,
    bytes: Option<usize>,
    start: Option<usize>,
    end: Option<usize>,
    action: Option<usize>,
    status: Option<usize>,
    interface: Option<usize>,
}

impl Columns {
    fn of(names: &[&str]) -> Self {
        let at = |wanted: &str| names.iter().position(|name| name.replace('_', "-") == wanted);
        Self {
            source: at("srcaddr"),
            destination: at("dstaddr"),
            source_port: at("srcport"),
            destination_port: at("dstport"),
            protocol: at("protocol"),
            packets: at("packets"),
            bytes: at("bytes"),
            start: at("start"),
            end: at("end"),
            action: at("action"),
            status: at("log-status"),
            interface: at("interface-id"),
        }
    }

    /// `None`: a record without data, or of an ICMP message whose type is not told.
    fn one_way(&self, words: &[&str]) -> Result<Option<OneWay>, String> {
        let word = |at: Option<usize>| at.and_then(|at| words.get(at)).copied().filter(|word| *word != "-");
        if word(self.status).is_some_and(|status| status != "OK") {
            return Ok(None);
        }
        let need = |name: &str, at| word(at).ok_or_else(|| format!("it has no {name}"));
        let address =
            |name: &str, at| need(name, at)?.parse::<IpAddr>().map_err(|_| format!("{name} is not an address"));
        let number = |name: &str, at| match word(at) {
            None => Ok(0),
            Some(text) => text.parse::<u64>().map_err(|_| format!("{name} is not a number")),
        };
        let port = |name: &str, at| u16::try_from(number(name, at)?).map_err(|_| format!("{name} is not a port"));
        let protocol = number("protocol", self.protocol)?;
        let protocol = u8::try_from(protocol).map_err(|_| "protocol is not a protocol")?;
        let source = address("srcaddr", self.source)?.to_canonical();
        let destination = address("dstaddr", self.destination)?.to_canonical();
        let time = |name: &str, at| {
            need(name, at)?.parse::<f64>().ok().and_then(micros).ok_or_else(|| format!("{name} is not a time"))
        };
        let (first, last) = (time("start", self.start)?, time("end", self.end)?);
        let mut raw = Raw::new(source, destination, protocol);
        if raw.is_icmp() {
            return Ok(None);
        }
        (raw.source_port, raw.destination_port) =
            (port("srcport", self.source_port)?, port("dstport", self.destination_port)?);
        (raw.first, raw.last) = (first, last.max(first));
        raw.packets = [number("packets", self.packets)?.max(1), 0];
        raw.bytes = [number("bytes", self.bytes)?, 0];
        let action = word(self.action).unwrap_or("");
        raw.fate = if action == "REJECT" { Fate::Denied } else { Fate::Seen };
        raw.reason = action.into();
        raw.interface = word(self.interface).map(Arc::from);
        Ok(Some(OneWay(raw)))
    }
}

/// One direction of a flow.
struct OneWay(Raw);

type Ends = (u8, IpAddr, u16, IpAddr, u16);

impl OneWay {
    fn ends(&self) -> Ends {
        let raw = &self.0;
        let (one, other) = ((raw.source, raw.source_port), (raw.destination, raw.destination_port));
        let (low, high) = if one <= other { (one, other) } else { (other, one) };
        (raw.protocol, low.0, low.1, high.0, high.1)
    }
}

#[derive(Default)]
struct Waiting {
    flows: HashMap<Ends, Raw>,
    order: VecDeque<Ends>,
    newest: i64,
}

impl Waiting {
    /// Adds to the flow that it belongs to. A flow that had to make room comes back.
    fn put(&mut self, one: OneWay) -> Option<Raw> {
        let ends = one.ends();
        let raw = one.0;
        self.newest = self.newest.max(raw.last);
        let Some(flow) = self.flows.get_mut(&ends) else {
            self.flows.insert(ends, raw);
            self.order.push_back(ends);
            if self.flows.len() > MOST_WAITING {
                let oldest = self.order.pop_front()?;
                return self.flows.remove(&oldest).map(settled);
            }
            return None;
        };
        let way = usize::from(flow.source != raw.source || flow.source_port != raw.source_port);
        // The first interval of both directions may be the same: then the ports tell, in `settled`.
        if way == 1 && raw.first < flow.first && flow.packets[1] == 0 {
            turn(flow);
            flow.packets[0] = flow.packets[0].saturating_add(raw.packets[0]);
            flow.bytes[0] = flow.bytes[0].saturating_add(raw.bytes[0]);
        } else {
            flow.packets[way] = flow.packets[way].saturating_add(raw.packets[0]);
            flow.bytes[way] = flow.bytes[way].saturating_add(raw.bytes[0]);
        }
        flow.first = flow.first.min(raw.first);
        flow.last = flow.last.max(raw.last);
        if raw.fate == Fate::Denied {
            flow.fate = Fate::Denied;
            flow.reason = raw.reason;
        }
        None
    }

    /// Flows that are over, in the order in which they began: one that goes on holds up those behind it, so that whoever
    /// reads them sees their rhythm. A bounded look at each call.
    fn idle(&mut self) -> Vec<Raw> {
        let mut over = Vec::new();
        while let Some(ends) = self.order.front().filter(|_| over.len() < 64) {
            match self.flows.get(ends) {
                Some(flow) if flow.last + IDLE_US >= self.newest => break,
                Some(_) => over.extend(self.flows.remove(ends).map(settled)),
                None => {}
            }
            self.order.pop_front();
        }
        over
    }

    fn rest(self) -> Vec<Raw> {
        let mut rest: Vec<Raw> = self.flows.into_values().map(settled).collect();
        rest.sort_by_key(|flow| (flow.first, flow.source, flow.destination, flow.source_port, flow.destination_port));
        rest
    }
}

fn turn(flow: &mut Raw) {
    std::mem::swap(&mut flow.source, &mut flow.destination);
    std::mem::swap(&mut flow.source_port, &mut flow.destination_port);
    flow.packets.swap(0, 1);
    flow.bytes.swap(0, 1);
}

/// Who began it: an ephemeral port asks one that is not. One that answered alone (its question fell into another
/// interval) is turned too.
fn settled(mut flow: Raw) -> Raw {
    let ephemeral = |port: u16| port >= FIRST_EPHEMERAL;
    if flow.has_ports() && !ephemeral(flow.source_port) && ephemeral(flow.destination_port) {
        turn(&mut flow);
    }
    flow.refused = is_tcp(flow.protocol) && flow.is_bare_reset();
    flow
}
