//! Writing to files that may block: our own stdout and stderr, and logs on network mounts.
//!
//! A container's stdout is a pipe to a log driver that can stall. It is shared with other processes, so it must not be
//! made non-blocking. Each such file has its own thread and a bounded queue; callers wait for space in the queue, never
//! for the file.
//!
//! ```text
//!              the queue is full, and nothing was written for PATIENCE
//!  copying ───────────────────────────────────────────────────────────▶ given up: bytes are dropped and counted
//!     ▲                                                                      │
//!     └── the gap is written to the file and logged ◀── all that was queued is written
//! ```
//!
//! The output written here is a copy; the agent gets the original. So a pipe without a reader may delay the user's
//! program for a while, but not forever.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Chunks queued for a slow file: at most 1 MiB, at 64 KiB each.
const QUEUED_CHUNKS: usize = 16;

/// Lines of a log that wait: one for each of a thousand containers. A line has 2 to 8 KiB.
const QUEUED_LINES: usize = 1024;

/// A log driver that is busy, restarts or rotates its files accepts bytes again within seconds. After this time the
/// user's program should not wait any longer for what is only a copy.
const PATIENCE: Duration = Duration::from_secs(5);

/// The timeout during shutdown.
const HURRIED_PATIENCE: Duration = Duration::from_millis(300);

/// Set when the process shuts down.
static IS_HURRIED: AtomicBool = AtomicBool::new(false);

/// How often a waiting caller checks for progress.
const PROGRESS_POLL: Duration = Duration::from_millis(100);

/// The thread only writes. The default stack of 2 MiB would be most of our address space.
const STACK_BYTES: usize = 64 * 1024;

/// `/dev/null` has this device number (Documentation/admin-guide/devices.txt).
const DEV_NULL: u64 = nix::libc::makedev(1, 3);

enum WriterCommand {
    Write(Bytes),
    Flush(oneshot::Sender<()>),
}

/// A handle to the queue of one file.
#[derive(Clone)]
pub(crate) struct Writer {
    open: Option<Open>,
}

#[derive(Clone)]
struct Open {
    jobs: mpsc::Sender<WriterCommand>,
    progress: Arc<WriterProgress>,
    name: Arc<str>,
}

/// The progress of the writer thread, as seen by callers.
struct WriterProgress {
    state: Mutex<WriterState>,
    patience: Duration,
    is_hurried: &'static AtomicBool,
}

struct WriterState {
    /// When the thread started to write the current chunk; `None` while it is idle.
    busy_since: Option<Instant>,
    gap: Option<Gap>,
}

/// Output dropped because the file was blocked.
struct Gap {
    since: Instant,
    dropped_bytes: u64,
}

impl WriterProgress {
    fn new(patience: Duration, is_hurried: &'static AtomicBool) -> Self {
        Self { state: Mutex::new(WriterState { busy_since: None, gap: None }), patience, is_hurried }
    }

    fn patience(&self) -> Duration {
        if self.is_hurried.load(Ordering::Relaxed) { self.patience.min(HURRIED_PATIENCE) } else { self.patience }
    }

    fn lock(&self) -> MutexGuard<'_, WriterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts these bytes as dropped if the file is blocked for too long; returns whether they were dropped.
    fn drops(&self, bytes: usize, name: &str) -> bool {
        let mut state = self.lock();
        let is_new = state.gap.is_none();
        if is_new {
            match state.busy_since {
                Some(since) if since.elapsed() >= self.patience() => {
                    state.gap = Some(Gap { since, dropped_bytes: 0 });
                }
                _ => return false,
            }
        }
        if let Some(gap) = &mut state.gap {
            gap.dropped_bytes += bytes as u64;
        }
        drop(state);
        if is_new {
            tracing::warn!("{name} is blocked: output to it is dropped until it accepts writes again");
        }
        true
    }

    fn has_given_up(&self) -> bool {
        self.lock().gap.is_some()
    }

    fn begin(&self) {
        self.lock().busy_since = Some(Instant::now());
    }

    fn finish(&self) {
        self.lock().busy_since = None;
    }
}

impl Writer {
    /// A writer that discards all output.
    #[must_use]
    pub(crate) fn discard() -> Self {
        Self { open: None }
    }

    /// A writer to one of our standard streams. `/dev/null` needs no thread.
    ///
    /// # Errors
    /// If the descriptor cannot be duplicated or the thread cannot be started.
    pub(crate) fn to_standard(stream: impl AsFd, name: &'static str) -> io::Result<Self> {
        Self::to_stream(stream, name, QUEUED_CHUNKS)
    }

