use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use ipnet::IpNet;

use super::{
    Exit, Global, check,
    output::{escape_line, json_line, print},
    report::FormArgs,
    show, source,
    time::past,
};
use crate::{
    policy,
    review::{
        findings::Finding,
        judged::Judge,
        observed::Observed,
        recorded::{Recorded, is_of},
        render,
        report::Report,
        words,
    },
};

/// Report on what others recorded, of a host that had no guard: captures, Zeek's, Suricata's and AWS's flow logs
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    guard review --from capture.pcapng\n  \
    guard review --from conn.*.log.gz --local 192.0.2.10 --policy policy.yaml\n  \
    guard review --from eve.json --since 2026-01-02T03:04Z     # what came before is taken as usual\n  \
    guard review --from eve.json --show a7f2\n\n\
    Without --local the most common address is taken for ours; the report says which. Exit code 1 while there is something \
    to review.")]
pub struct ReviewArgs {
    /// Captures (pcap, pcapng), Zeek's conn.log (TSV, JSON), Suricata's eve.json, AWS VPC flow logs, guard's flows.jsonl,
    /// each also in gzip; `-` reads standard input. The oldest first
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    pub from: Vec<PathBuf>,
    /// Our addresses (repeatable)
    #[arg(long, value_name = "CIDR", value_parser = super::replay::network)]
    pub local: Vec<IpNet>,
    /// What this policy would have denied is reported so
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Report on what was seen since then: a time (2026-01-02T03:04Z) or an age (12h, 7d)
    #[arg(long, value_name = "TIME", value_parser = past)]
    pub since: Option<i64>,
    /// Of captures, only packets that this capture filter takes (pcap-filter(7))
    #[arg(long, value_name = "FILTER")]
    pub filter: Option<String>,
    /// All about one group of the report: its flows, the newest first
    #[arg(long, value_name = "ID")]
    pub show: Option<String>,
    #[command(flatten)]
    pub form: FormArgs,
}

/// Flows that `--show` lists.
const FLOWS: usize = 50;

pub fn run(args: &ReviewArgs, global: &Global) -> anyhow::Result<Exit> {
    let loaded = match args.policy.as_deref().map(policy::load).transpose() {
        Ok(loaded) => loaded,
        Err(found) => return Ok(check::refuse(&found, global)?),
    };
    if args.show.is_some() && args.from.iter().any(|path| path.as_os_str() == "-") {
        bail!("--show reads what is recorded twice, and standard input cannot be: write it to a file first");
    }
    // From the beginning of time: no rule has expired before the first flow.
    let judge = || loaded.as_ref().map(|loaded| Judge::new(&loaded.policy, 0)).transpose();
    let mut recorded = Recorded::new(judge()?, args.since);
    let read = source::of_files(&args.from, &args.local, args.filter.as_deref(), None, &mut |flow| recorded.see(flow))?;
    let broken = read.iter().any(|file| file.broken.is_some());
    let report = recorded.finish(read);
    let exit = match &args.show {
        Some(id) => {
            let finding = chosen(&report, id)?;
            let mut flows = Newest::default();
            let judging = Recorded::new(judge()?, None);
            source::of_files(&args.from, &args.local, args.filter.as_deref(), args.since, &mut |flow| {
                let flow = judging.judged(flow);
                if is_of(&flow, finding) {
                    flows.put(flow);
                }
            })?;
            show_one(&report, finding, &flows.0, global)?;
            Exit::Good
        }
        None => args.form.show(&report, "", global)?,
    };
    Ok(if broken { Exit::CouldNot } else { exit })
}

fn chosen<'a>(report: &'a Report, beginning: &str) -> anyhow::Result<&'a Finding> {
    let found = report.by_id(beginning);
    match found.as_slice() {
        _ if beginning.is_empty() => bail!("\"\" is no id: ids are hex digits, as the report shows them"),
        [] => {
            bail!("no finding's id begins with {}: the same command without --show lists them", escape_line(beginning))
        }
        [one] => Ok(one),
        several => {
            let all: Vec<String> = several
                .iter()
                .map(|finding| format!("  {}  {}", finding.id(), escape_line(&words::flow(finding))))
                .collect();
            bail!("several ids begin with {}; write more of it:\n{}", escape_line(beginning), all.join("\n"))
        }
    }
}

/// The newest flows, the newest first.
#[derive(Default)]
struct Newest(Vec<Observed>);

impl Newest {
    fn put(&mut self, flow: Observed) {
        if self.0.len() >= FLOWS && self.0.last().is_some_and(|oldest| oldest.first >= flow.first) {
            return;
        }
        let at = self.0.partition_point(|other| other.first >= flow.first);
        self.0.insert(at, flow);
        self.0.truncate(FLOWS);
    }
}

fn show_one(report: &Report, finding: &Finding, flows: &[Observed], global: &Global) -> anyhow::Result<()> {
    if global.json {
        return Ok(json_line(&serde_json::json!({
            "id": finding.id().to_string(),
            "finding": render::json::one(report, finding),
            "flows": flows.iter().map(show::flow_json).collect::<Vec<_>>(),
        }))?);
    }
    let mut lines = vec![format!(
        "{}  {}  {}",
        finding.id(),
        escape_line(&words::flow(finding)),
        escape_line(&words::program(&finding.facts))
    )];
    lines.push(format!("found    {}", finding.kind.title()));
    lines.extend(words::parts(finding).iter().map(|part| format!("         {}", escape_line(part))));
    lines.push(format!("flows    {} newest", flows.len()));
    lines.extend(flows.iter().map(|flow| format!("         {}", escape_line(&show::line(flow)))));
    Ok(print(&lines.join("\n"))?)
}
