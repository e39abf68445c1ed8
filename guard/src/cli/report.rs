use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::{
    Exit, Global, InstanceArgs,
    output::{Style, json_line, print},
    time::{now_us, time},
};
use crate::review::{
    render,
    report::{self, Report, Since},
    words,
};

/// Say what is uncommon and not yet acknowledged: what was denied, what is new, which processes are unusual
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        guard report\n  \
        guard report --since last-review\n  \
        guard report --since 2026-01-02T03:04Z --html report.html\n  \
        guard report --from db1/ web1/ web2/        # state directories of other hosts, as one\n\n\
        last-review: all that nobody has acknowledged, what came since the last acknowledgement first.\n\
        Exit code 1 while something is unacknowledged (with --since TIME: something of that time).")]
pub struct ReportArgs {
    /// A time (2026-01-02, 2026-01-02T03:04Z), an age (90min, 12h, 7d), or last-review [default: all that is kept]
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<Since>,
    /// State directories (or copies of them) to report on together
    #[arg(long, value_name = "DIR", num_args = 1..)]
    pub from: Vec<PathBuf>,
    #[command(flatten)]
    pub form: FormArgs,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

/// How a report is written.
#[derive(Clone, Debug, Args)]
pub struct FormArgs {
    /// Everything, however much it is
    #[arg(long)]
    pub all: bool,
    /// As Markdown
    #[arg(long, conflicts_with = "html")]
    pub markdown: bool,
    /// As one page that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

pub fn run(args: &ReportArgs, global: &Global) -> anyhow::Result<Exit> {
    let now = now_us();
    let since = args.since.unwrap_or(Since::Everything);
    let report = if args.from.is_empty() {
        report::of_directory(&args.instance.state_dir(), since, now)?
    } else {
        report::of_directories(&args.from, since, now)?
    };
    args.form.show(&report, &args.instance.suffix(), global)
}

impl FormArgs {
    /// As it was asked for. `suffix`: what a pasted command needs, to reach the same guard.
    pub fn show(&self, report: &Report, suffix: &str, global: &Global) -> anyhow::Result<Exit> {
        if let Some(path) = &self.html {
            write_new(path, &render::html::render(report))?;
        }
        if global.json {
            json_line(&render::json::render(report))?;
        } else if self.markdown {
            print(&render::markdown::render(report))?;
        } else if let Some(path) = &self.html {
            print(&format!(
                "{}: {}",
                words::waiting(report.waiting()),
                super::output::escape_line(&path.display().to_string())
            ))?;
        } else {
            print(&render::text::render(report, suffix, self.all, Style::stdout()))?;
        }
        Ok(if report.findings.is_empty() { Exit::Good } else { Exit::No })
    }
}

/// Beside its place, then into it: whoever looks never sees half a page.
fn write_new(path: &std::path::Path, text: &str) -> anyhow::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let write = || -> std::io::Result<()> {
        // It names hosts, programs and addresses: nobody else's to read.
        let _ = std::fs::remove_file(&draft);
        let mut file = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&draft)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&draft, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn since(text: &str) -> Result<Since, String> {
    if text == "last-review" {
        return Ok(Since::LastReview);
    }
    time(text, -1).map(Since::Time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_may_be_the_last_review() {
        assert_eq!(since("last-review"), Ok(Since::LastReview));
        assert!(since("yesterday").is_err());
    }
}
