//! A yardstick of the bench: the fastest way from a child's pipe into a PUSH socket that the
//! `zeromq` crate allows, with the runner's protocol in front so that the same client drives it.
//!
//! A chunk is read, sent as a two-frame message, and forgotten: no second copy to a log or a
//! console, no order to keep, no other step to watch. As the crate's queue counts messages and not
//! bytes, a permit travels with each chunk and comes back when the crate is done with it.

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

/// The agent cuts frames at 10 MiB; 64 KiB is a pipe's content, and what the protocol asks for.
const CHUNK_BYTES: usize = 64 * 1024;

/// 4 MiB under way: enough to keep the socket busy, little enough to stay in the cache.
const CHUNKS_UNDER_WAY: usize = 64;

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

/// A chunk on its way, with its permit.
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
        // An error here is a client that left; the next one may come.
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
    let under_way = Arc::new(Semaphore::new(CHUNKS_UNDER_WAY));
    loop {
        let permit = Arc::clone(&under_way).acquire_owned().await?;
        let mut bytes = BytesMut::with_capacity(CHUNK_BYTES);
        if stdout.read_buf(&mut bytes).await? == 0 {
            break;
        }
        send(replies, b"stdout", Bytes::from_owner(Chunk { bytes, _permit: permit })).await?;
    }
    Ok(child.wait()?.code().unwrap_or(-1))
}

/// Sends a message; waits for the client if it is not there yet.
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
