//! Formats a report as text: the process tree, then details. Numbers have thousands separators and sizes are in mebibytes.
//! Characters that could forge a line or control a terminal are escaped.

use std::fmt;

use crate::monitor::attribution::correlate::Confidence;
use crate::monitor::attribution::oom_report::{LargeProcess, OomReport, ProcessInfo};
use crate::monitor::explain::LimitScope;
use crate::monitor::model::units::{MIB, grouped, mib, mib_or_unknown};

/// Number of co-victims in the text.
const SHOWN_MEMBERS: usize = 16;

/// Bytes of a command line in the tree.
const SHOWN_CMDLINE_BYTES: usize = 512;

/// The tree, then the details, without a final newline.
impl fmt::Display for OomReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sure = matches!(self.confidence, Confidence::Confirmed | Confidence::CoVictim);
        writeln!(f, "detected {}oom-killed process:", if sure { "" } else { "potentially " })?;
        write!(f, "{}", self.victim.process)?;
        for (level, ancestor) in self.ancestors.iter().enumerate() {
            let gone = if ancestor.exited { " (exited)" } else { "" };
            write!(f, "\n{:indent$}└─ {ancestor}{gone}", "", indent = 3 * level)?;
        }
        write!(f, "{}", self.details())
    }
}

/// The details below the process tree. Each line begins with a newline.
pub(super) struct ReportDetails<'a>(&'a OomReport);

impl OomReport {
    pub(super) fn details(&self) -> ReportDetails<'_> {
        ReportDetails(self)
    }

    fn write_details(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\nconfidence: {}", self.confidence_text())?;
        self.write_members(f)?;
        if let Some(trigger) = &self.trigger {
            write!(f, "\ntrigger: {} ({}) was allocating memory", trigger.pid, trigger.name.escape_debug())?;
        }
        if let (Some(cgroup), None) = (&self.cgroup, &self.explanation.limit) {
            let limit = cgroup.limit_bytes.map_or_else(|| "none".to_owned(), mib);
            let usage = mib_or_unknown(cgroup.usage_bytes);
            write!(f, "\ncgroup: limit {limit}, usage {usage} ({})", cgroup.path.escape_debug())?;
        }
        write!(f, "{}", self.explanation)?;
        if let (Some(anon), Some(file), Some(shmem)) =
            (self.victim.anon_bytes, self.victim.file_bytes, self.victim.shmem_bytes)
        {
            write!(f, "\nvictim's memory: anon {}, file {}, shmem {}", mib(anon), mib(file), mib(shmem))?;
        }
        if !self.largest.is_empty() {
            f.write_str("\nlargest surviving processes:")?;
            for process in &self.largest {
                write!(f, "\n  {process}")?;
            }
        }
        Ok(())
    }

    /// Formats the limit that was reached, or else that of the victim's cgroup unless another one was reached.
    #[must_use]
    pub(crate) fn limit(&self) -> Option<String> {
        let reached = self.explanation.limit.as_ref();
        let limit_bytes = match reached {
            Some(limit) if matches!(limit.scope, LimitScope::Machine | LimitScope::Outside) => None,
            Some(limit) if limit.limit_bytes.is_some() || limit.scope != LimitScope::Container => limit.limit_bytes,
            _ => self.cgroup.as_ref().and_then(|cgroup| cgroup.limit_bytes),
        };
        limit_bytes.map(mib)
    }

    fn write_members(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.members.is_empty() {
            return Ok(());
        }
        let number = self.members.len() + self.members_left_out;
        write!(f, "\nalso killed: {}", grouped(number as u64))?;
        for member in self.members.iter().take(SHOWN_MEMBERS) {
            write!(f, "\n  {}", member.process)?;
        }
        match number.saturating_sub(SHOWN_MEMBERS) {
            0 => Ok(()),
            more => write!(f, "\n  and {} more", grouped(more as u64)),
        }
    }

    fn confidence_text(&self) -> String {
        match (self.confidence, self.with_pid) {
            (Confidence::Confirmed, _) => "confirmed (SIGKILL and OOM mark observed)".to_owned(),
            (Confidence::CoVictim, Some(pid)) => format!("co-victim (killed together with {pid})"),
            (Confidence::CoVictim, None) => "co-victim".to_owned(),
            (Confidence::Inferred, _) => {
                "inferred (the cgroup counted an OOM kill and this process disappeared)".to_owned()
            }
            (Confidence::Possible, _) => "possible (it disappeared at about that time)".to_owned(),
        }
    }
}

impl fmt::Display for ReportDetails<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write_details(f)
    }
}

/// `PID (running for 1,234.56s, vm: 1,234m, rss: 1,234m): cmdline`.
impl fmt::Display for ProcessInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running = format!("{:.2}", self.running_s);
        let (seconds, hundredths) = running.split_once('.').unwrap_or((&running, "00"));
        let seconds = seconds.parse().map_or_else(|_| seconds.to_owned(), grouped);
        let (vm, rss) = (mib_or_unknown(self.vm_bytes), mib_or_unknown(self.rss_bytes));
        write!(f, "{} (running for {seconds}.{hundredths}s, vm: {vm}, rss: {rss}): ", self.pid)?;
        let cmdline = self.cmdline.to_string();
        if cmdline.is_empty() {
            return write!(f, "[{}]", self.name.escape_debug());
        }
        let end = cmdline.floor_char_boundary(SHOWN_CMDLINE_BYTES);
        f.write_str(&cmdline[..end])?;
        match (cmdline.len() - end, self.cmdline_is_cut) {
            (0, false) => Ok(()),
            (0, true) => f.write_str("…"),
            (more, false) => write!(f, "… ({} more bytes)", grouped(more as u64)),
            (more, true) => write!(f, "… (more than {} more bytes)", grouped(more as u64)),
        }
    }
}

/// The process, with its shared and swapped memory if there is any.
impl fmt::Display for LargeProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [("shared memory", self.shmem_bytes), ("in swap", self.swap_bytes)];
        let parts =
            parts.into_iter().filter_map(|(name, bytes)| Some((name, bytes.filter(|bytes| *bytes >= MIB / 2)?)));
        let parts: Vec<String> = parts.map(|(name, bytes)| format!("{name} {}", mib(bytes))).collect();
        write!(f, "{}", self.process)?;
        if parts.is_empty() { Ok(()) } else { write!(f, " ({})", parts.join(", ")) }
    }
}

impl ProcessInfo {
    /// Formats its resident memory.
    #[must_use]
    pub(crate) fn rss(&self) -> String {
        mib_or_unknown(self.rss_bytes)
    }
}
