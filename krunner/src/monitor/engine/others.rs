//! Who is there beside the victim, and how large they are: asked when a report is made, because the history may be some
//! time old.

use super::Engine;
use crate::monitor::cgroup::CgroupFacts;
use crate::monitor::event::ProcessKey;
use crate::monitor::history::{History, Known};
use crate::monitor::process::Sizes;
use crate::monitor::report::LARGEST;

/// The largest processes among which those are sought that are still there: as many may have left since the last scan, as in
/// a large build. One look takes some 10 us; mostly the first ones are there.
const LARGEST_ASKED: usize = 256;

/// The largest processes among which one is sought that was spared. Asking about one takes some 20 us.
const COMPARED: usize = 16;

/// The youngest processes of unknown size that are looked at for a report: as many as a build starts between two looks.
const UNSEEN_ASKED: usize = 64;

/// Who is there right now.
pub(in crate::monitor) trait Present: Send + Sync {
    /// Whether this process is.
    fn has(&self, process: ProcessKey) -> bool;

    /// How large it is; `None` when it is gone or that cannot be known.
    fn sizes(&self, process: ProcessKey) -> Option<Sizes>;

    /// Whether it is charged to this cgroup, or to one below.
    fn is_charged(&self, process: ProcessKey, cgroup: &CgroupFacts) -> bool;
}

impl Engine {
    /// Who waits for the victim may end right after it, before the report: who is there now was there at the kill.
    pub(super) fn note_ancestors(&mut self, victim: ProcessKey, at_ns: u64, now_ns: u64) {
        for ancestor in self.history.chain(victim, u64::MAX) {
            match ancestor.gone_at_boot_ns {
                Some(_) => {}
                None if self.present.has(ancestor.key) => self.history.mark_present(ancestor.key, now_ns),
                None => self.history.mark_absent(ancestor.key, at_ns),
            }
        }
    }

    /// Who ended by itself did so without a word, and the snapshot may be a while ago: whoever a report is about to
    /// name beside the victim is looked for. Returns the largest that were alive at that time and did not die along with the victim.
    pub(super) fn look_for_others(&mut self, victim: ProcessKey, members: &[ProcessKey], at_ns: u64) -> Vec<Known> {
        for ancestor in self.history.chain(victim, u64::MAX) {
            self.mark_if_left(&ancestor, at_ns);
        }
        self.weigh_unseen(at_ns);
        let mut largest = Vec::new();
        for known in self.history.largest(LARGEST_ASKED, at_ns) {
            // Marked as gone after that time if it was seen later.
            if known.key != victim
                && !members.contains(&known.key)
                && !(self.mark_if_left(&known, at_ns) && self.is_gone_at(known.key, at_ns))
            {
                largest.push(known);
            }
            if largest.len() == LARGEST {
                break;
            }
        }
        largest
    }

    /// Who was forked or has begun another program since the last look has no size yet, and may be among the largest.
    fn weigh_unseen(&mut self, at_ns: u64) {
        for process in self.history.unseen(UNSEEN_ASKED, at_ns) {
            if let Some(sizes) = self.present.sizes(process) {
                self.history.weigh(process, sizes);
            }
        }
    }

    /// Whether it is not there any more, and nobody knew.
    fn mark_if_left(&mut self, known: &Known, at_ns: u64) -> bool {
        let has_left = known.gone_at_boot_ns.is_none() && !self.present.has(known.key);
        if has_left {
            self.history.mark_absent(known.key, at_ns);
        }
        has_left
    }

    fn is_gone_at(&self, key: ProcessKey, at_ns: u64) -> bool {
        self.history.find(key).is_none_or(|known| known.is_gone_at(at_ns))
    }
}

/// The size of the largest that lives and that the kernel might have taken.
pub(super) fn largest_spared(
    history: &History,
    present: &dyn Present,
    cgroup: Option<&CgroupFacts>,
    now_ns: u64,
) -> u64 {
    let is_eligible = |known: &Known| {
        known.oom_score_adj >= 0
            && present.has(known.key)
            && cgroup.is_none_or(|cgroup| present.is_charged(known.key, cgroup))
    };
    history.largest(COMPARED, now_ns).iter().find(|known| is_eligible(known)).map_or(0, |known| known.rss_bytes)
}
