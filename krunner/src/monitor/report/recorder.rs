//! The flight recorder: a small file that tells what a process did before it ended, even by SIGKILL.
//!
//! ```text
//!  session, monitor ──Record──▶ queue (bounded) ──▶ thread ──pwrite──▶ recorder.bin, 256 KiB: page cache, then disk
//!  the next session, `krunner oom post-mortem` ◀── Recording ◀──────────────┘
//! ```
//!
//! **Why pwrite and not mmap.** The file is in the user's folder. If it is truncated while mapped, or its file server goes away,
//! the next write raises SIGBUS in the runner (mmap(2)). Bytes written by pwrite(2) are in the page cache and outlive the process
//! just as well. The cost is one write per record and two reads for each of our cgroups, four times per second, and more while memory
//! grows by 1/16 of the limit from one sample to the next.
//!
//! **A power failure** loses what the kernel had not written to disk: up to 30 s (`dirty_expire_centisecs`,
//! Documentation/admin-guide/sysctl/vm.rst). The rest remains valid, see `format`. Nothing is synced, because that waits for the
//! disk.
//!
//! **Near the limit.** The file's pages are charged at the start. Before an OOM kill the kernel reclaims what it can, also a page
//! that was written a moment ago, and reading it again is a charge. So at the limit a write waits as a scan does ([`Hold`]). A goodbye
//! never does, and nothing does where the next kill ends this process in any case (`memory.oom.group`): what is not written before
//! is lost.
//!
//! Recording never blocks: records that do not fit in the queue are dropped.

mod cause;
mod format;
#[cfg(any(test, fuzzing))]
pub(in crate::monitor) mod fuzzing;
mod identity;
mod post_mortem;
mod record;
mod recording_path;

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use std::{io, thread};

use tokio::sync::oneshot;
use tokio::time::timeout;

use self::identity::{current_state, new_header, state_for};
pub(crate) use cause::{Certainty, CurrentState, EndCause};
pub(crate) use format::NotARecording;
pub(crate) use identity::kernel_id;
pub(crate) use post_mortem::PostMortem;
pub(crate) use record::Record;
pub(crate) use recording_path::RecordingPath;

use self::format::Encoder;
use self::recording_path::OpenedRecording;
use crate::error::chain;
use crate::monitor::model::MemorySample;
use crate::monitor::model::clock::boot_ns;
use crate::monitor::sources::cgroup::charge::{Hold, OwnCharge};

/// Records that may wait for a slow disk: a few seconds' worth.
const QUEUED_RECORDS: usize = 64;

/// The thread only hashes and writes. The default of 2 MiB would be most of krunner's address space.
const STACK_BYTES: usize = 128 * 1024;

/// Without changes a sample is recorded this often, to show that the process is alive.
const HEARTBEAT_NS: u64 = 5_000_000_000;

/// A change in usage by less than this part of the limit, or of the usage, is ignored.
const CHANGE_PART: u64 = 256;

/// More than four samples per second would shorten the recorded time.
const MIN_GAP_NS: u64 = 240_000_000;

/// Growth by more than this part of the limit is recorded at once: the next sample may never come.
pub(crate) const BURST_PART: u64 = 16;

/// A handle that queues records. The recorder stops with its last clone.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    queue: SyncSender<RecorderCommand>,
    /// Time since boot and usage in bytes.
    last_sample: Arc<Mutex<Option<(u64, u64)>>>,
}

#[derive(Debug)]
enum RecorderCommand {
    Record { at_boot_ns: u64, unix_ns: u64, record: Record },
    Flush(oneshot::Sender<()>),
}

/// The result of starting the recorder.
#[derive(Debug, Default)]
pub(crate) struct RecorderStart {
    /// The file; `None` when nothing is recorded.
    pub path: Option<PathBuf>,
    /// Earlier recordings in that folder that ended without a goodbye.
    pub ended: Vec<PostMortem>,
    /// Files that could not be used, and why.
    pub problems: Vec<String>,
}

