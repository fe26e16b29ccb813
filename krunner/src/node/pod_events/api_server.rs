//! The API server as a pod reaches it: its address from the environment, a certificate authority and a token from the folder of
//! the service account (Kubernetes documentation, "Accessing the API from a Pod").
//!
//! A request is repeated as long as that may help: the server does not answer, is busy, or the token has just changed. The token is
//! read for each request, because the kubelet replaces it. What is refused is logged and counted, and not repeated.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::object::PodEvent;
use crate::error::chain;
use crate::http_client::{HttpClient, HttpError, HttpResponse, ResponseLimits};
use crate::node::metrics::{EventOutcome, Metrics};
use crate::tasks::blocking;

/// The folder of the service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

const HOST_VARIABLE: &str = "KUBERNETES_SERVICE_HOST";
const PORT_VARIABLE: &str = "KUBERNETES_SERVICE_PORT";

/// An answer is the object that was created, or a `Status`.
const LIMITS: ResponseLimits = ResponseLimits { deadline: Some(Duration::from_secs(10)), body_bytes: 64 << 10 };

/// Before the first repetition; then twice as long each time.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Between two repetitions at most, whatever the server asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How long an Event is tried. Meanwhile others wait in the queue, and kills in their series.
const PATIENCE: Duration = Duration::from_mins(5);

/// Between two warnings.
const WARNING_PAUSE: Duration = Duration::from_mins(1);

/// Longest token that is read.
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// The API server of this pod's cluster.
pub(crate) struct ApiServer {
    client: HttpClient,
    url: String,
    token: PathBuf,
}

/// Why no Events can be created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiServerError {
    /// The variable that the kubelet sets is missing.
    #[error("{0} is not set: the node must run in a pod")]
    NotInPod(&'static str),
    /// No service account is mounted.
    #[error("cannot read {}: the pod needs a service account (automountServiceAccountToken: true)", path.display())]
    NoAccount {
        /// The file of the service account.
        path: PathBuf,
        source: io::Error,
    },
    /// The certificate authority cannot be used.
    #[error("{} has no certificate in PEM format", .0.display())]
    NoCertificate(PathBuf),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] HttpError),
}

/// Why an Event was not created.
#[derive(Debug, thiserror::Error)]
enum CreateError {
    #[error("cannot read {}", path.display())]
    Token { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("the API server answered {status}: {message}")]
    Answer { status: StatusCode, message: String, retry_after: Option<Duration> },
}

/// What a server says of a failure (`Status`, meta/v1).
#[derive(Debug, Default, Deserialize)]
struct ApiStatus {
    #[serde(default)]
    message: String,
}

