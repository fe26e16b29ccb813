//! Writing to files that may block: our own stdout and stderr, and logs on network mounts.
//!
//! A container's stdout is a pipe to a log driver that can stall, and shared with other processes, so
//! it must not be made non-blocking. Each such file has a thread of its own and a bounded queue before
//! it; whoever writes waits for room in the queue, never for the file.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{mpsc, oneshot};

/// Chunks that wait for a slow file: at 64 KiB each, at most 1 MiB.
const QUEUED_CHUNKS: usize = 16;

/// The thread only writes; the default of 2 MiB would be the larger part of our address space.
const STACK_BYTES: usize = 64 * 1024;

/// `/dev/null` has this device number (Documentation/admin-guide/devices.txt).
const DEV_NULL: u64 = nix::libc::makedev(1, 3);

enum Job {
    Write(Bytes),
    Flush(oneshot::Sender<()>),
}

/// The queue before one file.
#[derive(Clone)]
pub struct Writer {
    jobs: Option<mpsc::Sender<Job>>,
}

impl Writer {
    /// Writes that go nowhere.
    #[must_use]
    pub fn discard() -> Self {
        Self { jobs: None }
    }

    /// A writer to one of our standard streams; none is started for `/dev/null`.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated or the thread not be started.
    pub fn to_standard(stream: impl AsFd, name: &'static str) -> io::Result<Self> {
        let file = File::from(stream.as_fd().try_clone_to_owned()?);
        let metadata = file.metadata()?;
        if metadata.file_type().is_char_device() && metadata.rdev() == DEV_NULL {
            return Ok(Self::discard());
        }
        Self::to_file(file, name.to_owned())
    }

    /// A writer to `file`; `name` is for the message when that fails.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn to_file(file: impl Into<OwnedFd>, name: String) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(QUEUED_CHUNKS);
        let file = File::from(file.into());
        thread::Builder::new().name("writer".into()).stack_size(STACK_BYTES).spawn(move || run(file, &name, queue))?;
        Ok(Self { jobs: Some(jobs) })
    }

    /// Queues bytes, waiting for room.
    pub async fn write(&self, bytes: Bytes) {
        if let Some(jobs) = &self.jobs {
            // The receiver lives as long as the thread, which lives as long as a sender does.
            let _ = jobs.send(Job::Write(bytes)).await;
        }
    }

    /// Queues bytes if there is room now; `false` when they were dropped.
    #[must_use]
    pub fn try_write(&self, bytes: Bytes) -> bool {
        self.jobs.as_ref().is_none_or(|jobs| jobs.try_send(Job::Write(bytes)).is_ok())
    }

    /// Waits until all that was queued has been written; `false` at the deadline.
    pub async fn flush(&self, deadline: Duration) -> bool {
        let Some(jobs) = &self.jobs else { return true };
        let (done, written) = oneshot::channel();
        let flushed = async { jobs.send(Job::Flush(done)).await.is_ok() && written.await.is_ok() };
        tokio::time::timeout(deadline, flushed).await.unwrap_or(false)
    }
}

/// The thread: until every [`Writer`] is gone. After a failure the rest is thrown away, so that a full
/// disk or a closed pipe does not stop the program whose output this is.
fn run(mut file: File, name: &str, mut queue: mpsc::Receiver<Job>) {
    let mut broken = false;
    while let Some(job) = queue.blocking_recv() {
        match job {
            Job::Write(bytes) if !broken => {
                if let Err(error) = write_all(&mut file, &bytes) {
                    broken = true;
                    tracing::warn!("cannot write to {name}: {error}; what follows is not written there");
                }
            }
            Job::Write(_) => {}
            Job::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}

/// `write_all` for a descriptor that somebody else may have made non-blocking.
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
