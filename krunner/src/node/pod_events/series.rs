//! When to announce the kills in a container. Pure: the time is passed in.
//!
//! The first kill of a series is announced at once. Further ones are counted, and announced together after a pause that doubles from
//! [`FIRST_PAUSE`] to [`LONGEST_PAUSE`]. A series ends when nothing happened for [`SERIES_END`]; the next kill is a first one again.
//!
//! All containers share a budget of [`BURST`] Events that refills at [`PER_SECOND`], far below what an API server takes from a node
//! (the kubelet's own default is 50 a second). Who waited longest comes first.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::announcement::{Announcement, DueAnnouncement, PodContainer};

/// Between the first Event of a series and the second.
const FIRST_PAUSE: Duration = Duration::from_mins(1);

/// Between two Events of a long series. An Event is kept for an hour (`--event-ttl` of the API server).
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// As in client-go, which ends a series that was not updated for 6 minutes (`finishTime`, tools/events); here it must be more than
/// the longest pause.
const SERIES_END: Duration = Duration::from_mins(15);

/// Events of the node in a row.
const BURST: u32 = 50;

/// Events per second after that.
const PER_SECOND: u32 = 2;

/// Containers with a series; more than a node has pods.
const MAX_SERIES: usize = 1024;

/// The series of all containers.
#[derive(Debug)]
pub(super) struct PodSeries {
    series: BTreeMap<PodContainer, ContainerSeries>,
    budget: EventBudget,
}

#[derive(Debug)]
struct ContainerSeries {
    killed: u64,
    /// Those of them that no Event has counted.
    unannounced: u64,
    /// The first kill.
    since: SystemTime,
    /// The first and the last of those that no Event has counted.
    first: SystemTime,
    last: SystemTime,
    /// About the first of those that no Event has counted: a kill loop costs no more than its counts.
    summary: String,
    /// When the next Event may be sent.
    due: Instant,
    pause: Duration,
    last_kill: Instant,
}

#[derive(Debug)]
struct EventBudget {
    events: f64,
    filled: Instant,
}

impl PodSeries {
    pub(super) fn new(now: Instant) -> Self {
        Self { series: BTreeMap::new(), budget: EventBudget { events: f64::from(BURST), filled: now } }
    }

    /// Counts a kill. Returns whether that cost no announcement: beyond [`MAX_SERIES`] containers that all wait, the oldest is dropped.
    pub(super) fn add(
        &mut self,
        container: PodContainer,
        victims: u64,
        at: SystemTime,
        summary: impl FnOnce() -> String,
        now: Instant,
    ) -> bool {
        self.remove_ended(now);
        let is_full = self.series.len() >= MAX_SERIES && !self.series.contains_key(&container);
        let dropped = if is_full { self.remove_oldest() } else { None };
        let series = self.series.entry(container).or_insert_with(|| ContainerSeries {
            killed: 0,
            unannounced: 0,
            since: at,
            first: at,
            last: at,
            summary: String::new(),
            due: now,
            pause: FIRST_PAUSE,
            last_kill: now,
        });
        if series.unannounced == 0 {
            (series.first, series.summary) = (at, summary());
        }
        series.killed = series.killed.saturating_add(victims);
        series.unannounced = series.unannounced.saturating_add(victims);
        (series.last, series.last_kill) = (at, now);
        dropped.is_none_or(|dropped| dropped.unannounced == 0)
    }

    /// The announcement that has waited longest, if one is due and the budget allows it.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<DueAnnouncement> {
        let waiting = self.series.iter_mut().filter(|(_, series)| series.unannounced > 0 && series.due <= now);
        let (container, series) = waiting.min_by_key(|(_, series)| series.due)?;
        self.budget.take(now)?;
        let announcement = series.announce(now);
        Some(DueAnnouncement { container: container.clone(), announcement })
    }

    /// All that is not announced, whether due or not: there is no later.
    pub(super) fn take_all(&mut self, now: Instant) -> Vec<DueAnnouncement> {
        let waiting = self.series.iter_mut().filter(|(_, series)| series.unannounced > 0);
        waiting
            .map(|(container, series)| DueAnnouncement {
                container: container.clone(),
                announcement: series.announce(now),
            })
            .collect()
    }

    fn remove_ended(&mut self, now: Instant) {
        let has_ended = |series: &ContainerSeries| series.unannounced == 0 && now - series.last_kill >= SERIES_END;
        self.series.retain(|_, series| !has_ended(series));
    }

    /// Rather one that is announced than one that is not.
    fn remove_oldest(&mut self) -> Option<ContainerSeries> {
        let oldest = self.series.iter().min_by_key(|(_, series)| (series.unannounced > 0, series.last_kill));
        let container = oldest.map(|(container, _)| container.clone())?;
        self.series.remove(&container)
    }
}

