//! Shared code of engines that use a remote server: interruptible requests, and responses as output.

use bytes::Bytes;
use http::Request;
use tokio::sync::OnceCell;

use crate::config::ChildEnv;
use crate::http_client::{HttpClient, HttpError, HttpResponse, ResponseLimits};
use crate::process::{Control, ControlRequest, Launcher, Stream};

/// Exit code when the server or the user's request failed.
pub(super) const FAILED: i32 = 1;

/// Largest chunk that a sink accepts.
const CHUNK_BYTES: usize = 64 * 1024;

/// Limit of a server's error text that is passed on.
const MAX_QUOTE_BYTES: usize = 1000;

/// An HTTP client that is created when it is first needed.
#[derive(Default)]
pub(super) struct LazyHttpClient(OnceCell<HttpClient>);

impl LazyHttpClient {
    /// Sends a request; returns a response of any status.
    pub(super) async fn send(
        &self,
        request: Request<Bytes>,
        limits: ResponseLimits,
    ) -> Result<HttpResponse, HttpError> {
        self.0.get_or_try_init(HttpClient::new).await?.send(request, limits).await
    }
}

/// Waits for `work`. An interrupt or termination drops it; the error is the exit code of the step.
pub(super) async fn unless_interrupted<T>(control: &Control, work: impl Future<Output = T>) -> Result<T, i32> {
    let mut control_requests = control.requests();
    tokio::select! {
        biased;
        request = control_requests.next() => Err(match request {
            ControlRequest::Interrupt => -nix::libc::SIGINT,
            ControlRequest::Terminate => -nix::libc::SIGTERM,
        }),
        done = work => Ok(done),
    }
}

/// Delivers text of any length, in chunks.
pub(super) async fn write(launcher: &Launcher, stream: Stream, text: impl Into<Bytes>) {
    let mut text = text.into();
    while !text.is_empty() {
        launcher.sink.deliver(stream, text.split_to(text.len().min(CHUNK_BYTES))).await;
    }
}

/// A variable that is set and not empty.
pub(super) fn variable(env: &ChildEnv, name: &str) -> Option<String> {
    let value = env.get(std::ffi::OsStr::new(name))?.to_string_lossy().into_owned();
    (!value.is_empty()).then_some(value)
}

/// The beginning of a server's response.
pub(super) fn quote(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_QUOTE_BYTES)]).trim().to_owned();
    if text.is_empty() { "no reason given".to_owned() } else { text }
}
