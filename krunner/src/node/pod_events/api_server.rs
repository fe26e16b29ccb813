//! The API server as a pod reaches it: its address from the environment, a certificate authority and a token from the folder of
//! the service account (Kubernetes documentation, "Accessing the API from a Pod").
//!
//! A request is repeated until the server answers: what else is to be sent would not arrive either, and kills remain counted. An
//! answer that refuses one Event is not waited for any longer than [`SERVER_ERRORS`] attempts. All problems are logged.
//!
//! The token is read for each request, because the kubelet replaces it; the certificate authority again after a failure.

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

/// Attempts with an Event that make the server fail, as an admission webhook for one namespace may.
const SERVER_ERRORS: u32 = 4;

/// Between two warnings of a kind.
const WARNING_PAUSE: Duration = Duration::from_mins(5);

/// Longest token that is read.
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// The API server of this pod's cluster.
pub(crate) struct ApiServer {
    client: HttpClient,
    /// What the client trusts.
    authorities: Vec<u8>,
    url: String,
    account: PathBuf,
    warnings: Warnings,
}

/// When each kind of failure was logged last: an attempt that is repeated must not hide that an Event is given up.
#[derive(Debug, Default)]
struct Warnings {
    repeated: Option<Instant>,
    given_up: Option<Instant>,
}

/// What happens to an Event whose attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Repeated,
    GivenUp,
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
    #[error("the API server answered {code}: {}", status.message.escape_debug())]
    Answer { code: StatusCode, status: ApiStatus, retry_after: Option<Duration> },
}

/// What a server says of a failure (`Status`, meta/v1).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ApiStatus {
    message: String,
    reason: String,
    details: ApiStatusDetails,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ApiStatusDetails {
    kind: String,
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remains {
    /// Nothing arrives at the server, or it takes nothing.
    UntilItPasses,
    /// This Event may be the reason.
    AFewTimes,
    Not,
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
        let account = PathBuf::from(ACCOUNT);
        let missing = |path: &Path, source| ApiServerError::NoAccount { path: path.to_owned(), source };
        let (token, certificates) = (account.join("token"), account.join("ca.crt"));
        blocking({
            let token = token.clone();
            move || read_token(&token)
        })
        .await
        .map_err(|error| missing(&token, error))?;
        let read = blocking({
            let certificates = certificates.clone();
            move || std::fs::read(certificates)
        })
        .await;
        let authorities = read.map_err(|error| missing(&certificates, error))?;
        let roots = roots_of(&authorities).ok_or(ApiServerError::NoCertificate(certificates))?;
        Ok(Self {
            client: HttpClient::trusting(roots)?,
            authorities,
            url: url(&host, &port),
            account,
            warnings: Warnings::default(),
        })
    }

    /// The address, for messages.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    async fn create(&self, event: &PodEvent) -> Result<(), CreateError> {
        let path = self.account.join("token");
        let unreadable = |source| CreateError::Token { path: self.account.join("token"), source };
        let token = blocking(move || read_token(&path)).await.map_err(unreadable)?;
        let url = format!("{}/apis/events.k8s.io/v1/namespaces/{}/events", self.url, event.metadata.namespace);
        let request = Request::post(url)
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("krunner/", env!("CARGO_PKG_VERSION")))
            .body(Bytes::from(serde_json::to_vec(event).unwrap_or_default()));
        let request = request.map_err(|error| unreadable(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        let response = self.client.send(request, LIMITS).await?;
        if response.status.is_success() {
            return Ok(());
        }
        match CreateError::of(&response) {
            // The answer to an earlier attempt was lost.
            CreateError::Answer { code: StatusCode::CONFLICT, status, .. } if status.reason == "AlreadyExists" => {
                Ok(())
            }
            refused => Err(refused),
        }
    }

    /// Creates an Event, trying again as long as that may help.
    async fn create_patiently(&mut self, event: &PodEvent) -> Result<(), CreateError> {
        let mut wait = FIRST_WAIT;
        let mut server_errors = 0;
        loop {
            let Err(error) = self.create(event).await else { return Ok(()) };
            match error.remains() {
                Remains::UntilItPasses => {}
                Remains::AFewTimes if server_errors + 1 < SERVER_ERRORS => server_errors += 1,
                Remains::AFewTimes | Remains::Not => return Err(error),
            }
            self.warn(event, &error, Next::Repeated);
            let pause = error.retry_after().unwrap_or(wait).clamp(wait, LONGEST_WAIT);
            sleep(pause).await;
            wait = (wait * 2).min(LONGEST_WAIT);
            if matches!(error, CreateError::Http(_)) {
                self.trust_anew().await;
            }
        }
    }

    /// Reads the certificate authority again: it changes when a cluster renews its own.
    async fn trust_anew(&mut self) {
        let path = self.account.join("ca.crt");
        let Ok(read) = blocking(move || std::fs::read(path)).await else { return };
        if read == self.authorities {
            return;
        }
        if let Some(Ok(client)) = roots_of(&read).map(HttpClient::trusting) {
            (self.client, self.authorities) = (client, read);
        }
    }

    fn warn(&mut self, event: &PodEvent, error: &CreateError, next: Next) {
        if !self.warnings.is_due(next, Instant::now()) {
            return;
        }
        let then = if next == Next::Repeated { " (it is sent again)" } else { "" };
        let (namespace, problem, remedy) = (&event.metadata.namespace, chain(error), error.remedy());
        tracing::warn!("no Kubernetes Event for an OOM kill in the namespace {namespace}: {problem}{remedy}{then}");
    }
}

