//! Moves bytes between two sockets inside the kernel (splice(2)), which saves a copy and a buffer of ours.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::sleep;

/// The pipe between the two sockets: a little more than a unix socket holds by default.
const PIPE_BYTES: i32 = 256 * 1024;
const SPLICE_BYTES: usize = 256 * 1024;

const SPLICE_FLAGS: SpliceFFlags = SpliceFFlags::SPLICE_F_MOVE.union(SpliceFFlags::SPLICE_F_NONBLOCK);

/// Retry interval while the kernel has no memory for a socket buffer.
const MEMORY_POLL: Duration = Duration::from_millis(10);

/// A pipe between two sockets.
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    pub(super) fn new() -> io::Result<Self> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Fails if the user's pipes hold too many pages already; the default size works too.
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        Ok(Self { reader, writer })
    }

    /// Reads what the socket has, at least a byte; 0 at the end of the stream. Moves nothing if it is dropped early.
    pub(super) async fn fill(&self, socket: &UnixStream) -> io::Result<usize> {
        let fill = || Ok(splice(socket, None, &self.writer, None, SPLICE_BYTES, SPLICE_FLAGS)?);
        with_memory(|| socket.async_io(Interest::READABLE, fill)).await
    }

    /// Writes as many of the `bytes` in the pipe as the peer accepts, at least one.
    pub(super) async fn drain(&self, peer: &TcpStream, bytes: usize) -> io::Result<usize> {
        let drain = || Ok(splice(&self.reader, None, peer, None, bytes, SPLICE_FLAGS)?);
        with_memory(|| peer.async_io(Interest::WRITABLE, drain)).await
    }
}

/// Retries while the kernel is out of memory. Buffers of unix sockets and pipes are charged to our cgroup; at a memory
/// limit where the OOM killer is disabled, the kernel refuses them (ENOBUFS, `sock_alloc_send_pskb` in
/// `net/core/sock.c`). Stops when the connection closes.
pub(super) async fn with_memory<F: Future<Output = io::Result<usize>>>(
    mut attempt: impl FnMut() -> F,
) -> io::Result<usize> {
    loop {
        match attempt().await {
            Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ENOBUFS | nix::libc::ENOMEM)) => {
                sleep(MEMORY_POLL).await;
            }
            done => return done,
        }
    }
}
