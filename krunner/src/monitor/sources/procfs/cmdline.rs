//! Command lines of processes, which may overwrite them with a title.
//!
//! Servers and workers show their role that way (`postgres: checkpointer`, `ray::train`). Only the bytes themselves
//! reveal the change. So the command line is read again
//!
//! - after an exec, detected by a change of comm or of the arguments' address,
//! - when the process has grown by a share of its size ([`has_grown`]): it may be the next victim, and after an OOM kill it is too
//!   late, because no files are opened while memory is short (`cgroup::charge`) and the victim has released its memory,
//! - with a tracer, at each scan for the largest processes, which a report lists.
//!
//! The original command line is kept along with the title until the next exec.

use std::cmp::Reverse;
use std::sync::Arc;

use super::{CACHE_BYTES, CMDLINE_BYTES, SHORT_CMDLINE_BYTES, Scanner, Stat};
use crate::monitor::model::process::{Cmdline, ProcessKey, ProcessSample};

/// Number of the largest processes whose command lines each scan reads, about 10 us each: more than a report lists.
const LARGEST_READ: usize = 16;

/// Minimum growth before a command line is read again.
const GROWN_BYTES: u64 = 1 << 20;

/// A process's current and original command line.
#[derive(Debug, Clone, Default)]
pub(super) struct Title {
    /// The command line at the last read.
    pub(super) cmdline: Arc<Cmdline>,
    /// The original command line, if different.
    pub(super) first_cmdline: Option<Arc<Cmdline>>,
    /// Resident size at the last read.
    pub(super) rss_bytes: u64,
}

impl Title {
    /// Updates the title with a later read of the same program. The read is empty if the process is exiting.
    fn followed_by(self, read: Arc<Cmdline>, rss_bytes: u64) -> Self {
        if read.bytes.is_empty() || read == self.cmdline {
            return Self { rss_bytes, ..self };
        }
        let first = self.first_cmdline.unwrap_or(self.cmdline);
        Self { first_cmdline: Some(first).filter(|first| *first != read), cmdline: read, rss_bytes }
    }
}

/// Whether a process has grown by a quarter, which happens about 40 times between 1 MiB and 10 GiB.
fn has_grown(from_bytes: u64, to_bytes: u64) -> bool {
    to_bytes >= from_bytes.saturating_add((from_bytes / 4).max(GROWN_BYTES))
}

/// Bytes cached for the command lines of a process.
pub(super) fn kept_bytes(observed: &ProcessSample) -> usize {
    observed.cmdline.bytes.len() + observed.first_cmdline.as_ref().map_or(0, |first| first.bytes.len())
}

impl Scanner {
    /// The command line, read if it may have changed.
    pub(super) fn title(&mut self, key: ProcessKey, name: &Arc<str>, stat: &Stat) -> Title {
        let rss_bytes = stat.rss_pages.saturating_mul(self.page_bytes);
        let Some(known) = self.known(key) else {
            let cmdline = if stat.vm_bytes == 0 { Arc::default() } else { self.read_cmdline(key.pid, 0) };
            return Title { cmdline, first_cmdline: None, rss_bytes };
        };
        let title = Title {
            cmdline: Arc::clone(&known.observed.cmdline),
            first_cmdline: known.observed.first_cmdline.clone(),
            rss_bytes: known.rss_bytes_at_title,
        };
        // Without memory there are no arguments: it is about to end, and those it had are what counts.
        if stat.vm_bytes == 0 {
            return title;
        }
        let is_same = Arc::ptr_eq(&known.observed.name, name) && known.arg_start == stat.arg_start;
        if !is_same || title.cmdline.bytes.is_empty() {
            return Title { cmdline: self.read_cmdline(key.pid, 0), first_cmdline: None, rss_bytes };
        }
        if stat.is_leaving || !has_grown(title.rss_bytes, rss_bytes) {
            return title;
        }
        let read = self.read_cmdline(key.pid, title.cmdline.bytes.len());
        title.followed_by(read, rss_bytes)
    }

    /// Reads the command lines of the largest processes in a scan. Not in fallback mode: a process may block the reader, and
    /// growing processes are read anyway.
    pub(super) fn read_titles_of_largest(&mut self, processes: &mut [ProcessSample]) {
        if self.tracked.is_some() {
            return;
        }
        let mut largest: Vec<&mut ProcessSample> =
            processes.iter_mut().filter(|observed| observed.vm_bytes > 0).collect();
        let count = LARGEST_READ.min(largest.len());
        if count < largest.len() {
            largest.select_nth_unstable_by_key(count, |observed| Reverse(observed.rss_bytes));
        }
        for observed in largest.into_iter().take(count).filter(|observed| !observed.is_leaving) {
            self.read_title_again(observed);
        }
    }

    fn read_title_again(&mut self, observed: &mut ProcessSample) {
        let title = Title {
            cmdline: Arc::clone(&observed.cmdline),
            first_cmdline: observed.first_cmdline.clone(),
            rss_bytes: observed.rss_bytes,
        };
        let read = self.read_cmdline(observed.key.pid, title.cmdline.bytes.len());
        let title = title.followed_by(read, observed.rss_bytes);
        let before_bytes = kept_bytes(observed);
        (observed.cmdline, observed.first_cmdline) = (title.cmdline, title.first_cmdline);
        if let Some(known) =
            self.remembered.get_mut(&observed.key.pid).filter(|known| known.observed.key == observed.key)
        {
            known.observed.cmdline = Arc::clone(&observed.cmdline);
            known.observed.first_cmdline.clone_from(&observed.first_cmdline);
            known.rss_bytes_at_title = title.rss_bytes;
            self.cmdline_bytes = (self.cmdline_bytes + kept_bytes(observed)).saturating_sub(before_bytes);
        }
    }

    /// `replaced_bytes` is the length of the line that the new one replaces; that much may always be cached.
    fn read_cmdline(&mut self, pid: u32, replaced_bytes: usize) -> Arc<Cmdline> {
        let Some(length) = self.read(format_args!("{pid}/cmdline")) else { return Arc::default() };
        let is_full = self.cmdline_bytes >= CACHE_BYTES;
        let room = if is_full { SHORT_CMDLINE_BYTES.max(replaced_bytes) } else { CMDLINE_BYTES };
        Arc::new(Cmdline { bytes: self.buffer[..length.min(room)].to_vec(), is_cut: length > room })
    }

    /// Whether a process still has memory, and therefore arguments.
    pub(super) fn has_memory(&mut self, pid: u32) -> bool {
        let length = self.read(format_args!("{pid}/stat"));
        let stat = length.and_then(|length| Stat::parse(&self.buffer[..length])).map(|(_, stat)| stat);
        stat.is_some_and(|stat| stat.vm_bytes > 0 || stat.has_ended && self.other_thread(pid).is_some())
    }
}

#[cfg(test)]
#[path = "cmdline_tests.rs"]
mod tests;
