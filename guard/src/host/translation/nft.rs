//! Of nftables, and of iptables that writes to it: read by netlink (linux/netfilter/nf_tables.h).

use std::collections::{BTreeSet, HashMap};

use super::{LOCAL, is_harmless_target, only_local};
use crate::host::netlink::{attributes, dump, put_attribute};

const NETFILTER: isize = 12;
const GET_CHAIN: u16 = 10 << 8 | 4;
const GET_RULE: u16 = 10 << 8 | 7;

/// Chains of a family that are followed; in more, somebody has hidden something.
const MOST_CHAINS: usize = 10_000;

type Chain = (u8, Vec<u8>, Vec<u8>);

pub fn translates() -> Option<String> {
    base_chains().into_iter().find_map(|(family, table, base)| {
        let mut seen = BTreeSet::from([base.clone()]);
        let mut todo = vec![base];
        while let Some(chain) = todo.pop() {
            match rules(family, &table, &chain) {
                Some(Rules::Jump(chains)) if seen.len() < MOST_CHAINS => {
                    todo.extend(chains.into_iter().filter(|chain| seen.insert(chain.clone())));
                }
                _ => return Some(in_words(family, &table, &chain)),
            }
        }
        None
    })
}

/// Those that nat's output begins with, and that hold a rule.
fn base_chains() -> Vec<Chain> {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const USE: u16 = 6;
    const TYPE: u16 = 7;
    const HOOK_NUMBER: u16 = 1;
    const OUTPUT: [u8; 4] = 3_u32.to_be_bytes();
    let mut found = Vec::new();
    // A kernel without nftables refuses; then there are no such chains.
    let _ = dump(NETFILTER, GET_CHAIN, &[0; 4], |_, payload| {
        let rest = payload.get(4..).unwrap_or_default();
        let value = |kind| attribute(rest, kind);
        let at_output = value(HOOK)
            .is_some_and(|hook| attributes(hook).any(|(kind, value)| kind == HOOK_NUMBER && value == OUTPUT));
        let has_rules = value(USE).is_some_and(|count| count != [0; 4]);
        if at_output && has_rules && value(TYPE).is_some_and(|kind| kind == b"nat\0") {
            let own = |kind| value(kind).unwrap_or_default().to_vec();
            found.push((payload[0], own(TABLE), own(NAME)));
        }
    });
    found
}

/// What the rules of a chain come to.
#[derive(Debug, PartialEq, Eq)]
enum Rules {
    Translate,
    /// Not themselves; what these chains do is not known yet.
    Jump(Vec<Vec<u8>>),
}

/// `None`: they cannot be read.
fn rules(family: u8, table: &[u8], chain: &[u8]) -> Option<Rules> {
    const TABLE: u16 = 1;
    const CHAIN: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    let mut body = vec![family, 0, 0, 0];
    put_attribute(&mut body, TABLE, table);
    put_attribute(&mut body, CHAIN, chain);
    let (mut translate, mut jumps) = (false, Vec::new());
    dump(NETFILTER, GET_RULE, &body, |_, payload| {
        let rest = payload.get(4..).unwrap_or_default();
        // Older kernels give the rules of all chains.
        if translate || attribute(rest, TABLE) != Some(table) || attribute(rest, CHAIN) != Some(chain) {
            return;
        }
        match Rule::of(attribute(rest, EXPRESSIONS).unwrap_or_default()) {
            Rule::Harmless => {}
            Rule::Translates => translate = true,
            Rule::Jumps(chain) => jumps.push(chain),
        }
    })
    .ok()?;
    Some(if translate { Rules::Translate } else { Rules::Jump(jumps) })
}

#[derive(Debug, PartialEq, Eq)]
enum Rule {
    /// It changes no destination, or none but this host's own addresses.
    Harmless,
    Translates,
    Jumps(Vec<u8>),
}

