//! Log lines that the programs write about rare events (aya-log), as debug lines of our own log.
//!
//! Only under `--debug` is the object with these lines loaded, and with it their ring buffer. Nothing here is a reason for
//! the tracer to fail.

use std::os::fd::{AsFd as _, AsRawFd, RawFd};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use tokio::io::unix::AsyncFd;

/// The ring buffer that aya-log-ebpf declares.
pub(super) const MAP: &str = "AYA_LOGS";

/// Its size: one page, the smallest that there is; aya rounds it up where pages are larger. It holds seven lines at
/// least (aya-log rounds each up to a power of two, here 512 bytes at most), and the programs log a few a second at most.
pub(super) const MAP_BYTES: u32 = 4096;

/// Whether the programs log rare events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramLog {
    /// They do not, and have no ring buffer for it.
    Off,
    /// As debug lines.
    Debug,
}

impl ProgramLog {
    /// For a program that was started with `--debug` or without.
    #[must_use]
    pub fn under(debug: bool) -> Self {
        if debug { Self::Debug } else { Self::Off }
    }
}

/// Hands what the programs log to our own log.
pub(super) struct LogReader(EbpfLogger<DebugLines>);

/// The log of an object; `None` for one without log lines, and if the ring buffer cannot be used.
pub(super) fn reader(ebpf: &mut Ebpf) -> Option<LogReader> {
    ebpf.map(MAP)?;
    EbpfLogger::init_with_logger(ebpf, DebugLines)
        .inspect_err(|error| tracing::debug!("log lines of the eBPF programs are not shown: {error}"))
        .ok()
        .map(LogReader)
}

impl LogReader {
    /// Logs what is there.
    pub(super) fn flush(&mut self) {
        self.0.flush();
    }
}

impl AsRawFd for LogReader {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Registers the log with tokio, in whose runtime this has to be called.
pub(super) fn register(reader: Option<LogReader>) -> Option<AsyncFd<LogReader>> {
    // SAFETY: a ring buffer keeps the same descriptor, its own, until it is dropped, with the AsyncFd.
    unsafe { AsyncFd::register(reader?) }
        .inspect_err(|error| tracing::debug!("log lines of the eBPF programs are not shown: {error}"))
        .ok()
}

/// Waits for lines and logs them. Never returns if there is no log.
pub(super) async fn forward(log: Option<&mut AsyncFd<LogReader>>) {
    let Some(log) = log else { return std::future::pending().await };
    let Ok(mut ready) = log.readable_mut().await else { return std::future::pending().await };
    ready.clear_ready();
    ready.get_inner_mut().flush();
}

/// What aya-log writes to: the `tracing` of this program.
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
