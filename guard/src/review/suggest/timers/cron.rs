//! Jobs of cron's tables and of anacron.

use std::path::{Path, PathBuf};

use super::{
    NotFired, Watched, entries, read,
    schedule::{Schedule, day_of},
};

const BY_FOLDER: [&str; 4] = ["cron.hourly", "cron.daily", "cron.weekly", "cron.monthly"];

pub(super) fn look(root: &Path, watched: &Watched, found: &mut NotFired) {
    let mut files: Vec<(PathBuf, bool)> = vec![(root.join("etc/crontab"), true)];
    files.extend(entries(&root.join("etc/cron.d")).into_iter().map(|path| (path, true)));
    files.extend(entries(&root.join("var/spool/cron/crontabs")).into_iter().map(|path| (path, false)));
    let anacron = has_anacron(root);
    for (path, has_user) in files {
        let Some(text) = read(&path) else { continue };
        let shown = path.strip_prefix(root).map_or_else(|_| path.clone(), |below| Path::new("/").join(below));
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((schedule, command)) = crontab_line(line, has_user) else { continue };
            // Where anacron is there it is the one that runs them.
            if anacron && command.contains("anacron") {
                continue;
            }
            let fired = schedule.as_ref().map(|schedule| schedule.fires(watched));
            let one = match BY_FOLDER.iter().find(|folder| command.contains(&format!("/etc/{folder}"))) {
                None => format!("{}:{number} ({})", shown.display(), short(command)),
                Some(folder) => match scripts(root, folder) {
                    Some(scripts) => scripts,
                    None => continue,
                },
            };
            found.put(fired, one);
        }
    }
}

/// `/etc/cron.daily (a, b)`; `None`: there is nothing in it.
fn scripts(root: &Path, folder: &str) -> Option<String> {
    let names: Vec<String> = entries(&root.join("etc").join(folder))
        .iter()
        .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
        // run-parts passes over names with a dot, such as that of the package's placeholder.
        .filter(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)) && name != "0anacron")
        .collect();
    (!names.is_empty()).then(|| format!("/etc/{folder} ({})", short(&names.join(", "))))
}

fn has_anacron(root: &Path) -> bool {
    root.join("usr/sbin/anacron").exists() && root.join("etc/anacrontab").exists()
}

/// What anacron runs: its stamps name the day of the last run.
pub(super) fn look_at_anacron(root: &Path, watched: &Watched, found: &mut NotFired) {
    if !has_anacron(root) {
        return;
    }
    let Some(text) = read(&root.join("etc/anacrontab")) else { return };
    for (number, line) in (1..).zip(text.lines()) {
        let Some((name, command)) = anacrontab_line(line) else { continue };
        let one = match BY_FOLDER.iter().find(|folder| command.contains(&format!("/etc/{folder}"))) {
            None => format!("/etc/anacrontab:{number} ({})", short(command)),
            Some(folder) => match scripts(root, folder) {
                Some(scripts) => scripts,
                None => continue,
            },
        };
        let stamp = read(&root.join("var/spool/anacron").join(name));
        let ran = stamp.as_deref().and_then(day_of);
        found.put(
            match ran {
                // It runs once a day at most, and the stamp does not say at what hour.
                Some((from, to)) if watched.spans.iter().any(|(first, last)| *first <= from && to <= *last) => {
                    Some(true)
                }
                Some((from, to)) if watched.spans.iter().any(|(first, last)| *first <= to && from <= *last) => None,
                // Of earlier runs there is no trace.
                Some((from, _)) if watched.spans.last().is_some_and(|(_, last)| from > *last) => None,
                _ => Some(false),
            },
            one,
        );
    }
}

/// Job's name and command; `None`: no job.
pub(super) fn anacrontab_line(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if !line.starts_with(|c: char| c.is_ascii_digit() || c == '@') {
        return None;
    }
    let mut rest = line;
    let mut word = || -> Option<&str> {
        let end = rest.find(char::is_whitespace)?;
        let (word, after) = rest.split_at(end);
        rest = after.trim_start();
        Some(word)
    };
    let (_period, _delay) = (word()?, word()?.parse::<u32>().ok()?);
    let name = word()?;
    // It names a file.
    (!name.contains('/') && !name.starts_with('.') && !rest.is_empty()).then_some((name, rest))
}

fn short(text: &str) -> String {
    if text.chars().count() <= 80 { text.to_owned() } else { text.chars().take(79).chain(['…']).collect() }
}

/// Schedule and command; `None`: it sets a variable. The schedule is `None` where it is not a time (`@reboot`).
pub(super) fn crontab_line(line: &str, has_user: bool) -> Option<(Option<Schedule>, &str)> {
    let mut rest = line;
    let mut word = || -> Option<&str> {
        rest = rest.trim_start();
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        (!word.is_empty()).then_some(word)
    };
    let first = word()?;
    let schedule = if let Some(name) = first.strip_prefix('@') {
        match name {
            "hourly" => Schedule::parse(["0", "*", "*", "*", "*"]),
            "daily" | "midnight" => Schedule::parse(["0", "0", "*", "*", "*"]),
            "weekly" => Schedule::parse(["0", "0", "*", "*", "0"]),
            "monthly" => Schedule::parse(["0", "0", "1", "*", "*"]),
            "yearly" | "annually" => Schedule::parse(["0", "0", "1", "1", "*"]),
            _ => None,
        }
    } else {
        if first.contains('=') || !first.starts_with(|c: char| c.is_ascii_digit() || c == '*') {
            return None;
        }
        Schedule::parse([first, word()?, word()?, word()?, word()?])
    };
    if has_user {
        word()?;
    }
    Some((schedule, rest.trim()))
}
