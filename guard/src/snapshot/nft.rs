//! The nftables ruleset, read from the kernel without the `nft` program: attributes by name where they are known, and
//! every message's bytes as they came (linux/netfilter/nf_tables.h).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use super::{
    Context,
    decode::{As, Table, decode, hex},
    lines::Lines,
    network::each_namespace,
};
use crate::host::netlink::{attributes, dump, put_attribute};

const NETFILTER: isize = 12;
const SUBSYSTEM: u16 = 10 << 8;

pub fn section(context: &Context, lines: &Lines) -> Result<(), String> {
    each_namespace(context, lines, |namespace| {
        let mut sets = Vec::new();
        for (message, what, table) in KINDS {
            let result = dump(NETFILTER, SUBSYSTEM | message, &[0; 4], |_, payload| {
                let Some((header, rest)) = payload.split_at_checked(4) else { return };
                let mut object = decode(rest, table);
                if *what == "set" {
                    sets.push((header[0], raw(rest, 1), raw(rest, 2)));
                }
                finish(&mut object, what, header[0], rest, namespace);
                lines.put(&object.into());
            });
            match result {
                Ok(true) => {}
                Ok(false) => lines.note("the ruleset changed while it was read: an entry may be missing or twice"),
                // A kernel without nftables, or one that has nothing of the kind.
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(format!("{what}s: {error}")),
            }
        }
        for (family, table, set) in sets {
            let mut body = vec![family, 0, 0, 0];
            put_attribute(&mut body, 1, &table);
            put_attribute(&mut body, 2, &set);
            let result = dump(NETFILTER, SUBSYSTEM | 13, &body, |_, payload| {
                let rest = payload.get(4..).unwrap_or_default();
                let mut object = decode(rest, ELEMENTS);
                finish(&mut object, "elements", family, rest, namespace);
                lines.put(&object.into());
            });
            if let Err(error) = result {
                lines.note(format!("the elements of a set: {error}"));
            }
        }
        for (file, family) in [("ip_tables_names", "ip"), ("ip6_tables_names", "ip6")] {
            // There only where the older iptables is in use.
            let names = std::fs::read_to_string(context.proc.join("thread-self/net").join(file)).unwrap_or_default();
            for name in names.lines() {
                lines.put(
                    &json!({ "what": "legacy_iptables_table", "family": family, "name": name, "namespace": namespace }),
                );
            }
        }
        Ok(())
    })
}

fn finish(object: &mut Map<String, Value>, what: &str, family: u8, bytes: &[u8], namespace: u64) {
    let name = match family {
        1 => "inet".into(),
        2 => "ip".into(),
        3 => "arp".into(),
        5 => "netdev".into(),
        7 => "bridge".into(),
        10 => "ip6".into(),
        other => Value::from(other),
    };
    object.insert("family".into(), name);
    object.insert("what".into(), what.into());
    object.insert("raw".into(), STANDARD.encode(bytes).into());
    object.insert("namespace".into(), namespace.into());
}

fn raw(bytes: &[u8], number: u16) -> Vec<u8> {
    attributes(bytes).find(|(kind, _)| *kind == number).map(|(_, value)| value.to_vec()).unwrap_or_default()
}

/// One `NFTA_LIST_ELEM`: `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
pub fn expression(bytes: &[u8]) -> Value {
    let name = raw(bytes, 1);
    let name = String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(&name)).into_owned();
    let data = raw(bytes, 2);
    let table = EXPRESSIONS.iter().find(|(known, _)| *known == name).map(|(_, table)| *table);
    let mut object = match table {
        Some(table) => decode(&data, table),
        None => Map::from_iter([("data".to_owned(), hex(&data).into())]),
    };
    object.insert("expression".into(), name.into());
    object.into()
}

const KINDS: &[(u16, &str, Table)] = &[
    (
        1,
        "table",
        &[
            (1, "table", As::Text),
            (2, "flags", As::Big),
            (3, "chains", As::Big),
            (4, "handle", As::Big),
            (6, "user_data", As::Hex),
        ],
    ),
    (
        4,
        "chain",
        &[
            (1, "table", As::Text),
            (2, "handle", As::Big),
            (3, "name", As::Text),
            (
                4,
                "hook",
                As::Nested(&[
                    (1, "number", As::Big),
                    (2, "priority", As::Big),
                    (3, "device", As::Text),
                    (4, "devices", As::List(&As::Text)),
                ]),
            ),
            (5, "policy", As::Big),
            (6, "rules", As::Big),
            (7, "type", As::Text),
            (8, "counters", As::Nested(COUNTER)),
            (10, "flags", As::Big),
            (12, "user_data", As::Hex),
        ],
    ),
    (
        7,
        "rule",
        &[
            (1, "table", As::Text),
            (2, "chain", As::Text),
            (3, "handle", As::Big),
            (4, "expressions", As::List(&As::Expression)),
            (6, "position", As::Big),
            (7, "user_data", As::Hex),
        ],
    ),
    (
        10,
        "set",
        &[
            (1, "table", As::Text),
            (2, "name", As::Text),
            (3, "flags", As::Big),
            (4, "key_type", As::Big),
            (5, "key_length", As::Big),
            (6, "data_type", As::Big),
            (7, "data_length", As::Big),
            (11, "timeout", As::Big),
            (13, "user_data", As::Hex),
            (16, "handle", As::Big),
        ],
    ),
    (
        19,
        "object",
        &[
            (1, "table", As::Text),
            (2, "name", As::Text),
            (3, "type", As::Big),
            (4, "data", As::Hex),
            (6, "handle", As::Big),
        ],
    ),
    (
        23,
        "flowtable",
        &[
            (1, "table", As::Text),
            (2, "name", As::Text),
            (
                3,
                "hook",
                As::Nested(&[(1, "number", As::Big), (2, "priority", As::Big), (3, "devices", As::List(&As::Text))]),
            ),
            (5, "handle", As::Big),
            (7, "flags", As::Big),
        ],
    ),
];