impl Recorder {
    /// Starts the recorder. The receiver resolves when the file was opened or could not be opened; on a file system that hangs,
    /// never.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub(crate) fn start(
        path: RecordingPath,
        charge: Option<Arc<OwnCharge>>,
    ) -> io::Result<(Self, oneshot::Receiver<RecorderStart>)> {
        let (queue, messages) = sync_channel(QUEUED_RECORDS);
        let (started, start) = oneshot::channel();
        let run = move || run(&path, charge.as_ref(), started, &messages);
        thread::Builder::new().name("recorder".into()).stack_size(STACK_BYTES).spawn(run)?;
        Ok((Self { queue, last_sample: Arc::default() }, start))
    }

    /// Queues a record. Never blocks.
    pub(crate) fn record(&self, record: Record) {
        let message = RecorderCommand::Record { at_boot_ns: boot_ns(), unix_ns: unix_ns(SystemTime::now()), record };
        // Fails if the disk is slow or there is no file.
        let _ = self.queue.try_send(message);
    }

    /// Records a sample, unless nothing changed.
    pub(crate) fn record_sample(&self, sample: &MemorySample) {
        if self.wants_sample(sample) {
            *self.last_sample() = Some((sample.at_boot_ns, sample.usage_bytes));
            self.record(Record::Sample(sample.clone()));
        }
    }

    /// Whether a sample with this usage would be recorded. Callers check before reading processes.
    #[must_use]
    pub(crate) fn wants_sample(&self, sample: &MemorySample) -> bool {
        is_worth_recording(sample, *self.last_sample())
    }

    fn last_sample(&self) -> MutexGuard<'_, Option<(u64, u64)>> {
        self.last_sample.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all records are written; `false` at the deadline.
    pub(crate) async fn flush(&self, deadline: Duration) -> bool {
        let (done, written) = oneshot::channel();
        self.queue.try_send(RecorderCommand::Flush(done)).is_ok()
            && matches!(timeout(deadline, written).await, Ok(Ok(())))
    }
}

/// Whether a sample differs enough from the last one, given by its time and usage.
fn is_worth_recording(sample: &MemorySample, last: Option<(u64, u64)>) -> bool {
    let Some((at_boot_ns, usage_bytes)) = last else { return true };
    let gap_ns = sample.at_boot_ns.saturating_sub(at_boot_ns);
    let scale = sample.limit_bytes.unwrap_or(u64::MAX).min(usage_bytes.max(1) * 16);
    let is_changed = sample.usage_bytes.abs_diff(usage_bytes) > scale / CHANGE_PART;
    let grown_bytes = sample.usage_bytes.saturating_sub(usage_bytes);
    let is_burst = sample.limit_bytes.is_some_and(|limit| grown_bytes > limit / BURST_PART);
    gap_ns >= HEARTBEAT_NS || is_burst || is_changed && gap_ns >= MIN_GAP_NS
}

/// The thread's main loop.
fn run(
    recording: &RecordingPath,
    charge: Option<&Arc<OwnCharge>>,
    started: oneshot::Sender<RecorderStart>,
    messages: &Receiver<RecorderCommand>,
) {
    let (header, now) = (new_header(), current_state());
    let (opened, problem) = match recording.open(&header, &now) {
        Ok(opened) => (opened, None),
        Err(error) => (None, Some(chain(&error))),
    };
    let Some(OpenedRecording { file, path, ended, mut problems }) = opened else {
        let problems = problem.into_iter().collect();
        let _ = started.send(RecorderStart { problems, ..RecorderStart::default() });
        return;
    };
    problems.extend(problem);
    // Before anyone knows of the start: kills from then on are waited for.
    let mut hold = charge.map_or_else(Hold::default, |charge| Hold::new(Arc::default(), Arc::clone(charge)));
    let _ = started.send(RecorderStart { path: Some(path), ended, problems });
    let mut encoder = Encoder::new(format::Layout::STANDARD, header.nonce);
    for message in messages {
        let (at_boot_ns, unix_ns, mut record) = match message {
            RecorderCommand::Record { at_boot_ns, unix_ns, record } => (at_boot_ns, unix_ns, record),
            RecorderCommand::Flush(done) => {
                let _ = done.send(());
                continue;
            }
        };
        let is_last = matches!(record, Record::Stopping { .. } | Record::Goodbye { .. });
        let Some((offset, bytes)) = encoder.encode(&mut record, at_boot_ns, unix_ns) else { continue };
        if !is_last && charge.is_some_and(|charge| !charge.next_kill_is_ours()) {
            hold.wait();
        }
        if let Err(error) = file.write_all_at(bytes, offset) {
            tracing::warn!("flight recorder stopped: cannot write its file: {error}");
            return;
        }
    }
}

/// Reads a recording and determines how its process ended.
///
/// # Errors
///
/// When the file is not a regular file or not a recording.
pub(crate) fn post_mortem(path: &Path) -> Result<PostMortem, PostMortemError> {
    let failed = |error| PostMortemError::Io(path.to_owned(), error);
    let (recording, is_locked) = recording_path::read_file(path).map_err(failed)?;
    let recording = recording.map_err(|what| PostMortemError::NotARecording(path.to_owned(), what))?;
    let now = CurrentState { is_locked, ..state_for(&recording.header) };
    Ok(PostMortem::of(path.display().to_string(), &recording, &now))
}

/// Why a post-mortem is not possible.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PostMortemError {
    /// The file cannot be read.
    #[error("cannot read {}", .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// The file is not a valid recording.
    #[error("{}", .0.display())]
    NotARecording(PathBuf, #[source] NotARecording),
}

fn unix_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "recorder_tests.rs"]
mod tests;
