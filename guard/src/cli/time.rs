//! Times on the command line.

use crate::record::clock::unix_now;

/// A time in UTC, or an age. Unix time in microseconds.
pub fn past(text: &str) -> Result<i64, String> {
    let fix = || "write a time (2026-01-02, 2026-01-02T03:04Z) or an age (90min, 12h, 7d)".to_owned();
    let now = i64::try_from(unix_now() / 1000).unwrap_or(0);
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let unit: Option<i64> = match &text[digits..] {
        "s" => Some(1),
        "m" | "min" => Some(60),
        "h" => Some(3600),
        "d" => Some(86_400),
        "w" => Some(604_800),
        _ => None,
    };
    if let Some(unit) = unit {
        let age = text[..digits].parse::<i64>().ok().and_then(|age| age.checked_mul(unit)?.checked_mul(1_000_000));
        return age.and_then(|age| now.checked_sub(age)).ok_or_else(fix);
    }
    let whole = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        _ if text.ends_with('Z') || text.contains('+') => text.replacen(' ', "T", 1),
        _ => format!("{}Z", text.replacen(' ', "T", 1)),
    };
    whole.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_microsecond).map_err(|_| fix())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_ages_are_read() {
        assert_eq!(past("2026-01-02T03:04Z"), Ok(1_767_323_040_000_000));
        assert_eq!(past("2026-01-02"), Ok(1_767_312_000_000_000));
        assert!(past("7d").unwrap() < past("2h").unwrap());
        for bad in ["", "7", "yesterday", "99999999999999999999d", "d"] {
            assert!(past(bad).is_err(), "{bad}");
        }
    }
}
