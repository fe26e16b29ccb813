//! Formats the end of a recorded process: lines for people, an object for programs. Pure.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::cause::{Certainty, CurrentState, EndCause, find_cause, samples};
use super::format::{DatedRecord, Recording};
use super::record::Record;
use crate::monitor::model::MemorySample;
use crate::monitor::model::json::rfc3339;
use crate::monitor::model::time::utc;
use crate::monitor::model::units::mib;

/// Columns of the sparkline.
const COLUMNS: usize = 24;

/// Bytes of a step's text in one line.
const SHOWN_TEXT_BYTES: usize = 60;

/// How a recorded process ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PostMortem {
    event: &'static str,
    /// Path of the recording.
    pub file: String,
    /// The likeliest cause.
    pub cause: EndCause,
    /// How certain the cause is.
    pub confidence: Certainty,
    /// Evidence for the cause.
    pub reasons: Vec<String>,
    /// When the recording began.
    #[serde(serialize_with = "rfc3339")]
    pub started: SystemTime,
    /// Time of the last record. Without a goodbye the process lived at most a few seconds longer.
    #[serde(serialize_with = "rfc3339")]
    pub last_record: SystemTime,
    /// PID of the process in its own PID namespace.
    pub pid: u32,
    /// The agent's ID of the container.
    pub kernel_id: Option<String>,
    /// Host name of the container.
    pub hostname: String,
    /// Path of its memory cgroup.
    pub cgroup: Option<String>,
    /// The running step, or else the last one.
    pub step: Option<RecordedStep>,
    /// Memory in the last sample.
    pub memory: Option<LastSample>,
    /// First lines of the reports of OOM kills.
    pub kills: Vec<String>,
    /// All readable samples, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<MemorySample>,
    /// Number of records skipped because they were torn or damaged.
    pub damaged_records: usize,
}

/// Memory in the last sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LastSample {
    /// Wall-clock time of the sample.
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    /// The sample itself.
    #[serde(flatten)]
    pub sample: MemorySample,
}

impl LastSample {
    fn of(dated: &DatedRecord) -> Option<Self> {
        let Record::Sample(sample) = &dated.record else { return None };
        Some(Self { time: time(dated.unix_ns), sample: sample.clone() })
    }
}

/// A step of the recorded session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct RecordedStep {
    /// Number of the step in its session.
    pub number: u64,
    /// The op: `exec`, `code`, ...
    pub kind: String,
    /// Its command line or code, truncated.
    pub text: String,
    /// When it started.
    #[serde(serialize_with = "rfc3339")]
    pub began: SystemTime,
    /// When it started, in nanoseconds since boot.
    pub began_at_boot_ns: u64,
    /// The exit code; `None` while it runs.
    pub exit_code: Option<i32>,
}

impl PostMortem {
    /// Evaluates a recording.
    #[must_use]
    pub(crate) fn of(file: String, recording: &Recording, now: &CurrentState) -> Self {
        let finding = find_cause(recording, now);
        let (header, dated) = (&recording.header, recording.events.iter().chain(&recording.samples));
        let last_record = dated.map(|dated| dated.unix_ns).max().unwrap_or(header.unix_ns);
        Self {
            event: "session_post_mortem",
            file,
            cause: finding.cause,
            confidence: finding.certainty,
            reasons: finding.reasons,
            started: time(header.unix_ns),
            last_record: time(last_record),
            pid: header.pid,
            kernel_id: header.kernel_id.clone(),
            hostname: header.hostname.clone(),
            cgroup: header.cgroup.clone(),
            step: last_step(&recording.events),
            memory: recording.samples.last().and_then(LastSample::of),
            kills: kills(&recording.events),
            samples: samples(recording).cloned().collect(),
            damaged_records: recording.damaged,
        }
    }

    /// Whether it ended, and not cleanly.
    #[must_use]
    pub(crate) fn is_unexpected(&self) -> bool {
        !matches!(self.cause, EndCause::Running | EndCause::Stopped)
    }

    /// The object for the next session's journal, with the last sample only.
    #[must_use]
    pub(crate) fn for_journal(&self) -> Self {
        Self { event: "session_ended_unexpectedly", samples: Vec::new(), ..self.clone() }
    }

    /// One line for the next session's log.
    #[must_use]
    pub(crate) fn one_line(&self) -> String {
        let running = self.step.as_ref().filter(|step| step.exit_code.is_none());
        let step = running.map(|step| format!(" while running {}", step.shown())).unwrap_or_default();
        let whose = self.kernel_id.as_ref().map(|id| format!(" (kernel {})", id.escape_debug())).unwrap_or_default();
        format!(
            "an earlier session{whose} ended unexpectedly at {}{step}: {}; details: `krunner oom post-mortem {}`",
            utc(self.last_record),
            self.cause_text(),
            self.file
        )
    }

