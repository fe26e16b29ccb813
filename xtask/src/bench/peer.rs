//! A baseline of the bench: the fastest copy from a child's pipe into a PUSH socket that the `zeromq` crate allows, behind the
//! runner's protocol so that the same client drives it.
//!
//! Each chunk is read, sent as a two-frame message and dropped. There is no copy to a log or console, no ordering, and no other
//! step. The crate's queue counts messages, not bytes, so each chunk carries a permit that returns when the crate drops it.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zeromq::{PullSocket, PushSocket, Socket as _, SocketRecv as _, SocketSend as _, ZmqError, ZmqMessage};

/// The capacity of a pipe, and the protocol's maximum for output. (The agent truncates frames at 10 MiB.)
const CHUNK_BYTES: usize = 64 * 1024;

/// 4 MiB in flight: enough to keep the socket busy, little enough to stay in the cache.
const CHUNKS_IN_FLIGHT: usize = 64;

/// Arguments of the hidden task.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Port for ops
    replin: u16,
    /// Port for replies
    replout: u16,
}

/// Serves until it is killed.
pub(crate) fn run(args: &Args) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(args))
}

/// A chunk in flight with its permit.
struct Chunk {
    bytes: BytesMut,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

async fn serve(args: &Args) -> Result<()> {
    let mut ops = PullSocket::new();
    ops.bind(&format!("tcp://127.0.0.1:{}", args.replin)).await?;
    let mut replies = PushSocket::new();
    replies.bind(&format!("tcp://127.0.0.1:{}", args.replout)).await?;
    loop {
        // An error means that a client disconnected; another one may connect.
        let Ok(message) = ops.recv().await else { continue };
        let (Some(op), Some(payload)) = (message.get(0), message.get(1)) else { continue };
        match op.as_ref() {
            b"status" => send(&mut replies, b"status", Bytes::new()).await?,
            b"exec" => {
                let code = copy(&mut replies, &String::from_utf8_lossy(payload)).await?;
                send(&mut replies, b"finished", Bytes::from(format!("{{\"exitCode\": {code}}}"))).await?;
            }
            _ => {}
        }
    }
}

async fn copy(replies: &mut PushSocket, line: &str) -> Result<i32> {
    let mut child = Command::new("/bin/sh").args(["-c", line]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().context("no pipe")?;
    let mut stdout = pipe::Receiver::from_owned_fd(OwnedFd::from(stdout))?;
    let in_flight = Arc::new(Semaphore::new(CHUNKS_IN_FLIGHT));
    loop {
        let permit = Arc::clone(&in_flight).acquire_owned().await?;
        let mut bytes = BytesMut::with_capacity(CHUNK_BYTES);
        if stdout.read_buf(&mut bytes).await? == 0 {
            break;
        }
        send(replies, b"stdout", Bytes::from_owner(Chunk { bytes, _permit: permit })).await?;
    }
    Ok(child.wait()?.code().unwrap_or(-1))
}

/// Sends a message; waits for the client to connect if necessary.
async fn send(replies: &mut PushSocket, kind: &'static [u8], payload: Bytes) -> Result<()> {
    let mut message = ZmqMessage::from(Bytes::from_static(kind));
    message.push_back(payload);
    loop {
        match replies.send(message).await {
            Ok(()) => return Ok(()),
            Err(ZmqError::ReturnToSender { message: returned, .. }) => message = returned,
            Err(error) => return Err(io::Error::other(error.to_string()).into()),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
