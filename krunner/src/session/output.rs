//! What programs write and show, as replies within the outbox's budget.

use async_trait::async_trait;
use bytes::Bytes;

use crate::process::{OutputSink, Rich, Stream};
use crate::transport::Outbox;
use crate::wire::{OutputStream, Reply};

/// The agent cuts payloads beyond this off, and half a picture is none.
const MAX_RICH_BYTES: usize = 10 * 1024 * 1024;

/// The sink of a session's programs.
pub(super) struct Output(Outbox);

impl Output {
    pub(super) fn new(outbox: Outbox) -> Self {
        Self(outbox)
    }
}

#[async_trait]
impl OutputSink for Output {
    async fn deliver(&self, stream: Stream, chunk: Bytes) {
        let stream = match stream {
            Stream::Stdout => OutputStream::Stdout,
            Stream::Stderr => OutputStream::Stderr,
        };
        self.0.send(Reply::Output { stream, bytes: chunk }.into_message()).await;
    }

    async fn show(&self, rich: Rich) {
        let (what, reply) = match rich {
            Rich::Html(text) => ("text/html".to_owned(), Reply::Html(text)),
            Rich::Media { mime, data } => (mime.clone(), Reply::Media { mime, data }),
        };
        let message = reply.into_message();
        let bytes = message.payload().len();
        if bytes > MAX_RICH_BYTES {
            tracing::error!(
                "an object of type {what} is not shown: it takes {bytes} bytes and the agent passes on \
                 {MAX_RICH_BYTES} at most; make it smaller, or write it to a file"
            );
            return;
        }
        self.0.send(message).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn an_object_that_the_agent_would_cut_is_not_sent() {
        let (outbox, queue) = Outbox::new();
        let output = Output::new(outbox);
        let mime = || "image/svg+xml".to_owned();
        // Quotes take two bytes each in JSON.
        let large = "\"".repeat(MAX_RICH_BYTES / 2);
        assert!(output.show(Rich::Media { mime: mime(), data: large.into() }).now_or_never().is_some());
        assert!(output.show(Rich::Html("x".repeat(MAX_RICH_BYTES + 1))).now_or_never().is_some());
        assert_eq!(queue.waiting(), 0);
        assert!(output.show(Rich::Html("x".repeat(MAX_RICH_BYTES))).now_or_never().is_some());
        assert_eq!(queue.waiting(), 1);
        assert!(output.show(Rich::Html("x".into())).now_or_never().is_none(), "there is no room beside the large one");
    }
}
