//! What `explain` and the tests of a policy say of a flow.
//!
//! A flow may leave out the interface and our own address, and rules may ask for them. Then the answer is *allow* if it
//! is allowed on some interface and at some address of ours that a rule names (which is said); *deny* means everywhere.

use guard_common::{Direction, Reason, Verdict};

use super::{
    compile::{Clocks, Compiled},
    model::{Essentials, FlowQuery, Policy, Rule, ServiceRange},
    nearest::{Condition, Explanation, explain, failed},
    services,
};

/// The answer to one flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub explanation: Explanation,
    /// What the flow left out and the answer assumes: an interface and an address of ours.
    pub assumed: Option<FlowQuery>,
}

/// Allow rules that are tried with what they ask for.
const MAX_TRIED: usize = 256;

/// Decides as the kernel would at `now`. `compiled` must be of `policy`.
#[must_use]
pub fn answer(policy: &Policy, compiled: &Compiled, flow: &FlowQuery, now: Clocks) -> Answer {
    let mut base = explain(policy, compiled, flow, now);
    if let Some(reason) = settled_before(policy, flow) {
        base = Explanation {
            verdict: reason.verdict(),
            reason,
            rule: None,
            until: u64::MAX,
            depends_on: Vec::new(),
            nearest: None,
            overruled: None,
        };
    }
    if base.verdict == Verdict::Allow || base.depends_on.is_empty() {
        return Answer { explanation: base, assumed: None };
    }
    let candidates = policy
        .rules
        .iter()
        .filter(|rule| rule.action == Verdict::Allow)
        .filter(|rule| failed(rule, flow, now).iter().all(|condition| left_out(flow, *condition)))
        .take(MAX_TRIED);
    for rule in candidates {
        let Some(assumed) = with_what_it_asks(rule, flow) else { continue };
        let explanation = explain(policy, compiled, &assumed, now);
        if explanation.verdict == Verdict::Allow {
            let explanation = Explanation { depends_on: base.depends_on, ..explanation };
            return Answer { explanation, assumed: Some(assumed) };
        }
    }
    Answer { explanation: base, assumed: None }
}

fn left_out(flow: &FlowQuery, condition: Condition) -> bool {
    match condition {
        Condition::Interface => flow.interface.is_none(),
        Condition::Local => flow.local.is_none(),
        _ => false,
    }
}

/// The flow on an interface and at an address that the rule names, as far as the flow leaves them open.
fn with_what_it_asks(rule: &Rule, flow: &FlowQuery) -> Option<FlowQuery> {
    let mut asked = flow.clone();
    if asked.interface.is_none() {
        // A name that the pattern matches.
        let first = rule.interface.as_deref().and_then(|patterns| patterns.split(',').next());
        asked.interface = first.map(|pattern| pattern.replace(['*', '?'], "0"));
    }
    if asked.local.is_none()
        && let Some(local) = &rule.local
    {
        asked.local = Some(match flow.remote {
            std::net::IpAddr::V4(_) => std::net::IpAddr::V4(local.v4.first()?.0.into()),
            std::net::IpAddr::V6(_) => std::net::IpAddr::V6(local.v6.first()?.0.into()),
        });
    }
    Some(asked)
}

/// What a rule wants that the flow does not have, in words: `remote 203.0.113.9 is not in mirrors`.
#[must_use]
pub fn why_not(rule: &Rule, flow: &FlowQuery, condition: Condition) -> String {
    match condition {
        Condition::Direction => format!("it is {}", rule.direction.as_str()),
        Condition::Remote => format!("remote {} is not in {}", flow.remote, short_list(&rule.remote.text)),
        Condition::Service => {
            format!("service {} is not {}", services::describe(flow.service), short_list(&rule.services_text))
        }
        Condition::Local => match flow.local {
            Some(local) => format!("our address {local} is not one that it names"),
            None => "it asks for one of our addresses, and the flow names none".to_owned(),
        },
        Condition::Interface => {
            let wanted = rule.interface.as_deref().unwrap_or("");
            match &flow.interface {
                Some(name) => format!("interface {name} is not {wanted}"),
                None => format!("it asks for interface {wanted}, and the flow names none"),
            }
        }
        Condition::Expiry => {
            format!("it expired at {}", crate::record::clock::for_people(rule.expires.unwrap_or(0)))
        }
    }
}

fn short_list(words: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = words.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if words.len() > SHOWN { format!("{shown} and {} more", words.len() - SHOWN) } else { shown }
}

/// One line of YAML: for a flow that no rule lists the rule that would, else a test that holds the answer fast.
#[must_use]
pub fn line_to_paste(policy: &Policy, answer: &Answer, text: &str, flow: &FlowQuery) -> String {
    let explanation = &answer.explanation;
    match explanation.rule {
        None if explanation.reason == Reason::NotListed => {
            let key = if flow.direction == Direction::Inbound { "from" } else { "to" };
            let remote = match flow.remote {
                std::net::IpAddr::V4(remote) => remote.to_string(),
                std::net::IpAddr::V6(remote) => format!("\"{remote}\""),
            };
            let service = services::describe(flow.service);
            let context = match &flow.interface {
                Some(name) => format!(", interface: {}", super::effective::quoted(name)),
                None => String::new(),
            };
            format!("- {{ {key}: {remote}, services: {service}{context} }}")
        }
        rule => {
            let rule = rule.and_then(|number| policy.rules.get(number));
            let rule = rule.and_then(|rule| rule.name.as_ref());
            let rule = rule.map(|name| format!(", rule: {}", super::effective::quoted(name))).unwrap_or_default();
            format!("- {{ flow: {}, expect: {}{rule} }}", super::effective::quoted(text), explanation.verdict.as_str())
        }
    }
}

/// What holds whatever the rules say.
pub(crate) fn settled_before(policy: &Policy, flow: &FlowQuery) -> Option<Reason> {
    let kind = ((flow.service >> 16) as u8, (flow.service >> 8 & 0xff) as u8);
    match kind {
        _ if flow.remote.is_loopback() && policy.essentials.loopback => Some(Reason::Loopback),
        (services::ICMP, 5) | (services::ICMPV6, 137) => Some(Reason::IcmpRedirect),
        _ => None,
    }
}

/// Essential traffic that such a packet may be: what the kernel lets through before it asks the rules.
#[must_use]
pub fn beside_the_rules(on: &Essentials, flow: &FlowQuery) -> Option<&'static str> {
    let (protocol, kind) = ((flow.service >> 16) as u8, (flow.service >> 8 & 0xff) as u8);
    let port = flow.service & 0xffff;
    let is = |range: ServiceRange| range.first == flow.service;
    match (protocol, kind) {
        (services::ICMP, 3 | 11 | 12) | (services::ICMPV6, 1..=4) if on.icmp_errors => {
            Some("ICMP errors about a flow that is allowed pass as essential (icmp_errors)")
        }
        (services::ICMPV6, 133..=136) if on.neighbour_discovery => {
            Some("neighbour discovery on the link passes as essential (neighbour_discovery)")
        }
        (services::ICMPV6, 130..=132 | 143) if on.mld => Some("multicast listener discovery passes as essential (mld)"),
        (services::UDP, _) if on.dhcp && (port == 67 || port == 68) => {
            Some("DHCP for this host's own address passes as essential (dhcp)")
        }
        _ if on.dhcpv6 && (is(services::port(services::UDP, 546)) || is(services::port(services::UDP, 547))) => {
            Some("DHCPv6 on the link passes as essential (dhcpv6)")
        }
        _ => None,
    }
}
