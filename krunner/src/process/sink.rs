//! Where the output of programs goes: the session's end of it, as a trait.

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;

/// Which of the two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What is shown otherwise than as text.
#[derive(Debug, Clone, PartialEq)]
pub enum Rich {
    /// A piece of HTML.
    Html(String),
    /// A picture or another object.
    Media {
        /// Its MIME type.
        mime: String,
        /// A string (a `data:` URL, the text of an SVG) or what the type's viewer expects.
        data: Value,
    },
}

/// Takes what programs write and show, in the order of the calls.
#[async_trait]
pub trait OutputSink: Send + Sync {
    /// Takes a chunk of at most 64 KiB; returns when there is room for the next.
    async fn deliver(&self, stream: Stream, chunk: Bytes);

    /// Takes an object whole; returns when there is room for the next.
    async fn show(&self, rich: Rich);
}
