//! An HTTP health probe of a model server.
//!
//! One connection per probe, to localhost only. Redirects within the server are followed, as agents always did: frameworks
//! redirect `/health` to `/health/`.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Limit of redirects in one probe.
const MAX_REDIRECTS: usize = 5;

/// The target and the expected status.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    pub(super) port: u16,
    pub(super) target: PathAndQuery,
    pub(super) expected_status: u16,
    /// Timeout of the probe, redirects included.
    pub(super) patience: Duration,
}

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("cannot connect")]
    Unreachable(#[source] io::Error),
    #[error("not an HTTP server")]
    NotHttp(#[source] hyper::Error),
    #[error("unexpected status {0}")]
    Status(StatusCode),
    #[error("no response within {0:?}")]
    Late(Duration),
}

impl Probe {
    /// Runs the probe once.
    pub(super) async fn ask(&self) -> Result<(), ProbeError> {
        timeout(self.patience, self.follow()).await.unwrap_or(Err(ProbeError::Late(self.patience)))
    }

    async fn follow(&self) -> Result<(), ProbeError> {
        let mut target = self.target.clone();
        for redirects in 0.. {
            let (status, location) = self.get(&target).await?;
            if status.as_u16() == self.expected_status {
                return Ok(());
            }
            match location.and_then(|location| self.here(&location)) {
                Some(next) if status.is_redirection() && redirects < MAX_REDIRECTS => target = next,
                _ => return Err(ProbeError::Status(status)),
            }
        }
        unreachable!("the loop ends by itself")
    }

    async fn get(&self, target: &PathAndQuery) -> Result<(StatusCode, Option<Uri>), ProbeError> {
        let here = [SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)), (Ipv6Addr::LOCALHOST, self.port).into()];
        let stream = TcpStream::connect(&here[..]).await.map_err(ProbeError::Unreachable)?;
        self.exchange(stream, target).await
    }

    /// Sends the request and reads the head of the response.
    pub(super) async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        target: &PathAndQuery,
    ) -> Result<(StatusCode, Option<Uri>), ProbeError> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(ProbeError::NotHttp)?;
        let request = Request::get(target.as_str())
            .header(header::HOST, format!("localhost:{}", self.port))
            .header(header::USER_AGENT, "krunner")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .expect("a path that was parsed makes a request");
        tokio::pin!(connection);
        let exchange = sender.send_request(request);
        tokio::pin!(exchange);
        let mut connected = true;
        // Only the head of the response is read; the connection closes with this future.
        let response = loop {
            tokio::select! {
                response = &mut exchange => break response.map_err(ProbeError::NotHttp)?,
                ended = &mut connection, if connected => {
                    connected = false;
                    ended.map_err(ProbeError::NotHttp)?;
                }
            }
        };
        let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()?.parse().ok());
        Ok((response.status(), location))
    }

    /// The target of a redirect, if it is on the same server.
    pub(super) fn here(&self, location: &Uri) -> Option<PathAndQuery> {
        let target = location.path_and_query()?.clone();
        let Some(authority) = location.authority() else {
            return target.as_str().starts_with('/').then_some(target);
        };
        let is_local = matches!(authority.host(), "localhost" | "127.0.0.1" | "[::1]");
        let is_plain = location.scheme_str().is_none_or(|scheme| scheme == "http");
        (is_local && is_plain && authority.port_u16().unwrap_or(80) == self.port).then_some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    /// A server that answers each connection by the path of the request.
    async fn server(address: &str) -> Probe {
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        crate::tasks::TaskGroup::new().spawn("test server", async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                let text = String::from_utf8_lossy(&request[..read]).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
                let redirect = |to: &str| format!("HTTP/1.1 307 x\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
                let answer = match path.as_str() {
                    "/ok/" => "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nendless".to_owned(),
                    "/401" => "HTTP/1.1 401 x\r\ncontent-length: 0\r\n\r\n".to_owned(),
                    "/slash" => redirect("/ok/"),
                    "/absolute" => redirect(&format!("http://localhost:{port}/ok/")),
                    "/away" => redirect("http://example.com/ok/"),
                    "/loop" => redirect("/loop"),
                    "/noise" => "SSH-2.0-x\r\n\r\n".to_owned(),
                    _ => String::new(),
                };
                stream.write_all(answer.as_bytes()).await.unwrap();
                if path == "/hang" {
                    std::mem::forget(stream);
                }
            }
        });
        let target = PathAndQuery::from_static("/");
        Probe { port, target, expected_status: 200, patience: Duration::from_secs(10) }
    }

    async fn ask(probe: &Probe, path: &'static str) -> Result<(), ProbeError> {
        Probe { target: PathAndQuery::from_static(path), ..probe.clone() }.ask().await
    }

    #[tokio::test]
    async fn the_status_decides_and_redirects_stay_on_the_server() {
        let probe = server("127.0.0.1:0").await;
        for path in ["/ok/", "/slash", "/absolute"] {
            assert!(ask(&probe, path).await.is_ok(), "{path}");
        }
        for (path, status) in [("/401", 401), ("/away", 307), ("/loop", 307)] {
            let error = ask(&probe, path).await;
            assert!(matches!(error, Err(ProbeError::Status(code)) if code == status), "{path}: {error:?}");
        }
        let unauthorized = Probe { expected_status: 401, ..probe.clone() };
        assert!(ask(&unauthorized, "/401").await.is_ok());
        let error = ask(&probe, "/noise").await;
        assert!(matches!(error, Err(ProbeError::NotHttp(_))), "{error:?}");
        assert!(matches!(ask(&probe, "/nothing").await, Err(ProbeError::NotHttp(_))));
        let hasty = Probe { patience: Duration::from_millis(50), ..probe };
        assert!(matches!(ask(&hasty, "/hang").await, Err(ProbeError::Late(_))));
    }

    #[tokio::test]
    async fn a_server_on_the_other_loopback_is_found_and_a_missing_one_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let target = PathAndQuery::from_static("/ok/");
        let unreachable = Probe { port, target, expected_status: 200, patience: Duration::from_secs(10) };
        assert!(matches!(unreachable.ask().await, Err(ProbeError::Unreachable(_))));
        if std::path::Path::new("/proc/net/if_inet6").exists() {
            let probe = server("[::1]:0").await;
            assert!(ask(&probe, "/ok/").await.is_ok());
        }
    }
}
