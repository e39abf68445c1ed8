use clap::Args;

use super::{Exit, Global, InstanceArgs, output};
use crate::{
    daemon::state_dir::StateDir,
    host::person::Person,
    journal::{self, Entry, Event},
};

/// Write a note into the timeline
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guard note 'called the network team, ticket 41' --as kim")]
pub struct NoteArgs {
    #[arg(value_name = "TEXT", required = true, num_args = 1..)]
    pub text: Vec<String>,
    /// Who writes, where the host cannot know
    #[arg(long = "as", value_name = "NAME")]
    pub named: Option<String>,
    #[command(flatten)]
    pub instance: InstanceArgs,
}

pub fn run(args: &NoteArgs, global: &Global) -> anyhow::Result<Exit> {
    let text = args.text.join(" ");
    if text.trim().is_empty() {
        anyhow::bail!("a note without a word");
    }
    let state = StateDir::create(&args.instance.state_dir())?;
    let entry = Entry::new(Event::Note, text).by(Person::now(args.named.as_deref()));
    journal::append(state.path(), std::slice::from_ref(&entry))?;
    if global.json {
        output::json_line(&entry)?;
    } else {
        let by = entry.by.as_ref().map(Person::spoken).unwrap_or_default();
        output::print(&format!("noted, by {}", output::escape_line(&by)))?;
    }
    Ok(Exit::Good)
}
