//! Netlink attributes by tables: number, name, how to read the value.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Map, Value};

use crate::host::netlink::attributes;

#[derive(Clone, Copy)]
pub enum As {
    Text,
    /// In the machine's order; of 1, 2, 4 or 8 bytes, by the value's length.
    Number,
    /// In network order, the same.
    Big,
    /// 4 bytes: IPv4, 16: IPv6, else as [`As::Hex`].
    Address,
    Hex,
    Nested(Table),
    /// Nested values of one kind, whatever their number.
    List(&'static As),
    /// `NFTA_LIST_ELEM` of expressions: name, then data that depends on it.
    Expression,
}

pub type Table = &'static [(u16, &'static str, As)];

/// Every attribute; those that the table lacks by number and in hex. One that comes more than once is a list.
#[must_use]
pub fn decode(bytes: &[u8], table: Table) -> Map<String, Value> {
    let mut object = Map::new();
    for (kind, value) in attributes(bytes) {
        let known = table.iter().find(|(number, _, _)| *number == kind);
        let (name, value) = match known {
            Some((_, name, how)) => ((*name).to_owned(), one(value, how)),
            None => (format!("attribute_{kind}"), hex(value).into()),
        };
        match object.get_mut(&name) {
            None => drop(object.insert(name, value)),
            Some(Value::Array(list)) if list.len() < 10_000 => list.push(value),
            Some(Value::Array(_)) => {}
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    object
}

fn one(value: &[u8], how: &As) -> Value {
    match how {
        As::Text => String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into(),
        As::Number => number(value, false),
        As::Big => number(value, true),
        As::Address => match (<[u8; 4]>::try_from(value), <[u8; 16]>::try_from(value)) {
            (Ok(four), _) => Ipv4Addr::from(four).to_string().into(),
            (_, Ok(sixteen)) => Ipv6Addr::from(sixteen).to_string().into(),
            _ => hex(value).into(),
        },
        As::Hex => hex(value).into(),
        As::Nested(table) => decode(value, table).into(),
        As::List(each) => attributes(value).map(|(_, value)| one(value, each)).collect::<Vec<_>>().into(),
        As::Expression => super::nft::expression(value),
    }
}

fn number(value: &[u8], big: bool) -> Value {
    let number = |mut bytes: Vec<u8>| {
        if big == cfg!(target_endian = "little") {
            bytes.reverse();
        }
        bytes.resize(8, 0);
        u64::from_le_bytes(bytes.try_into().unwrap_or_default())
    };
    match value.len() {
        1 | 2 | 4 | 8 => number(value.to_vec()).into(),
        _ => hex(value).into(),
    }
}

#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::put_attribute;

    #[test]
    fn values_are_read_as_the_table_says() {
        let mut bytes = Vec::new();
        put_attribute(&mut bytes, 1, b"eth0\0");
        put_attribute(&mut bytes, 2, &7_u32.to_ne_bytes());
        put_attribute(&mut bytes, 3, &7_u32.to_be_bytes());
        put_attribute(&mut bytes, 4, &[192, 0, 2, 1]);
        put_attribute(&mut bytes, 9, &[1, 2]);
        put_attribute(&mut bytes, 9, &[3]);
        let table: Table =
            &[(1, "name", As::Text), (2, "native", As::Number), (3, "big", As::Big), (4, "address", As::Address)];
        let expected = serde_json::json!({
            "name": "eth0", "native": 7, "big": 7, "address": "192.0.2.1", "attribute_9": ["0102", "03"]
        });
        assert_eq!(Value::from(decode(&bytes, table)), expected);
    }
}
