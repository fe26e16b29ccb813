//! Scanning strategy on hosts with too many processes to read them all at once.
//!
//! Reading one process takes 6 to 10 us, listing it 1 us (32,000: 200 to 320 ms, and 30 ms). An OOM kill is to be
//! reported within 100 ms. So after a kill only likely victims are read: large, new and tracked processes. If none of
//! them is gone, all processes are listed to find out which is. Between kills each partial scan reads some of the
//! others in turn, so that a process that starts to grow after a long time is noticed and tracked.

use std::collections::HashMap;
use std::io;

use super::partial_scan::GROWN_BYTES;
use super::{IDLE_READS, MAX_PROCESSES, Remembered, Scanner};
use crate::monitor::model::process::{ExitKind, PartialScan, ProcessKey, ProcessSample};

/// Number of processes read in turn by one partial scan, about 0.5 ms. At the maximum interval 32,000 processes are
/// read in two minutes, at the minimum in 10 s (`schedule::CpuBudget` bounds the cost).
const SWEPT: usize = 64;

/// Number of the largest processes to read after an OOM kill, about 1 ms.
const LARGE: usize = 128;

/// A smaller process that is gone may have exited by itself, so all processes are listed.
const VICTIM_BYTES: u64 = 1 << 20;

/// Maximum number of ancestors reported with a new process: more than any real chain has.
const ANCESTORS: usize = 32;

impl Scanner {
    /// Whether reading all processes after an OOM kill would take too long.
    pub(in crate::monitor) fn has_many_processes(&self) -> bool {
        self.tracked.is_some() && self.remembered.len() > IDLE_READS
    }

    /// Reads the likely victims, and lists all processes if none of those was killed.
    ///
    /// # Errors
    /// When the root itself cannot be read.
    pub(in crate::monitor) fn find_killed(&mut self) -> io::Result<PartialScan> {
        let likely = self.read_likely_victims()?;
        let was_large =
            |key: &ProcessKey| self.known(*key).is_some_and(|known| known.observed.rss_bytes >= VICTIM_BYTES);
        let was_killed = |observed: &ProcessSample| observed.end == Some(ExitKind::Killed);
        if likely.absent.iter().any(was_large) || likely.processes.iter().any(was_killed) {
            Ok(PartialScan { is_listed: true, ..likely })
        } else {
            Ok(with_earlier(self.list_and_read()?, likely.processes))
        }
    }

    /// Reads tracked, new and large processes. While these exist, the kernel does not choose a smaller process that has
    /// not grown.
    fn read_likely_victims(&mut self) -> io::Result<PartialScan> {
        let mut partial_scan = PartialScan::start();
        let newcomers = self.newcomers()?;
        self.read_tracked(&newcomers, &mut partial_scan);
        for (pid, inode) in self.largest() {
            self.reread(pid, inode, true, &mut partial_scan);
        }
        Ok(partial_scan.end())
    }

    fn list_and_read(&mut self) -> io::Result<PartialScan> {
        let mut partial_scan = PartialScan::start();
        let left_out = self.list()?;
        partial_scan.absent = self.vanished();
        partial_scan.is_listed = left_out == 0;
        let newcomers = self.unknown_of_listed();
        self.read_tracked(&newcomers, &mut partial_scan);
        for (pid, inode) in self.largest() {
            self.reread(pid, inode, true, &mut partial_scan);
        }
        Ok(partial_scan.end())
    }

    /// Known processes that are not in the listing. Of a truncated listing only the part before the cut counts.
    /// Processes found by pid have no inode yet.
    fn vanished(&self) -> Vec<ProcessKey> {
        let listed: HashMap<u32, u64> = self.listed.iter().copied().collect();
        let is_cut = self.listed.len() == MAX_PROCESSES;
        let last = if is_cut { listed.keys().copied().max().unwrap_or(0) } else { u32::MAX };
        let has_vanished = |(pid, known): &(&u32, &Remembered)| match listed.get(pid) {
            Some(inode) => known.inode != 0 && known.inode != *inode,
            None => **pid <= last,
        };
        let inside = self.remembered.iter().filter(|(_, known)| known.is_inside);
        inside.filter(has_vanished).map(|(_, known)| known.observed.key).collect()
    }

