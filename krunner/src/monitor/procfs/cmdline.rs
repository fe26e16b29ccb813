//! The command line of a process, which it may write over.
//!
//! Servers and workers show in it what they are and do (`postgres: checkpointer`, `ray::train`): they write their title over
//! the arguments, and nothing but the bytes tells. So the line is read again
//!
//! - after an exec, which shows in comm or in where the arguments begin,
//! - when the process has grown by a part of its size ([`has_grown`]), because whoever grows may be the next victim, and
//!   after a kill it is too late: nothing is opened then where memory is short (`cgroup::charge`), and the victim has none left,
//! - at each scan beside a tracer, of the largest: a report lists them.
//!
//! The line that a program began with is kept beside its title, as long as it runs.

use std::cmp::Reverse;
use std::sync::Arc;

use super::{CACHE_BYTES, CMDLINE_BYTES, SHORT_CMDLINE_BYTES, Scanner, Stat};
use crate::monitor::event::ProcessKey;
use crate::monitor::process::{Cmdline, Observed};

/// The largest processes whose lines each scan reads: more than a report lists. One costs some 10 us.
const LARGEST_READ: usize = 16;

/// Growth that is worth a look, at least.
const GROWN_BYTES: u64 = 1 << 20;

/// The line of a program, and what else is known of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Title {
    /// As it was last read.
    pub(super) cmdline: Arc<Cmdline>,
    /// As the program began, if that is another.
    pub(super) first_cmdline: Option<Arc<Cmdline>>,
    /// Resident when it was last read.
    pub(super) rss_bytes: u64,
}

impl Title {
    /// What was read later, of the same program. Nothing is read of a process that ends meanwhile.
    fn followed_by(self, read: Arc<Cmdline>, rss_bytes: u64) -> Self {
        if read.bytes.is_empty() || read == self.cmdline {
            return Self { rss_bytes, ..self };
        }
        let first = self.first_cmdline.unwrap_or(self.cmdline);
        Self { first_cmdline: Some(first).filter(|first| *first != read), cmdline: read, rss_bytes }
    }
}

/// Whether a process has grown enough to be read again: by a quarter, so some 40 times on its way from 1 MiB to 10 GiB.
fn has_grown(from_bytes: u64, to_bytes: u64) -> bool {
    to_bytes >= from_bytes.saturating_add((from_bytes / 4).max(GROWN_BYTES))
}

/// What is kept of the command lines of a process.
pub(super) fn kept_bytes(observed: &Observed) -> usize {
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
            rss_bytes: known.titled_rss_bytes,
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

    /// Reads the lines of the largest processes that a scan has found. Not where only these looks tell of kills: a
    /// process may keep a reader waiting, and who grows is read anyway.
    pub(super) fn read_titles_of_largest(&mut self, processes: &mut [Observed]) {
        if self.attention.is_some() {
            return;
        }
        let mut largest: Vec<&mut Observed> = processes.iter_mut().filter(|observed| observed.vm_bytes > 0).collect();
        let count = LARGEST_READ.min(largest.len());
        if count < largest.len() {
            largest.select_nth_unstable_by_key(count, |observed| Reverse(observed.rss_bytes));
        }
        for observed in largest.into_iter().take(count).filter(|observed| !observed.is_leaving) {
            self.read_title_again(observed);
        }
    }

    fn read_title_again(&mut self, observed: &mut Observed) {
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
            known.titled_rss_bytes = title.rss_bytes;
            self.cmdline_bytes = (self.cmdline_bytes + kept_bytes(observed)).saturating_sub(before_bytes);
        }
    }

    /// `replaced_bytes` are there whatever the others take: those of the line that this one takes the place of.
    fn read_cmdline(&mut self, pid: u32, replaced_bytes: usize) -> Arc<Cmdline> {
        let Some(length) = self.read(format_args!("{pid}/cmdline")) else { return Arc::default() };
        let is_full = self.cmdline_bytes >= CACHE_BYTES;
        let room = if is_full { SHORT_CMDLINE_BYTES.max(replaced_bytes) } else { CMDLINE_BYTES };
        Arc::new(Cmdline { bytes: self.buffer[..length.min(room)].to_vec(), is_cut: length > room })
    }

    /// Whether a process still has memory, and with it arguments.
    pub(super) fn has_memory(&mut self, pid: u32) -> bool {
        let length = self.read(format_args!("{pid}/stat"));
        let stat = length.and_then(|length| Stat::parse(&self.buffer[..length])).map(|(_, stat)| stat);
        stat.is_some_and(|stat| stat.vm_bytes > 0 || stat.has_ended && self.other_thread(pid).is_some())
    }
}

#[cfg(test)]
#[path = "cmdline_tests.rs"]
mod tests;
