//! Moving what a program writes to everybody who wants it, in order and without loss.
//!
//! ```text
//! pumping ──exit──▶ draining ──EOF, or LEAK_TIMEOUT──▶ done
//!    │ EOF                                │ no EOF: a grandchild has the pipe
//!    └────────────▶ done                  └────────────▶ lingering ──EOF──▶ gone
//! ```
//!
//! When a sink has no room the pump waits (for the copies in our own stdout and the task log only for a while,
//! [`writer`](crate::writer)), the pipe fills, and the program blocks in `write`, as it
//! would on a full pipe. What the pipe holds when the program exits belongs to its step however long
//! the delivery takes; a grandchild that keeps the pipe holds the step for [`LEAK_TIMEOUT`] only, and
//! its later output is delivered all the same.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::control::Settle;
use super::sink::{OutputSink, Stream};
use crate::sys;
use crate::writer::Writer;

/// The largest chunk that is read and passed on at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// A read is offered at least this much room, so that small writes share one allocation.
const MIN_ROOM_BYTES: usize = 16 * 1024;

/// How long a step waits for a pipe that some other process still has open after its program ended.
pub(super) const LEAK_TIMEOUT: Duration = Duration::from_millis(300);

/// The three receivers of one stream.
pub(super) struct Outlets {
    pub(super) console: Writer,
    pub(super) task_log: Writer,
    pub(super) sink: Arc<dyn OutputSink>,
}

/// Pumps one stream of one program.
pub(super) struct Pump {
    stream: Stream,
    pipe: pipe::Receiver,
    outlets: Outlets,
    buffer: BytesMut,
    settle: mpsc::Receiver<Settle>,
}

/// What a wait of the pump ended with.
enum Wake {
    Chunk(Bytes),
    EndOfFile,
    Settle(Settle),
    Enough,
}

impl Pump {
    /// A pump, and the channel to [settle](super::Control::settle) it by.
    pub(super) fn new(stream: Stream, pipe: pipe::Receiver, outlets: Outlets) -> (Self, mpsc::Sender<Settle>) {
        let (ask, settle) = mpsc::channel(1);
        (Self { stream, pipe, outlets, buffer: BytesMut::new(), settle }, ask)
    }

    /// Pumps to the end of the pipe. `done` is told when the step need not wait any longer, which is
    /// at the end or, after `exited`, when only a grandchild has the pipe.
    pub(super) async fn run(mut self, mut exited: oneshot::Receiver<()>, done: oneshot::Sender<()>) {
        if !self.pump_until(async { _ = (&mut exited).await }).await {
            return;
        }
        if !self.deliver_present().await {
            return;
        }
        let leak_deadline = Instant::now() + LEAK_TIMEOUT;
        if !self.pump_until(tokio::time::sleep_until(leak_deadline)).await {
            return;
        }
        tracing::debug!("{:?} is kept open by a process that outlives its step", self.stream);
        drop(done);
        self.pump_until(std::future::pending()).await;
    }

    /// Delivers until `enough` resolves; `false` when the pipe has ended. A delivery is never cut off.
    async fn pump_until(&mut self, enough: impl Future<Output = ()>) -> bool {
        tokio::pin!(enough);
        loop {
            let wake = tokio::select! {
                biased;
                () = &mut enough => Wake::Enough,
                Some(settle) = self.settle.recv() => Wake::Settle(settle),
                chunk = read(&mut self.pipe, &mut self.buffer) => match chunk {
                    Ok(chunk) if chunk.is_empty() => Wake::EndOfFile,
                    Ok(chunk) => Wake::Chunk(chunk),
                    Err(error) => {
                        tracing::warn!("cannot read the {:?} of a program: {error}; the rest of it is lost", self.stream);
                        Wake::EndOfFile
                    }
                },
            };
            match wake {
                Wake::Chunk(chunk) => self.deliver(chunk).await,
                Wake::EndOfFile => return false,
                Wake::Enough => return true,
                Wake::Settle(settle) => {
                    let open = self.deliver_present().await;
                    let _ = settle.send(());
                    if !open {
                        return false;
                    }
                }
            }
        }
    }

    /// Delivers what the pipe holds at this moment; `false` when it has ended.
    async fn deliver_present(&mut self) -> bool {
        let mut present = sys::readable_bytes(self.pipe.as_fd()).unwrap_or(0);
        while present > 0 {
            match read(&mut self.pipe, &mut self.buffer).await {
                Ok(chunk) if !chunk.is_empty() => {
                    present = present.saturating_sub(chunk.len());
                    self.deliver(chunk).await;
                }
                _ => return false,
            }
        }
        true
    }

    /// The agent comes first: the copies may wait for a file that takes nothing.
    async fn deliver(&self, chunk: Bytes) {
        self.outlets.sink.deliver(self.stream, chunk.clone()).await;
        self.outlets.console.write(chunk.clone()).await;
        self.outlets.task_log.write(chunk).await;
    }
}

/// The next chunk, empty at the end. Nothing is lost when this is dropped while it waits.
async fn read(pipe: &mut pipe::Receiver, buffer: &mut BytesMut) -> io::Result<Bytes> {
    if buffer.capacity() - buffer.len() < MIN_ROOM_BYTES {
        buffer.reserve(CHUNK_BYTES);
    }
    pipe.read_buf(&mut (&mut *buffer).limit(CHUNK_BYTES)).await?;
    Ok(buffer.split().freeze())
}
