//! What is told of a kill: for people a tree, for programs an object. Pure.
//!
//! All of a report is about one moment, that of the kill: who was alive then, and for how long. A size that nobody saw is
//! `?` in text and null in the object; 0 is only ever a size that was read.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use super::cgroup::CgroupFacts;
use super::event::{Actor, MemoryAtKill, ProcessKey};
use super::history::{History, Known, Suspect};
use super::join::{Confidence, Victim};
use super::process::Cmdline;
use super::tracer::TracerKind;

/// Other processes that were large at that moment.
pub(super) const LARGEST: usize = 5;

/// Members of a kill in a report. An engine's limit on processes may allow many more.
pub(super) const MAX_MEMBERS: usize = 64;

/// Of these, so many are shown.
const SHOWN_MEMBERS: usize = 16;

/// As much of a command line as is shown in the tree.
const SHOWN_CMDLINE_BYTES: usize = 512;

const MIB: u64 = 1024 * 1024;

/// A kill for memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    event: &'static str,
    /// How sure we are.
    pub confidence: Confidence,
    /// How it was seen.
    pub tracer: TracerKind,
    /// The time of day of the SIGKILL.
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    /// The same, since boot.
    pub killed_at_boot_ns: u64,
    /// When it exited, if that was seen.
    pub exited_at_boot_ns: Option<u64>,
    /// Who was killed.
    pub victim: Dead,
    /// For a co-victim: whose kill it was a part of.
    pub with_pid: Option<u32>,
    /// Those whom the kernel killed along with it, because they shared its memory or by `memory.oom.group`; at most
    /// 64.
    pub members: Vec<Dead>,
    /// How many more there were.
    pub members_left_out: usize,
    /// Whoever asked for the memory that was not there.
    pub trigger: Option<Actor>,
    /// Who started it, who started that one, and so on.
    pub ancestors: Vec<Seen>,
    /// Who else was large.
    pub largest: Vec<Seen>,
    /// The victim's memory cgroup.
    pub cgroup: Option<CgroupFacts>,
    /// Records that the tracer had no room for so far.
    pub lost_records: u64,
}

/// A process as it is told of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Seen {
    /// Its id.
    pub pid: u32,
    /// When it started, since boot in ticks of 10 ms: with the pid, what names it for good.
    pub start_ticks: u64,
    /// Its comm.
    pub name: Arc<str>,
    /// Its arguments, or the title that it wrote over them.
    #[serde(serialize_with = "joined")]
    pub cmdline: Arc<Cmdline>,
    /// The arguments that it began with, if it wrote a title over them.
    #[serde(serialize_with = "joined_if_any")]
    pub first_cmdline: Option<Arc<Cmdline>>,
    /// There is more of it.
    pub cmdline_is_cut: bool,
    /// For how long it had been running.
    pub running_s: f64,
    /// Its address space when it was last seen; none if nobody saw it since its last exec.
    pub vm_bytes: Option<u64>,
    /// Its resident memory, likewise.
    pub rss_bytes: Option<u64>,
    /// It was gone when the victim was killed; of the victim: its exit was seen.
    pub exited: bool,
}

/// The victim, of which the kernel knows more.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Dead {
    /// As of any process.
    #[serde(flatten)]
    pub seen: Seen,
    /// Its user, as the host numbers users.
    pub uid: Option<u32>,
    /// As in `/proc/PID/oom_score_adj`.
    pub oom_score_adj: Option<i16>,
    /// Resident: anonymous.
    pub anon_bytes: Option<u64>,
    /// Resident: of files.
    pub file_bytes: Option<u64>,
    /// Resident: shared memory.
    pub shmem_bytes: Option<u64>,
    /// Swapped out.
    pub swap_bytes: Option<u64>,
    /// Its page tables.
    pub pgtables_bytes: Option<u64>,
}

/// What a report tells beside the victim.
#[derive(Debug, Clone)]
pub(super) struct Circumstances {
    /// The time of day of the kill.
    pub(super) time: SystemTime,
    /// The victim's memory cgroup.
    pub(super) cgroup: Option<CgroupFacts>,
    /// Records that the tracer had no room for so far.
    pub(super) lost_records: u64,
    /// The largest of those who were alive beside the victim, at most [`LARGEST`].
    pub(super) largest: Vec<Known>,
}

impl Report {
    /// Of a victim that the tracer saw, and those killed along with it.
    #[must_use]
    pub(super) fn of_victim(
        victim: &Victim,
        members: &[Victim],
        history: &History,
        circumstances: Circumstances,
    ) -> Self {
        let (key, at_ns) = (victim.kill.victim, victim.killed_at_boot_ns);
        let dead = Dead::of(victim, history);
        let report = Self::new(victim.confidence, TracerKind::Bpf, dead, key, at_ns, history, circumstances);
        Self {
            exited_at_boot_ns: victim.exited_at_boot_ns,
            with_pid: victim.with.map(|with| with.pid),
            members: members.iter().take(MAX_MEMBERS).map(|member| Dead::of(member, history)).collect(),
            members_left_out: members.len().saturating_sub(MAX_MEMBERS),
            trigger: victim.trigger.clone(),
            ..report
        }
    }

