//! Whether what the policy lists by name answers: an agent or a file server that is gone is better known now than at the
//! next report. Nothing depends on it.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use super::base::Choices;
use crate::policy::services;

const WAIT: Duration = Duration::from_secs(1);
/// Each takes a thread for a second.
const MOST: usize = 32;

/// Single addresses with a TCP port that the person chose, and that no connection could be made to; with the reason.
#[must_use]
pub fn silent(choices: &Choices) -> Vec<String> {
    let tried: Vec<_> = destinations(choices)
        .into_iter()
        .take(MOST)
        .map(|to| (to, thread::spawn(move || TcpStream::connect_timeout(&to, WAIT))))
        .collect();
    tried
        .into_iter()
        .filter_map(|(to, tried)| match tried.join() {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(format!("{to}: {error}")),
            Err(_) => Some(format!("{to}: not tried")),
        })
        .collect()
}

fn destinations(choices: &Choices) -> Vec<SocketAddr> {
    let mut all: Vec<(IpAddr, u16)> = Vec::new();
    for allow in &choices.allow_to {
        let single = allow.net.prefix_len() == allow.net.max_prefix_len();
        if let Some(port) = allow.service.as_deref().and_then(port).filter(|_| single) {
            all.push((allow.net.addr(), port));
        }
    }
    for (service, remotes) in choices.keep.iter().flat_map(|offer| &offer.outbound) {
        all.extend(port(service).into_iter().flat_map(|port| remotes.iter().map(move |remote| (*remote, port))));
    }
    all.extend(choices.dns.iter().map(|resolver| (*resolver, 53)));
    let mut all: Vec<SocketAddr> = all.into_iter().map(SocketAddr::from).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Of `tcp/443`, `https`: the one port.
fn port(service: &str) -> Option<u16> {
    let Ok(services::Word::Ranges(ranges)) = services::parse(service) else { return None };
    ranges.iter().find_map(|range| {
        (range.first == range.last && range.first >> 16 == u32::from(services::TCP)).then_some(range.first as u16)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_one_address_and_port_is_asked() {
        let choices = Choices {
            allow_to: [
                "192.0.2.20:tcp/2049",
                "192.0.2.0/24:tcp/443",
                "192.0.2.21",
                "192.0.2.22:udp/514",
                "[2001:db8::1]:https",
            ]
            .map(|text| text.parse().unwrap())
            .to_vec(),
            dns: vec!["192.0.2.53".parse().unwrap()],
            ..Choices::default()
        };
        let asked: Vec<String> = destinations(&choices).iter().map(ToString::to_string).collect();
        assert_eq!(asked, ["192.0.2.20:2049", "192.0.2.53:53", "[2001:db8::1]:443"]);
    }
}
