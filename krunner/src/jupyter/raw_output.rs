//! What a kernel's process writes to its own stdout and stderr, past its messages.
//!
//! ipykernel publishes what is written there, by a library or a subprocess, and writes it there as well: once it
//! is ready, the user gets it as a message. What other kernels write is shown from here, and so is what any
//! kernel writes before it is ready, which tells why one does not start.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use crate::process::{OutputSink, Rich, Stream};

/// The sink of a kernel's process.
pub(super) struct RawOutput {
    sink: Arc<dyn OutputSink>,
    is_published: AtomicBool,
}

impl RawOutput {
    pub(super) fn new(sink: Arc<dyn OutputSink>) -> Arc<Self> {
        Arc::new(Self { sink, is_published: AtomicBool::new(false) })
    }

    /// From now on the kernel publishes it, too.
    pub(super) fn is_published(&self) {
        self.is_published.store(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl OutputSink for RawOutput {
    async fn deliver(&self, stream: Stream, chunk: Bytes) {
        if !self.is_published.load(Ordering::Relaxed) {
            self.sink.deliver(stream, chunk).await;
        }
    }

    async fn show(&self, rich: Rich) {
        self.sink.show(rich).await;
    }
}
