//! The last lines of a program's output, for the message about its exit.
//!
//! Pure except for the lock. Bounded in lines and in bytes.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::process::{OutputSink, RichOutput, Stream};

/// Enough for the end of a traceback with the error itself.
const KEPT_LINES: usize = 12;

/// A longer line is cut.
const MAX_LINE_BYTES: usize = 400;

/// A sink for all output of one program. Control characters are replaced, because the text is printed elsewhere.
#[derive(Debug, Default)]
pub(super) struct LastLines(Mutex<Both>);

#[derive(Debug, Default)]
struct Both {
    stdout: Tail,
    stderr: Tail,
}

impl LastLines {
    /// The last lines of stderr, or those of stdout when it wrote none.
    pub(super) fn text(&self) -> String {
        let both = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stderr = both.stderr.text();
        if stderr.is_empty() { both.stdout.text() } else { stderr }
    }
}

#[async_trait]
impl OutputSink for LastLines {
    async fn deliver(&self, stream: Stream, chunk: Bytes) {
        let mut both = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match stream {
            Stream::Stdout => both.stdout.push(&chunk),
            Stream::Stderr => both.stderr.push(&chunk),
        }
    }

    /// Programs have no rich output.
    async fn show(&self, _: RichOutput) {}
}

#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<Vec<u8>>,
    /// The line that is not terminated yet.
    open: Vec<u8>,
}

impl Tail {
    fn push(&mut self, chunk: &[u8]) {
        let mut pieces = chunk.split(|byte| *byte == b'\n');
        self.extend(pieces.next().unwrap_or_default());
        for piece in pieces {
            let line = std::mem::take(&mut self.open);
            if !line.trim_ascii().is_empty() {
                self.lines.push_back(line);
            }
            if self.lines.len() > KEPT_LINES {
                self.lines.pop_front();
            }
            self.extend(piece);
        }
    }

    fn extend(&mut self, piece: &[u8]) {
        let room = MAX_LINE_BYTES.saturating_sub(self.open.len());
        self.open.extend_from_slice(&piece[..piece.len().min(room)]);
    }

    fn text(&self) -> String {
        let open = (!self.open.trim_ascii().is_empty()).then_some(&self.open);
        let shown: Vec<String> = self
            .lines
            .iter()
            .chain(open)
            .map(|line| String::from_utf8_lossy(line).trim_end().replace(char::is_control, " "))
            .collect();
        shown[shown.len().saturating_sub(KEPT_LINES)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tail(chunks: &[&[u8]]) -> String {
        let mut tail = Tail::default();
        for chunk in chunks {
            tail.push(chunk);
        }
        tail.text()
    }

    #[test]
    fn lines_are_whole_across_chunks_and_escapes_are_not_passed_on() {
        assert_eq!(tail(&[b"a\nb", b"c\n\n \nd"]), "a\nbc\nd");
        assert_eq!(tail(&[b"\x1b[31mred\x1b[0m\r\n"]), " [31mred [0m");
        assert_eq!(tail(&[b"\xff\n"]), "\u{fffd}");
    }

    #[tokio::test]
    async fn stderr_goes_before_stdout() {
        let lines = LastLines::default();
        lines.deliver(Stream::Stdout, Bytes::from_static(b"listening\n")).await;
        assert_eq!(lines.text(), "listening");
        lines.deliver(Stream::Stderr, Bytes::from_static(b"no module named x\n")).await;
        assert_eq!(lines.text(), "no module named x");
    }

    proptest! {
        #[test]
        fn it_is_bounded(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..60)) {
            let mut tail = Tail::default();
            for chunk in &chunks {
                tail.push(chunk);
                prop_assert!(tail.lines.len() <= KEPT_LINES && tail.open.len() <= MAX_LINE_BYTES);
            }
            // A byte that is not UTF-8 is shown as three.
            prop_assert!(tail.text().len() <= KEPT_LINES * (3 * MAX_LINE_BYTES + 1));
        }
    }
}
