//! Which connection gives its place to a new one.

use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// A connection with bytes to receive or to send that moved none for so long is not in use.
const STALLED: Duration = Duration::from_secs(5);

/// How far a connection got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Its handshake is not complete.
    Handshake,
    /// It carried no message.
    Unused,
    /// It carried messages.
    Used,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Handshake => "did not complete its handshake",
            Self::Unused => "carried no message",
            Self::Used => "is idle",
        })
    }
}

/// The stage of a connection, shared by its task and the listener.
#[derive(Debug, Clone, Default)]
pub(super) struct ConnectionUse(Arc<AtomicU8>);

impl ConnectionUse {
    pub(super) fn handshake_done(&self) {
        self.0.fetch_max(1, Ordering::Relaxed);
    }

    pub(super) fn message_passed(&self) {
        self.0.fetch_max(2, Ordering::Relaxed);
    }

    pub(super) fn stage(&self) -> Stage {
        match self.0.load(Ordering::Relaxed) {
            0 => Stage::Handshake,
            1 => Stage::Unused,
            _ => Stage::Used,
        }
    }
}

/// What decides whether a connection has to give way.
#[derive(Debug, Clone, Copy)]
pub(super) struct EvictionCandidate {
    pub(super) stage: Stage,
    /// Since the last byte in any direction.
    pub(super) idle: Duration,
    /// Bytes arrived that were not read, or were sent and not acknowledged.
    pub(super) has_traffic: bool,
}

impl EvictionCandidate {
    fn is_evictable(&self) -> bool {
        self.stage == Stage::Handshake || !self.has_traffic || self.idle >= STALLED
    }
}

/// The connection of the lowest stage that has been idle for longest, unless all are in use. At one stage, those without
/// bytes under way come first.
pub(super) fn least_needed(candidates: impl Iterator<Item = (u64, EvictionCandidate)>) -> Option<u64> {
    let evictable = candidates.filter(|(_, candidate)| candidate.is_evictable());
    let (id, _) = evictable.min_by_key(|(_, one)| (one.stage, one.has_traffic, Reverse(one.idle)))?;
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(stage: Stage, idle_seconds: u64, has_traffic: bool) -> EvictionCandidate {
        EvictionCandidate { stage, idle: Duration::from_secs(idle_seconds), has_traffic }
    }

    fn evicted(candidates: &[EvictionCandidate]) -> Option<u64> {
        least_needed((0..).zip(candidates.iter().copied()))
    }

    #[test]
    fn handshakes_go_first_then_the_unused_then_the_idle() {
        let (handshake, unused, used) = (Stage::Handshake, Stage::Unused, Stage::Used);
        let all = [candidate(used, 900, false), candidate(unused, 90, false), candidate(handshake, 0, true)];
        assert_eq!(evicted(&all), Some(2));
        assert_eq!(evicted(&all[..2]), Some(1));
        assert_eq!(evicted(&all[..1]), Some(0));
    }

    #[test]
    fn the_longest_idle_of_a_stage_goes() {
        let all = [1, 3, 2].map(|idle| candidate(Stage::Used, idle, false));
        assert_eq!(evicted(&all), Some(1));
    }

    #[test]
    fn none_with_moving_traffic_goes() {
        let busy = candidate(Stage::Used, 1, true);
        assert_eq!(evicted(&[busy, candidate(Stage::Unused, 1, true)]), None);
        assert_eq!(evicted(&[busy, candidate(Stage::Used, 0, false)]), Some(1));
        assert_eq!(evicted(&[busy, candidate(Stage::Used, 60, true)]), Some(1), "it stalled");
    }
}