impl Rule {
    /// Expressions are done one after the other, and none after a comparison that fails: what stands behind one with this
    /// host's own addresses sees no other destination.
    fn of(expressions: &[u8]) -> Self {
        // Registers that hold whether the destination is ours, as an address type.
        let mut types: HashMap<Vec<u8>, bool> = HashMap::new();
        for (_, expression) in attributes(expressions) {
            let name = text(attribute(expression, 1).unwrap_or_default());
            let data = attribute(expression, 2).unwrap_or_default();
            let value = |kind| attribute(data, kind);
            let number = |kind| value(kind).and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?)));
            match name {
                "fib" => {
                    let register = value(1).unwrap_or_default().to_vec();
                    types.insert(register, number(2) == Some(FIB_ADDRTYPE) && fib_of_destination(number(3)));
                }
                "cmp" => {
                    let equal = number(2) == Some(0);
                    let compared = value(3).and_then(|data| attribute(data, 1));
                    let known = value(1).and_then(|register| types.get(register)) == Some(&true);
                    if equal && known && compared == Some(&LOCAL.to_ne_bytes()[..]) {
                        return Self::Harmless;
                    }
                }
                "match" => {
                    let is_type = value(1).map(text) == Some("addrtype");
                    if is_type && only_local(number(2).unwrap_or(u32::MAX), value(3).unwrap_or_default()) {
                        return Self::Harmless;
                    }
                }
                "target" if value(1).map(text).is_some_and(is_harmless_target) => {}
                // Another verdict than a jump ends the rule, or all.
                "immediate" if number(1) == Some(0) => {
                    let verdict = value(2).and_then(|data| attribute(data, 2)).unwrap_or_default();
                    let code = attribute(verdict, 1).and_then(|code| Some(i32::from_be_bytes(code.try_into().ok()?)));
                    return match (code, attribute(verdict, 2)) {
                        (Some(JUMP | GOTO), Some(chain)) => Self::Jumps(chain.to_vec()),
                        (Some(JUMP | GOTO) | None, _) => Self::Translates,
                        _ => Self::Harmless,
                    };
                }
                // SNAT.
                "nat" if number(1) == Some(0) => {}
                // One that gives a verdict may jump anywhere.
                "lookup" if number(3) == Some(0) && value(3).is_some() => return Self::Translates,
                // One that writes into the packet.
                "payload" if value(5).is_some() => return Self::Translates,
                "payload" | "meta" | "ct" | "bitwise" | "byteorder" | "range" | "lookup" | "immediate" => {
                    // Whatever it writes to a register, it is no address type any more.
                    let target = if matches!(name, "bitwise" | "byteorder") { 2 } else { 1 };
                    if let Some(register) = value(target) {
                        types.remove(register);
                    }
                }
                "counter" | "limit" | "log" | "quota" | "connlimit" | "last" | "masq" | "rt" | "socket" | "numgen"
                | "hash" => types.clear(),
                _ => return Self::Translates,
            }
        }
        Self::Harmless
    }
}

const JUMP: i32 = -3;
const GOTO: i32 = -4;

const FIB_ADDRTYPE: u32 = 3;

/// Of the destination, not of the source, and not only whether there is a route.
fn fib_of_destination(flags: Option<u32>) -> bool {
    const SOURCE: u32 = 1;
    const DESTINATION: u32 = 1 << 1;
    const PRESENT: u32 = 1 << 5;
    flags.is_some_and(|flags| flags & (SOURCE | DESTINATION | PRESENT) == DESTINATION)
}

fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).unwrap_or_default()
}

