//! `replay --flows`: the same question of what was recorded, flow by flow.

use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Write},
    path::Path,
};

use guard_common::Verdict;

use super::{
    Exit, Global,
    output::{Style, escape, json_line, table},
    replay::ReplayArgs,
    source::{self, FromArgs, Read},
    time::past,
};
use crate::{
    policy::model::Policy,
    record::{eve::proto, flow::has_ports},
    replay::{
        Skipped,
        report::{FlowLine, Sum, Totals, headline, timestamp},
    },
    review::{
        judged::{Judge, Judged},
        observed::Observed,
    },
};

/// Rows that people are shown; `--json` prints every flow.
const MOST_ROWS: usize = 10_000;

pub fn run(policy: &Policy, flows: &Path, args: &ReplayArgs, global: &Global) -> anyhow::Result<Exit> {
    let is_file = flows.as_os_str() == "-" || flows.symlink_metadata().is_ok();
    let since = match flows.to_str().map(past) {
        _ if is_file => None,
        Some(Ok(since)) => Some(since),
        _ => anyhow::bail!(
            "{}: neither a file that is there nor a time such as 2026-01-02T03:04Z or 7d",
            flows.display()
        ),
    };
    let from = FromArgs { from: if is_file { vec![flows.to_owned()] } else { Vec::new() }, local: args.local.clone() };
    // From the beginning of time: no rule has expired before the first flow.
    let judge = Judge::new(policy, 0)?;
    let mut sums = Sums::default();
    let mut rows = table(&["verdict", "flow", "packets", "bytes", "why"]);
    let style = Style::stdout();
    let mut out = BufWriter::new(io::stdout().lock());
    let mut failed = None;
    let read = source::flows(&from, since, &args.instance, &mut |flow| {
        let judged = judge.judge(&flow);
        sums.add(&flow, judged);
        if global.json {
            let line = line(policy, &flow, judged);
            let written =
                serde_json::to_writer(&mut out, &line).map_err(io::Error::from).and_then(|()| out.write_all(b"\n"));
            failed = failed.take().or(written.err());
        } else if sums.flows <= MOST_ROWS as u64 {
            let why = judged.rule.and_then(|rule| policy.rules.get(rule));
            let why = why.map_or_else(|| judged.reason.why().to_owned(), |rule| escape(&rule.label()));
            rows.add_row([
                style.verdict(judged.reason.verdict()),
                flow.key.spoken(flow.direction),
                (flow.packets[0].saturating_add(flow.packets[1])).to_string(),
                (flow.bytes[0].saturating_add(flow.bytes[1])).to_string(),
                why,
            ]);
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let totals = sums.totals(&read);
    if global.json {
        out.flush()?;
        drop(out);
        json_line(&totals)?;
    } else {
        out.write_all(escape(&headline(policy, &totals)).as_bytes())?;
        if sums.flows > 0 {
            writeln!(out, "\n{rows}")?;
        }
        if sums.flows > MOST_ROWS as u64 {
            writeln!(out, "and {} more: --json prints every flow", sums.flows - MOST_ROWS as u64)?;
        }
        let mut rows = table(&["reason", "flows", "packets", "bytes"]);
        for (reason, sum) in &totals.reasons {
            rows.add_row([(*reason).to_owned(), sum.flows.to_string(), sum.packets.to_string(), sum.bytes.to_string()]);
        }
        writeln!(out, "\n{rows}")?;
        out.flush()?;
        read.tell();
    }
    Ok(if read.is_broken() { Exit::CouldNot } else { Exit::Good })
}

fn line(policy: &Policy, flow: &Observed, judged: Judged) -> FlowLine {
    let (source, source_port, destination, destination_port) = flow.key.ends(flow.direction);
    let ports = has_ports(flow.key.protocol());
    let service = flow.key.service(flow.direction);
    FlowLine {
        kind: "flow",
        timestamp: timestamp(i128::from(flow.first) * 1000),
        verdict: judged.reason.verdict().as_str(),
        rule: judged.rule.and_then(|rule| policy.rules.get(rule)).map(crate::policy::model::Rule::label),
        reason: judged.reason.as_str(),
        direction: flow.direction.as_str(),
        src_ip: source.to_string(),
        src_port: ports.then_some(source_port),
        dest_ip: destination.to_string(),
        dest_port: ports.then_some(destination_port),
        proto: proto(flow.key.protocol()),
        icmp_type: flow.key.is_icmp().then_some((service >> 8) as u8),
        icmp_code: flow.key.is_icmp().then_some((service & 0xff) as u8),
        packets: flow.packets[0].saturating_add(flow.packets[1]),
        bytes: flow.bytes[0].saturating_add(flow.bytes[1]),
        community_id: flow.key.community_id(flow.direction),
    }
}

#[derive(Default)]
struct Sums {
    flows: u64,
    allowed: Sum,
    denied: Sum,
    reasons: BTreeMap<&'static str, Sum>,
    first: Option<i64>,
    last: Option<i64>,
}

impl Sums {
    fn add(&mut self, flow: &Observed, judged: Judged) {
        self.flows += 1;
        let of_verdict = match judged.reason.verdict() {
            Verdict::Allow => &mut self.allowed,
            Verdict::Deny => &mut self.denied,
        };
        for sum in [of_verdict, self.reasons.entry(judged.reason.as_str()).or_default()] {
            sum.flows += 1;
            sum.packets = sum.packets.saturating_add(flow.packets[0]).saturating_add(flow.packets[1]);
            sum.bytes = sum.bytes.saturating_add(flow.bytes[0]).saturating_add(flow.bytes[1]);
        }
        self.first = Some(self.first.map_or(flow.first, |first| first.min(flow.first)));
        self.last = Some(self.last.map_or(flow.last, |last| last.max(flow.last)));
    }

    fn totals(&self, read: &Read) -> Totals {
        let stamp = |us: i64| timestamp(i128::from(us) * 1000);
        let (local, foreign, both_local, broken) = match read {
            Read::Store(_) => ("this host, as it recorded itself".to_owned(), 0, 0, None),
            Read::Files(files) | Read::Records(files) => (
                files.iter().map(|file| file.local.clone()).collect::<Vec<_>>().join("; "),
                files.iter().map(|file| file.foreign).sum(),
                files.iter().map(|file| file.both_local).sum(),
                files.iter().find_map(|file| file.broken.clone()),
            ),
        };
        Totals {
            kind: "totals",
            packets: self.allowed.packets.saturating_add(self.denied.packets),
            bytes: self.allowed.bytes.saturating_add(self.denied.bytes),
            flows: self.flows,
            allowed: self.allowed,
            denied: self.denied,
            skipped: Skipped { foreign, both_local },
            reasons: self.reasons.clone(),
            local,
            first: self.first.map(stamp),
            last: self.last.map(stamp),
            broken,
        }
    }
}
