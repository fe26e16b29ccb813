//! Log lines: `{lang}-kernel: message` on our own stderr and as `stderr` replies to the agent (the log bridge), which
//! are the user's only view of the runner. `--debug` turns the bridge off, as in the Python runner.
//!
//! Logging never blocks. A line that does not fit into the queue is dropped, and the number of dropped lines is logged
//! before the next line that fits.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::writer::Writer;

/// Longer log entries are truncated. An OOM report with its process tree is far shorter.
const MAX_LINE_BYTES: usize = 32 * 1024;

/// Target of lines for the operator of the node: stderr only, not sent to the user.
pub(crate) const OPERATOR: &str = "krunner::operator";

/// Forwards a line to the agent; returns `false` if the queue is full.
pub(crate) type Bridge = Box<dyn Fn(Bytes) -> bool + Send + Sync>;

/// Installs the process-wide logger.
///
/// # Panics
/// When called twice.
pub(crate) fn init(prefix: &'static str, debug: bool, stderr: Writer, bridge: Option<Bridge>) {
    let log = LogLayer {
        prefix,
        debug,
        stderr: LineSink::new(move |line| stderr.try_write(line)),
        bridge: bridge.map(LineSink::new),
    };
    tracing_subscriber::registry().with(log).init();
}

struct LogLayer {
    prefix: &'static str,
    debug: bool,
    stderr: LineSink,
    bridge: Option<LineSink>,
}

impl LogLayer {
    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target().starts_with("krunner");
        let finest = match (ours, self.debug) {
            (true, true) => Level::DEBUG,
            (true, false) => Level::INFO,
            (false, _) => Level::WARN,
        };
        *metadata.level() <= finest
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LogLayer {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = LogLine(format!("{}: ", self.prefix));
        event.record(&mut line);
        line.shorten();
        line.0.push('\n');
        let line = Bytes::from(line.0);
        self.stderr.put(self.prefix, line.clone());
        let to_user = event.metadata().target() != OPERATOR;
        if let Some(bridge) = self.bridge.as_ref().filter(|_| to_user) {
            bridge.put(self.prefix, line);
        }
    }
}

/// A destination for log lines, with a count of the lines it dropped.
struct LineSink {
    take: Bridge,
    lost: AtomicU64,
}

impl LineSink {
    fn new(take: impl Fn(Bytes) -> bool + Send + Sync + 'static) -> Self {
        Self { take: Box::new(take), lost: AtomicU64::new(0) }
    }

    fn put(&self, prefix: &str, line: Bytes) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let line = if lost == 0 {
            line
        } else {
            let mut with_count = format!("{prefix}: ({lost} log lines dropped: the reader is too slow)\n").into_bytes();
            with_count.extend_from_slice(&line);
            with_count.into()
        };
        if !(self.take)(line) {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        }
    }
}

/// Formats an event: the message, then the other fields as ` name=value`.
struct LogLine(String);

impl LogLine {
    /// Truncates to [`MAX_LINE_BYTES`]: some messages contain text chosen by the agent.
    fn shorten(&mut self) {
        if self.0.len() > MAX_LINE_BYTES {
            let cut = self.0.floor_char_boundary(MAX_LINE_BYTES);
            let rest = self.0.len() - cut;
            self.0.truncate(cut);
            let written = write!(self.0, "... ({rest} more bytes)");
            debug_assert!(written.is_ok(), "a String takes everything");
        }
    }
}

impl Visit for LogLine {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
        debug_assert!(written.is_ok(), "a String takes everything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn lines_carry_the_prefix_and_lost_ones_are_counted() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let open = Arc::new(Mutex::new(true));
        let (kept, gate) = (Arc::clone(&lines), Arc::clone(&open));
        let bridge = move |line: Bytes| {
            let open = *gate.lock().unwrap();
            if open {
                kept.lock().unwrap().push(String::from_utf8(line.to_vec()).unwrap());
            }
            open
        };
        let log = LogLayer {
            prefix: "c-kernel",
            debug: false,
            stderr: LineSink::new(|_| true),
            bridge: Some(LineSink::new(bridge)),
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(log), || {
            tracing::info!(code = 3, "exited");
            tracing::info!(target: OPERATOR, "not for users");
            tracing::debug!("not shown");
            *open.lock().unwrap() = false;
            tracing::warn!("lost");
            tracing::warn!("lost");
            *open.lock().unwrap() = true;
            tracing::error!("two\nlines");
            tracing::info!("{}", "ü".repeat(MAX_LINE_BYTES));
        });
        let long = lines.lock().unwrap().pop().unwrap();
        assert!(long.len() < MAX_LINE_BYTES + 64 && long.ends_with(" more bytes)\n"), "{}", long.len());
        assert_eq!(
            *lines.lock().unwrap(),
            [
                "c-kernel: exited code=3\n",
                "c-kernel: (2 log lines dropped: the reader is too slow)\nc-kernel: two\nlines\n",
            ]
        );
    }
}