fn in_words(family: u8, table: &[u8], chain: &[u8]) -> String {
    let family = match family {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => "?",
    };
    format!("nftables, table {family} {}, chain {}", text(table), text(chain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(parts: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        parts.iter().for_each(|(kind, value)| put_attribute(&mut body, *kind, value));
        body
    }

    fn expression(name: &str, parts: &[(u16, &[u8])]) -> Vec<u8> {
        put(&[(1, format!("{name}\0").as_bytes()), (2, &put(parts))])
    }

    fn rule(expressions: &[Vec<u8>]) -> Rule {
        let parts: Vec<(u16, &[u8])> = expressions.iter().map(|expression| (1, expression.as_slice())).collect();
        Rule::of(&put(&parts))
    }

    fn big(number: u32) -> [u8; 4] {
        number.to_be_bytes()
    }

    fn fib(flags: u32) -> Vec<u8> {
        expression("fib", &[(1, &big(1)), (2, &big(3)), (3, &big(flags))])
    }

    fn compare(operation: u32, kind: u32) -> Vec<u8> {
        let data = put(&[(1, &kind.to_ne_bytes())]);
        expression("cmp", &[(1, &big(1)), (2, &big(operation)), (3, &data)])
    }

    fn jump(code: i32, chain: Option<&str>) -> Vec<u8> {
        let code = code.to_be_bytes();
        let mut verdict = vec![(1, &code[..])];
        verdict.extend(chain.map(|chain| (2, chain.as_bytes())));
        expression("immediate", &[(1, &big(0)), (2, &put(&[(2, &put(&verdict))]))])
    }

    fn dnat() -> Vec<u8> {
        expression("nat", &[(1, &big(1)), (2, &big(2)), (3, &big(1))])
    }

    #[test]
    fn what_only_touches_own_addresses_is_harmless() {
        let docker = jump(JUMP, Some("DOCKER\0"));
        assert_eq!(rule(&[fib(2), compare(0, LOCAL), docker.clone()]), Rule::Harmless);
        assert_eq!(rule(&[fib(2), compare(0, LOCAL), dnat()]), Rule::Harmless);
        let data = [0u16, 4].map(u16::to_ne_bytes).concat();
        let data = [&data[..], &[0; 4]].concat();
        let addrtype = expression("match", &[(1, b"addrtype\0"), (2, &big(1)), (3, &data)]);
        assert_eq!(rule(&[addrtype, expression("counter", &[]), docker.clone()]), Rule::Harmless);
        for other in [fib(1), fib(3), fib(2 | 1 << 5)] {
            assert_eq!(rule(&[other, compare(0, LOCAL), docker.clone()]), Rule::Jumps(b"DOCKER\0".to_vec()));
        }
        assert_eq!(rule(&[fib(2), compare(1, LOCAL), dnat()]), Rule::Translates, "not local");
        assert_eq!(rule(&[fib(2), compare(0, 1), dnat()]), Rule::Translates, "unicast");
        let port = expression("payload", &[(1, &big(1)), (2, &big(2)), (3, &big(2)), (4, &big(2))]);
        assert_eq!(rule(&[fib(2), port, compare(0, LOCAL), dnat()]), Rule::Translates, "of another register");
    }

    #[test]
    fn what_is_not_understood_translates() {
        assert_eq!(rule(&[]), Rule::Harmless);
        assert_eq!(rule(&[expression("counter", &[]), jump(-5, None)]), Rule::Harmless, "return");
        assert_eq!(rule(&[jump(JUMP, None)]), Rule::Translates);
        assert_eq!(rule(&[expression("redir", &[])]), Rule::Translates);
        assert_eq!(rule(&[expression("tomorrow", &[])]), Rule::Translates);
        assert_eq!(rule(&[expression("target", &[(1, b"DNAT\0"), (2, &big(2))])]), Rule::Translates);
        assert_eq!(rule(&[expression("target", &[(1, b"MARK\0"), (2, &big(2))])]), Rule::Harmless);
        assert_eq!(rule(&[expression("lookup", &[(1, b"s\0"), (2, &big(1)), (3, &big(0))])]), Rule::Translates);
        assert_eq!(rule(&[expression("lookup", &[(1, b"s\0"), (2, &big(1))])]), Rule::Harmless);
        assert_eq!(rule(&[expression("payload", &[(5, &big(1))])]), Rule::Translates, "a header is written");
        assert_eq!(rule(&[expression("nat", &[(1, &big(0))])]), Rule::Harmless, "the source");
    }
}
