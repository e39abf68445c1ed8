//! Zeek's conn.log, as it writes it itself (TSV with a header) and as JSON, one object a line.

use std::{
    io::{self, BufRead},
    path::Path,
};

use serde::Deserialize;

use super::{
    InputError, Summary,
    lines::{self, Lines},
    place::Placer,
    raw::{Raw, micros, protocol, timestamp},
};

/// The fields that are read, as text: empty where the log leaves them out.
#[derive(Debug, Default)]
struct Fields<'a> {
    ts: &'a str,
    orig_h: &'a str,
    orig_p: &'a str,
    resp_h: &'a str,
    resp_p: &'a str,
    proto: &'a str,
    duration: &'a str,
    conn_state: &'a str,
    history: &'a str,
    orig_bytes: &'a str,
    resp_bytes: &'a str,
    orig_pkts: &'a str,
    resp_pkts: &'a str,
    orig_ip_bytes: &'a str,
    resp_ip_bytes: &'a str,
}

impl Fields<'_> {
    fn raw(&self) -> Result<Raw, String> {
        let address =
            |name: &str, text: &str| text.parse::<std::net::IpAddr>().map_err(|_| format!("{name} is not an address"));
        let source = address("id.orig_h", self.orig_h)?;
        let destination = address("id.resp_h", self.resp_h)?;
        let protocol = protocol(self.proto).ok_or("proto is not a protocol")?;
        let port = |name: &str, text: &str| match text {
            "" => Ok(0),
            text => text.parse::<u16>().map_err(|_| format!("{name} is not a port")),
        };
        let mut raw = Raw::new(source, destination, protocol);
        let (from, to) = (port("id.orig_p", self.orig_p)?, port("id.resp_p", self.resp_p)?);
        if raw.is_icmp() {
            // Type and code stand in the place of the ports.
            let number = |value: u16| u8::try_from(value).map_err(|_| "not an ICMP type and code");
            raw.icmp = Some((number(from)?, number(to)?));
        } else {
            (raw.source_port, raw.destination_port) = (from, to);
        }
        raw.first = self.ts.parse().ok().and_then(micros).or_else(|| timestamp(self.ts)).ok_or("ts is not a time")?;
        let duration = self.duration.parse().ok().and_then(micros).unwrap_or(0);
        raw.last = raw.first.saturating_add(duration);
        let count = |text: &str| text.parse::<u64>().ok();
        raw.packets = [count(self.orig_pkts).unwrap_or(0), count(self.resp_pkts).unwrap_or(0)];
        raw.bytes = [
            count(self.orig_ip_bytes).or(count(self.orig_bytes)).unwrap_or(0),
            count(self.resp_ip_bytes).or(count(self.resp_bytes)).unwrap_or(0),
        ];
        // A log without counts of packets still tells by its state that somebody answered.
        let answered = matches!(self.conn_state, "SF" | "S1" | "S2" | "S3" | "RSTO" | "RSTR" | "REJ" | "SHR" | "RSTRH")
            || self.history.bytes().any(|letter| letter.is_ascii_lowercase());
        if raw.packets[1] == 0 && (answered || raw.bytes[1] > 0) && self.resp_pkts.is_empty() {
            raw.packets[1] = 1;
        }
        raw.refused = self.conn_state == "REJ";
        raw.reason = self.conn_state.into();
        Ok(raw)
    }
}

pub fn tsv(
    path: &Path,
    lines: &mut Lines<impl BufRead>,
    summary: &mut Summary,
    placer: &mut Placer<'_>,
) -> Result<Option<io::Error>, InputError> {
    let mut header = Header::default();
    let mut other_log = None;
    let end = lines::each(lines, summary, |line, summary| {
        let text = std::str::from_utf8(line).map_err(|_| "it is not UTF-8")?;
        if let Some(directive) = text.strip_prefix('#') {
            summary.read -= 1;
            header.read(directive);
            if header.path.as_deref().is_some_and(|path| path != "conn") {
                other_log = header.path.clone();
            }
            return Ok(());
        }
        if header.fields.is_empty() {
            return Err("there was no #fields line before it".into());
        }
        placer.place(header.fields_of(text).raw()?);
        Ok(())
    });
    match other_log {
        Some(found) if summary.bad == summary.read => Err(InputError::OtherZeekLog { path: path.to_owned(), found }),
        _ => Ok(end),
    }
}