    fn cause_text(&self) -> String {
        let cause = match self.cause {
            EndCause::Running => "still running",
            EndCause::Stopped => "stopped",
            EndCause::KilledWhileStopping => "killed while shutting down",
            EndCause::GroupKill => "OOM kill of the whole cgroup, including the runner",
            EndCause::KilledAtLimit => "OOM kill of the runner",
            EndCause::Killed => "SIGKILL from elsewhere (kill, container stop, systemd-oomd) or a crash",
            EndCause::MachineRestarted => "the machine was rebooted",
            EndCause::Unknown => "unknown cause",
        };
        match self.confidence {
            Certainty::Certain => cause.to_owned(),
            Certainty::Likely => format!("{cause} (likely)"),
            Certainty::Possible => format!("{cause} (possible)"),
        }
    }

    fn write_memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(last) = &self.memory else { return f.write_str("\nmemory: no sample") };
        let sample = &last.sample;
        let limit = sample.limit_bytes.map_or_else(|| "no limit".to_owned(), mib);
        write!(f, "\nmemory: {limit}  {}  {}", sparkline(&self.samples), mib(sample.usage_bytes))?;
        write!(f, " in use at {}", utc(last.time))?;
        for process in &sample.processes {
            let name = process.name.escape_debug();
            write!(f, "\n  {} ({name}), rss {}", process.key.pid, mib(process.rss_bytes))?;
        }
        Ok(())
    }
}

impl fmt::Display for PostMortem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.file, self.cause_text())?;
        for reason in &self.reasons {
            writeln!(f, "  {}", reason.escape_debug())?;
        }
        let kernel = self.kernel_id.as_ref().map(|id| format!(", kernel {}", id.escape_debug())).unwrap_or_default();
        let host = self.hostname.escape_debug();
        write!(f, "krunner: pid {} on {host}{kernel}, since {}", self.pid, utc(self.started))?;
        write!(f, "\nlast record: {}", utc(self.last_record))?;
        if let Some(step) = &self.step {
            let state = step.exit_code.map_or_else(|| "was running".to_owned(), |code| format!("exit code {code}"));
            write!(f, "\nstep {} ({state}), started {}: {}", step.number, utc(step.began), step.shown())?;
        }
        self.write_memory(f)?;
        for kill in &self.kills {
            write!(f, "\nreported: {}", kill.escape_debug())?;
        }
        if self.damaged_records > 0 {
            write!(f, "\n{} damaged records skipped", self.damaged_records)?;
        }
        Ok(())
    }
}

impl RecordedStep {
    fn shown(&self) -> String {
        let line = self.text.lines().next().unwrap_or_default();
        let shown = &line[..line.floor_char_boundary(SHOWN_TEXT_BYTES)];
        let more = if shown.len() < self.text.trim_end().len() { "..." } else { "" };
        format!("{} `{}{more}`", self.kind.escape_debug(), shown.escape_debug())
    }
}

fn last_step(events: &[DatedRecord]) -> Option<RecordedStep> {
    let (mut step, rest) = events.iter().enumerate().rev().find_map(|(index, dated)| {
        let Record::StepBegun { number, kind, text } = &dated.record else { return None };
        let (kind, text) = (kind.clone(), text.clone());
        let began_at_boot_ns = dated.at_boot_ns;
        let step =
            RecordedStep { number: *number, kind, text, began: time(dated.unix_ns), began_at_boot_ns, exit_code: None };
        Some((step, &events[index..]))
    })?;
    step.exit_code = rest.iter().find_map(|dated| match dated.record {
        Record::StepEnded { number, exit_code } if number == step.number => Some(exit_code),
        _ => None,
    });
    Some(step)
}

fn kills(events: &[DatedRecord]) -> Vec<String> {
    let texts = events.iter().filter_map(|dated| match &dated.record {
        Record::Kill { text, .. } => Some(text.clone()),
        _ => None,
    });
    texts.collect()
}

/// A sparkline: the maximum usage of each interval, relative to the limit or else to the overall maximum.
fn sparkline(samples: &[MemorySample]) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let largest = samples.iter().map(|sample| sample.usage_bytes).max().unwrap_or(0);
    let top = samples.last().and_then(|sample| sample.limit_bytes).unwrap_or(largest).max(largest).max(1);
    let level = |part: &[MemorySample]| {
        let usage = part.iter().map(|sample| sample.usage_bytes).max().unwrap_or(0);
        let level = u128::from(usage) * (LEVELS.len() as u128 - 1) / u128::from(top);
        LEVELS[usize::try_from(level).unwrap_or(0)]
    };
    samples.chunks(samples.len().div_ceil(COLUMNS).max(1)).map(level).collect()
}

fn time(unix_ns: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(unix_ns)
}

#[cfg(test)]
#[path = "post_mortem_tests.rs"]
mod tests;
