//! Forwards the output of a program to all its sinks, in order and without loss.
//!
//! ```text
//! pumping ──exit──▶ draining ──EOF, or LEAK_TIMEOUT──▶ done
//!    │ EOF                                │ no EOF: a grandchild has the pipe
//!    └────────────▶ done                  └────────────▶ lingering ──EOF──▶ gone
//! ```
//!
//! When a sink is full the pump waits, the pipe fills, and the program blocks in `write`. For the copies to our own
//! stdout and the task log it waits only for a limited time ([`writer`](crate::writer)). What the pipe holds when the
//! program exits belongs to its step, however long the delivery takes. A grandchild that keeps the pipe open delays the
//! step by [`LEAK_TIMEOUT`] at most; its later output is still delivered.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::control::FlushRequest;
use super::sink::OutputSink;
use crate::sys;
use crate::wire::Stream;
use crate::writer::Writer;

/// The largest chunk that is read and forwarded at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// The minimum free space for a read, so that small writes share one allocation.
const MIN_ROOM_BYTES: usize = 16 * 1024;

/// How long a step waits for a pipe that another process keeps open after its program exited.
pub(super) const LEAK_TIMEOUT: Duration = Duration::from_millis(300);

/// The three sinks of one stream.
pub(super) struct Sinks {
    pub(super) console: Writer,
    pub(super) task_log: Writer,
    pub(super) sink: Arc<dyn OutputSink>,
}

/// Forwards one output stream of one program.
pub(super) struct Pump {
    stream: Stream,
    pipe: pipe::Receiver,
    sinks: Sinks,
    buffer: BytesMut,
    flush: mpsc::Receiver<FlushRequest>,
}

/// The event that woke the pump.
enum Wake {
    Chunk(Bytes),
    EndOfFile,
    Flush(FlushRequest),
    Enough,
}

impl Pump {
    /// A pump, and the channel through which it is [flushed](super::Control::flush_output).
    pub(super) fn new(stream: Stream, pipe: pipe::Receiver, sinks: Sinks) -> (Self, mpsc::Sender<FlushRequest>) {
        let (ask, flush) = mpsc::channel(1);
        (Self { stream, pipe, sinks, buffer: BytesMut::new(), flush }, ask)
    }

    /// Forwards until the end of the pipe. Drops `done` when the step need not wait any longer: at the end, or after
    /// `exited` when only a grandchild holds the pipe.
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

    /// Delivers until `enough` resolves; `false` at the end of the pipe. A delivery is never interrupted.
    async fn pump_until(&mut self, enough: impl Future<Output = ()>) -> bool {
        tokio::pin!(enough);
        loop {
            let wake = tokio::select! {
                biased;
                () = &mut enough => Wake::Enough,
                Some(flush) = self.flush.recv() => Wake::Flush(flush),
                chunk = read(&mut self.pipe, &mut self.buffer) => match chunk {
                    Ok(chunk) if chunk.is_empty() => Wake::EndOfFile,
                    Ok(chunk) => Wake::Chunk(chunk),
                    Err(error) => {
                        tracing::warn!("cannot read a program's {:?}: {error}; the rest of it is lost", self.stream);
                        Wake::EndOfFile
                    }
                },
            };
            match wake {
                Wake::Chunk(chunk) => self.deliver(chunk).await,
                Wake::EndOfFile => return false,
                Wake::Enough => return true,
                Wake::Flush(flush) => {
                    let open = self.deliver_present().await;
                    let _ = flush.send(());
                    if !open {
                        return false;
                    }
                }
            }
        }
    }

    /// Delivers what the pipe holds now; `false` at the end of the pipe.
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

    /// The agent comes first, because the copies may wait for a blocked file.
    async fn deliver(&self, chunk: Bytes) {
        self.sinks.sink.deliver(self.stream, chunk.clone()).await;
        self.sinks.console.write(chunk.clone()).await;
        self.sinks.task_log.write(chunk).await;
    }
}

/// Reads the next chunk; empty at the end of the pipe. Cancel-safe.
async fn read(pipe: &mut pipe::Receiver, buffer: &mut BytesMut) -> io::Result<Bytes> {
    if buffer.capacity() - buffer.len() < MIN_ROOM_BYTES {
        buffer.reserve(CHUNK_BYTES);
    }
    pipe.read_buf(&mut (&mut *buffer).limit(CHUNK_BYTES)).await?;
    Ok(buffer.split().freeze())
}

#[cfg(test)]
#[path = "pump_tests.rs"]
mod tests;