    /// Of one that left when somebody was killed.
    #[must_use]
    pub(super) fn of_suspect(
        confidence: Confidence,
        suspect: &Suspect,
        at_ns: u64,
        history: &History,
        circumstances: Circumstances,
    ) -> Self {
        let dead = Dead {
            seen: Seen { exited: suspect.known.gone_at_boot_ns.is_some(), ..Seen::of(&suspect.known, at_ns) },
            uid: None,
            oom_score_adj: Some(suspect.known.oom_score_adj),
            anon_bytes: None,
            file_bytes: None,
            shmem_bytes: None,
            swap_bytes: None,
            pgtables_bytes: None,
        };
        Self::new(confidence, TracerKind::Snapshot, dead, suspect.known.key, at_ns, history, circumstances)
    }

    fn new(
        confidence: Confidence,
        tracer: TracerKind,
        victim: Dead,
        key: ProcessKey,
        at_ns: u64,
        history: &History,
        circumstances: Circumstances,
    ) -> Self {
        let seen = |processes: Vec<Known>| processes.iter().map(|process| Seen::of(process, at_ns)).collect();
        Self {
            event: "oom_kill",
            confidence,
            tracer,
            time: circumstances.time,
            killed_at_boot_ns: at_ns,
            exited_at_boot_ns: None,
            victim,
            with_pid: None,
            members: Vec::new(),
            members_left_out: 0,
            trigger: None,
            ancestors: seen(history.chain(key, at_ns)),
            largest: seen(circumstances.largest),
            cgroup: circumstances.cgroup,
            lost_records: circumstances.lost_records,
        }
    }
}

impl Dead {
    /// As the tracer saw it die.
    fn of(victim: &Victim, history: &History) -> Self {
        let (kill, at_ns) = (&victim.kill, victim.killed_at_boot_ns);
        let known = history.find(kill.victim);
        let cmdline = known.as_ref().map(|process| Arc::clone(&process.cmdline)).unwrap_or_default();
        let first_cmdline = known.as_ref().and_then(|process| process.first_cmdline.clone());
        let memory = KilledMemory::of(&kill.memory);
        let seen = Seen {
            pid: kill.victim.pid,
            start_ticks: kill.victim.start_ticks,
            name: Arc::from(kill.name.as_str()),
            cmdline_is_cut: cmdline.is_cut,
            cmdline,
            first_cmdline,
            running_s: running_s(kill.victim, at_ns),
            vm_bytes: memory.vm_bytes.or_else(|| known.as_ref()?.vm_bytes()),
            rss_bytes: victim_rss(&kill.memory, known.as_ref()),
            exited: victim.exited_at_boot_ns.is_some(),
        };
        Self {
            seen,
            uid: Some(kill.uid),
            oom_score_adj: Some(kill.oom_score_adj),
            anon_bytes: memory.if_counted(kill.memory.anon_bytes),
            file_bytes: memory.if_counted(kill.memory.file_bytes),
            shmem_bytes: memory.if_counted(kill.memory.shmem_bytes),
            swap_bytes: memory.if_counted(kill.memory.swap_bytes),
            pgtables_bytes: Some(kill.memory.pgtables_bytes).filter(|bytes| *bytes > 0),
        }
    }
}

impl Seen {
    /// Which process.
    #[must_use]
    pub(crate) fn key(&self) -> ProcessKey {
        ProcessKey { pid: self.pid, start_ticks: self.start_ticks }
    }

    /// Its resident memory in words.
    #[must_use]
    pub(crate) fn rss(&self) -> String {
        mib_or_unknown(self.rss_bytes)
    }

    fn of(process: &Known, at_ns: u64) -> Self {
        Self {
            pid: process.key.pid,
            start_ticks: process.key.start_ticks,
            name: Arc::clone(&process.name),
            cmdline: Arc::clone(&process.cmdline),
            first_cmdline: process.first_cmdline.clone(),
            cmdline_is_cut: process.cmdline.is_cut,
            running_s: running_s(process.key, at_ns),
            vm_bytes: process.vm_bytes(),
            rss_bytes: process.rss_bytes(),
            exited: process.is_gone_at(at_ns),
        }
    }
}

/// The tree, then what else is known; without a newline at the end.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sure = matches!(self.confidence, Confidence::Confirmed | Confidence::CoVictim);
        writeln!(f, "detected {}oom-killed process:", if sure { "" } else { "potentially " })?;
        write!(f, "{}", self.victim.seen)?;
        for (level, ancestor) in self.ancestors.iter().enumerate() {
            let gone = if ancestor.exited { " (exited)" } else { "" };
            write!(f, "\n{:indent$}└─ {ancestor}{gone}", "", indent = 3 * level)?;
        }
        write!(f, "\nconfidence: {}", self.how_sure())?;
        self.write_members(f)?;
        if let Some(trigger) = &self.trigger {
            write!(f, "\ntrigger: {} ({}) asked for memory", trigger.pid, trigger.name.escape_debug())?;
        }
        if let Some(cgroup) = &self.cgroup {
            let limit = cgroup.limit_bytes.map_or_else(|| "none".to_owned(), mib);
            let usage = mib_or_unknown(cgroup.usage_bytes);
            write!(f, "\ncgroup: limit {limit}, usage {usage} ({})", cgroup.path.escape_debug())?;
        }
        if let (Some(anon), Some(file), Some(shmem)) =
            (self.victim.anon_bytes, self.victim.file_bytes, self.victim.shmem_bytes)
        {
            write!(f, "\nvictim's memory: anon {}, file {}, shmem {}", mib(anon), mib(file), mib(shmem))?;
        }
        if !self.largest.is_empty() {
            f.write_str("\nlargest processes alive:")?;
            for process in &self.largest {
                write!(f, "\n  {process}")?;
            }
        }
        Ok(())
    }
}

