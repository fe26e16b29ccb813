//! The counts of killed processes by label set, as each Prometheus server has to see them. Pure: the time is passed in.
//!
//! `increase` and `rate` count from the first sample of a series, so a series that begins with 1 shows no increase. Most
//! containers are not known before their first kill, so no count of theirs could have begun with 0 by then. Instead, a server
//! gets a new series with 0 at its first scrape of it, and with the count from the next one on. This is kept for each
//! server, because there may be two of them for redundancy. A server that is new gets the counts as they are, since these
//! kills may be from before its time, unless the node itself is new as well ([`NEW_NODE`]).
//!
//! At most [`MAX_SERIES`] sets of labels exist. Then the one whose last kill is the oldest is removed, if that was so long ago
//! that it was scraped ([`SCRAPED_AFTER`]); if it was not, the kill is counted in a set with `other` in each label.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;

/// Sets of labels: twice the containers of a large node, with two confidences.
const MAX_SERIES: usize = 1000;

/// Servers that scrape a node: a pair of them, and others for tests and tenants.
const MAX_SERVERS: usize = 16;

/// How long ago a kill was that all servers have seen: three times the longest interval at which they may scrape, because a
/// sample is valid for 5 minutes (`--query.lookback-delta`).
const SCRAPED_AFTER: Duration = Duration::from_mins(15);

/// How long a node is new: all kills that it counted are within a server's last sample (`--query.lookback-delta`).
const NEW_NODE: Duration = Duration::from_mins(5);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub(super) struct KillLabels {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) container: String,
    pub(super) confidence: String,
    pub(super) scope: String,
}

/// Counts of killed processes.
#[derive(Debug)]
pub(super) struct KillCounts {
    series: BTreeMap<KillLabels, KillSeries>,
    /// Number of the newest series.
    newest: u64,
    servers: BTreeMap<IpAddr, ScrapingServer>,
    started: Instant,
}

#[derive(Debug)]
struct KillSeries {
    kills: u64,
    number: u64,
    last_kill: Instant,
}

#[derive(Debug)]
struct ScrapingServer {
    /// Number of the newest series that it got.
    newest: u64,
    last_scrape: Instant,
}

impl KillLabels {
    fn other() -> Self {
        let [namespace, pod, container, confidence, scope] = std::array::from_fn(|_| "other".to_owned());
        Self { namespace, pod, container, confidence, scope }
    }
}

impl KillCounts {
    #[must_use]
    pub(super) fn new(now: Instant) -> Self {
        Self { series: BTreeMap::new(), newest: 0, servers: BTreeMap::new(), started: now }
    }

    /// Counts the victims of a kill.
    pub(super) fn add(&mut self, labels: KillLabels, victims: u64, now: Instant) {
        let labels =
            if self.series.contains_key(&labels) || self.make_room(now) { labels } else { KillLabels::other() };
        let series = self.series.entry(labels).or_insert_with(|| {
            self.newest += 1;
            KillSeries { kills: 0, number: self.newest, last_kill: now }
        });
        series.kills = series.kills.saturating_add(victims);
        series.last_kill = now;
    }

    /// The counts as they are.
    pub(super) fn all(&self) -> impl Iterator<Item = (&KillLabels, u64)> {
        self.since(u64::MAX)
    }

    /// The counts for a server that scrapes from this address.
    pub(super) fn scraped_by(&mut self, server: IpAddr, now: Instant) -> impl Iterator<Item = (&KillLabels, u64)> {
        let known = self.servers.get(&server).map(|server| server.newest);
        let is_new_node = now.saturating_duration_since(self.started) < NEW_NODE;
        let seen = known.unwrap_or(if is_new_node { 0 } else { self.newest });
        if known.is_none()
            && self.servers.len() >= MAX_SERVERS
            && let Some(oldest) = oldest(&self.servers, |server| server.last_scrape)
        {
            self.servers.remove(&oldest);
        }
        self.servers.insert(server, ScrapingServer { newest: self.newest, last_scrape: now });
        self.since(seen)
    }

    /// The counts; 0 for those that are newer than this number.
    fn since(&self, seen: u64) -> impl Iterator<Item = (&KillLabels, u64)> {
        self.series.iter().map(move |(labels, series)| (labels, if series.number > seen { 0 } else { series.kills }))
    }

    /// Whether there is room for one more series, after one was removed if there was none.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.series.len() < MAX_SERIES {
            return true;
        }
        let oldest = oldest(&self.series, |series| series.last_kill);
        let is_scraped = |series: &KillSeries| now.saturating_duration_since(series.last_kill) >= SCRAPED_AFTER;
        let Some(oldest) = oldest.filter(|labels| self.series.get(labels).is_some_and(is_scraped)) else {
            return false;
        };
        self.series.remove(&oldest);
        // With the set of others there may be one too many.
        self.series.len() < MAX_SERIES || self.make_room(now)
    }
}

