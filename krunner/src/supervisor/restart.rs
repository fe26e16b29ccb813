//! Whether an attempt that ended is followed by another one, after which pause, and when to give up.
//!
//! Pure: the caller passes how long the child ran.

use std::time::Duration;

/// When a job starts its child again after it ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    /// It stays stopped until it is started by a request.
    Never,
    /// It is started again after a pause.
    Always(Backoff),
}

/// Pauses between attempts. They double from attempt to attempt while the child exits soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// An attempt whose child ran this long counts as healthy, and the pauses begin anew.
    pub healthy_after: Duration,
    /// The pause after a healthy attempt.
    pub after_healthy: Duration,
    /// The pause after the first attempt that was not healthy.
    pub first: Duration,
    /// The limit of the pauses.
    pub longest: Duration,
    /// After this many attempts in a row that were not healthy, no other one follows. Without a limit, pauses are not logged.
    pub limit: Option<u32>,
}

impl Backoff {
    /// No pauses and no limit, for a child that is used before it ends.
    pub(crate) const NONE: Self = Self {
        healthy_after: Duration::ZERO,
        after_healthy: Duration::ZERO,
        first: Duration::ZERO,
        longest: Duration::ZERO,
        limit: None,
    };
}

/// What follows an attempt that ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextAttempt {
    After(Duration),
    /// None: the policy restarts nothing.
    Never,
    /// None: too many in a row were not healthy.
    GiveUp,
}

/// A policy, and the attempts in a row that were not healthy.
#[derive(Debug)]
pub(super) struct Restarts {
    policy: RestartPolicy,
    unhealthy: u32,
}

impl Restarts {
    pub(super) fn new(policy: RestartPolicy) -> Self {
        Self { policy, unhealthy: 0 }
    }

    /// Whether restarts end at some point.
    pub(super) fn has_limit(&self) -> bool {
        matches!(self.policy, RestartPolicy::Always(Backoff { limit: Some(_), .. }))
    }

    /// What follows an attempt whose child ran this long.
    pub(super) fn after(&mut self, ran_for: Duration) -> NextAttempt {
        let RestartPolicy::Always(backoff) = self.policy else { return NextAttempt::Never };
        if ran_for >= backoff.healthy_after {
            self.unhealthy = 0;
            return NextAttempt::After(backoff.after_healthy);
        }
        self.unhealthy = self.unhealthy.saturating_add(1);
        if backoff.limit.is_some_and(|limit| self.unhealthy > limit) {
            return NextAttempt::GiveUp;
        }
        let factor = 2_u32.saturating_pow(self.unhealthy - 1);
        NextAttempt::After(backoff.first.saturating_mul(factor).min(backoff.longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff {
        healthy_after: Duration::from_mins(1),
        after_healthy: Duration::from_millis(5),
        first: Duration::from_secs(1),
        longest: Duration::from_mins(1),
        limit: Some(10),
    };

    fn pause(next: NextAttempt) -> u64 {
        let NextAttempt::After(pause) = next else { panic!("{next:?}") };
        pause.as_secs()
    }

    #[test]
    fn pauses_double_to_the_longest_and_end_at_the_limit() {
        let mut restarts = Restarts::new(RestartPolicy::Always(BACKOFF));
        let pauses: Vec<u64> = (0..10).map(|_| pause(restarts.after(Duration::ZERO))).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        assert_eq!(restarts.after(Duration::ZERO), NextAttempt::GiveUp);
    }

    #[test]
    fn without_a_limit_they_go_on() {
        let mut restarts = Restarts::new(RestartPolicy::Always(Backoff { limit: None, ..BACKOFF }));
        let last = (0..1000).map(|_| pause(restarts.after(Duration::ZERO))).last();
        assert_eq!(last, Some(60));
    }

    #[test]
    fn a_healthy_attempt_begins_anew() {
        let mut restarts = Restarts::new(RestartPolicy::Always(BACKOFF));
        for _ in 0..100 {
            assert_eq!(restarts.after(BACKOFF.healthy_after), NextAttempt::After(BACKOFF.after_healthy));
            assert_eq!(restarts.after(Duration::ZERO), NextAttempt::After(BACKOFF.first));
        }
    }

    #[test]
    fn nothing_is_restarted_without_a_policy_and_at_once_without_pauses() {
        assert_eq!(Restarts::new(RestartPolicy::Never).after(Duration::MAX), NextAttempt::Never);
        let mut at_once = Restarts::new(RestartPolicy::Always(Backoff::NONE));
        assert_eq!(at_once.after(Duration::ZERO), NextAttempt::After(Duration::ZERO));
    }
}
