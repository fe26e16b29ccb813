//! Log lines: `{lang}-kernel: message` on our own stderr and, as the user's only view of the runner,
//! as `stderr` replies (the log bridge; off under `--debug`, as in the Python runner).
//!
//! Logging never waits. A line for which there is no room is counted, and the count is told with the
//! next line that gets through.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::writer::Writer;

/// Longer log entries are cut; an OOM report with its process tree stays far below.
const MAX_LINE_BYTES: usize = 32 * 1024;

/// Target of lines that are for whoever runs the node: on stderr only.
pub const OPERATOR: &str = "krunner::operator";

/// Takes a line for the agent if there is room for it.
pub type Bridge = Box<dyn Fn(Bytes) -> bool + Send + Sync>;

/// Installs the process-wide logger.
///
/// # Panics
/// When called twice.
pub fn init(prefix: &'static str, debug: bool, stderr: Writer, bridge: Option<Bridge>) {
    let log =
        Log { prefix, debug, stderr: Outlet::new(move |line| stderr.try_write(line)), bridge: bridge.map(Outlet::new) };
    tracing_subscriber::registry().with(log).init();
}

struct Log {
    prefix: &'static str,
    debug: bool,
    stderr: Outlet,
    bridge: Option<Outlet>,
}

impl Log {
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

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line(format!("{}: ", self.prefix));
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

/// A place for lines, and how many it could not take.
struct Outlet {
    take: Bridge,
    lost: AtomicU64,
}

impl Outlet {
    fn new(take: impl Fn(Bytes) -> bool + Send + Sync + 'static) -> Self {
        Self { take: Box::new(take), lost: AtomicU64::new(0) }
    }

    fn put(&self, prefix: &str, line: Bytes) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let line = if lost == 0 {
            line
        } else {
            let mut with_count = format!("{prefix}: ({lost} log lines were dropped: nobody read them)\n").into_bytes();
            with_count.extend_from_slice(&line);
            with_count.into()
        };
        if !(self.take)(line) {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        }
    }
}

/// The message, then other fields as ` name=value`.
struct Line(String);

impl Line {
    /// Cuts what is beyond [`MAX_LINE_BYTES`]: the agent chooses what is in some messages.
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

impl Visit for Line {
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
        let log =
            Log { prefix: "c-kernel", debug: false, stderr: Outlet::new(|_| true), bridge: Some(Outlet::new(bridge)) };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(log), || {
            tracing::info!(code = 3, "has exited");
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
                "c-kernel: has exited code=3\n",
                "c-kernel: (2 log lines were dropped: nobody read them)\nc-kernel: two\nlines\n",
            ]
        );
    }
}