impl Warnings {
    /// Whether to log a failure now; if so, the next one of its kind waits for [`WARNING_PAUSE`].
    fn is_due(&mut self, next: Next, now: Instant) -> bool {
        let last = match next {
            Next::Repeated => &mut self.repeated,
            Next::GivenUp => &mut self.given_up,
        };
        let is_due = last.is_none_or(|last| now.duration_since(last) >= WARNING_PAUSE);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

/// Sends Events one after another until the queue is closed.
pub(super) async fn send_all(mut server: ApiServer, mut events: mpsc::Receiver<PodEvent>, metrics: Arc<Metrics>) {
    while let Some(event) = events.recv().await {
        let outcome = match server.create_patiently(&event).await {
            Ok(()) => EventOutcome::Created,
            Err(error) => {
                if !error.is_namespace_gone() {
                    server.warn(&event, &error, Next::GivenUp);
                }
                EventOutcome::Refused
            }
        };
        metrics.pod_event(outcome);
    }
}

impl CreateError {
    fn of(response: &HttpResponse) -> Self {
        Self::Answer {
            code: response.status,
            status: serde_json::from_slice(&response.body).unwrap_or_default(),
            retry_after: retry_after(&response.headers),
        }
    }

    fn remains(&self) -> Remains {
        let Self::Answer { code, status, .. } = self else { return Remains::UntilItPasses };
        match *code {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::UNAUTHORIZED
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Remains::UntilItPasses,
            // Of a quota that changed meanwhile.
            StatusCode::CONFLICT if status.reason == "Conflict" => Remains::AFewTimes,
            code if code.is_server_error() => Remains::AFewTimes,
            _ => Remains::Not,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Answer { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the pod's namespace is gone, or being removed and takes no new objects (`NamespaceLifecycle`).
    fn is_namespace_gone(&self) -> bool {
        let Self::Answer { code, status, .. } = self else { return false };
        match *code {
            StatusCode::NOT_FOUND => status.reason == "NotFound" && status.details.kind == "namespaces",
            StatusCode::FORBIDDEN => status.message.contains("being terminated"),
            _ => false,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Answer { code: StatusCode::FORBIDDEN, status, .. }
                if status.message.contains("cannot create resource") =>
            {
                " (the service account needs the permission `create` for `events` of the group `events.k8s.io`)"
            }
            Self::Answer { code: StatusCode::UNAUTHORIZED, .. } => " (is the service account's token of this cluster?)",
            _ => "",
        }
    }
}

/// The URL without a path; IPv6 addresses in brackets.
fn url(host: &str, port: &str) -> String {
    if host.contains(':') { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") }
}

/// The certificates in a PEM file; `None` if there is none.
fn roots_of(pem: &[u8]) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).flatten());
    (!roots.is_empty()).then_some(roots)
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
        let remains = |status| answer(status, "", None).remains();
        for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE, StatusCode::UNAUTHORIZED] {
            assert_eq!(remains(status), Remains::UntilItPasses, "{status}");
        }
        assert_eq!(remains(StatusCode::INTERNAL_SERVER_ERROR), Remains::AFewTimes);
        for status in [StatusCode::FORBIDDEN, StatusCode::UNPROCESSABLE_ENTITY, StatusCode::NOT_FOUND] {
            assert_eq!(remains(status), Remains::Not, "{status}");
        }
        let busy = answer(StatusCode::TOO_MANY_REQUESTS, "", Some("7"));
        assert_eq!(busy.retry_after(), Some(Duration::from_secs(7)));
    }

    #[test]
    fn a_refusal_has_the_servers_words_and_the_remedy() {
        let body = r#"{"kind":"Status","message":"\u001b[2J cannot create resource \"events\""}"#;
        let refused = answer(StatusCode::FORBIDDEN, body, None);
        let text = format!("{refused}{}", refused.remedy());
        let expected = r#"the API server answered 403 Forbidden: \u{1b}[2J cannot create resource \"events\" (the service account"#;
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(answer(StatusCode::FORBIDDEN, r#"{"message":"exceeded quota"}"#, None).remedy(), "");
    }

    #[test]
    fn a_namespace_that_is_gone_is_told_from_an_api_that_is_not_there() {
        let is_gone = |code, body| answer(code, body, None).is_namespace_gone();
        assert!(is_gone(StatusCode::FORBIDDEN, r#"{"message":"... because it is being terminated"}"#));
        assert!(is_gone(StatusCode::NOT_FOUND, r#"{"reason":"NotFound","details":{"kind":"namespaces"}}"#));
        assert!(!is_gone(StatusCode::NOT_FOUND, "404 page not found"));
    }

    #[test]
    fn a_repeated_attempt_does_not_hide_that_an_event_is_given_up() {
        let (mut warnings, now) = (Warnings::default(), Instant::now());
        assert!(warnings.is_due(Next::Repeated, now));
        assert!(warnings.is_due(Next::GivenUp, now), "the kind that a person has to know of");
        assert!(!warnings.is_due(Next::GivenUp, now + WARNING_PAUSE / 2));
        assert!(warnings.is_due(Next::GivenUp, now + WARNING_PAUSE));
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
        assert!(roots_of(b"no certificate").is_none());
        let path = folder.path().join("token");
        std::fs::write(&path, "\n").unwrap();
        assert!(read_token(&path).is_err());
        std::fs::write(&path, " abc\n").unwrap();
        assert_eq!(read_token(&path).unwrap(), "abc");
    }
}
