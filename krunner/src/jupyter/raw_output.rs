//! Output that a kernel's process writes to its own stdout and stderr.
//!
//! ipykernel also publishes such output (of a library or a subprocess) as messages, so once it is ready the raw output is
//! dropped here. The raw output of other kernels is always shown, and that of any kernel before it is ready, which shows why
//! it does not start.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use crate::process::{OutputSink, RichOutput, Stream};

/// The sink of a kernel's process.
pub(super) struct RawOutput {
    sink: Arc<dyn OutputSink>,
    is_published: AtomicBool,
}

impl RawOutput {
    pub(super) fn new(sink: Arc<dyn OutputSink>) -> Arc<Self> {
        Arc::new(Self { sink, is_published: AtomicBool::new(false) })
    }

    /// Drops raw output from now on, because the kernel publishes it.
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

    async fn show(&self, rich: RichOutput) {
        self.sink.show(rich).await;
    }
}
