//! What a person writes for an exception: a flow as `explain` takes it, or a remote; a host may be a name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use guard_common::Direction;
use ipnet::IpNet;

use super::{Action, Exception, WIDEST, Way};
use crate::policy::{addresses, flow_query::BadFlow, model::FlowQuery, services};

/// What a person wrote, before the name of a host is resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub host: Host,
    words: Vec<String>,
    /// Where in `words` the remote stands, and what follows its address there (`:443`); `None`: only a remote.
    at: Option<(usize, String)>,
}

/// The remote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Net(IpNet),
    Name(String),
}

fn bad<T>(message: impl Into<String>, help: impl Into<String>) -> Result<T, BadFlow> {
    Err(BadFlow { message: message.into(), help: help.into() })
}

impl Wanted {
    /// A flow as `explain` takes it, in which the remote may also be a network or a host's name.
    pub fn flow(text: &str) -> Result<Self, BadFlow> {
        if text.len() > 512 {
            return bad("a flow of more than 512 bytes", "write one such as 'in tcp 198.51.100.9 -> 22'");
        }
        let spaced = text.replace("->", " -> ").replace('→', " -> ");
        let mut words: Vec<String> = spaced.split_whitespace().map(str::to_owned).collect();
        let outbound = matches!(words.first().map(String::as_str), Some("out" | "outbound"));
        let arrow = words.iter().position(|word| word == "->");
        let at = if outbound { arrow.map_or(2, |arrow| arrow + 1) } else { 2 };
        let Some(remote) = words.get(at).cloned() else {
            let wrong = text.parse::<FlowQuery>().err();
            return Err(wrong.unwrap_or_else(|| BadFlow {
                message: "the flow names no remote".to_owned(),
                help: "write one such as 'in tcp 198.51.100.9 -> 22'".to_owned(),
            }));
        };
        let (host, rest) = split_port(&remote);
        let host = host_of(host)?;
        let rest = rest.to_owned();
        words[at] = String::new();
        let wanted = Self { host, words, at: Some((at, rest)) };
        // Everything but the remote is right or wrong whatever the remote is.
        let some = match &wanted.host {
            Host::Net(net) => net.addr(),
            Host::Name(_) if text.contains("icmpv6") => Ipv6Addr::LOCALHOST.into(),
            Host::Name(_) => Ipv4Addr::LOCALHOST.into(),
        };
        wanted.query(some).map(|_| wanted)
    }

    /// Only a remote: everything to and from it.
    pub fn remote(text: &str) -> Result<Self, BadFlow> {
        let host = host_of(text.trim().trim_start_matches('[').trim_end_matches(']'))?;
        Ok(Self { host, words: Vec::new(), at: None })
    }

    fn query(&self, address: IpAddr) -> Result<Option<FlowQuery>, BadFlow> {
        let Some((at, rest)) = &self.at else { return Ok(None) };
        let mut words = self.words.clone();
        words[*at] = if address.is_ipv6() && !rest.is_empty() {
            format!("[{address}]{rest}")
        } else {
            format!("{address}{rest}")
        };
        let query: FlowQuery = words.join(" ").parse()?;
        if query.remote_port.is_some() {
            return bad(
                "a rule cannot ask for the port that the remote sends from",
                "leave it out: 'in tcp 198.51.100.9 -> 22'",
            );
        }
        Ok(Some(query))
    }

    /// With the remote's addresses: the network that was written, or what a name was resolved to.
    pub fn exception(&self, action: Action, nets: &[IpNet]) -> Result<Exception, BadFlow> {
        let mut exception = Exception {
            number: 0,
            action,
            direction: None,
            remotes: nets.iter().map(|net| shortest(*net)).collect(),
            asked_as: match &self.host {
                Host::Name(name) => Some(name.clone()),
                Host::Net(_) => None,
            },
            services: Vec::new(),
            local: None,
            interface: None,
            expires: None,
            made: 0,
            by: String::new(),
            note: None,
        };
        for net in nets {
            match self.query(net.addr())? {
                Some(query) => {
                    let service = (query.service, query.service);
                    if !exception.services.contains(&service) {
                        exception.services.push(service);
                    }
                    exception.direction = Some(match query.direction {
                        Direction::Inbound => Way::Inbound,
                        Direction::Outbound => Way::Outbound,
                    });
                    exception.local = query.local;
                    exception.interface = query.interface;
                }
                None => exception.services = vec![(services::ANY.first, services::ANY.last)],
            }
        }
        Ok(exception)
    }
}

fn shortest(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

/// The address or name, and `:443` behind it.
fn split_port(word: &str) -> (&str, &str) {
    if let Some(inner) = word.strip_prefix('[')
        && let Some((host, rest)) = inner.split_once(']')
    {
        return (host, rest);
    }
    match word.rfind(':') {
        Some(at) if !word[..at].contains(':') => word.split_at(at),
        _ => (word, ""),
    }
}

fn host_of(text: &str) -> Result<Host, BadFlow> {
    if matches!(text, "any" | "*" | "") || text.ends_with("/0") {
        return bad(
            format!("`{text}` is everybody, which is no exception"),
            "name an address or a network; `guard reload` changes what holds for all",
        );
    }
    match addresses::parse(text) {
        Ok(net) => {
            let widest = WIDEST[usize::from(matches!(net, IpNet::V6(_)))];
            if net.prefix_len() < widest {
                return bad(
                    format!("{net} is too much for an exception"),
                    format!("name a network of at least /{widest}, or change the policy"),
                );
            }
            Ok(Host::Net(net))
        }
        Err(_) if is_name(text) => Ok(Host::Name(text.trim_end_matches('.').to_ascii_lowercase())),
        Err(error) => bad(error.message, error.help),
    }
}

/// RFC 1123, with underscores; a last label of digits alone is an address that was mistyped.
fn is_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let sound = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= 253 && text.split('.').all(sound) && !last.bytes().all(|byte| byte.is_ascii_digit())
}
