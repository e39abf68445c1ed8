use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{
    Exit, Global,
    check::refuse,
    output::{Style, escape_line, json_line, print, write_new},
};
use crate::policy::{effective::hex, nft, ready::ready};

/// Print a policy in another firewall's language
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  guard export nft policy.yaml > guard.nft && nft -c -f guard.nft\n  \
    guard export nft policy.yaml | ssh old-host nft -f -\n\n\
    For hosts whose kernel cannot run guard. What the other language cannot say is said on standard error and in\n\
    comments. No rule is wider than in the policy; what passes all the same is said there. It takes the place of the table inet guard.")]
pub struct ExportArgs {
    #[arg(value_enum)]
    pub format: Format,
    #[arg(value_name = "POLICY")]
    pub policy: PathBuf,
    /// Write it to a new file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// An nftables ruleset
    Nft,
}

pub fn run(args: &ExportArgs, global: &Global) -> anyhow::Result<Exit> {
    let Format::Nft = args.format;
    let ready = match ready(&args.policy) {
        Ok(ready) => ready,
        Err(found) => return Ok(refuse(&found, global)?),
    };
    let policy = &ready.loaded.policy;
    let made = nft::ruleset(policy, ready.now.unix_ns);
    if let Some(output) = &args.output {
        write_new(output, &made.text)?;
    }
    if global.json {
        json_line(&serde_json::json!({
            "format": "nft",
            "policy": policy.name,
            "policy_sha256": hex(&policy.sha256),
            "ruleset": made.text,
            "not_expressed": made.notes,
        }))?;
        return Ok(Exit::Good);
    }
    let style = Style::stderr();
    for note in &made.notes {
        eprintln!("{} {}", style.warning("not as the policy says it:"), escape_line(note));
    }
    if args.output.is_none() {
        print(&made.text)?;
    }
    Ok(Exit::Good)
}
