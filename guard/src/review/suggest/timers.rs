//! Timers and cron jobs of this host whose time did not come while somebody watched: what they do is not in the records.
//!
//! All of it is read from schedules (and the stamps that systemd and anacron leave). That a time came does not say that a job
//! ran, or did all that it does: so nothing here says that one did.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use crate::text::escape_line;

/// Days that are looked at: 20 years.
const MOST_DAYS: i64 = 20 * 366;
const MINUTE_US: i64 = 60_000_000;
const DAY_S: i64 = 86_400;
/// Bytes of one file that are read.
const MOST_BYTES: u64 = 1 << 20;

/// When somebody watched: Unix microseconds, in order, apart from one another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    spans: Vec<(i64, i64)>,
    /// Microseconds between the first and the last of them in which nobody did.
    unwatched: i64,
}

impl Watched {
    /// From `first` to `last`, but for `gaps`.
    #[must_use]
    pub fn without(first: i64, last: i64, gaps: &[(i64, i64)]) -> Self {
        let mut gaps: Vec<(i64, i64)> = gaps.iter().map(|(from, to)| (*from.max(&first), *to.min(&last))).collect();
        gaps.retain(|(from, to)| from < to);
        gaps.sort_unstable();
        let (mut spans, mut at, mut unwatched) = (Vec::new(), first, 0);
        for (from, to) in gaps {
            if from > at {
                spans.push((at, from));
            }
            unwatched += (to - from.max(at)).max(0);
            at = at.max(to);
        }
        if at <= last {
            spans.push((at, last));
        }
        Self { spans, unwatched }
    }

    fn holds(&self, at: i64) -> bool {
        self.spans.iter().any(|(from, to)| (*from..=*to).contains(&at))
    }

    fn longest(&self) -> i64 {
        self.spans.iter().map(|(from, to)| to - from).max().unwrap_or(0)
    }
}

/// What did not fire, or may not have.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct NotFired {
    /// systemd's timers, each with its schedule.
    pub timers: Vec<String>,
    /// cron's jobs, each with file and line.
    pub jobs: Vec<String>,
    /// Of which it cannot be told.
    pub unclear: Vec<String>,
    /// Nobody looked: the records are of another host.
    pub not_looked: bool,
    /// Timers and jobs that were found.
    pub found: usize,
    /// Seconds of the period in which guard did not run: what fired then counts as not fired.
    pub unwatched_seconds: i64,
}

impl NotFired {
    #[must_use]
    pub fn elsewhere() -> Self {
        Self { not_looked: true, ..Self::default() }
    }

    /// Harmless, one line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        if self.not_looked {
            return vec!["Timers and cron jobs were not looked at: the records are not this host's own.".to_owned()];
        }
        let mut lines = Vec::new();
        if self.unwatched_seconds > 0 {
            let long = crate::daemon::report::duration(self.unwatched_seconds);
            lines.push(format!("guard did not run for {long} of this period: what fired then is not in it."));
        }
        for (list, what) in [
            (&self.timers, "timer did not fire in this period"),
            (&self.jobs, "cron job did not run in this period"),
            (&self.unclear, "may not have run in this period"),
        ] {
            lines.extend(list.iter().take(20).map(|one| format!("{what}: {}", escape_line(one))));
            if list.len() > 20 {
                lines.push(format!("and {} more: {what}", list.len() - 20));
            }
        }
        let silent = self.timers.len() + self.jobs.len() + self.unclear.len();
        lines.push(match (self.found, self.found.saturating_sub(silent)) {
            (0, _) => "No timer and no cron job was found on this host.".to_owned(),
            (_, 0) => return lines,
            (found, due) => format!(
                "{due} of {found} timers and cron jobs that were found were due in this period, by their schedules; whether \
                 they ran, and did all that they do, is not known."
            ),
        });
        lines
    }
}

/// Looks below `root` (`/`, or an image of a host).
#[must_use]
pub fn not_fired(root: &Path, watched: &Watched) -> NotFired {
    let mut found = NotFired { unwatched_seconds: watched.unwatched / 1_000_000, ..NotFired::default() };
    systemd(root, watched, &mut found);
    cron(root, watched, &mut found);
    anacron(root, watched, &mut found);
    found
}

