//! systemd's timers, of the system, of every user and of single ones: their units, drop-ins and stamps.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::{
    NotFired, Watched, entries, modified, read,
    schedule::{Schedule, calendar, seconds},
};

/// Where units of the system, or of every user, lie: the first that has a file has it.
const FOLDERS: [&str; 4] = ["etc/systemd/KIND", "run/systemd/KIND", "usr/lib/systemd/KIND", "lib/systemd/KIND"];

/// Enabled timers: those that a `timers.target.wants` points at. Of users each, whose manager may not run.
pub(super) fn look(root: &Path, watched: &Watched, found: &mut NotFired) {
    let of =
        |kind: &str| -> Vec<PathBuf> { FOLDERS.iter().map(|folder| root.join(folder.replace("KIND", kind))).collect() };
    let (system, stamps) = (of("system"), root.join("var/lib/systemd/timers"));
    for name in wanted(&system) {
        timer(&name, &system, Some(&stamps), "", watched, found);
    }
    let user = of("user");
    for name in wanted(&user) {
        timer(&name, &user, None, " of every user", watched, found);
    }
    let homes = entries(&root.join("home")).into_iter().chain([root.join("root")]);
    for home in homes {
        let own = home.join(".config/systemd/user");
        let folders: Vec<PathBuf> =
            [own.clone(), home.join(".local/share/systemd/user")].into_iter().chain(of("user")).collect();
        let user = home.file_name().and_then(|name| name.to_str()).unwrap_or("a user");
        // Only what this user enabled: the rest is every user's.
        let names = wanted(&[own]);
        let stamps = home.join(".local/share/systemd/timers");
        for name in names {
            timer(&name, &folders, Some(&stamps), &format!(" of {user}"), watched, found);
        }
    }
}

fn wanted(folders: &[PathBuf]) -> BTreeSet<String> {
    folders
        .iter()
        .flat_map(|folder| entries(&folder.join("timers.target.wants")))
        .filter_map(|entry| Some(entry.file_name()?.to_str()?.to_owned()))
        .filter(|name| name.ends_with(".timer"))
        .collect()
}

fn timer(name: &str, folders: &[PathBuf], stamps: Option<&Path>, whose: &str, watched: &Watched, found: &mut NotFired) {
    let places: Vec<PathBuf> = folders.iter().map(|folder| folder.join(name)).collect();
    // A template's instance has the template's file.
    let template = name.split_once('@').map(|(of, _)| format!("{of}@.timer"));
    let templates = template.iter().flat_map(|template| folders.iter().map(move |folder| folder.join(template)));
    let Some(place) = places.iter().cloned().chain(templates).find(|path| path.symlink_metadata().is_ok()) else {
        found.found += 1;
        found.unclear.push(format!("{name}{whose} (it has no file)"));
        return;
    };
    // Masked: it never fires.
    if fs::read_link(&place).is_ok_and(|target| target == Path::new("/dev/null")) {
        return;
    }
    found.found += 1;
    let Some(text) = read(&place) else {
        found.unclear.push(format!("{name}{whose} (its file cannot be read)"));
        return;
    };
    // Persistent timers leave a stamp of their last run.
    let stamp = stamps.and_then(|stamps| modified(&stamps.join(format!("stamp-{name}"))));
    if stamp.is_some_and(|time| watched.holds(time)) {
        return;
    }
    let mut times = Times::default();
    times.read(&text);
    for text in drop_ins(name, folders) {
        times.read(&text);
    }
    let shown = format!("{name}{whose} ({})", times.spoken());
    match times.fired(watched) {
        // A user's manager may not have run.
        Some(true) if whose.is_empty() => {}
        Some(true) => found.unclear.push(format!("{shown}, if its manager ran")),
        Some(false) => found.timers.push(shown),
        None => found.unclear.push(shown),
    }
}

/// `NAME.timer.d/*.conf` and `timer.d/*.conf`, by their names; of two with one name the one of the folder that goes first.
fn drop_ins(name: &str, folders: &[PathBuf]) -> Vec<String> {
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    for of in ["timer.d".to_owned(), format!("{name}.d")] {
        for folder in folders.iter().rev() {
            for path in entries(&folder.join(&of)) {
                if let Some(file) = path.file_name().and_then(|file| file.to_str())
                    && file.ends_with(".conf")
                {
                    files.insert(file.to_owned(), path);
                }
            }
        }
    }
    files.values().filter_map(|path| read(path)).collect()
}

/// A timer's times.
#[derive(Debug, Default)]
pub(super) struct Times {
    calendars: Vec<String>,
    every: Vec<String>,
    /// At boot, or once: when that was is not known.
    once: Vec<String>,
}

impl Times {
    pub(super) fn read(&mut self, text: &str) {
        for line in text.lines() {
            let Some((key, value)) = line.trim().split_once('=') else { continue };
            let value = value.trim();
            let list = match key.trim() {
                "OnCalendar" => &mut self.calendars,
                "OnUnitActiveSec" | "OnUnitInactiveSec" => &mut self.every,
                "OnBootSec" | "OnStartupSec" | "OnActiveSec" => &mut self.once,
                _ => continue,
            };
            if value.is_empty() {
                // It takes back all of them, of whichever kind.
                *self = Self::default();
            } else {
                list.push(value.to_owned());
            }
        }
    }

    fn spoken(&self) -> String {
        let schedule: Vec<&str> = self.calendars.iter().chain(&self.every).map(String::as_str).collect();
        if schedule.is_empty() { "at boot".to_owned() } else { schedule.join("; ") }
    }

    /// `None`: it cannot be told.
    pub(super) fn fired(&self, watched: &Watched) -> Option<bool> {
        let every = self.every.iter().filter_map(|text| seconds(text)).min();
        let often = every.is_some_and(|seconds| seconds.saturating_mul(1_000_000) <= watched.longest());
        let parsed: Vec<Option<Schedule>> = self.calendars.iter().map(|text| calendar(text)).collect();
        if often || parsed.iter().flatten().any(|schedule| schedule.fires(watched)) {
            return Some(true);
        }
        (!parsed.iter().any(Option::is_none)).then_some(false)
    }
}