    /// The same for a log whose lines do not wait ([`Self::try_write`]): a burst of them has room.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn to_log(stream: impl AsFd, name: &'static str) -> io::Result<Self> {
        Self::to_stream(stream, name, QUEUED_LINES)
    }

    fn to_stream(stream: impl AsFd, name: &'static str, queued: usize) -> io::Result<Self> {
        let file = File::from(stream.as_fd().try_clone_to_owned()?);
        let metadata = file.metadata()?;
        if metadata.file_type().is_char_device() && metadata.rdev() == DEV_NULL {
            return Ok(Self::discard());
        }
        Self::patient(file, name.to_owned(), queued, PATIENCE, &IS_HURRIED)
    }

    /// A writer to `file`; `name` is used in log messages.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(crate) fn to_file(file: impl Into<OwnedFd>, name: String) -> io::Result<Self> {
        Self::patient(file, name, QUEUED_CHUNKS, PATIENCE, &IS_HURRIED)
    }

    fn patient(
        file: impl Into<OwnedFd>,
        name: String,
        queued: usize,
        patience: Duration,
        is_hurried: &'static AtomicBool,
    ) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(queued);
        let (progress, name) = (Arc::new(WriterProgress::new(patience, is_hurried)), Arc::<str>::from(name));
        let thread =
            Thread { file: File::from(file.into()), name: Arc::clone(&name), queue, progress: Arc::clone(&progress) };
        thread::Builder::new().name("writer".into()).stack_size(STACK_BYTES).spawn(move || thread.run())?;
        Ok(Self { open: Some(Open { jobs, progress, name }) })
    }

    /// Queues bytes. Waits for space as long as the file accepts output; drops and counts the bytes when the file is
    /// blocked.
    pub(crate) async fn write(&self, bytes: Bytes) {
        let Some(open) = &self.open else { return };
        let length = bytes.len();
        let queued = open.jobs.reserve();
        tokio::pin!(queued);
        loop {
            if open.progress.has_given_up() && open.progress.drops(length, &open.name) {
                return;
            }
            match timeout(PROGRESS_POLL, &mut queued).await {
                Ok(Ok(room)) => return room.send(WriterCommand::Write(bytes)),
                // The receiver lives as long as the thread, which lives as long as a sender does.
                Ok(Err(_)) => return,
                Err(_) if open.progress.drops(length, &open.name) => return,
                Err(_) => {}
            }
        }
    }

    /// Queues bytes if there is space now; `false` if they were dropped.
    #[must_use]
    pub(crate) fn try_write(&self, bytes: Bytes) -> bool {
        self.open.as_ref().is_none_or(|open| open.jobs.try_send(WriterCommand::Write(bytes)).is_ok())
    }

    /// Waits until all queued bytes are written; `false` at the deadline, or at once if the file is blocked.
    pub(crate) async fn flush(&self, deadline: Duration) -> bool {
        let Some(open) = &self.open else { return true };
        if open.progress.has_given_up() {
            return false;
        }
        let (done, written) = oneshot::channel();
        let flushed = async { open.jobs.send(WriterCommand::Flush(done)).await.is_ok() && written.await.is_ok() };
        timeout(deadline, flushed).await.unwrap_or(false)
    }
}

/// Shortens the timeout for blocked files because the process is shutting down.
pub(crate) fn hurry() {
    IS_HURRIED.store(true, Ordering::Relaxed);
}

/// The state of the writer thread.
struct Thread {
    file: File,
    name: Arc<str>,
    queue: mpsc::Receiver<WriterCommand>,
    progress: Arc<WriterProgress>,
}

impl Thread {
    /// Runs until every [`Writer`] is dropped. After a failed write the rest is discarded, so that a full disk or a
    /// closed pipe does not block the program.
    fn run(mut self) {
        let mut broken = false;
        while let Some(job) = self.queue.blocking_recv() {
            match job {
                WriterCommand::Write(bytes) if !broken => broken = !self.write(&bytes),
                WriterCommand::Write(_) => {}
                WriterCommand::Flush(done) => {
                    let _ = done.send(());
                }
            }
            if self.queue.is_empty() && !broken {
                broken = !self.tell_gap();
            }
        }
    }

    /// Returns `false` if the write failed.
    fn write(&mut self, bytes: &[u8]) -> bool {
        self.progress.begin();
        let written = write_all(&mut self.file, bytes);
        self.progress.finish();
        written
            .inspect_err(|error| {
                tracing::warn!("cannot write to {}: {error}; further output to it is dropped", self.name);
            })
            .is_ok()
    }

    /// The file accepts bytes again: reports the gap in the file and in the log, ahead of newly queued output.
    fn tell_gap(&mut self) -> bool {
        let Some(gap) = self.progress.lock().gap.take() else { return true };
        let (bytes, seconds) = (gap.dropped_bytes, gap.since.elapsed().as_secs());
        tracing::warn!("{bytes} bytes of output to {} were dropped: it was blocked for {seconds} s", self.name);
        let line = format!("krunner: {bytes} bytes of output dropped here: not read for {seconds} s\n");
        self.write(line.as_bytes())
    }
}

