//! What engines share whose work is done by a server: requests that a step can be called back from, and
//! answers as output.

use bytes::Bytes;
use http::Request;
use tokio::sync::OnceCell;

use crate::config::ChildEnv;
use crate::error::chain;
use crate::http_client::{Answer, HttpClient, Limits};
use crate::process::{Asked, Control, Launcher, Stream};

/// When the server, or the user's request to it, is at fault.
pub(super) const FAILED: i32 = 1;

/// A sink takes no larger chunks.
const CHUNK_BYTES: usize = 64 * 1024;

/// How much of a server's own words about a failure is passed on.
const MAX_QUOTE_BYTES: usize = 1000;

/// The client, made when it is first needed.
#[derive(Default)]
pub(super) struct Client(OnceCell<HttpClient>);

impl Client {
    /// An answer of any status; otherwise a sentence for the user.
    pub(super) async fn send(&self, request: Request<Bytes>, limits: Limits) -> Result<Answer, String> {
        let client = self.0.get_or_try_init(HttpClient::new).await.map_err(|error| chain(&error))?;
        client.send(request, limits).await.map_err(|error| error.to_string())
    }
}

/// Waits for `work`, or drops it and says with which code the step ends.
pub(super) async fn unless_asked<T>(control: &Control, work: impl Future<Output = T>) -> Result<T, i32> {
    let mut asks = control.asks();
    tokio::select! {
        biased;
        asked = asks.next() => Err(match asked {
            Asked::Interrupt => -nix::libc::SIGINT,
            Asked::Terminate => -nix::libc::SIGTERM,
        }),
        done = work => Ok(done),
    }
}

/// Shows text of any length, in pieces.
pub(super) async fn write(launcher: &Launcher, stream: Stream, text: impl Into<Bytes>) {
    let mut text = text.into();
    while !text.is_empty() {
        launcher.sink.deliver(stream, text.split_to(text.len().min(CHUNK_BYTES))).await;
    }
}

/// A variable that is there and not empty.
pub(super) fn variable(env: &ChildEnv, name: &str) -> Option<String> {
    let value = env.get(std::ffi::OsStr::new(name))?.to_string_lossy().into_owned();
    (!value.is_empty()).then_some(value)
}

/// The beginning of what a server said.
pub(super) fn quote(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_QUOTE_BYTES)]).trim().to_owned();
    if text.is_empty() { "it does not say why".to_owned() } else { text }
}
