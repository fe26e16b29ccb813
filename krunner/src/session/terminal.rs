//! The terminal's two ports as a [`TerminalTransport`].

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Mutex;

use crate::config::Ports;
use crate::error::{FatalError, chain};
use crate::tasks::TaskGroup;
use crate::terminal::TerminalTransport;
use crate::transport::{self, Inbound, Publisher};

struct TerminalPorts {
    /// The lock allows one reader at a time.
    typed: Mutex<Inbound>,
    screen: Publisher,
}

/// Binds the ports. Without them the session has no terminal.
pub(super) async fn open(ports: &Ports, tasks: &TaskGroup) -> Option<Arc<dyn TerminalTransport>> {
    match bind(ports, tasks).await {
        Ok(wire) => Some(Arc::new(wire)),
        Err(error) => {
            tracing::error!("terminal unavailable: {}", chain(&error));
            None
        }
    }
}

async fn bind(ports: &Ports, tasks: &TaskGroup) -> Result<TerminalPorts, FatalError> {
    let screen = transport::listen_pub("termout", ports.termout, tasks).await?;
    let typed = Mutex::new(transport::listen_sub("termin", ports.termin, tasks).await?);
    Ok(TerminalPorts { typed, screen })
}

#[async_trait]
impl TerminalTransport for TerminalPorts {
    /// The frames of a message form one text.
    async fn typed(&self) -> Bytes {
        loop {
            let Some(frames) = self.typed.lock().await.recv().await else { return Bytes::new() };
            let bytes = match <[Bytes; 1]>::try_from(frames) {
                Ok([bytes]) => bytes,
                Err(frames) => frames.concat().into(),
            };
            if !bytes.is_empty() {
                return bytes;
            }
        }
    }

    async fn show(&self, bytes: Bytes) {
        self.screen.publish(bytes).await;
    }
}
