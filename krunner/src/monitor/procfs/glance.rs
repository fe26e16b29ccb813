//! A look at those only who may matter next: who came since the last one, and who grows.
//!
//! Where no tracer tells of kills, a process that lives for 20 ms must have been seen before it dies, and how large it
//! was. All of `/proc` cannot be read that often. But the last pid that was given out shows whether anybody came
//! (`/proc/loadavg`, which tells that of the reader's pid namespace), and a newcomer is read by its number. It
//! stays in view while it changes; who is quiet is left to the scans.
//!
//! A pid may be given out twice between two glances, so whoever has the last one is always looked at. Threads have
//! numbers as well, and are told apart by what they would signal at their end.

use std::io;

use super::Scanner;
use crate::monitor::clock;
use crate::monitor::event::ProcessKey;
use crate::monitor::process::{Glance, Observed};

/// Processes in view at a time: the last ones to come. Reading one costs some 10 us.
const IN_VIEW: usize = 64;

/// Numbers that are tried one by one. When more were given out, the listing shows who is there.
const TRIED: u32 = 128;

/// So many glances without a change end the view of a process.
const QUIET_GLANCES: u8 = 20;

/// What has grown by so much between two scans comes into view again.
pub(super) const GROWN_BYTES: u64 = 1 << 20;

/// Who is looked at, and from which pid on there may be more.
#[derive(Debug, Default)]
pub(super) struct Attention {
    last_pid: u32,
    in_view: Vec<ProcessKey>,
    /// How far the last listing was read in turns.
    pub(super) swept: usize,
}

impl Attention {
    /// Keeps somebody in view; the one who is there for the longest time makes room.
    pub(super) fn look_at(&mut self, key: ProcessKey) {
        if self.in_view.contains(&key) {
            return;
        }
        if self.in_view.len() == IN_VIEW {
            self.in_view.remove(0);
        }
        self.in_view.push(key);
    }
}

impl Scanner {
    /// From now on glances may be asked for, or no more.
    pub(in crate::monitor) fn pay_attention(&mut self, attention: bool) {
        if attention != self.attention.is_some() {
            let last_pid = self.last_pid().unwrap_or(0);
            self.attention = attention.then(|| Attention { last_pid, ..Attention::default() });
        }
    }

    /// Takes those into view who have grown since the scan before.
    pub(in crate::monitor) fn keep_in_view(&mut self, processes: &[Observed]) {
        let Some(attention) = &mut self.attention else { return };
        let mut remembered = |observed: &&Observed| {
            let known = self.remembered.get_mut(&observed.key.pid)?;
            let before = std::mem::replace(&mut known.scanned_rss_bytes, observed.rss_bytes);
            Some(before)
        };
        for observed in processes {
            let before = remembered(&observed).unwrap_or(u64::MAX);
            if observed.rss_bytes > before.saturating_add(GROWN_BYTES) {
                attention.look_at(observed.key);
            }
        }
    }

    /// Reads newcomers and those in view, and where there are many processes some of the others.
    ///
    /// # Errors
    /// When the root itself cannot be read.
    pub(in crate::monitor) fn glance(&mut self) -> io::Result<Glance> {
        let mut glance = Glance { at_boot_ns: clock::boot_ns(), ..Glance::default() };
        let newcomers = self.newcomers()?;
        self.look_at_view(&newcomers, &mut glance);
        self.sweep(&mut glance);
        Ok(glance)
    }

    /// Reads those in view and these others, who come into view if they change.
    pub(super) fn look_at_view(&mut self, others: &[u32], glance: &mut Glance) {
        let Some(attention) = &mut self.attention else { return };
        let in_view = std::mem::take(&mut attention.in_view);
        let mut pids: Vec<u32> = in_view.iter().map(|key| key.pid).chain(others.iter().copied()).collect();
        pids.sort_unstable();
        pids.dedup();
        let mut lively = Vec::new();
        for pid in pids {
            let before = in_view.iter().find(|key| key.pid == pid).copied();
            let known = self.remembered.get(&pid);
            let (inode, is_new) = (known.map_or(0, |known| known.inode), known.is_none());
            let now = self.look_at(pid, inode);
            let key = now.as_ref().map(|(observed, _)| observed.key);
            glance.absent.extend(before.filter(|before| Some(*before) != key));
            if let Some((observed, is_inside)) = now {
                lively.extend(self.is_lively(&observed).then_some(observed.key));
                if is_new && is_inside {
                    self.add_ancestors(&observed, glance);
                }
                glance.processes.extend(is_inside.then_some(observed));
            }
        }
        // In the order in which they came.
        lively.sort_by_key(|key| in_view.iter().position(|before| before == key).unwrap_or(usize::MAX));
        if let Some(attention) = &mut self.attention {
            for key in lively {
                attention.look_at(key);
            }
        }
    }

    /// Those who are quiet or have ended go out of view.
    fn is_lively(&self, observed: &Observed) -> bool {
        let unchanged = self.known(observed.key).map_or(0, |known| known.unchanged);
        !observed.is_zombie && unchanged < QUIET_GLANCES
    }

    /// Numbers that may have been given out since the last glance.
    fn newcomers(&mut self) -> io::Result<Vec<u32>> {
        let last = self.last_pid();
        let Some(attention) = &mut self.attention else { return Ok(Vec::new()) };
        let before = attention.last_pid;
        attention.last_pid = last.unwrap_or(0);
        match last {
            Some(last) if last >= before && last - before <= TRIED => {
                Ok((before..=last).filter(|pid| *pid > 0).collect())
            }
            _ => self.unknown(),
        }
    }

    /// Whom the listing shows and nobody has read yet.
    fn unknown(&mut self) -> io::Result<Vec<u32>> {
        self.list()?;
        Ok(self.unknown_of_listed())
    }

    pub(super) fn unknown_of_listed(&self) -> Vec<u32> {
        let is_known = |pid: u32, inode: u64| self.remembered.get(&pid).is_some_and(|known| known.inode == inode);
        let unknown = self.listed.iter().filter(|(pid, inode)| !is_known(*pid, *inode)).map(|(pid, _)| *pid);
        let mut unknown: Vec<u32> = unknown.collect();
        let surplus = unknown.len().saturating_sub(IN_VIEW * 2);
        unknown.drain(..surplus);
        unknown
    }

    /// The last pid that was given out in our pid namespace (`loadavg_proc_show`, fs/proc/loadavg.c).
    fn last_pid(&mut self) -> Option<u32> {
        let length = self.read(format_args!("loadavg"))?;
        let text = std::str::from_utf8(&self.buffer[..length]).ok()?;
        text.rsplit_once(' ')?.1.trim().parse().ok()
    }
}

#[cfg(test)]
#[path = "glance_tests.rs"]
mod tests;
