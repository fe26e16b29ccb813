//! Accepts a bounded number of connections at a time.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::error::FatalError;
use crate::tasks::TaskGroup;

/// Concurrent connections per port. An agent has one.
const MAX_CONNECTIONS: usize = 64;

/// Pause after a failed `accept`, which usually means that no descriptors are left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A peer whose host disappeared is detected after about a minute and a half.
const KEEPALIVE_IDLE_SECONDS: u32 = 60;
const KEEPALIVE_INTERVAL_SECONDS: u32 = 10;
const KEEPALIVE_PROBES: u32 = 3;

/// Binds a port on every IPv4 address, as `tcp://*` of libzmq does.
pub(super) async fn bind(name: &'static str, port: u16) -> Result<TcpListener, FatalError> {
    let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    TcpListener::bind(address).await.map_err(|source| FatalError::Bind { name, port, source })
}

/// Runs `serve` for each connection in its own task.
pub(super) fn accept<F>(
    listener: TcpListener,
    tasks: &TaskGroup,
    serve: impl Fn(TcpStream, SocketAddr) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let group = tasks.clone();
    tasks.spawn("accept", async move {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                tracing::warn!("limit of {MAX_CONNECTIONS} connections reached; rejecting {peer}");
                continue;
            };
            tune(&stream);
            let served = serve(stream, peer);
            group.spawn("connection", async move {
                served.await;
                drop(place);
            });
        }
    });
}

/// Sets `TCP_NODELAY` and keepalive. A connection works without them.
pub(super) fn tune(stream: &TcpStream) {
    let tuned = stream.set_nodelay(true).and_then(|()| {
        setsockopt(stream, sockopt::KeepAlive, &true)?;
        setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_SECONDS)?;
        setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_SECONDS)?;
        Ok(setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?)
    });
    if let Err(error) = tuned {
        tracing::debug!("cannot set TCP options: {error}");
    }
}
