//! Times on the command line, as people write them.

use crate::record::clock::unix_now;

/// Now, as Unix time in microseconds.
#[must_use]
pub fn now_us() -> i64 {
    i64::try_from(unix_now() / 1000).unwrap_or(0)
}

/// A time in UTC, or an age. Unix time in microseconds.
pub fn past(text: &str) -> Result<i64, String> {
    time(text, -1)
}

/// A time in UTC, or one that lies so long before (`sign` -1) or after now. Unix time in microseconds.
pub fn time(text: &str, sign: i64) -> Result<i64, String> {
    let age = text.find(|c: char| !c.is_ascii_digit()).filter(|&at| at > 0).and_then(|at| {
        let unit: i64 = match &text[at..] {
            "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            "d" => 86_400,
            "w" => 7 * 86_400,
            _ => return None,
        };
        text[..at].parse::<i64>().ok()?.checked_mul(unit)?.checked_mul(1_000_000)
    });
    if let Some(age) = age {
        return now_us().checked_add(sign * age).ok_or_else(|| "too far away".to_owned());
    }
    let whole = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        _ if text.ends_with('Z') || text.rfind('+').is_some() => text.replacen(' ', "T", 1),
        _ => format!("{}Z", text.replacen(' ', "T", 1)),
    };
    let parsed = whole.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_microsecond);
    parsed.map_err(|_| "write a time (2026-01-02, 2026-01-02T03:04Z) or an age (90min, 12h, 7d)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_ages_are_read() {
        assert_eq!(past("2026-01-02T03:04Z"), Ok(1_767_323_040_000_000));
        assert_eq!(past("2026-01-02 03:04"), Ok(1_767_323_040_000_000));
        assert_eq!(past("2026-01-02"), Ok(1_767_312_000_000_000));
        assert!((past("2h").unwrap() - now_us() + 7_200_000_000).abs() < 1_000_000);
        assert!((time("7d", 1).unwrap() - now_us() - 7 * 86_400_000_000).abs() < 1_000_000);
        for bad in ["", "7", "yesterday", "99999999999999999999d", "d"] {
            assert!(past(bad).is_err(), "{bad}");
        }
    }
}
