//! What the recorder tells beside `flows.jsonl`: each flow as the review reads it.

use std::net::IpAddr;

use super::eve::Moment;
use crate::review::{group::Remote, observed::Observed};

/// Is told of every flow, at its beginning, its cut and its end; of what has no flow (a sealed option, a malformed
/// packet) never.
pub trait Observer {
    /// `flow` is all that is known by now: a later moment's counts and names replace an earlier one's, and its `who` does
    /// where it is known. [`Observed::head`] comes with the moment whose packet it is, and is empty at the others.
    fn observed(&mut self, flow: &Observed, moment: Moment);

    /// Called now and then: what waits is to be written.
    fn flush(&mut self) {}
}

/// The remote's group: that of the deciding rule, else the zone of the name that it was asked as last, else its network.
#[must_use]
pub fn remote_group(rule_remote: Option<&std::sync::Arc<str>>, asked_as: Option<&str>, address: IpAddr) -> Remote {
    if let Some(text) = rule_remote {
        return Remote::Group(std::sync::Arc::clone(text));
    }
    match asked_as.and_then(zone) {
        Some(zone) => Remote::Zone(zone.into()),
        None => Remote::network_of(address),
    }
}

/// The registrable domain, in lower case: `example.co.uk` of `cdn.example.co.uk`. `None` for a suffix that nobody
/// registers below, and for what is no domain name.
#[must_use]
pub fn zone(name: &str) -> Option<String> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let domain = psl::domain(name.as_bytes())?;
    std::str::from_utf8(domain.as_bytes()).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_is_what_somebody_registered() {
        assert_eq!(zone("cdn.example.org."), Some("example.org".to_owned()));
        assert_eq!(zone("A.B.Example.CO.UK"), Some("example.co.uk".to_owned()));
        assert_eq!(zone("alice.github.io"), Some("alice.github.io".to_owned()));
        assert_eq!(zone("co.uk"), None);
        assert_eq!(zone(""), None);
    }

    #[test]
    fn a_rules_remote_comes_before_a_name_and_a_name_before_the_network() {
        let address = "203.0.113.9".parse().unwrap();
        let of = |rule: Option<&str>, name| remote_group(rule.map(std::sync::Arc::from).as_ref(), name, address);
        assert_eq!(of(Some("mirrors"), Some("a.example.org")), Remote::Group("mirrors".into()));
        assert_eq!(of(None, Some("a.example.org")), Remote::Zone("example.org".into()));
        assert_eq!(of(None, Some("org")), Remote::network_of(address));
        assert_eq!(of(None, None).to_string(), "203.0.113.0/24");
    }
}