#[derive(Default)]
struct Header {
    separator: Option<char>,
    unset: String,
    path: Option<String>,
    fields: Vec<String>,
}

impl Header {
    fn read(&mut self, directive: &str) {
        let separator = self.separator.unwrap_or('\t');
        if let Some(value) = directive.strip_prefix("separator ") {
            self.separator = value
                .trim()
                .strip_prefix("\\x")
                .and_then(|hex| u8::from_str_radix(hex, 16).ok())
                .map(char::from)
                .or_else(|| value.chars().next());
            return;
        }
        let mut words = directive.split(separator);
        match words.next() {
            Some("unset_field") => self.unset = words.next().unwrap_or("-").to_owned(),
            Some("path") => self.path = words.next().map(str::to_owned),
            Some("fields") => self.fields = words.map(str::to_owned).collect(),
            _ => {}
        }
    }

    fn fields_of<'a>(&self, line: &'a str) -> Fields<'a> {
        let mut fields = Fields::default();
        let unset = if self.unset.is_empty() { "-" } else { &self.unset };
        for (name, value) in self.fields.iter().zip(line.split(self.separator.unwrap_or('\t'))) {
            if value == unset || value == "(empty)" {
                continue;
            }
            let place = match name.as_str() {
                "ts" => &mut fields.ts,
                "id.orig_h" => &mut fields.orig_h,
                "id.orig_p" => &mut fields.orig_p,
                "id.resp_h" => &mut fields.resp_h,
                "id.resp_p" => &mut fields.resp_p,
                "proto" => &mut fields.proto,
                "duration" => &mut fields.duration,
                "conn_state" => &mut fields.conn_state,
                "history" => &mut fields.history,
                "orig_bytes" => &mut fields.orig_bytes,
                "resp_bytes" => &mut fields.resp_bytes,
                "orig_pkts" => &mut fields.orig_pkts,
                "resp_pkts" => &mut fields.resp_pkts,
                "orig_ip_bytes" => &mut fields.orig_ip_bytes,
                "resp_ip_bytes" => &mut fields.resp_ip_bytes,
                _ => continue,
            };
            *place = value;
        }
        fields
    }
}

/// A number or a text, as text.
#[derive(Debug, Default)]
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text,
            serde_json::Value::Number(number) => number.to_string(),
            _ => String::new(),
        }))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Json {
    ts: Text,
    #[serde(rename = "id.orig_h")]
    orig_h: Text,
    #[serde(rename = "id.orig_p")]
    orig_p: Text,
    #[serde(rename = "id.resp_h")]
    resp_h: Text,
    #[serde(rename = "id.resp_p")]
    resp_p: Text,
    proto: Text,
    duration: Text,
    conn_state: Text,
    history: Text,
    orig_bytes: Text,
    resp_bytes: Text,
    orig_pkts: Text,
    resp_pkts: Text,
    orig_ip_bytes: Text,
    resp_ip_bytes: Text,
}

pub fn json(lines: &mut Lines<impl BufRead>, summary: &mut Summary, placer: &mut Placer<'_>) -> Option<io::Error> {
    lines::each(lines, summary, |line, _| {
        let json: Json = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        let fields = Fields {
            ts: &json.ts.0,
            orig_h: &json.orig_h.0,
            orig_p: &json.orig_p.0,
            resp_h: &json.resp_h.0,
            resp_p: &json.resp_p.0,
            proto: &json.proto.0,
            duration: &json.duration.0,
            conn_state: &json.conn_state.0,
            history: &json.history.0,
            orig_bytes: &json.orig_bytes.0,
            resp_bytes: &json.resp_bytes.0,
            orig_pkts: &json.orig_pkts.0,
            resp_pkts: &json.resp_pkts.0,
            orig_ip_bytes: &json.orig_ip_bytes.0,
            resp_ip_bytes: &json.resp_ip_bytes.0,
        };
        placer.place(fields.raw()?);
        Ok(())
    })
}
