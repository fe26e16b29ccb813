//! The HTTP client of krunner.
//!
//! HTTP/1.1, TLS by rustls. Dropping a request's future closes its connection. Redirects are not followed because they
//! could carry credentials to another server. Trusted certificates are Mozilla's, built in because images may have none,
//! and the image's own, for servers with a private CA.

mod resolver;

use std::error::Error;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

use self::resolver::Resolver;
use crate::error::chain;
use crate::tasks::blocking;

/// For the TCP connect alone.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// TCP keepalive: a server whose machine disappeared is detected after about 90 s, even for requests without a deadline.
const KEEPALIVE_IDLE: Duration = Duration::from_mins(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Idle connections kept per server.
const IDLE_CONNECTIONS: usize = 1;
const IDLE_PATIENCE: Duration = Duration::from_secs(30);

/// A client with one connection pool; clones share it.
#[derive(Clone)]
pub(crate) struct HttpClient {
    pool: Pool<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>,
}

/// Limits on one response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResponseLimits {
    /// From the first byte sent to the last received. `None` leaves only TCP keepalive to detect a dead server.
    pub deadline: Option<Duration>,
    /// Maximum size of the body.
    pub body_bytes: usize,
}

/// A complete response.
#[derive(Debug, Clone)]
pub(crate) struct HttpResponse {
    /// The status code, of any class.
    pub status: StatusCode,
    /// All headers, without trailers. Only Amazon Polly's answers have some that matter.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// Why a request got no complete response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// TLS could not be set up.
    #[error("cannot set up TLS")]
    Setup(#[from] rustls::Error),
    /// The connection failed, or the peer does not speak HTTP.
    #[error("request to {server} failed{}", causes(.error))]
    Failed {
        /// Scheme, host and port.
        server: String,
        /// The error that hyper reported. Not a source: the text contains its causes.
        error: hyper_util::client::legacy::Error,
    },
    /// The connection closed before the body was complete.
    #[error("the response from {server} was cut off: {problem}")]
    Incomplete {
        /// Scheme, host and port.
        server: String,
        /// The error text of the connection.
        problem: String,
    },
    /// The body exceeds [`ResponseLimits::body_bytes`].
    #[error("the response from {server} is larger than {limit} bytes")]
    TooLarge {
        /// Scheme, host and port.
        server: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// The deadline passed.
    #[error("{server} did not respond within {deadline:?}")]
    Timeout {
        /// Scheme, host and port.
        server: String,
        /// The deadline that passed.
        deadline: Duration,
    },
}

impl HttpClient {
    /// Creates a client and reads the image's certificates, once.
    ///
    /// # Errors
    /// When rustls rejects its configuration.
    pub(crate) async fn new() -> Result<Self, HttpError> {
        Self::trusting(blocking(roots).await)
    }

    /// Creates a client that trusts these certificate authorities only.
    ///
    /// # Errors
    /// When rustls rejects its configuration.
    pub(crate) fn trusting(roots: RootCertStore) -> Result<Self, HttpError> {
        let provider = rustls::crypto::ring::default_provider();
        let tls = ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new_with_resolver(Resolver);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_DEADLINE));
        tcp.set_keepalive(Some(KEEPALIVE_IDLE));
        tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_idle_timeout(IDLE_PATIENCE)
            .build(connector);
        Ok(Self { pool })
    }

    /// Sends a request and returns the response, whatever its status.
    ///
    /// # Errors
    /// When no complete response arrives within the limits.
    pub(crate) async fn send(
        &self,
        request: Request<Bytes>,
        limits: ResponseLimits,
    ) -> Result<HttpResponse, HttpError> {
        let server = server_of(&request);
        let exchange = self.exchange(request, limits.body_bytes, &server);
        match limits.deadline {
            Some(deadline) => timeout(deadline, exchange)
                .await
                .unwrap_or_else(|_| Err(HttpError::Timeout { server: server.clone(), deadline })),
            None => exchange.await,
        }
    }

