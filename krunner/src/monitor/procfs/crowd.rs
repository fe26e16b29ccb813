//! What is read where there are too many processes to read them all at once.
//!
//! Reading one process takes 6 to 10 us, listing it 1 us (32,000: 200 to 320 ms, and 30 ms). A kill is to be reported
//! within 100 ms. So after a kill all processes are listed, which shows who is gone, and only those are read whom the
//! kernel may have taken: the large, the newcomers and those in view. Between kills each glance reads some of the others in
//! turn, so that one that begins to grow after a long time is seen to: it comes into view.

use std::collections::HashMap;
use std::io;

use super::glance::GROWN_BYTES;
use super::{MAX_PROCESSES, QUIET_READ, Remembered, Scanner};
use crate::monitor::clock;
use crate::monitor::event::ProcessKey;
use crate::monitor::process::{Glance, Observed};

/// Processes that are read in turn at a glance, some 0.5 ms. At the longest pause between two glances 32,000 are read in two
/// minutes, at the shortest in 10 s (`pace::Allowance` bounds what that takes).
const SWEPT: usize = 64;

/// The largest ones, which are read after a kill: 1 ms.
const LARGE: usize = 128;

/// Ancestors of a newcomer that come with it: deeper than any real chain.
const ANCESTORS: usize = 32;

impl Scanner {
    /// Whether reading all processes takes too long after a kill.
    pub(in crate::monitor) fn is_crowded(&self) -> bool {
        self.attention.is_some() && self.remembered.len() > QUIET_READ
    }

    /// Lists all processes and reads those who may have been killed.
    ///
    /// # Errors
    /// When the root itself cannot be read.
    pub(in crate::monitor) fn look_for_the_killed(&mut self) -> io::Result<Glance> {
        let mut glance = Glance { at_boot_ns: clock::boot_ns(), ..Glance::default() };
        let left_out = self.list()?;
        glance.absent = self.missing();
        glance.is_listed = left_out == 0;
        let newcomers = self.unknown_of_listed();
        self.look_at_view(&newcomers, &mut glance);
        for (pid, inode) in self.largest() {
            self.reread(pid, inode, true, &mut glance);
        }
        Ok(glance)
    }

    /// Those who were read before and are not in the listing. Of a cut listing only the part before the cut counts. Who was
    /// found by number has no inode yet.
    fn missing(&self) -> Vec<ProcessKey> {
        let listed: HashMap<u32, u64> = self.listed.iter().copied().collect();
        let is_cut = self.listed.len() == MAX_PROCESSES;
        let last = if is_cut { listed.keys().copied().max().unwrap_or(0) } else { u32::MAX };
        let is_missing = |(pid, known): &(&u32, &Remembered)| match listed.get(pid) {
            Some(inode) => known.inode != 0 && known.inode != *inode,
            None => **pid <= last,
        };
        let inside = self.remembered.iter().filter(|(_, known)| known.is_inside);
        inside.filter(is_missing).map(|(_, known)| known.observed.key).collect()
    }

    /// Pid and inode of the largest that are known.
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

    /// Reads the next ones of the last listing.
    pub(super) fn sweep(&mut self, glance: &mut Glance) {
        if !self.is_crowded() || self.listed.is_empty() {
            return;
        }
        for _ in 0..SWEPT {
            let Some(attention) = &mut self.attention else { return };
            let (pid, inode) = self.listed[attention.swept % self.listed.len()];
            attention.swept = (attention.swept + 1) % self.listed.len();
            self.reread(pid, inode, false, glance);
        }
    }

    /// Reads a known process again. It comes into view if it has grown. `is_news` says that it is handed on unchanged, too.
    fn reread(&mut self, pid: u32, inode: u64, is_news: bool, glance: &mut Glance) {
        let Some(before) = self.remembered.get(&pid).filter(|known| known.inode == inode) else { return };
        let before = before.observed.clone();
        let Some((observed, true)) = self.look_at(pid, inode) else { return };
        let has_grown = observed.rss_bytes > before.rss_bytes.saturating_add(GROWN_BYTES);
        if let Some(attention) = self.attention.as_mut().filter(|_| has_grown) {
            attention.look_at(observed.key);
        }
        if is_news || observed != before {
            glance.processes.push(observed);
        }
    }

    /// Who has started a newcomer, as they were read last: the history may have dropped them as idle.
    pub(super) fn add_ancestors(&self, newcomer: &Observed, glance: &mut Glance) {
        let mut ancestors: Vec<Observed> = Vec::new();
        let mut child = newcomer;
        while let Some(parent) = self.remembered.get(&child.parent_pid)
            && ancestors.len() < ANCESTORS
            && parent.is_inside
            && parent.observed.key.start_ticks <= child.key.start_ticks
            && !parent.observed.is_zombie
        {
            let is_there = glance.processes.iter().any(|observed| observed.key == parent.observed.key);
            if is_there || parent.observed.key == child.key {
                break;
            }
            ancestors.push(parent.observed.clone());
            child = &parent.observed;
        }
        // The oldest first: each is to find its parent.
        glance.processes.extend(ancestors.into_iter().rev());
    }
}

#[cfg(test)]
#[path = "crowd_tests.rs"]
mod tests;
