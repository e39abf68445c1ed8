use std::{io, path::PathBuf};

use clap::Args;

use super::{
    Exit, Global,
    output::{Style, escape_line, json_line, print},
};
use crate::policy::{self, Loaded, diagnostics::Diagnostics, ready::ready};

/// Check a policy: every error and warning at once, each with its place and the fix
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  guard check policy.yaml\n  guard check --effective policy.yaml | less")]
pub struct CheckArgs {
    #[arg(value_name = "POLICY")]
    pub policy: PathBuf,
    /// Print the policy as it will hold: includes and groups resolved, defaults and essential traffic written out
    #[arg(long)]
    pub effective: bool,
}

pub fn run(args: &CheckArgs, global: &Global) -> anyhow::Result<Exit> {
    let (found, loaded) = match ready(&args.policy) {
        Ok(ready) => (ready.loaded.warnings.clone(), Some(ready.loaded)),
        Err(found) => (found, None),
    };
    if global.json {
        let mut answer = serde_json::json!({
            "valid": loaded.is_some(),
            "errors": found.of(policy::diagnostics::Level::Error).count(),
            "warnings": found.of(policy::diagnostics::Level::Warning).count(),
            "diagnostics": found.json(),
        });
        if let Some(Loaded { policy, .. }) = &loaded {
            answer["policy"] = policy.name.clone().into();
            answer["policy_sha256"] = policy::effective::hex(&policy.sha256).into();
            answer["rules"] = policy.rules.len().into();
            if args.effective {
                answer["effective"] = policy::effective::yaml(policy).into();
            }
        }
        json_line(&answer)?;
    } else if args.effective && loaded.is_some() {
        // What it says of the policy goes beside it, so that the policy itself can go into a file.
        show(&found, true)?;
    } else {
        show(&found, false)?;
    }
    let Some(loaded) = loaded else { return Ok(refused(&found)) };
    if !global.json {
        if args.effective {
            print(&policy::effective::yaml(&loaded.policy))?;
        } else {
            print(&summary(&loaded, &found))?;
        }
    }
    Ok(Exit::Good)
}

/// What a command says of a policy that it cannot use: as JSON where that was asked for, else on standard error, since
/// standard output is for answers.
pub(crate) fn refuse(found: &Diagnostics, global: &Global) -> io::Result<Exit> {
    if global.json {
        json_line(&serde_json::json!({ "valid": false, "diagnostics": found.json() }))?;
    } else {
        show(found, true)?;
    }
    Ok(refused(found))
}

/// A policy that could not even be read has not been judged.
fn refused(found: &Diagnostics) -> Exit {
    let unread = found.list.iter().any(|d| d.excerpt.is_none() && matches!(d.code, "file_missing" | "file_unreadable"));
    if unread { Exit::CouldNot } else { Exit::No }
}

/// Prints diagnostics; to standard error where standard output has another use.
pub(crate) fn show(found: &Diagnostics, to_stderr: bool) -> io::Result<()> {
    let style = if to_stderr { Style::stderr() } else { Style::stdout() };
    let mut text = found.render(style.has_colour());
    if found.has_errors() {
        text.push_str(&format!("{}; nothing was changed\n", style.error(&found.summary())));
    }
    if to_stderr {
        io::Write::write_all(&mut io::stderr(), text.as_bytes())
    } else if text.is_empty() {
        Ok(())
    } else {
        print(&text)
    }
}

fn summary(loaded: &Loaded, found: &Diagnostics) -> String {
    let policy = &loaded.policy;
    let style = Style::stdout();
    format!(
        "{} {}: {} rules, {} tests, {}",
        style.good("valid"),
        escape_line(&policy.name),
        policy.rules.len(),
        policy.tests.len(),
        found.summary()
    )
}
