//! The terminal's two ports as a [`Line`].

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Mutex;

use crate::config::Ports;
use crate::error::{Critical, chain};
use crate::tasks::TaskGroup;
use crate::terminal::Line;
use crate::transport::{self, Inbound, Publisher};

struct Wire {
    /// For one who listens; the lock makes that so.
    typed: Mutex<Inbound>,
    screen: Publisher,
}

/// Binds the ports. A session without them has no terminal, and goes on.
pub(super) async fn open(ports: &Ports, tasks: &TaskGroup) -> Option<Arc<dyn Line>> {
    match bind(ports, tasks).await {
        Ok(wire) => Some(Arc::new(wire)),
        Err(error) => {
            tracing::error!("there is no terminal: {}", chain(&error));
            None
        }
    }
}

async fn bind(ports: &Ports, tasks: &TaskGroup) -> Result<Wire, Critical> {
    let screen = transport::listen_pub("termout", ports.termout, tasks).await?;
    let typed = Mutex::new(transport::listen_sub("termin", ports.termin, tasks).await?);
    Ok(Wire { typed, screen })
}

#[async_trait]
impl Line for Wire {
    /// The frames of a message are one text, cut where its sender liked.
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