/// Where units of the system, or of every user, lie: the first that has a file has it.
const FOLDERS: [&str; 4] = ["etc/systemd/KIND", "run/systemd/KIND", "usr/lib/systemd/KIND", "lib/systemd/KIND"];

/// Enabled timers: those that a `timers.target.wants` points at. Of users each, whose manager may not run.
fn systemd(root: &Path, watched: &Watched, found: &mut NotFired) {
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
struct Times {
    calendars: Vec<String>,
    every: Vec<String>,
    /// At boot, or once: when that was is not known.
    once: Vec<String>,
}

impl Times {
    fn read(&mut self, text: &str) {
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
    fn fired(&self, watched: &Watched) -> Option<bool> {
        let every = self.every.iter().filter_map(|text| seconds(text)).min();
        let often = every.is_some_and(|seconds| seconds.saturating_mul(1_000_000) <= watched.longest());
        let parsed: Vec<Option<Schedule>> = self.calendars.iter().map(|text| calendar(text)).collect();
        if often || parsed.iter().flatten().any(|schedule| schedule.fires(watched)) {
            return Some(true);
        }
        (!parsed.iter().any(Option::is_none)).then_some(false)
    }
}

const BY_FOLDER: [&str; 4] = ["cron.hourly", "cron.daily", "cron.weekly", "cron.monthly"];

fn cron(root: &Path, watched: &Watched, found: &mut NotFired) {
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

impl NotFired {
    fn put(&mut self, fired: Option<bool>, one: String) {
        self.found += 1;
        match fired {
            Some(true) => {}
            Some(false) => self.jobs.push(one),
            None => self.unclear.push(one),
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
fn anacron(root: &Path, watched: &Watched, found: &mut NotFired) {
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
fn anacrontab_line(line: &str) -> Option<(&str, &str)> {
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

/// `20260105` as a day in local time: its first and its last microsecond.
fn day_of(stamp: &str) -> Option<(i64, i64)> {
    let stamp = stamp.trim();
    if stamp.len() != 8 || !stamp.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let date = jiff::civil::Date::strptime("%Y%m%d", stamp).ok()?;
    let noon = date.at(12, 0, 0, 0).to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second();
    let time = local_time(noon)?;
    let midnight = noon - time.tm_gmtoff - 12 * 3600;
    Some((midnight * 1_000_000, (midnight + DAY_S) * 1_000_000 - 1))
}

fn short(text: &str) -> String {
    if text.chars().count() <= 80 { text.to_owned() } else { text.chars().take(79).chain(['…']).collect() }
}

/// Schedule and command; `None`: it sets a variable. The schedule is `None` where it is not a time (`@reboot`).
fn crontab_line(line: &str, has_user: bool) -> Option<(Option<Schedule>, &str)> {
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

/// As cron has it, in local time; bit n stands for n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    /// Sunday is 0.
    weekdays: u64,
    /// Day of month and weekday: either counts, where both are given.
    either_day: bool,
}

impl Schedule {
    fn parse([minute, hour, day, month, weekday]: [&str; 5]) -> Option<Self> {
        const MONTHS: [&str; 12] = [
            "january",
            "february",
            "march",
            "april",
            "may",
            "june",
            "july",
            "august",
            "september",
            "october",
            "november",
            "december",
        ];
        let months: Vec<(&str, u32)> = MONTHS.iter().copied().zip(1..).collect();
        let weekdays = days();
        let folded = set(weekday, 0, 7, &weekdays)?;
        Some(Self {
            minutes: set(minute, 0, 59, &[])?,
            hours: set(hour, 0, 23, &[])?,
            days: set(day, 1, 31, &[])?,
            months: set(month, 1, 12, &months)?,
            weekdays: folded | folded >> 7,
            either_day: !day.starts_with('*') && !weekday.starts_with('*'),
        })
    }

    /// Whether its time comes while somebody watches. By days, so that a long time is looked at as fast as a short one.
    fn fires(&self, watched: &Watched) -> bool {
        watched.spans.iter().any(|(first, last)| {
            let begin = first.div_euclid(MINUTE_US) + 1;
            let end = last.div_euclid(MINUTE_US);
            let mut minute = begin.max(end.saturating_sub(MOST_DAYS * 24 * 60));
            while minute <= end {
                let Some(time) = local_time(minute * 60) else { return false };
                if self.matches(&time) {
                    return true;
                }
                // Past what is left of a day, or of an hour, in which it never fires; not to its very end, since clocks change
                // by up to two hours within a day, and by half an hour within an hour.
                let left = i64::from(59 - time.tm_min);
                minute += match (self.matches_day(&time), self.matches_hour(&time)) {
                    (false, _) => (i64::from(23 - time.tm_hour) * 60 + left - 120).max(1),
                    (true, false) => (left - 30).max(1),
                    (true, true) => 1,
                };
            }
            false
        })
    }

    fn matches(&self, time: &libc::tm) -> bool {
        has(self.minutes, time.tm_min) && self.matches_hour(time) && self.matches_day(time)
    }

    fn matches_hour(&self, time: &libc::tm) -> bool {
        has(self.hours, time.tm_hour)
    }

    fn matches_day(&self, time: &libc::tm) -> bool {
        let (day, weekday) = (has(self.days, time.tm_mday), has(self.weekdays, time.tm_wday));
        has(self.months, time.tm_mon + 1) && if self.either_day { day || weekday } else { day && weekday }
    }
}

fn has(set: u64, value: i32) -> bool {
    u32::try_from(value).is_ok_and(|value| value < 64 && set & 1 << value != 0)
}

fn days() -> Vec<(&'static str, u32)> {
    ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"].into_iter().zip(0..).collect()
}

/// `*`, `*/5`, `1,2`, `1-5/2`, names.
fn set(text: &str, low: u32, high: u32, names: &[(&str, u32)]) -> Option<u64> {
    let number = |text: &str| {
        let text = text.to_ascii_lowercase();
        let named =
            names.iter().find(|(name, _)| text.len() >= 3 && name.starts_with(&text)).map(|(_, number)| *number);
        named.or_else(|| text.parse().ok()).filter(|number| (low..=high).contains(number))
    };
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, step.parse::<usize>().ok().filter(|step| *step > 0)?),
            None => (part, 1),
        };
        let (from, to) = match range.split_once("..").or_else(|| range.split_once('-')) {
            _ if range == "*" => (low, high),
            Some((from, to)) => (number(from)?, number(to)?),
            None if part.contains('/') => (number(range)?, high),
            None => (number(range)?, number(range)?),
        };
        (from..=to).step_by(step).for_each(|value| bits |= 1 << value);
    }
    Some(bits)
}

/// The common forms of systemd.time(7): a word, or `[weekdays] [*-*-*] hours:minutes[:seconds]`.
fn calendar(text: &str) -> Option<Schedule> {
    match text.to_ascii_lowercase().as_str() {
        "minutely" => return Schedule::parse(["*", "*", "*", "*", "*"]),
        "hourly" => return Schedule::parse(["0", "*", "*", "*", "*"]),
        "daily" => return Schedule::parse(["0", "0", "*", "*", "*"]),
        "weekly" => return Schedule::parse(["0", "0", "*", "*", "1"]),
        "monthly" => return Schedule::parse(["0", "0", "1", "*", "*"]),
        "quarterly" => return Schedule::parse(["0", "0", "1", "1,4,7,10", "*"]),
        "semiannually" => return Schedule::parse(["0", "0", "1", "1,7", "*"]),
        "yearly" | "annually" => return Schedule::parse(["0", "0", "1", "1", "*"]),
        _ => {}
    }
    let (mut weekdays, mut date, mut time) = ("*", "*-*-*", None);
    for word in text.split_ascii_whitespace() {
        match word {
            word if word.contains(':') => time = Some(word),
            word if word.starts_with(|c: char| c.is_ascii_alphabetic()) => weekdays = word,
            word if word.contains('-') => date = word,
            _ => return None,
        }
    }
    let parts: Vec<&str> = date.split('-').collect();
    let (month, day) = match parts.as_slice() {
        ["*", month, day] | [month, day] => (*month, *day),
        _ => return None,
    };
    let mut clock = time.unwrap_or("00:00").split(':');
    let (hour, minute) = (clock.next()?, clock.next()?);
    // `*:0/15` begins at 0: as `*/15` is for cron.
    Schedule::parse([minute, hour, day, month, weekdays]).map(|schedule| Schedule { either_day: false, ..schedule })
}

/// `15min`, `1h 30min`, `1d`, `900`.
fn seconds(text: &str) -> Option<i64> {
    let mut sum: i64 = 0;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: i64 = rest[..digits].parse().ok()?;
        let after = &rest[digits..];
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let unit = match &after[..letters] {
            "" | "s" | "sec" | "second" | "seconds" => 1,
            "m" | "min" | "minute" | "minutes" => 60,
            "h" | "hr" | "hour" | "hours" => 3600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 604_800,
            "M" | "month" | "months" => 2_629_800,
            "y" | "year" | "years" => 31_557_600,
            _ => return None,
        };
        sum = sum.checked_add(number.checked_mul(unit)?)?;
        rest = after[letters..].trim_start();
    }
    (sum > 0).then_some(sum)
}

fn local_time(unix: i64) -> Option<libc::tm> {
    // SAFETY: all zeros is a valid `tm` (integers, and a null pointer that is not read here).
    let mut time: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to values that outlive the call.
    (!unsafe { libc::localtime_r(&raw const unix, &raw mut time) }.is_null()).then_some(time)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn read(path: &Path) -> Option<String> {
    use std::io::Read;
    let mut text = Vec::new();
    fs::File::open(path).ok()?.take(MOST_BYTES).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn modified(path: &Path) -> Option<i64> {
    let time = fs::metadata(path).ok()?.modified().ok()?;
    i64::try_from(time.duration_since(std::time::UNIX_EPOCH).ok()?.as_micros()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-01-05T10:00Z, a Monday. The tests' machine may be in any zone: only days are asked for.
    const MONDAY: i64 = 1_767_607_200_000_000;
    const DAY: i64 = 86_400_000_000;

    #[test]
    fn what_did_not_fire_is_named() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (name, schedule) in [
            ("often", "OnUnitActiveSec=15min"),
            ("rare", "OnUnitActiveSec=1month"),
            ("nightly", "OnCalendar=*-*-* 02:30:00"),
            ("first", "OnCalendar=monthly"),
            ("odd", "OnCalendar=Mon..Fri *-*-01..07 sunset"),
        ] {
            put(&format!("usr/lib/systemd/system/{name}.timer"), &format!("[Timer]\n{schedule}\n"));
            put(&format!("etc/systemd/system/timers.target.wants/{name}.timer"), "");
        }
        put(
            "etc/crontab",
            "SHELL=/bin/sh\n17 * * * * root cd / && run-parts /etc/cron.hourly\n47 6 1 * * root test -x /usr/sbin/anacron || run-parts /etc/cron.monthly\n",
        );
        put("etc/cron.monthly/report\x1b[2J", "");
        put(
            "etc/cron.d/backup",
            "MAILTO=root\n5 4 * * sun backup /usr/bin/backup\x1b[2J\n*/10 * * * * root /usr/bin/often\n@reboot root /usr/bin/boot\n",
        );
        // Two days from Monday.
        let found = not_fired(root.path(), &Watched::without(MONDAY, MONDAY + 2 * DAY, &[]));
        assert_eq!(found.timers, ["first.timer (monthly)", "rare.timer (1month)"]);
        assert_eq!(found.unclear, ["odd.timer (Mon..Fri *-*-01..07 sunset)", "/etc/cron.d/backup:4 (/usr/bin/boot)"]);
        assert_eq!(
            found.jobs,
            ["/etc/cron.d/backup:2 (/usr/bin/backup\x1b[2J)"],
            "a name that run-parts passes over is no job"
        );
        assert!(found.lines().iter().all(|line| !line.contains('\x1b')), "{:?}", found.lines());
        assert!(
            found.lines().last().unwrap().starts_with("3 of 8 timers and cron jobs that were found were due"),
            "{found:?}"
        );
        let none = not_fired(Path::new("/nonexistent"), &Watched::without(0, 1, &[]));
        assert_eq!(none.lines(), ["No timer and no cron job was found on this host."]);
    }

    fn image(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn what_fired_while_guard_did_not_run_is_not_in_the_records() {
        let root = image(&[
            ("etc/systemd/system/timers.target.wants/noon.timer", ""),
            ("etc/systemd/system/noon.timer", "[Timer]\nOnCalendar=*-*-* *:00\n"),
            ("etc/systemd/system/timers.target.wants/daily.timer", ""),
            ("etc/systemd/system/daily.timer", "[Timer]\nOnUnitActiveSec=1d\n"),
        ]);
        let all = not_fired(root.path(), &Watched::without(MONDAY, MONDAY + 2 * DAY, &[]));
        assert!(all.timers.is_empty() && all.unwatched_seconds == 0, "{all:?}");
        // Half an hour is watched, in which no hour begins; and then the rest of the second day, but for its first 20 hours.
        let half = Watched::without(MONDAY + MINUTE_US, MONDAY + 31 * MINUTE_US, &[]);
        assert_eq!(not_fired(root.path(), &half).timers, ["daily.timer (1d)", "noon.timer (*-*-* *:00)"]);
        let gaps = [(MONDAY + 31 * MINUTE_US, MONDAY + DAY * 3 / 2)];
        let holed = not_fired(root.path(), &Watched::without(MONDAY, MONDAY + 2 * DAY, &gaps));
        assert_eq!(holed.timers, ["daily.timer (1d)"]);
        assert_eq!(holed.unwatched_seconds, 36 * 3600 - 31 * 60);
        assert!(holed.lines()[0].starts_with("guard did not run for"), "{:?}", holed.lines());
        let stamp = root.path().join("var/lib/systemd/timers/stamp-daily.timer");
        fs::create_dir_all(stamp.parent().unwrap()).unwrap();
        fs::File::create(&stamp).unwrap();
        let now = modified(&stamp).unwrap();
        assert!(not_fired(root.path(), &Watched::without(now - DAY / 4, now + DAY / 4, &[])).timers.is_empty());
        let gap = [(now - DAY / 8, now + DAY / 8)];
        assert_eq!(not_fired(root.path(), &Watched::without(now - DAY / 4, now + DAY / 4, &gap)).timers.len(), 1);
    }

    #[test]
    fn a_year_is_looked_at_whole() {
        let root = image(&[("etc/crontab", "30 4 1 4 * root /usr/bin/yearly\n5 5 29 2 * root /usr/bin/leap\n")]);
        let year = not_fired(root.path(), &Watched::without(MONDAY, MONDAY + 365 * DAY, &[]));
        assert_eq!(year.jobs, ["/etc/crontab:2 (/usr/bin/leap)"], "2026 has no 29 February");
        let quarter = not_fired(root.path(), &Watched::without(MONDAY, MONDAY + 80 * DAY, &[]));
        assert_eq!(quarter.jobs.len(), 2);
        // Every minute alone says the same as days and hours that are passed over.
        for schedule in ["* * * * *", "59 23 31 12 *", "0 0 1 * 1", "17 * 3 * *"].map(|text| {
            let words: Vec<&str> = text.split(' ').collect();
            Schedule::parse([words[0], words[1], words[2], words[3], words[4]]).unwrap()
        }) {
            for days in 0..60 {
                let (first, last) = (MONDAY + days * DAY * 6, MONDAY + days * DAY * 6 + DAY * 3 / 2);
                let each = (first / MINUTE_US + 1..=last / MINUTE_US)
                    .any(|minute| local_time(minute * 60).is_some_and(|time| schedule.matches(&time)));
                assert_eq!(schedule.fires(&Watched::without(first, last, &[])), each, "{schedule:?} {days}");
            }
        }
    }

    #[test]
    fn drop_ins_users_and_masks_count() {
        let root = image(&[
            ("usr/lib/systemd/system/timers.target.wants/apt.timer", ""),
            ("usr/lib/systemd/system/apt.timer", "[Timer]\nOnCalendar=*-*-* *:00\nOnBootSec=5min\n"),
            ("usr/lib/systemd/system/apt.timer.d/10-x.conf", "[Timer]\nOnCalendar=hourly\n"),
            ("etc/systemd/system/apt.timer.d/10-x.conf", "[Timer]\nOnCalendar=\nOnCalendar=yearly\n"),
            ("etc/systemd/system/timers.target.wants/off.timer", ""),
            ("usr/lib/systemd/user/timers.target.wants/clean.timer", ""),
            ("usr/lib/systemd/user/clean.timer", "[Timer]\nOnCalendar=hourly\n"),
            ("home/kim/.config/systemd/user/timers.target.wants/sync.timer", ""),
            ("home/kim/.config/systemd/user/sync.timer", "[Timer]\nOnCalendar=yearly\n"),
            ("etc/systemd/system/timers.target.wants/each@db.timer", ""),
            ("usr/lib/systemd/system/each@.timer", "[Timer]\nOnCalendar=yearly\n"),
        ]);
        std::os::unix::fs::symlink("/dev/null", root.path().join("etc/systemd/system/off.timer")).unwrap();
        let found = not_fired(root.path(), &Watched::without(MONDAY, MONDAY + 2 * DAY, &[]));
        assert_eq!(found.timers, ["apt.timer (yearly)", "each@db.timer (yearly)", "sync.timer of kim (yearly)"]);
        assert_eq!(found.unclear, ["clean.timer of every user (hourly), if its manager ran"]);
        assert_eq!(found.found, 4);
    }

    #[test]
    fn what_anacron_runs_is_told_by_its_stamps() {
        let root = image(&[
            ("usr/sbin/anacron", ""),
            (
                "etc/anacrontab",
                "SHELL=/bin/sh\n1 5 cron.daily run-parts --report /etc/cron.daily\n@monthly 15 own /usr/bin/own\n7 9 gone /usr/bin/gone\n",
            ),
            ("etc/crontab", "25 6 * * * root test -x /usr/sbin/anacron || run-parts --report /etc/cron.daily\n"),
            ("etc/cron.daily/backup", ""),
            ("etc/cron.daily/0anacron", ""),
            ("var/spool/anacron/cron.daily", "20260106\n"),
            ("var/spool/anacron/own", "20260101\n"),
        ]);
        // The whole of the 6th, wherever the machine is.
        let found = not_fired(root.path(), &Watched::without(MONDAY - DAY, MONDAY + 3 * DAY, &[]));
        assert_eq!(found.jobs, ["/etc/anacrontab:3 (/usr/bin/own)", "/etc/anacrontab:4 (/usr/bin/gone)"]);
        assert!(found.unclear.is_empty() && found.found == 3, "{found:?}");
        let later = not_fired(root.path(), &Watched::without(MONDAY + 5 * DAY, MONDAY + 6 * DAY, &[]));
        assert_eq!(later.jobs.len(), 3);
        // It ran after what is looked at: before that, who knows.
        let before = not_fired(root.path(), &Watched::without(MONDAY - 20 * DAY, MONDAY - 19 * DAY, &[]));
        assert_eq!(before.unclear.len(), 2);
    }

    #[test]
    fn schedules_are_read() {
        assert_eq!(seconds("1h 30min"), Some(5400));
        assert_eq!(seconds("soon"), None);
        assert_eq!(set("*/15", 0, 59, &[]), Some(1 | 1 << 15 | 1 << 30 | 1 << 45));
        assert_eq!(set("1-5,mon", 0, 7, &days()), Some(0b11_1110));
        assert_eq!(set("61", 0, 59, &[]), None);
        assert_eq!(calendar("Mon..Fri 06:00").map(|schedule| schedule.weekdays), Some(0b11_1110));
        assert_eq!(Schedule::parse(["0", "0", "*", "*", "7"]).map(|schedule| schedule.weekdays & 1), Some(1));
    }

    proptest::proptest! {
        #[test]
        fn any_line_does_no_harm(line in ".{0,80}") {
            let _ = crontab_line(&line, true);
            let _ = anacrontab_line(&line);
            let _ = day_of(&line);
            let _ = calendar(&line);
            let _ = seconds(&line);
            let mut times = Times::default();
            times.read(&format!("OnCalendar={line}\nOnUnitActiveSec={line}"));
            let _ = times.fired(&Watched::without(MONDAY, MONDAY + DAY, &[]));
        }
    }
}
