//! Timers and cron jobs of this host that did not fire in the period that was watched: what they do is not in the records.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::text::escape_line;

/// Minutes that are looked at: 35 days.
const MOST_MINUTES: i64 = 35 * 24 * 60;
const MINUTE_US: i64 = 60_000_000;
/// Bytes of one file that are read.
const MOST_BYTES: u64 = 1 << 20;

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
        if lines.is_empty() {
            lines.push("Every timer and cron job that was found fired in this period.".to_owned());
        }
        lines
    }
}

/// Looks below `root` (`/`, or an image of a host). Times in Unix microseconds.
#[must_use]
pub fn not_fired(root: &Path, first: i64, last: i64) -> NotFired {
    let mut found = NotFired::default();
    systemd(root, first, last, &mut found);
    cron(root, first, last, &mut found);
    found
}

/// Enabled timers: those that a `timers.target.wants` points at.
fn systemd(root: &Path, first: i64, last: i64, found: &mut NotFired) {
    let mut names = BTreeSet::new();
    for folder in ["etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system", "run/systemd/system"] {
        for entry in entries(&root.join(folder).join("timers.target.wants")) {
            if let Some(name) = entry.file_name().and_then(|name| name.to_str())
                && name.ends_with(".timer")
            {
                names.insert(name.to_owned());
            }
        }
    }
    for name in names {
        let folders = ["etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];
        let Some(text) = folders.iter().find_map(|folder| read(&root.join(folder).join(&name))) else {
            found.unclear.push(format!("{name} (its file cannot be read)"));
            continue;
        };
        // Persistent timers leave a stamp of their last run.
        let stamp = root.join("var/lib/systemd/timers").join(format!("stamp-{name}"));
        if modified(&stamp).is_some_and(|time| (first..=last).contains(&time)) {
            continue;
        }
        let value = |key: &'static str| {
            text.lines()
                .filter_map(move |line| line.trim().strip_prefix(key)?.trim_start().strip_prefix('='))
                .map(str::trim)
        };
        let calendars: Vec<&str> = value("OnCalendar").filter(|text| !text.is_empty()).collect();
        let every: Vec<&str> = value("OnUnitActiveSec").chain(value("OnUnitInactiveSec")).collect();
        let schedule: Vec<&str> = calendars.iter().chain(&every).copied().collect();
        let shown =
            format!("{name} ({})", if schedule.is_empty() { "at boot".to_owned() } else { schedule.join("; ") });
        let fired: Option<bool> = if calendars.is_empty() {
            match every.iter().filter_map(|text| seconds(text)).min() {
                Some(seconds) => Some(seconds.saturating_mul(1_000_000) <= last - first),
                None => Some(false),
            }
        } else {
            let parsed: Vec<Option<Schedule>> = calendars.iter().map(|text| calendar(text)).collect();
            let hit = parsed.iter().flatten().any(|schedule| schedule.fires(first, last));
            if hit {
                Some(true)
            } else if parsed.iter().any(Option::is_none) {
                None
            } else {
                Some(false)
            }
        };
        match fired {
            Some(true) => {}
            Some(false) => found.timers.push(shown),
            None => found.unclear.push(shown),
        }
    }
}

fn cron(root: &Path, first: i64, last: i64, found: &mut NotFired) {
    let mut files: Vec<(PathBuf, bool)> = vec![(root.join("etc/crontab"), true)];
    files.extend(entries(&root.join("etc/cron.d")).into_iter().map(|path| (path, true)));
    files.extend(entries(&root.join("var/spool/cron/crontabs")).into_iter().map(|path| (path, false)));
    let mut by_folder: BTreeSet<&'static str> = BTreeSet::new();
    for (path, has_user) in files {
        let Some(text) = read(&path) else { continue };
        let shown = path.strip_prefix(root).map_or_else(|_| path.clone(), |below| Path::new("/").join(below));
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((schedule, command)) = crontab_line(line, has_user) else { continue };
            let folders = ["cron.hourly", "cron.daily", "cron.weekly", "cron.monthly"];
            let runs = folders.iter().find(|folder| command.contains(&format!("/etc/{folder}")));
            let fired = schedule.as_ref().map(|schedule| schedule.fires(first, last));
            let Some(folder) = runs else {
                let one = format!("{}:{number} ({})", shown.display(), short(command));
                match fired {
                    Some(true) => {}
                    Some(false) => found.jobs.push(one),
                    None => found.unclear.push(one),
                }
                continue;
            };
            by_folder.insert(folder);
            if fired != Some(true) {
                let scripts = entries(&root.join("etc").join(folder));
                let names: Vec<String> = scripts
                    .iter()
                    .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
                    .filter(|name| name != ".placeholder")
                    .collect();
                if !names.is_empty() {
                    found.jobs.push(format!("/etc/{folder} ({})", short(&names.join(", "))));
                }
            }
        }
    }
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

    /// Whether it fires between two times.
    fn fires(&self, first: i64, last: i64) -> bool {
        let begin = first.div_euclid(MINUTE_US) + 1;
        let end = last.div_euclid(MINUTE_US).min(begin.saturating_add(MOST_MINUTES));
        (begin..=end).any(|minute| local_time(minute * 60).is_some_and(|time| self.matches(&time)))
    }

    fn matches(&self, time: &libc::tm) -> bool {
        let has = |set: u64, value: i32| u32::try_from(value).is_ok_and(|value| value < 64 && set & 1 << value != 0);
        let (day, weekday) = (has(self.days, time.tm_mday), has(self.weekdays, time.tm_wday));
        has(self.minutes, time.tm_min)
            && has(self.hours, time.tm_hour)
            && has(self.months, time.tm_mon + 1)
            && if self.either_day { day || weekday } else { day && weekday }
    }
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
            "MAILTO=root\n5 4 * * sun backup /usr/bin/backup\n*/10 * * * * root /usr/bin/often\n@reboot root /usr/bin/boot\n",
        );
        // Two days from Monday.
        let found = not_fired(root.path(), MONDAY, MONDAY + 2 * DAY);
        assert_eq!(found.timers, ["first.timer (monthly)", "rare.timer (1month)"]);
        assert_eq!(found.unclear, ["odd.timer (Mon..Fri *-*-01..07 sunset)", "/etc/cron.d/backup:4 (/usr/bin/boot)"]);
        assert_eq!(found.jobs[1..], ["/etc/cron.d/backup:2 (/usr/bin/backup)"]);
        assert!(found.lines().iter().all(|line| !line.contains('\x1b')), "{:?}", found.lines());
        let none = not_fired(Path::new("/nonexistent"), 0, 1);
        assert_eq!(none.lines(), ["Every timer and cron job that was found fired in this period."]);
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
            let _ = calendar(&line);
            let _ = seconds(&line);
        }
    }
}
