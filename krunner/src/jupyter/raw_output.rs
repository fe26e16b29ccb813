//! What a kernel's process writes to its own stdout and stderr, past its messages.
//!
//! ipykernel publishes what is written there, by a library or a subprocess, and writes it there as well: once it
//! is ready, the user has seen it. What other kernels write is shown from here, and so is what any kernel writes
//! before it is ready, or last, when it dies and publishes nothing any more.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

use crate::process::{OutputSink, Rich, Stream};

/// What is kept of stderr for the case that the kernel dies: a stack trace of a crash.
const TAIL_CHUNKS: usize = 16;

/// What was written longer before the end has been published.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// The sink of a kernel's process.
pub(super) struct RawOutput {
    sink: Arc<dyn OutputSink>,
    is_published: AtomicBool,
    tail: Mutex<VecDeque<(Instant, Bytes)>>,
}

impl RawOutput {
    pub(super) fn new(sink: Arc<dyn OutputSink>) -> Arc<Self> {
        Arc::new(Self { sink, is_published: AtomicBool::new(false), tail: Mutex::default() })
    }

    /// From now on the kernel publishes it, too.
    pub(super) fn is_published(&self) {
        self.is_published.store(true, Ordering::Relaxed);
    }

    /// The kernel has died: shows what it said last.
    pub(super) async fn last_words(&self) {
        let tail = std::mem::take(&mut *self.tail.lock().unwrap_or_else(PoisonError::into_inner));
        for (at, chunk) in tail {
            if at.elapsed() < LAST_MOMENT {
                self.sink.deliver(Stream::Stderr, chunk).await;
            }
        }
    }
}

#[async_trait]
impl OutputSink for RawOutput {
    async fn deliver(&self, stream: Stream, chunk: Bytes) {
        if !self.is_published.load(Ordering::Relaxed) {
            return self.sink.deliver(stream, chunk).await;
        }
        if stream == Stream::Stderr {
            let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
            if tail.len() == TAIL_CHUNKS {
                tail.pop_front();
            }
            tail.push_back((Instant::now(), chunk));
        }
    }

    async fn show(&self, rich: Rich) {
        self.sink.show(rich).await;
    }
}