const COUNTER: Table = &[(1, "bytes", As::Big), (2, "packets", As::Big)];
const VERDICT: Table = &[(1, "code", As::Big), (2, "chain", As::Text)];
const DATA: Table = &[(1, "value", As::Hex), (2, "verdict", As::Nested(VERDICT))];
const ELEMENT: Table = &[
    (1, "key", As::Nested(DATA)),
    (2, "data", As::Nested(DATA)),
    (3, "flags", As::Big),
    (4, "timeout", As::Big),
    (5, "expires_in", As::Big),
    (6, "user_data", As::Hex),
    (7, "expression", As::Expression),
    (9, "object", As::Text),
    (10, "key_end", As::Nested(DATA)),
];
const ELEMENTS: Table =
    &[(1, "table", As::Text), (2, "set", As::Text), (3, "elements", As::List(&As::Nested(ELEMENT)))];

const EXPRESSIONS: &[(&str, Table)] = &[
    ("immediate", &[(1, "register", As::Big), (2, "data", As::Nested(DATA))]),
    ("cmp", &[(1, "register", As::Big), (2, "operation", As::Big), (3, "data", As::Nested(DATA))]),
    (
        "range",
        &[
            (1, "register", As::Big),
            (2, "operation", As::Big),
            (3, "from", As::Nested(DATA)),
            (4, "to", As::Nested(DATA)),
        ],
    ),
    (
        "bitwise",
        &[
            (1, "source_register", As::Big),
            (2, "register", As::Big),
            (3, "length", As::Big),
            (4, "mask", As::Nested(DATA)),
            (5, "xor", As::Nested(DATA)),
            (6, "operation", As::Big),
        ],
    ),
    (
        "payload",
        &[
            (1, "register", As::Big),
            (2, "base", As::Big),
            (3, "offset", As::Big),
            (4, "length", As::Big),
            (5, "source_register", As::Big),
        ],
    ),
    ("meta", &[(1, "register", As::Big), (2, "key", As::Big), (3, "source_register", As::Big)]),
    (
        "ct",
        &[(1, "register", As::Big), (2, "key", As::Big), (3, "direction", As::Big), (4, "source_register", As::Big)],
    ),
    ("lookup", &[(1, "set", As::Text), (2, "register", As::Big), (3, "data_register", As::Big), (5, "flags", As::Big)]),
    ("counter", COUNTER),
    (
        "limit",
        &[
            (1, "rate", As::Big),
            (2, "unit", As::Big),
            (3, "burst", As::Big),
            (4, "type", As::Big),
            (5, "flags", As::Big),
        ],
    ),
    ("log", &[(1, "group", As::Big), (2, "prefix", As::Text), (3, "snap_length", As::Big), (5, "level", As::Big)]),
    ("reject", &[(1, "type", As::Big), (2, "code", As::Big)]),
    (
        "nat",
        &[
            (1, "type", As::Big),
            (2, "family", As::Big),
            (3, "address_from_register", As::Big),
            (4, "address_to_register", As::Big),
            (5, "port_from_register", As::Big),
            (6, "port_to_register", As::Big),
            (7, "flags", As::Big),
        ],
    ),
    ("masq", &[(1, "flags", As::Big), (2, "port_from_register", As::Big), (3, "port_to_register", As::Big)]),
    ("redir", &[(1, "port_from_register", As::Big), (2, "port_to_register", As::Big), (3, "flags", As::Big)]),
    ("fib", &[(1, "register", As::Big), (2, "result", As::Big), (3, "flags", As::Big)]),
    ("dup", &[(1, "address_register", As::Big), (2, "device_register", As::Big)]),
    ("fwd", &[(1, "device_register", As::Big), (2, "address_register", As::Big), (3, "family", As::Big)]),
    ("objref", &[(1, "type", As::Big), (2, "name", As::Text)]),
    ("match", &[(1, "name", As::Text), (2, "revision", As::Big), (3, "data", As::Hex)]),
    ("target", &[(1, "name", As::Text), (2, "revision", As::Big), (3, "data", As::Hex)]),
];
