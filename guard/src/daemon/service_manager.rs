//! What the service manager is told, where one started this (sd_notify(3)); without one nobody is.

use sd_notify::{NotifyState, notify};

/// It is true from here on: what waits for guard may rely on it.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&in_one_line(status))]);
}

/// A reload begins; [`ready`] ends it, whatever came of it. With `Type=notify-reload` systemd waits for that, and knows by
/// the time that it is about the signal it sent.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!("no monotonic clock: {error}"),
    }
}

pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = notify(false, states) {
        tracing::debug!("the service manager was not told: {error}");
    }
}

/// A line break would begin another assignment.
fn in_one_line(text: &str) -> String {
    crate::text::harmless(text.lines().next().unwrap_or_default())
}
