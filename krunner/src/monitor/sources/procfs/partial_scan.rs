//! Partial scans: read only the processes that matter next, those that are new since the last one and those that grow.
//!
//! Without a tracer, a process that lives for 20 ms and its size must be seen before it is killed. All of `/proc`
//! cannot be read that often. But the last allocated pid shows whether there are new processes (`/proc/loadavg`, for
//! the reader's PID namespace), and those are read by pid. A process is tracked while it changes; idle ones are left to
//! the full scans.
//!
//! A pid may be allocated twice between two partial scans, so the process with the last pid is always read. Threads
//! have ids from the same range; they are recognized by their exit signal.

use std::io;
use std::time::Duration;

use super::Scanner;
use crate::monitor::model::clock;
use crate::monitor::model::process::{PartialScan, ProcessKey, ProcessSample};

/// Maximum number of tracked processes, about 10 us each; the oldest are dropped first.
const MAX_TRACKED: usize = 64;

/// Maximum number of pids to try one by one. If more were allocated, `/proc` is listed instead.
const TRIED: u32 = 128;

/// A process is no longer tracked after this many partial scans without a change.
const IDLE_PARTIAL_SCANS: u8 = 20;

/// A process that has grown by this much between two scans is tracked again.
pub(super) const GROWN_BYTES: u64 = 1 << 20;

/// The tracked processes, and the last known pid.
#[derive(Debug, Default)]
pub(super) struct TrackedProcesses {
    last_pid: Option<u32>,
    keys: Vec<ProcessKey>,
    /// Position in the last listing of reading in turns.
    pub(super) swept: usize,
}

impl TrackedProcesses {
    /// Tracks a process; drops the oldest one if there are too many.
    pub(super) fn track(&mut self, key: ProcessKey) {
        if self.keys.contains(&key) {
            return;
        }
        if self.keys.len() == MAX_TRACKED {
            self.keys.remove(0);
        }
        self.keys.push(key);
    }
}

impl Scanner {
    /// Enables or disables partial scans.
    pub(in crate::monitor) fn set_tracking(&mut self, is_enabled: bool) {
        if is_enabled != self.tracked.is_some() {
            // Processes that were started since the last scan are found by listing `/proc`.
            self.tracked = is_enabled.then(TrackedProcesses::default);
        }
    }

    /// Tracks the processes that have grown since the previous scan.
    pub(in crate::monitor) fn track_growing(&mut self, processes: &[ProcessSample]) {
        let Some(tracked) = &mut self.tracked else { return };
        let mut remembered = |observed: &&ProcessSample| {
            let known = self.remembered.get_mut(&observed.key.pid)?;
            let before = std::mem::replace(&mut known.scanned_rss_bytes, observed.rss_bytes);
            Some(before)
        };
        for observed in processes {
            let before = remembered(&observed).unwrap_or(u64::MAX);
            if observed.rss_bytes > before.saturating_add(GROWN_BYTES) {
                tracked.track(observed.key);
            }
        }
    }

    /// Reads new and tracked processes, and some of the others if there are many.
    ///
    /// # Errors
    /// When the root itself cannot be read.
    pub(in crate::monitor) fn partial_scan(&mut self) -> io::Result<PartialScan> {
        let mut partial_scan = PartialScan::start();
        let newcomers = self.newcomers()?;
        self.read_tracked(&newcomers, &mut partial_scan);
        self.sweep(&mut partial_scan);
        Ok(partial_scan.end())
    }

    /// Reads the tracked processes and `others`, which are tracked from now on if they change.
    pub(super) fn read_tracked(&mut self, others: &[u32], partial_scan: &mut PartialScan) {
        let Some(tracked) = &mut self.tracked else { return };
        let keys = std::mem::take(&mut tracked.keys);
        let mut pids: Vec<u32> = keys.iter().map(|key| key.pid).chain(others.iter().copied()).collect();
        pids.sort_unstable();
        pids.dedup();
        let mut active = Vec::new();
        for pid in pids {
            let before = keys.iter().find(|key| key.pid == pid).copied();
            let known = self.remembered.get(&pid);
            let (inode, is_new) = (known.map_or(0, |known| known.inode), known.is_none());
            let now = self.read_process(pid, inode);
            let key = now.as_ref().map(|(observed, _)| observed.key);
            partial_scan.absent.extend(before.filter(|before| Some(*before) != key));
            if let Some((observed, is_inside)) = now {
                active.extend(self.is_active(&observed).then_some(observed.key));
                if is_new && is_inside {
                    self.add_ancestors(&observed, partial_scan);
                }
                partial_scan.processes.extend(is_inside.then_some(observed));
            }
        }
        // Keep the order in which they were tracked.
        active.sort_by_key(|key| keys.iter().position(|before| before == key).unwrap_or(usize::MAX));
        if let Some(tracked) = &mut self.tracked {
            for key in active {
                tracked.track(key);
            }
        }
    }

    /// Whether to keep tracking a process: it changes and has not exited.
    fn is_active(&self, observed: &ProcessSample) -> bool {
        let unchanged = self.known(observed.key).map_or(0, |known| known.unchanged);
        !observed.is_zombie && unchanged < IDLE_PARTIAL_SCANS
    }

    /// Pids that may have been allocated since the last partial scan.
    pub(super) fn newcomers(&mut self) -> io::Result<Vec<u32>> {
        let last = self.last_pid();
        let Some(tracked) = &mut self.tracked else { return Ok(Vec::new()) };
        match (std::mem::replace(&mut tracked.last_pid, last), last) {
            (Some(before), Some(last)) if last >= before && last - before <= TRIED => Ok((before..=last).collect()),
            _ => self.unknown(),
        }
    }

    /// Lists `/proc` and returns the pids that have not been read yet.
    fn unknown(&mut self) -> io::Result<Vec<u32>> {
        self.list()?;
        Ok(self.unknown_of_listed())
    }

    pub(super) fn unknown_of_listed(&self) -> Vec<u32> {
        let is_known = |pid: u32, inode: u64| self.remembered.get(&pid).is_some_and(|known| known.inode == inode);
        let unknown = self.listed.iter().filter(|(pid, inode)| !is_known(*pid, *inode)).map(|(pid, _)| *pid);
        let mut unknown: Vec<u32> = unknown.collect();
        let surplus = unknown.len().saturating_sub(MAX_TRACKED * 2);
        unknown.drain(..surplus);
        unknown
    }

    /// The last pid allocated in our PID namespace (`loadavg_proc_show`, fs/proc/loadavg.c).
    fn last_pid(&mut self) -> Option<u32> {
        let length = self.read(format_args!("loadavg"))?;
        let text = std::str::from_utf8(&self.buffer[..length]).ok()?;
        text.rsplit_once(' ')?.1.trim().parse().ok()
    }
}

impl PartialScan {
    /// A scan that starts now.
    pub(super) fn start() -> Self {
        Self { at_boot_ns: clock::boot_ns(), ..Self::default() }
    }

    /// The scan, which ends now.
    pub(super) fn end(self) -> Self {
        Self { took: Duration::from_nanos(clock::boot_ns().saturating_sub(self.at_boot_ns)), ..self }
    }
}

#[cfg(test)]
#[path = "partial_scan_tests.rs"]
mod tests;
