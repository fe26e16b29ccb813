//! RFC 3339 times. Pure.

use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};

/// UTC with microseconds.
#[must_use]
pub(crate) fn utc(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Parses a time in any time zone.
#[must_use]
pub(crate) fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    DateTime::parse_from_rfc3339(text).ok().map(SystemTime::from)
}
