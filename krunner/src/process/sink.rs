//! The destination of program output, as a trait that the session implements.

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;

use crate::wire::Stream;

/// Output that is displayed as an object rather than as text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RichOutput {
    /// An HTML fragment.
    Html(String),
    /// A picture or another object.
    Media {
        /// The MIME type of `data`.
        mime: String,
        /// A string (a `data:` URL, the text of an SVG) or what the type's viewer expects.
        data: Value,
    },
}

/// Receives the output of programs in the order of the calls.
#[async_trait]
pub(crate) trait OutputSink: Send + Sync {
    /// Accepts a chunk of at most 64 KiB; returns when there is space for the next one.
    async fn deliver(&self, stream: Stream, chunk: Bytes);

    /// Accepts an object; returns when there is space for the next one.
    async fn show(&self, rich: RichOutput);
}