impl Report {
    /// The limit of the victim's cgroup in words, if there is one.
    #[must_use]
    pub(crate) fn limit(&self) -> Option<String> {
        self.cgroup.as_ref()?.limit_bytes.map(mib)
    }

    fn write_members(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.members.is_empty() {
            return Ok(());
        }
        let number = self.members.len() + self.members_left_out;
        write!(f, "\nkilled along with it: {}", grouped(number as u64))?;
        for member in self.members.iter().take(SHOWN_MEMBERS) {
            write!(f, "\n  {}", member.seen)?;
        }
        match number.saturating_sub(SHOWN_MEMBERS) {
            0 => Ok(()),
            more => write!(f, "\n  and {} more", grouped(more as u64)),
        }
    }

    fn how_sure(&self) -> String {
        match (self.confidence, self.with_pid) {
            (Confidence::Confirmed, _) => "confirmed (the kernel's kill and mark were seen)".to_owned(),
            (Confidence::CoVictim, Some(pid)) => format!("co-victim (killed along with {pid})"),
            (Confidence::CoVictim, None) => "co-victim".to_owned(),
            (Confidence::Inferred, _) => "inferred (the cgroup counted a kill, and this process left)".to_owned(),
            (Confidence::Possible, _) => "possible (it left about that time)".to_owned(),
        }
    }
}

/// `PID (running for 1,234.56s, vm: 1,234m, rss: 1,234m): cmdline`.
impl fmt::Display for Seen {
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

/// The arguments with a space between; what could forge a line or drive a terminal is escaped.
impl fmt::Display for Cmdline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A process that gave itself a title may have padded it.
        let end = self.bytes.iter().rposition(|byte| !matches!(byte, 0 | b' ')).map_or(0, |last| last + 1);
        for character in String::from_utf8_lossy(&self.bytes[..end]).chars() {
            match character {
                '\0' => f.write_char(' ')?,
                control if control.is_control() => write!(f, "{}", control.escape_default())?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds are more than is shown")]
fn running_s(process: ProcessKey, at_ns: u64) -> f64 {
    Duration::from_nanos(at_ns.saturating_sub(process.start_boot_ns())).as_millis() as f64 / 1000.0
}

/// The victim's sizes as the kernel told them, as far as it did.
///
/// The tracer has 0 for what it could not read: the kernel's types do not say where it is, or the victim had let go of its
/// memory. What is alive and killed for its memory has some of it.
#[derive(Debug, Clone, Copy)]
struct KilledMemory {
    vm_bytes: Option<u64>,
    rss_bytes: Option<u64>,
}

impl KilledMemory {
    fn of(memory: &MemoryAtKill) -> Self {
        let resident_bytes = memory.anon_bytes + memory.file_bytes + memory.shmem_bytes;
        let is_counted = resident_bytes + memory.swap_bytes > 0;
        let vm_bytes = Some(memory.vm_bytes).filter(|bytes| *bytes > 0);
        Self { vm_bytes, rss_bytes: is_counted.then_some(resident_bytes) }
    }

    /// A part of the resident memory, if that is known.
    fn if_counted(self, bytes: u64) -> Option<u64> {
        self.rss_bytes.map(|_| bytes)
    }
}

/// The resident memory of a victim: the kernel's figure, or when it was last seen.
pub(super) fn victim_rss(memory: &MemoryAtKill, known: Option<&Known>) -> Option<u64> {
    KilledMemory::of(memory).rss_bytes.or_else(|| known?.rss_bytes())
}

/// As `ps` users read it: mebibytes, rounded to the nearest; less than half of one is `0m`.
fn mib(bytes: u64) -> String {
    format!("{}m", grouped(bytes.saturating_add(MIB / 2) / MIB))
}

/// The same, or `?`.
pub(super) fn mib_or_unknown(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "?".to_owned(), mib)
}

/// `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn joined<S: Serializer>(cmdline: &Cmdline, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(cmdline)
}

#[expect(clippy::ref_option, reason = "serde hands over a reference to the field")]
fn joined_if_any<S: Serializer>(cmdline: &Option<Arc<Cmdline>>, serializer: S) -> Result<S::Ok, S::Error> {
    cmdline.as_ref().map(ToString::to_string).serialize(serializer)
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&utc(*time))
}

/// RFC 3339, in UTC, with microseconds.
#[must_use]
pub(crate) fn utc(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar.
fn date(mut days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
