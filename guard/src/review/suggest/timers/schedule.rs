//! When a job's time comes: cron's five fields, and the common forms of systemd.time(7).

use super::Watched;

/// Days that are looked at: 20 years.
const MOST_DAYS: i64 = 20 * 366;
pub(super) const MINUTE_US: i64 = 60_000_000;
const DAY_S: i64 = 86_400;

/// As cron has it, in local time; bit n stands for n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
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
    pub(super) fn parse([minute, hour, day, month, weekday]: [&str; 5]) -> Option<Self> {
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
    pub(super) fn fires(&self, watched: &Watched) -> bool {
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

    pub(super) fn matches(&self, time: &libc::tm) -> bool {
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
pub(super) fn calendar(text: &str) -> Option<Schedule> {
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
pub(super) fn seconds(text: &str) -> Option<i64> {
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

pub(super) fn local_time(unix: i64) -> Option<libc::tm> {
    // SAFETY: all zeros is a valid `tm` (integers, and a null pointer that is not read here).
    let mut time: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to values that outlive the call.
    (!unsafe { libc::localtime_r(&raw const unix, &raw mut time) }.is_null()).then_some(time)
}

/// `20260105` as a day in local time: its first and its last microsecond.
pub(super) fn day_of(stamp: &str) -> Option<(i64, i64)> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
