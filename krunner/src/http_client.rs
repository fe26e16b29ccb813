//! Asking HTTP servers: one client for everything in krunner that does.
//!
//! HTTP/1.1, TLS by rustls. A request is dropped like any future, which closes its connection. Redirects are
//! not followed: they would carry credentials elsewhere. Certificates are those that Mozilla trusts, which are
//! built in since images may come without any, and those that the image trusts, for servers of a company.

mod resolver;

use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

use self::resolver::Resolver;
use crate::error::chain;
use crate::tasks::blocking;

/// To reach a server, before it has said anything.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// A server whose machine has gone is noticed after about a minute and a half, whatever it was asked for.
const KEEPALIVE_IDLE: Duration = Duration::from_mins(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Connections that are kept for the next request.
const IDLE_CONNECTIONS: usize = 1;
const IDLE_PATIENCE: Duration = Duration::from_secs(30);

/// Sends requests.
#[derive(Clone)]
pub struct HttpClient {
    pool: Pool<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>,
}

/// What an answer may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the first byte sent to the last received; without one, the connection's own end has to do.
    pub deadline: Option<Duration>,
    /// Of the body.
    pub body_bytes: usize,
}

/// An answer, whole.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its code.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// TLS could not be set up.
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
    /// Nobody answers there, or not in HTTP.
    #[error("{server} cannot be asked{}", causes(.source))]
    Failed {
        /// Scheme, host and port.
        server: String,
        /// Of the connection.
        source: hyper_util::client::legacy::Error,
    },
    /// The connection ended within the answer.
    #[error("the answer of {server} broke off: {problem}")]
    BrokenOff {
        /// Scheme, host and port.
        server: String,
        /// What the connection says.
        problem: String,
    },
    /// There is more of an answer than was asked for.
    #[error("the answer of {server} has more than {limit} bytes")]
    TooLong {
        /// Scheme, host and port.
        server: String,
        /// What was allowed.
        limit: usize,
    },
    /// The server takes its time.
    #[error("{server} has not answered within {deadline:?}")]
    Late {
        /// Scheme, host and port.
        server: String,
        /// How long it had.
        deadline: Duration,
    },
}

impl HttpClient {
    /// A client; the image's certificates are read once, here.
    ///
    /// # Errors
    /// When the TLS library refuses its own settings.
    pub async fn new() -> Result<Self, HttpError> {
        let roots = blocking(roots).await;
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

    /// Sends a request and returns the answer, whatever its status.
    ///
    /// # Errors
    /// When there is none within the limits.
    pub async fn send(&self, request: Request<Bytes>, limits: Limits) -> Result<Answer, HttpError> {
        let server = server_of(&request);
        let exchange = self.exchange(request, limits.body_bytes, &server);
        match limits.deadline {
            Some(deadline) => timeout(deadline, exchange)
                .await
                .unwrap_or_else(|_| Err(HttpError::Late { server: server.clone(), deadline })),
            None => exchange.await,
        }
    }

    async fn exchange(&self, request: Request<Bytes>, limit: usize, server: &str) -> Result<Answer, HttpError> {
        let failed = |source| HttpError::Failed { server: server.to_owned(), source };
        let response = self.pool.request(request.map(Full::new)).await.map_err(failed)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, limit).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                HttpError::TooLong { server: server.to_owned(), limit }
            } else {
                HttpError::BrokenOff { server: server.to_owned(), problem: error.to_string() }
            }
        })?;
        Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
    }
}

/// Scheme, host and port: what may be told of an address that may carry secrets.
fn server_of(request: &Request<Bytes>) -> String {
    let uri = request.uri();
    let host = uri.host().unwrap_or("?");
    let port = uri.port().map_or(String::new(), |port| format!(":{port}"));
    format!("{}://{host}{port}", uri.scheme_str().unwrap_or("http"))
}

/// The crate's own message says nothing; its causes do.
fn causes(error: &hyper_util::client::legacy::Error) -> String {
    error.source().map_or(String::new(), |cause| format!(": {}", chain(cause)))
}

fn roots() -> RootCertStore {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::debug!("some of the image's certificates cannot be read: {error}");
    }
    let (_, unusable) = roots.add_parsable_certificates(found.certs);
    if unusable > 0 {
        tracing::debug!("{unusable} of the image's certificates are not usable");
    }
    roots
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    const LIMITS: Limits = Limits { deadline: Some(Duration::from_secs(20)), body_bytes: 100 };

    /// A server that answers one connection with these bytes, and its address.
    async fn server(answer: impl Into<Vec<u8>>, keep_open: bool) -> String {
        let answer = answer.into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
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

    async fn get(address: &str, limits: Limits) -> Result<Answer, HttpError> {
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
        assert_eq!(problem.to_string(), format!("the answer of {long} has more than 100 bytes"));
        let cut = server(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhi", false).await;
        let problem = get(&cut, LIMITS).await.unwrap_err().to_string();
        assert!(problem.starts_with(&format!("the answer of {cut} broke off: ")), "{problem}");
        let silent = server(b"", true).await;
        let deadline = Duration::from_millis(50);
        let problem = get(&silent, Limits { deadline: Some(deadline), ..LIMITS }).await.unwrap_err();
        assert_eq!(problem.to_string(), format!("{silent} has not answered within 50ms"));
        let nobody = get("http://127.0.0.1:1/secret?x=y", LIMITS).await.unwrap_err().to_string();
        assert!(nobody.starts_with("http://127.0.0.1:1 cannot be asked: ") && nobody.contains("refused"), "{nobody}");
        assert!(!nobody.contains("secret"));
    }
}
