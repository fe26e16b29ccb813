//! Messages to systemd (`sd_notify(3)`): readiness, and the watchdog. Without systemd they go nowhere.

use std::time::Duration;

use sd_notify::NotifyState;

/// Interval of the watchdog's messages, half of what the unit allows; `None` without a watchdog.
#[must_use]
pub(super) fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|allowed| allowed / 2).filter(|interval| !interval.is_zero())
}

/// The tracer is attached and the socket is open.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The loop of the node is alive.
pub(super) fn watchdog() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("cannot notify systemd: {error}");
    }
}
