use std::{
    io::{self, BufWriter, IsTerminal, Write},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use guard_common::{Direction, abi::SlotFlags};
use indicatif::{ProgressBar, ProgressStyle};
use ipnet::IpNet;

use super::{
    Exit, Global, InstanceArgs,
    check::refuse,
    output::{Style, escape, json_line, table},
};
use crate::{
    policy,
    replay::{
        Opened, Replay,
        capture::{CaptureError, Reader},
        compiled, report,
    },
};

/// Show what a policy would have done with recorded traffic, flow by flow
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  guard replay policy.yaml capture.pcapng\n  \
    guard replay policy.yaml capture.pcap --local 192.0.2.10/32 --filter 'tcp port 443'\n  \
    tcpdump -w - -i eth0 | guard replay policy.yaml -\n  \
    guard replay policy.yaml --flows 7d              # what this host recorded in the last week\n  \
    guard replay policy.yaml --flows conn.log        # what Zeek, Suricata, AWS or another guard recorded\n\n\
    Without --local, the host is told by the packets' outgoing flag (captures of `any`), else by the Ethernet address \
    of the most common IP address, else by that address; the output says which. A rule matches if it had not expired \
    when the packet was captured.")]
pub struct ReplayArgs {
    #[arg(value_name = "POLICY")]
    pub policy: PathBuf,
    /// pcap or pcapng, also in gzip; `-` reads standard input
    #[arg(value_name = "CAPTURE", required_unless_present = "flows")]
    pub capture: Option<PathBuf>,
    /// Flows that were recorded: this host's own since a time or age (7d), or a file of any kind that `guard suggest`
    /// reads
    #[arg(long, value_name = "TIME|FILE", conflicts_with_all = ["capture", "filter", "interface"])]
    pub flows: Option<PathBuf>,
    /// Addresses of the host that the policy is for (repeatable)
    #[arg(long, value_name = "CIDR", value_parser = network)]
    pub local: Vec<IpNet>,
    /// Only packets that this capture filter takes (pcap-filter(7))
    #[arg(long, value_name = "FILTER")]
    pub filter: Option<String>,
    /// Interface that the capture is from, for rules that ask for one
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

/// A CIDR, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| "an address or a CIDR, such as 192.0.2.10 or 2001:db8::/64".to_owned())
}

pub fn run(args: &ReplayArgs, global: &Global) -> anyhow::Result<Exit> {
    let loaded = match policy::load(&args.policy) {
        Ok(loaded) => loaded,
        Err(found) => return Ok(refuse(&found, global)?),
    };
    let policy = &loaded.policy;
    let capture = match (&args.flows, &args.capture) {
        (Some(flows), _) => return super::replay_flows::run(policy, flows, args, global),
        (None, Some(capture)) => capture,
        (None, None) => return Ok(Exit::Usage),
    };
    let reader = match Reader::open(capture, args.filter.as_deref()) {
        Err(error @ CaptureError::Filter { .. }) => {
            writeln!(io::stderr(), "{} {}", Style::stderr().error("error:"), escape(&error.to_string()))?;
            return Ok(Exit::Usage);
        }
        other => other?,
    };
    let mut opened = Opened::new(reader, &args.local);
    let compiled = compiled(policy, opened.first)?;
    if args.interface.is_none() && compiled.flags.has(SlotFlags::BY_INTERFACE) {
        let notice = Style::stderr().warning("warning:");
        writeln!(io::stderr(), "{notice} rules that ask for an interface match nothing here: give --interface")?;
    }
    let link = opened.reader().link();
    let mut replay = Replay::new(&compiled, link, opened.side.clone(), args.interface.as_deref(), opened.first);

    let bar = progress(opened.reader().size());
    let mut until_next = 0u32;
    opened.each(|frame, read| {
        replay.frame(frame);
        until_next = until_next.wrapping_add(1);
        if until_next & 0xffff == 0 {
            bar.set_position(read);
        }
    });
    bar.finish_and_clear();

    let flows = replay.flows();
    let broken = opened.reader().broken().map(str::to_owned);
    let totals = report::totals(&replay, &flows, broken);
    if global.json {
        let mut out = BufWriter::new(io::stdout().lock());
        for (key, flow) in &flows {
            serde_json::to_writer(&mut out, &report::flow_line(policy, &replay, key, flow)).map_err(io::Error::from)?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
        drop(out);
        json_line(&totals)?;
    } else {
        let style = Style::stdout();
        let mut out = BufWriter::new(io::stdout().lock());
        out.write_all(escape(&report::headline(policy, &totals)).as_bytes())?;
        let mut rows = table(&["verdict", "flow", "packets", "bytes", "why"]);
        for (key, flow) in &flows {
            let line = report::flow_line(policy, &replay, key, flow);
            let why = match &line.rule {
                Some(rule) => escape(rule),
                None => flow.outcome.reason().why().to_owned(),
            };
            rows.add_row([
                style.verdict(flow.outcome.verdict()),
                key.spoken(Direction::from_u8(flow.direction)),
                line.packets.to_string(),
                line.bytes.to_string(),
                why,
            ]);
        }
        if !flows.is_empty() {
            writeln!(out, "\n{rows}")?;
        }
        let mut rows = table(&["reason", "flows", "packets", "bytes"]);
        for (reason, sum) in &totals.reasons {
            rows.add_row([(*reason).to_owned(), sum.flows.to_string(), sum.packets.to_string(), sum.bytes.to_string()]);
        }
        writeln!(out, "\n{rows}")?;
        out.flush()?;
    }
    Ok(if totals.broken.is_some() { Exit::CouldNot } else { Exit::Good })
}

/// On a terminal, by bytes of the file.
pub(super) fn progress(size: Option<u64>) -> ProgressBar {
    let Some(size) = size.filter(|_| io::stderr().is_terminal()) else { return ProgressBar::hidden() };
    let bar = ProgressBar::new(size);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {eta}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
