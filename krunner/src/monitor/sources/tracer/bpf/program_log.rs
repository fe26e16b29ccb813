//! Forwards log lines of the eBPF programs (aya-log) to our own log at debug level.
//!
//! The object with log lines and its ring buffer are loaded only under `--debug`. Errors here never fail the tracer.

#![expect(unsafe_code, reason = "the readiness of aya's descriptor")]

use std::os::fd::{AsFd as _, AsRawFd, RawFd};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use tokio::io::unix::AsyncFd;

/// The ring buffer that aya-log-ebpf declares.
pub(super) const MAP: &str = "AYA_LOGS";

/// Its size: one page, the minimum; aya rounds it up for larger pages. It holds at least seven lines (aya-log rounds
/// each up to a power of two, here at most 512 bytes), and the programs log at most a few lines per second.
pub(super) const MAP_BYTES: u32 = 4096;

/// Whether the programs log rare events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProgramLog {
    /// Load the object without log lines and without their ring buffer.
    Off,
    /// Load the object with log lines, which are logged at debug level.
    Debug,
}

impl ProgramLog {
    /// Selects by whether the runner was started with `--debug`.
    #[must_use]
    pub(crate) fn under(debug: bool) -> Self {
        if debug { Self::Debug } else { Self::Off }
    }
}

/// Reads the programs' log lines.
pub(super) struct LogReader(EbpfLogger<DebugLines>);

/// The log reader of an object; `None` if it has no log lines or the ring buffer cannot be used.
pub(super) fn reader(ebpf: &mut Ebpf) -> Option<LogReader> {
    ebpf.map(MAP)?;
    EbpfLogger::init_with_logger(ebpf, DebugLines)
        .inspect_err(|error| tracing::debug!("eBPF program logging is disabled: {error}"))
        .ok()
        .map(LogReader)
}

impl LogReader {
    /// Logs all available lines.
    pub(super) fn flush(&mut self) {
        self.0.flush();
    }
}

impl AsRawFd for LogReader {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Registers the log with tokio. Must be called in a tokio runtime.
pub(super) fn register(reader: Option<LogReader>) -> Option<AsyncFd<LogReader>> {
    // SAFETY: a ring buffer owns its descriptor and keeps it until it is dropped together with the AsyncFd.
    unsafe { AsyncFd::register(reader?) }
        .inspect_err(|error| tracing::debug!("eBPF program logging is disabled: {error}"))
        .ok()
}

/// Waits for lines and logs them. Never returns without a log.
pub(super) async fn forward(log: Option<&mut AsyncFd<LogReader>>) {
    let Some(log) = log else { return std::future::pending().await };
    let Ok(mut ready) = log.readable_mut().await else { return std::future::pending().await };
    ready.clear_ready();
    ready.get_inner_mut().flush();
}

/// A `log` sink for aya-log that writes to `tracing`.
struct DebugLines;

impl Log for DebugLines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        tracing::debug!("eBPF: {}", record.args());
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::super::{Aligned, OBJECT, OBJECT_WITH_LOG};
    use super::*;

    #[test]
    fn only_the_object_for_debug_has_a_ring_for_log_lines() {
        let has_ring = |object: &Aligned<[u8]>| object.0.windows(MAP.len()).any(|bytes| bytes == MAP.as_bytes());
        assert!(has_ring(OBJECT_WITH_LOG));
        assert!(!has_ring(OBJECT));
    }
}