impl ContainerSeries {
    fn announce(&mut self, now: Instant) -> Announcement {
        self.due = now + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Announcement {
            new: std::mem::take(&mut self.unannounced),
            first: self.first,
            last: self.last,
            summary: self.summary.clone(),
            killed: self.killed,
            since: self.since,
        }
    }
}

impl EventBudget {
    fn take(&mut self, now: Instant) -> Option<()> {
        let earned = (now - self.filled).as_secs_f64() * f64::from(PER_SECOND);
        self.events = (self.events + earned).min(f64::from(BURST));
        self.filled = now;
        (self.events >= 1.0).then(|| self.events -= 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(number: usize) -> PodContainer {
        let [namespace, pod_uid, container] = ["shop", "0b1f", "web"].map(str::to_owned);
        PodContainer { namespace, pod: format!("web-{number}"), pod_uid, container }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    struct Trial {
        series: PodSeries,
        start: Instant,
    }

    impl Trial {
        fn new() -> Self {
            let start = Instant::now();
            Self { series: PodSeries::new(start), start }
        }

        fn kill(&mut self, number: usize, second: u64) {
            let now = self.start + Duration::from_secs(second);
            self.series.add(container(number), 1, at(second), || format!("kill at {second}"), now);
        }

        /// New and all kills of each announcement at this second.
        fn due(&mut self, second: u64) -> Vec<(u64, u64)> {
            let now = self.start + Duration::from_secs(second);
            std::iter::from_fn(|| self.series.next_due(now))
                .map(|DueAnnouncement { announcement, .. }| (announcement.new, announcement.killed))
                .collect()
        }
    }

    /// One kill a second for an hour.
    #[test]
    fn a_kill_loop_is_announced_at_once_and_then_seldom_and_whole() {
        let mut trial = Trial::new();
        let mut announced = Vec::new();
        for second in 0..3600 {
            trial.kill(0, second);
            announced.extend(trial.due(second).into_iter().map(|counts| (second, counts)));
        }
        let seconds: Vec<u64> = announced.iter().map(|(second, _)| *second).collect();
        assert_eq!(seconds, [0, 60, 180, 420, 900, 1500, 2100, 2700, 3300]);
        for (second, (_, killed)) in &announced {
            assert_eq!(*killed, second + 1);
        }
        assert_eq!(announced.iter().map(|(_, (new, _))| new).sum::<u64>(), 3301);
        assert_eq!(trial.due(3900), [(299, 3600)], "the rest, after the last kill");
        assert_eq!(trial.due(36_000), []);
    }

    #[test]
    fn a_kill_after_a_long_time_begins_a_series() {
        let mut trial = Trial::new();
        trial.kill(0, 0);
        assert_eq!(trial.due(0), [(1, 1)]);
        trial.kill(0, 30);
        assert_eq!(trial.due(59), []);
        assert_eq!(trial.due(60), [(1, 2)]);
        trial.kill(0, 61);
        let rest = trial.series.take_all(trial.start + Duration::from_secs(61));
        let rest: Vec<_> = rest.iter().map(|rest| (rest.announcement.new, rest.announcement.first)).collect();
        assert_eq!(rest, [(1, at(61))], "at the end");
        trial.kill(0, 61 + SERIES_END.as_secs());
        assert_eq!(trial.due(61 + SERIES_END.as_secs()), [(1, 1)]);
    }

    #[test]
    fn the_budget_is_shared_and_nothing_is_lost_by_it() {
        let mut trial = Trial::new();
        for number in 0..200 {
            trial.kill(number, 0);
        }
        assert_eq!(trial.due(0).len(), BURST as usize);
        assert_eq!(trial.due(1).len(), PER_SECOND as usize);
        let rest: usize = (2..100).map(|second| trial.due(second).len()).sum();
        assert_eq!(rest, 200 - BURST as usize - PER_SECOND as usize);
    }

    #[test]
    fn series_are_bounded_and_those_that_wait_are_kept() {
        let mut trial = Trial::new();
        for number in 0..BURST as usize {
            trial.kill(number, 0);
        }
        trial.due(0);
        for number in 0..MAX_SERIES {
            trial.kill(1000 + number, 1);
        }
        assert_eq!(trial.series.series.len(), MAX_SERIES);
        assert!(trial.series.series.values().all(|series| series.unannounced == 1));
    }
}