/// The key of the value with the earliest time.
fn oldest<K: Clone + Ord, V>(map: &BTreeMap<K, V>, time: impl Fn(&V) -> Instant) -> Option<K> {
    map.iter().min_by_key(|(_, value)| time(value)).map(|(key, _)| key.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const SECOND: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    const SCRAPE: Duration = Duration::from_secs(15);

    fn labels(pod: &str) -> KillLabels {
        KillLabels { pod: pod.to_owned(), ..KillLabels::other() }
    }

    fn scrape(counts: &mut KillCounts, server: IpAddr, now: Instant) -> Vec<u64> {
        counts.scraped_by(server, now).map(|(_, kills)| kills).collect()
    }

    #[test]
    fn every_server_sees_a_series_begin_with_zero() {
        let start = Instant::now();
        let mut counts = KillCounts::new(start);
        for server in [FIRST, SECOND] {
            assert!(scrape(&mut counts, server, start).is_empty());
        }
        counts.add(labels("a"), 2, start);
        assert_eq!(scrape(&mut counts, FIRST, start), [0]);
        counts.add(labels("a"), 1, start);
        counts.add(labels("b"), 1, start);
        assert_eq!(scrape(&mut counts, FIRST, start), [3, 0]);
        assert_eq!(scrape(&mut counts, SECOND, start), [0, 0]);
        assert_eq!([scrape(&mut counts, FIRST, start), scrape(&mut counts, SECOND, start)], [[3, 1], [3, 1]]);
        assert_eq!(counts.all().map(|(_, kills)| kills).collect::<Vec<_>>(), [3, 1]);
    }

    #[test]
    fn new_server_sees_earlier_kills_as_counts_and_those_of_a_new_node_as_an_increase() {
        let start = Instant::now();
        let mut counts = KillCounts::new(start);
        counts.add(labels("a"), 1, start);
        assert_eq!(scrape(&mut counts, FIRST, start + SCRAPE), [0], "the node has just started");
        assert_eq!(scrape(&mut counts, FIRST, start + 2 * SCRAPE), [1]);
        assert_eq!(scrape(&mut counts, SECOND, start + NEW_NODE), [1], "the server has just started");
    }

    #[test]
    fn servers_are_bounded_and_the_one_that_was_gone_longest_is_forgotten() {
        let start = Instant::now();
        let mut counts = KillCounts::new(start);
        let later = start + NEW_NODE;
        for number in 0..=u8::try_from(MAX_SERVERS).unwrap() {
            scrape(&mut counts, [10, 0, 1, number].into(), later + u32::from(number) * SCRAPE);
        }
        assert_eq!(counts.servers.len(), MAX_SERVERS);
        assert!(!counts.servers.contains_key(&IpAddr::from([10, 0, 1, 0])));
    }

    #[test]
    fn label_sets_are_bounded_and_no_kill_is_lost() {
        let start = Instant::now();
        let mut counts = KillCounts::new(start);
        let kills = 2 * MAX_SERIES;
        for number in 0..kills {
            counts.add(labels(&format!("pod-{number}")), 1, start);
        }
        let all: Vec<u64> = counts.all().map(|(_, kills)| kills).collect();
        assert_eq!((all.len(), all.iter().sum::<u64>()), (MAX_SERIES + 1, kills as u64));
    }

    #[test]
    fn oldest_label_set_is_removed_once_it_was_scraped() {
        let start = Instant::now();
        let mut counts = KillCounts::new(start);
        for number in 0..MAX_SERIES {
            counts.add(
                labels(&format!("pod-{number}")),
                1,
                start + u32::try_from(number).unwrap() * Duration::from_secs(1),
            );
        }
        let has = |counts: &KillCounts, pod: &str| counts.series.contains_key(&labels(pod));
        counts.add(labels("too-early"), 1, start + SCRAPED_AFTER / 2);
        assert!(has(&counts, "pod-0") && !has(&counts, "too-early"));
        // A container that is killed again is not the oldest.
        counts.add(labels("pod-0"), 1, start + SCRAPED_AFTER);
        counts.add(labels("new"), 1, start + SCRAPED_AFTER + Duration::from_secs(2));
        assert!(has(&counts, "pod-0") && has(&counts, "new") && !has(&counts, "pod-1"));
        assert!(counts.series.len() <= MAX_SERIES);
        // It comes back as a new series.
        let later = start + 2 * SCRAPED_AFTER;
        assert_eq!(scrape(&mut counts, FIRST, later).iter().filter(|kills| **kills == 0).count(), 0);
        counts.add(labels("pod-1"), 1, later);
        assert_eq!(scrape(&mut counts, FIRST, later).iter().filter(|kills| **kills == 0).count(), 1);
    }
}
