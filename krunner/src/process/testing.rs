//! For unit tests of this module: a process for a test that starts programs, and a sink that remembers.

use std::env;
use std::future::Future;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::sink::{OutputSink, RichOutput};
use crate::wire::Stream;

/// The deadline of a test. Reaching it is a failure.
const DEADLINE: Duration = Duration::from_mins(1);

/// Set in the process of a test, to its name.
const ALONE: &str = "KRUNNER_UNIT_TEST_ALONE";

/// Runs the body of a test, an `async` block in it, in a process of its own. A reaper takes all children of its process, so two
/// tests with one would take each other's.
pub(super) fn alone<F: Future<Output = ()>>(body: F) {
    // krunner::process::reaper::tests::NAME::{{closure}}
    let path = std::any::type_name::<F>();
    let name = path.split("::{").next().and_then(|path| path.split_once("::")).expect("a path in this crate").1;
    if env::var_os(ALONE).is_some_and(|running| running == name) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        return runtime.block_on(async { timeout(DEADLINE, body).await.expect("the test does not hang") });
    }
    let mut command = Command::new(env::current_exe().expect("our own path"));
    command.args(["--exact", name]).env(ALONE, name).stdin(Stdio::null());
    // What a failed test leaves behind must not keep our own stderr open.
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("a process");
    let mut text = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut text).expect("text");
    // Its status does not count, because another test's reaper may have taken it.
    let _ = child.wait();
    assert!(text.contains("test result: ok. 1 passed"), "{text}");
}

/// Keeps all output in memory.
#[derive(Default)]
pub(super) struct MemorySink {
    delay: Duration,
    chunks: Mutex<Vec<(Stream, Bytes)>>,
}

impl MemorySink {
    /// A sink whose deliveries take this long.
    pub(super) fn slow(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// All bytes of a stream so far.
    pub(super) fn bytes(&self, stream: Stream) -> Vec<u8> {
        let chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        chunks.iter().filter(|(of, _)| *of == stream).flat_map(|(_, chunk)| chunk.to_vec()).collect()
    }

    /// All of stdout so far, as text.
    pub(super) fn stdout(&self) -> String {
        String::from_utf8(self.bytes(Stream::Stdout)).expect("text")
    }

    /// The size of the largest chunk.
    pub(super) fn largest_chunk(&self) -> usize {
        let chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        chunks.iter().map(|(_, chunk)| chunk.len()).max().unwrap_or(0)
    }

    /// Waits until this is all of stdout.
    pub(super) async fn until_stdout(&self, expected: &str) {
        while self.stdout() != expected {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

#[async_trait]
impl OutputSink for MemorySink {
    async fn deliver(&self, stream: Stream, chunk: Bytes) {
        if !self.delay.is_zero() {
            sleep(self.delay).await;
        }
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).push((stream, chunk));
    }

    async fn show(&self, _: RichOutput) {}
}