    /// Pid and inode of the largest known processes.
    fn largest(&self) -> Vec<(u32, u64)> {
        let inside = self.remembered.iter().filter(|(_, known)| known.is_inside);
        let mut sizes: Vec<(u64, u32, u64)> =
            inside.map(|(pid, known)| (known.observed.rss_bytes, *pid, known.inode)).collect();
        if sizes.len() > LARGE {
            sizes.select_nth_unstable_by(LARGE, |a, b| b.cmp(a));
            sizes.truncate(LARGE);
        }
        sizes.into_iter().map(|(_, pid, inode)| (pid, inode)).collect()
    }

    /// Reads the next [`SWEPT`] processes of the last listing.
    pub(super) fn sweep(&mut self, partial_scan: &mut PartialScan) {
        if !self.has_many_processes() || self.listed.is_empty() {
            return;
        }
        for _ in 0..SWEPT {
            let Some(tracked) = &mut self.tracked else { return };
            let (pid, inode) = self.listed[tracked.swept % self.listed.len()];
            tracked.swept = (tracked.swept + 1) % self.listed.len();
            self.reread(pid, inode, false, partial_scan);
        }
    }

    /// Reads a known process again and tracks it if it has grown. `is_news`: report it even if unchanged.
    fn reread(&mut self, pid: u32, inode: u64, is_news: bool, partial_scan: &mut PartialScan) {
        let Some(before) = self.remembered.get(&pid).filter(|known| known.inode == inode) else { return };
        let before = before.observed.clone();
        let now = self.read_process(pid, inode);
        if now.as_ref().is_none_or(|(observed, _)| observed.key != before.key)
            && !partial_scan.absent.contains(&before.key)
        {
            partial_scan.absent.push(before.key);
        }
        let Some((observed, true)) = now else { return };
        let has_grown = observed.rss_bytes > before.rss_bytes.saturating_add(GROWN_BYTES);
        if let Some(tracked) = self.tracked.as_mut().filter(|_| has_grown) {
            tracked.track(observed.key);
        }
        if is_news || observed != before {
            partial_scan.processes.push(observed);
        }
    }

    /// Adds the cached ancestors of a new process: the history may have dropped them as idle.
    pub(super) fn add_ancestors(&self, newcomer: &ProcessSample, partial_scan: &mut PartialScan) {
        let mut ancestors: Vec<ProcessSample> = Vec::new();
        let mut child = newcomer;
        while let Some(parent) = self.remembered.get(&child.parent_pid)
            && ancestors.len() < ANCESTORS
            && parent.is_inside
            && parent.observed.key.start_ticks <= child.key.start_ticks
            && !parent.observed.is_zombie
        {
            let is_there = partial_scan.processes.iter().any(|observed| observed.key == parent.observed.key);
            if is_there || parent.observed.key == child.key {
                break;
            }
            ancestors.push(parent.observed.clone());
            child = &parent.observed;
        }
        // Oldest first, so that each one's parent is known.
        partial_scan.processes.extend(ancestors.into_iter().rev());
    }
}

/// Adds the processes that only an earlier scan has: it may have had new processes, whose ancestors are reported once.
fn with_earlier(mut scan: PartialScan, earlier: Vec<ProcessSample>) -> PartialScan {
    let is_in_scan =
        |key: ProcessKey| scan.processes.iter().any(|observed| observed.key == key) || scan.absent.contains(&key);
    let others: Vec<ProcessSample> = earlier.into_iter().filter(|observed| !is_in_scan(observed.key)).collect();
    scan.processes.splice(0..0, others);
    scan
}

#[cfg(test)]
#[path = "many_processes_tests.rs"]
mod tests;
