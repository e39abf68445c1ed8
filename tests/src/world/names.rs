//! Names that tell who made a thing, so that what a killed run left can be told from what a living one uses.

use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering},
};

const PREFIX: &str = "guard-test";

/// `guard-test-<pid>-<start time>-<number>`: unique on this machine until it is started again.
#[must_use]
pub fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let pid = std::process::id();
    let start = start_time(pid).unwrap_or(0);
    format!("{PREFIX}-{pid}-{start}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Whether a test run made this, and has ended since. Names of others are never touched.
#[must_use]
pub fn is_orphan(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('-')) else { return false };
    let mut parts = rest.split('-');
    let (Some(Ok(pid)), Some(Ok(start))) = (parts.next().map(str::parse::<u32>), parts.next().map(str::parse::<u64>))
    else {
        return false;
    };
    start_time(pid) != Some(start)
}

/// Clock ticks after boot (proc(5), field 22 of `stat`): with it a pid that was given again is not mistaken.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may itself hold spaces and parentheses.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_lives_and_others_are_not_ours() {
        assert!(!is_orphan(&unique()));
        assert!(is_orphan("guard-test-1-1-0"));
        assert!(is_orphan("guard-test-4194999-5-0-server"));
        for name in ["guard-test", "guard-test-x-1-0", "guard", "default"] {
            assert!(!is_orphan(name), "{name}");
        }
        assert_ne!(unique(), unique());
    }
}
