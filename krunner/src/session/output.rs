//! Sends program output as replies within the budget of [`ReplySender`].

use async_trait::async_trait;
use bytes::Bytes;

use crate::process::{OutputSink, RichOutput, Stream};
use crate::transport::ReplySender;
use crate::wire::Reply;

/// The agent truncates longer payloads, and a truncated picture is useless.
const MAX_RICH_BYTES: usize = 10 * 1024 * 1024;

/// The output sink of the session's programs.
pub(super) struct Output(ReplySender);

impl Output {
    pub(super) fn new(replies: ReplySender) -> Self {
        Self(replies)
    }
}

#[async_trait]
impl OutputSink for Output {
    async fn deliver(&self, stream: Stream, chunk: Bytes) {
        self.0.send(Reply::Output { stream, bytes: chunk }.into_message()).await;
    }

    async fn show(&self, rich: RichOutput) {
        let (what, reply) = match rich {
            RichOutput::Html(text) => ("text/html".to_owned(), Reply::Html(text)),
            RichOutput::Media { mime, data } => (mime.clone(), Reply::Media { mime, data }),
        };
        let message = reply.into_message();
        let bytes = message.payload().len();
        if bytes > MAX_RICH_BYTES {
            tracing::error!(
                "cannot display an object of type {what}: {bytes} bytes exceed the agent's limit of {MAX_RICH_BYTES}; \
                 make it smaller or write it to a file"
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
        let (replies, queue) = ReplySender::new();
        let output = Output::new(replies);
        let mime = || "image/svg+xml".to_owned();
        // A quote takes two bytes in JSON.
        let large = "\"".repeat(MAX_RICH_BYTES / 2);
        assert!(output.show(RichOutput::Media { mime: mime(), data: large.into() }).now_or_never().is_some());
        assert!(output.show(RichOutput::Html("x".repeat(MAX_RICH_BYTES + 1))).now_or_never().is_some());
        assert_eq!(queue.waiting(), 0);
        assert!(output.show(RichOutput::Html("x".repeat(MAX_RICH_BYTES))).now_or_never().is_some());
        assert_eq!(queue.waiting(), 1);
        assert!(
            output.show(RichOutput::Html("x".into())).now_or_never().is_none(),
            "there is no room beside the large one"
        );
    }
}
