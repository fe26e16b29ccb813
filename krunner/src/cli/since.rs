//! A time on the command line: so long ago, or an RFC 3339 time. Pure.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use crate::monitor::parse_rfc3339;

/// A point in time given as an RFC 3339 time or a duration ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    /// So long ago.
    Ago(Duration),
    /// At this time.
    At(SystemTime),
}

impl Since {
    /// The moment as a time of day.
    pub(super) fn time(self, now: SystemTime) -> SystemTime {
        match self {
            Self::Ago(ago) => now.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH),
            Self::At(time) => time,
        }
    }
}

impl FromStr for Since {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ago = duration(text).map(Self::Ago);
        ago.or_else(|| parse_rfc3339(text).map(Self::At))
            .ok_or("expected a duration as 90s, 15m, 2h, 7d or 1h30m, or an RFC 3339 time as 2026-11-27T09:00:00Z")
    }
}

/// Numbers, each with its unit.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = None;
    while !rest.is_empty() {
        let digits = rest.find(|character: char| !character.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let seconds = match rest.as_bytes()[digits] {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            _ => return None,
        };
        let part = Duration::from_secs(number.checked_mul(seconds)?);
        sum = Some(sum.unwrap_or(Duration::ZERO).checked_add(part)?);
        rest = &rest[digits + 1..];
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_times_are_understood() {
        let seconds = |text: &str| match text.parse() {
            Ok(Since::Ago(ago)) => Some(ago.as_secs()),
            _ => None,
        };
        assert_eq!(
            (seconds("90s"), seconds("2h"), seconds("1h30m"), seconds("7d")),
            (Some(90), Some(7200), Some(5400), Some(604_800))
        );
        for text in ["", "2", "h", "2 h", "-2h", "2w", "99999999999999999999s", "18446744073709551615d", "2ü"] {
            assert!(text.parse::<Since>().is_err(), "{text:?}");
        }
        let at = Since::At(SystemTime::UNIX_EPOCH + Duration::from_hours(1));
        assert_eq!("1970-01-01T01:00:00Z".parse(), Ok(at));
        assert_eq!("1970-01-01T03:00:00+02:00".parse(), Ok(at));
    }
}
