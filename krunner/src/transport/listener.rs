//! Accepting connections, a bounded number at a time.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::error::Critical;
use crate::tasks::TaskGroup;

/// Connections on one port at a time. An agent has one.
const MAX_CONNECTIONS: usize = 64;

/// After a failed `accept` (no descriptors left, mostly), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A peer whose machine has gone is noticed after about a minute and a half.
const KEEPALIVE_IDLE_SECONDS: u32 = 60;
const KEEPALIVE_INTERVAL_SECONDS: u32 = 10;
const KEEPALIVE_PROBES: u32 = 3;

/// Binds a port on every IPv4 address, as `tcp://*` of libzmq does.
pub(super) async fn bind(name: &'static str, port: u16) -> Result<TcpListener, Critical> {
    let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    TcpListener::bind(address).await.map_err(|source| Critical::Bind { name, port, source })
}

/// Runs `serve` for each connection, beside the others.
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
                tracing::warn!("{MAX_CONNECTIONS} connections are open; the one from {peer} is closed");
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

/// Small messages go out at once; a peer whose machine has gone is noticed. A connection works without.
pub(super) fn tune(stream: &TcpStream) {
    let tuned = stream.set_nodelay(true).and_then(|()| {
        setsockopt(stream, sockopt::KeepAlive, &true)?;
        setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_SECONDS)?;
        setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_SECONDS)?;
        Ok(setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?)
    });
    if let Err(error) = tuned {
        tracing::debug!("cannot tune a connection: {error}");
    }
}