impl ApiServer {
    /// That of the cluster in which this process runs.
    ///
    /// # Errors
    /// If it does not run in a pod with a service account.
    pub(crate) async fn of_this_pod() -> Result<Self, ApiServerError> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let host = variable(HOST_VARIABLE).ok_or(ApiServerError::NotInPod(HOST_VARIABLE))?;
        let port = variable(PORT_VARIABLE).ok_or(ApiServerError::NotInPod(PORT_VARIABLE))?;
        let roots = blocking(|| authorities(&Path::new(ACCOUNT).join("ca.crt"))).await?;
        let token = Path::new(ACCOUNT).join("token");
        let path = token.clone();
        let read = blocking(move || read_token(&path)).await;
        read.map_err(|source| ApiServerError::NoAccount { path: token.clone(), source })?;
        Ok(Self { client: HttpClient::trusting(roots)?, url: url(&host, &port), token })
    }

    /// The address, for messages.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    async fn create(&self, event: &PodEvent) -> Result<(), CreateError> {
        let path = self.token.clone();
        let token = blocking(move || read_token(&path)).await;
        let token = token.map_err(|source| CreateError::Token { path: self.token.clone(), source })?;
        let url = format!("{}/apis/events.k8s.io/v1/namespaces/{}/events", self.url, event.metadata.namespace);
        let request = Request::post(url)
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("krunner/", env!("CARGO_PKG_VERSION")))
            .body(Bytes::from(serde_json::to_vec(event).unwrap_or_default()));
        let request = request.map_err(|error| CreateError::Token {
            path: self.token.clone(),
            source: io::Error::new(io::ErrorKind::InvalidData, error),
        })?;
        let response = self.client.send(request, LIMITS).await?;
        // It exists: the answer to an earlier attempt was lost.
        if response.status.is_success() || response.status == StatusCode::CONFLICT {
            return Ok(());
        }
        Err(CreateError::of(&response))
    }

    /// Creates an Event, trying again as long as that may help.
    async fn create_patiently(&self, event: &PodEvent) -> Result<(), CreateError> {
        let until = Instant::now() + PATIENCE;
        let mut wait = FIRST_WAIT;
        loop {
            let Err(error) = self.create(event).await else { return Ok(()) };
            let pause = error.retry_after().unwrap_or(wait).clamp(wait, LONGEST_WAIT);
            if !error.may_pass() || Instant::now() + pause > until {
                return Err(error);
            }
            tracing::debug!("a Kubernetes Event is sent again in {pause:?}: {}", chain(&error));
            sleep(pause).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}

/// Sends Events one after another until the queue is closed.
pub(super) async fn send_all(server: ApiServer, mut events: mpsc::Receiver<PodEvent>, metrics: Arc<Metrics>) {
    let mut warned: Option<Instant> = None;
    while let Some(event) = events.recv().await {
        let outcome = match server.create_patiently(&event).await {
            Ok(()) => EventOutcome::Created,
            // The pod's namespace is gone, or being removed.
            Err(error) if error.is_namespace_gone() => EventOutcome::Refused,
            Err(error) => {
                if warned.is_none_or(|warned| warned.elapsed() >= WARNING_PAUSE) {
                    warned = Some(Instant::now());
                    tracing::warn!(
                        "no Kubernetes Event for an OOM kill in the namespace {}: {}{}",
                        event.metadata.namespace,
                        chain(&error),
                        error.remedy()
                    );
                }
                EventOutcome::Refused
            }
        };
        metrics.pod_event(outcome);
    }
}

impl CreateError {
    fn of(response: &HttpResponse) -> Self {
        let status: ApiStatus = serde_json::from_slice(&response.body).unwrap_or_default();
        Self::Answer {
            status: response.status,
            message: status.message.escape_debug().to_string(),
            retry_after: retry_after(&response.headers),
        }
    }

    /// Whether the same request may succeed later.
    fn may_pass(&self) -> bool {
        match self {
            Self::Token { .. } | Self::Http(_) => true,
            Self::Answer { status, .. } => {
                status.is_server_error()
                    || matches!(
                        *status,
                        StatusCode::TOO_MANY_REQUESTS | StatusCode::UNAUTHORIZED | StatusCode::REQUEST_TIMEOUT
                    )
            }
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Answer { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// A namespace that is being removed takes no new objects (`NamespaceLifecycle`).
    fn is_namespace_gone(&self) -> bool {
        match self {
            Self::Answer { status: StatusCode::NOT_FOUND, .. } => true,
            Self::Answer { status: StatusCode::FORBIDDEN, message, .. } => message.contains("being terminated"),
            _ => false,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Answer { status: StatusCode::FORBIDDEN, .. } => {
                " (the service account needs the permission `create` for `events` of the group `events.k8s.io`)"
            }
            Self::Answer { status: StatusCode::UNAUTHORIZED, .. } => {
                " (is the service account's token of this cluster?)"
            }
            _ => "",
        }
    }
}

/// The URL without a path; IPv6 addresses in brackets.
fn url(host: &str, port: &str) -> String {
    if host.contains(':') { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") }
}

fn authorities(path: &Path) -> Result<RootCertStore, ApiServerError> {
    let text = std::fs::read(path).map_err(|source| ApiServerError::NoAccount { path: path.to_owned(), source })?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).flatten());
    if roots.is_empty() { Err(ApiServerError::NoCertificate(path.to_owned())) } else { Ok(roots) }
}

fn read_token(path: &Path) -> io::Result<String> {
    let token = std::fs::read_to_string(path)?;
    let token = token.trim();
    if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
        let problem = format!("{} bytes are no token", token.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    Ok(token.to_owned())
}

/// In seconds; dates are not used by API servers.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: StatusCode, body: &str, retry: Option<&'static str>) -> CreateError {
        let headers = retry.map(|value| (header::RETRY_AFTER, http::HeaderValue::from_static(value)));
        let headers = headers.into_iter().collect();
        CreateError::of(&HttpResponse { status, headers, body: Bytes::from(body.to_owned()) })
    }

    #[test]
    fn only_what_may_pass_is_repeated() {
        let passes = |status| answer(status, "", None).may_pass();
        for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::INTERNAL_SERVER_ERROR, StatusCode::UNAUTHORIZED] {
            assert!(passes(status), "{status}");
        }
        for status in [StatusCode::FORBIDDEN, StatusCode::UNPROCESSABLE_ENTITY, StatusCode::NOT_FOUND] {
            assert!(!passes(status), "{status}");
        }
        let busy = answer(StatusCode::TOO_MANY_REQUESTS, "", Some("7"));
        assert_eq!(busy.retry_after(), Some(Duration::from_secs(7)));
    }

    #[test]
    fn a_refusal_has_the_servers_words_and_the_remedy() {
        let body = r#"{"kind":"Status","message":"events.events.k8s.io is forbidden:\u001b[2J no"}"#;
        let refused = answer(StatusCode::FORBIDDEN, body, None);
        let text = format!("{refused}{}", refused.remedy());
        assert!(text.starts_with("the API server answered 403 Forbidden: events.events.k8s.io is forbidden:\\u{1b}[2J no (the service account"), "{text}");
        assert!(!refused.is_namespace_gone());
        let gone = r#"{"message":"... because it is being terminated"}"#;
        assert!(answer(StatusCode::FORBIDDEN, gone, None).is_namespace_gone());
    }

    #[test]
    fn addresses_of_both_families() {
        assert_eq!(
            [url("10.96.0.1", "443"), url("fd00::1", "443")],
            ["https://10.96.0.1:443", "https://[fd00::1]:443"]
        );
    }

    #[test]
    fn files_of_the_account_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.crt");
        assert!(matches!(authorities(&path), Err(ApiServerError::NoAccount { .. })));
        std::fs::write(&path, "no certificate").unwrap();
        assert!(matches!(authorities(&path), Err(ApiServerError::NoCertificate(_))));
        std::fs::write(&path, "\n").unwrap();
        assert!(read_token(&path).is_err());
        std::fs::write(&path, " abc\n").unwrap();
        assert_eq!(read_token(&path).unwrap(), "abc");
    }
}