    async fn exchange(&self, request: Request<Bytes>, limit: usize, server: &str) -> Result<HttpResponse, HttpError> {
        let failed = |error| HttpError::Failed { server: server.to_owned(), error };
        let response = self.pool.request(request.map(Full::new)).await.map_err(failed)?;
        let (head, body) = response.into_parts();
        let body = read_body(Limited::new(body, limit)).await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                HttpError::TooLarge { server: server.to_owned(), limit }
            } else {
                HttpError::Incomplete { server: server.to_owned(), problem: error.to_string() }
            }
        })?;
        Ok(HttpResponse { status: head.status, headers: head.headers, body })
    }
}

/// The whole body. Its pieces are copied, because a server may send pieces of one byte, each of which would keep a buffer.
async fn read_body(mut body: Limited<Incoming>) -> Result<Bytes, Box<dyn Error + Send + Sync>> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Some(piece) = frame?.data_ref() {
            bytes.extend_from_slice(piece);
        }
    }
    Ok(bytes.freeze())
}

/// Scheme, host and port. Path and query are left out of logs because they may carry secrets.
fn server_of(request: &Request<Bytes>) -> String {
    let uri = request.uri();
    let host = uri.host().unwrap_or("?");
    let port = uri.port().map_or(String::new(), |port| format!(":{port}"));
    format!("{}://{host}{port}", uri.scheme_str().unwrap_or("http"))
}

/// The causes of a hyper error, whose own message is always "client error".
fn causes(error: &hyper_util::client::legacy::Error) -> String {
    error.source().map_or(String::new(), |cause| format!(": {}", chain(cause)))
}

fn roots() -> RootCertStore {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::debug!("cannot read some of the image's certificates: {error}");
    }
    let (_, unusable) = roots.add_parsable_certificates(found.certs);
    if unusable > 0 {
        tracing::debug!("{unusable} of the image's certificates are invalid");
    }
    roots
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    const LIMITS: ResponseLimits = ResponseLimits { deadline: Some(Duration::from_secs(20)), body_bytes: 100 };

    /// Starts a server that answers one connection with these bytes, and returns its address.
    async fn server(answer: impl Into<Vec<u8>>, keep_open: bool) -> String {
        let answer = answer.into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        crate::tasks::TaskGroup::new().spawn("test server", async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(&answer).await.unwrap();
            if keep_open {
                std::future::pending::<()>().await;
            }
        });
        address
    }

    async fn get(address: &str, limits: ResponseLimits) -> Result<HttpResponse, HttpError> {
        let request = Request::get(address).body(Bytes::new()).unwrap();
        HttpClient::new().await.unwrap().send(request, limits).await
    }

    #[tokio::test]
    async fn an_answer_comes_whole_and_a_redirect_is_one() {
        let address = server(b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 2\r\n\r\nhi", true).await;
        let answer = get(&address, LIMITS).await.unwrap();
        assert_eq!(
            (answer.status, &answer.headers["location"], &answer.body[..]),
            (StatusCode::FOUND, &http::HeaderValue::from_static("/x"), &b"hi"[..])
        );
    }

    #[tokio::test]
    async fn what_goes_wrong_is_named() {
        let long = server(format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(101)), true).await;
        let problem = get(&long, LIMITS).await.unwrap_err();
        assert_eq!(problem.to_string(), format!("the response from {long} is larger than 100 bytes"));
        let cut = server(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhi", false).await;
        let problem = get(&cut, LIMITS).await.unwrap_err().to_string();
        assert!(problem.starts_with(&format!("the response from {cut} was cut off: ")), "{problem}");
        let silent = server(b"", true).await;
        let deadline = Duration::from_millis(50);
        let problem = get(&silent, ResponseLimits { deadline: Some(deadline), ..LIMITS }).await.unwrap_err();
        assert_eq!(problem.to_string(), format!("{silent} did not respond within 50ms"));
        let refused = chain(&get("http://127.0.0.1:1/secret?x=y", LIMITS).await.unwrap_err());
        assert!(
            refused.starts_with("request to http://127.0.0.1:1 failed: ") && refused.matches("refused").count() == 1,
            "{refused}"
        );
        assert!(!refused.contains("secret"));
    }
}