/// `write_all` for a descriptor that another process may have made non-blocking.
fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn all_bytes_arrive_through_a_full_non_blocking_pipe() {
        let (mut reader, writer) = io::pipe().unwrap();
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        let writer = Writer::to_file(writer, "pipe".into()).unwrap();
        let read = thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        let chunk = Bytes::from(vec![7u8; 64 * 1024]);
        for _ in 0..100 {
            writer.write(chunk.clone()).await;
        }
        assert!(writer.flush(DEADLINE).await);
        drop(writer);
        assert_eq!(read.join().unwrap().len(), 100 * chunk.len());
    }

    #[tokio::test]
    async fn a_stalled_file_fills_its_queue_and_no_more() {
        let (_reader, writer) = io::pipe().unwrap();
        let writer = Writer::to_file(writer, "pipe".into()).unwrap();
        let chunk = Bytes::from(vec![7u8; 128 * 1024]);
        let taken = (0..1000).take_while(|_| writer.try_write(chunk.clone())).count();
        assert!(taken <= QUEUED_CHUNKS + 1, "{taken}");
        assert!(!writer.flush(Duration::from_millis(50)).await);
    }

    /// As many containers as a machine has lose a process at the same moment, while nobody reads.
    #[test]
    fn burst_of_log_lines_has_room() {
        let (_reader, writer) = io::pipe().unwrap();
        let log = Writer::to_log(writer, "pipe").unwrap();
        let line = Bytes::from(vec![b'x'; 4096]);
        assert!((0..QUEUED_LINES).all(|_| log.try_write(line.clone())));
        assert!(!(0..QUEUED_LINES).all(|_| log.try_write(line.clone())), "bounded");
    }

    #[tokio::test]
    async fn a_file_that_takes_nothing_is_given_up_and_the_gap_is_told_there() {
        let (mut reader, writer) = io::pipe().unwrap();
        let writer =
            Writer::patient(writer, "pipe".into(), QUEUED_CHUNKS, Duration::from_millis(200), &IS_HURRIED).unwrap();
        let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
        let write_all = async {
            for _ in 0..1000 {
                writer.write(chunk.clone()).await;
            }
        };
        timeout(DEADLINE, write_all).await.unwrap();
        assert!(!writer.flush(DEADLINE).await, "at once");

        let read = thread::spawn(move || {
            let mut all = String::new();
            reader.read_to_string(&mut all).unwrap();
            all
        });
        let deadline = Instant::now() + DEADLINE;
        while writer.open.as_ref().unwrap().progress.has_given_up() {
            assert!(Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
        writer.write(Bytes::from_static(b"next\n")).await;
        assert!(writer.flush(DEADLINE).await);
        drop(writer);
        let all = read.join().unwrap();
        let (copied, rest) = all.split_at(all.find("krunner: ").unwrap());
        let dropped = 1000 * chunk.len() - copied.len();
        assert!(copied.len() >= QUEUED_CHUNKS * chunk.len() && copied.len() < 40 * chunk.len(), "{}", copied.len());
        let told = format!("krunner: {dropped} bytes of output dropped here: not read for 0 s\n");
        assert!(rest.split_inclusive('\n').eq([told.as_str(), "next\n"]), "{rest}");
    }

    #[tokio::test]
    async fn during_a_shutdown_a_blocked_file_is_given_up_soon() {
        static IS_STOPPING: AtomicBool = AtomicBool::new(false);
        let (_reader, writer) = io::pipe().unwrap();
        let writer = Writer::patient(writer, "pipe".into(), QUEUED_CHUNKS, 10 * DEADLINE, &IS_STOPPING).unwrap();
        let write_all = async {
            for _ in 0..100 {
                writer.write(Bytes::from(vec![b'x'; 64 * 1024])).await;
            }
        };
        tokio::pin!(write_all);
        assert!(timeout(2 * HURRIED_PATIENCE, &mut write_all).await.is_err(), "it waits for the file");
        IS_STOPPING.store(true, Ordering::Relaxed);
        timeout(DEADLINE, write_all).await.unwrap();
    }

    #[tokio::test]
    async fn a_slow_file_is_not_given_up() {
        let (mut reader, writer) = io::pipe().unwrap();
        let writer =
            Writer::patient(writer, "pipe".into(), QUEUED_CHUNKS, Duration::from_secs(2), &IS_HURRIED).unwrap();
        let read = thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            let mut length = 0;
            while let Ok(more @ 1..) = reader.read(&mut buffer) {
                length += more;
                thread::yield_now();
            }
            length
        });
        let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
        for _ in 0..200 {
            writer.write(chunk.clone()).await;
        }
        drop(writer);
        assert_eq!(read.join().unwrap(), 200 * chunk.len());
    }

    #[tokio::test]
    async fn a_closed_pipe_does_not_stop_the_writer() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let writer = Writer::to_file(writer, "pipe".into()).unwrap();
        for _ in 0..100 {
            writer.write(Bytes::from_static(b"x")).await;
        }
        assert!(writer.flush(DEADLINE).await);
    }
}
