//! A client's end of a ZMTP 3.0 connection (<https://rfc.zeromq.org/spec/23/>, NULL mechanism): frames in, frames out.
//!
//! The reader returns a frame's length before its body, so that the caller decides how much of it is in memory. Commands of
//! the peer are skipped.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd as _;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::sys;
use crate::zmtp::{FLAG_MORE, FrameHeader, GREETING_BYTES, UnknownFlags, fits_greeting, introduction, put_frame};

/// Size of one read from the socket.
const READ_BYTES: usize = 64 * 1024;

/// Limit of a command such as READY.
const MAX_COMMAND_BYTES: u64 = 64 * 1024;

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SocketError {
    #[error("the peer closed the connection")]
    Closed,
    #[error("the peer does not speak ZMTP 3 without security")]
    NotZmtp,
    #[error("the peer refused the connection: {0}")]
    Refused(String),
    #[error(transparent)]
    Flags(#[from] UnknownFlags),
    #[error("ZMTP command of {0} bytes is too long")]
    LongCommand(u64),
    #[error("it stopped responding")]
    Silent,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The header of a frame, whose body has to be read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) bytes: u64,
    /// Another frame of the same message follows.
    pub(super) more: bool,
}

/// Local address of our connections. A kernel's ports are in the ephemeral range. With 127.0.0.1, a connection of ours could
/// take a port that a kernel is about to open, even by connecting to itself.
const OURS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), 0));

/// Connects as `socket_type` and performs the handshake. The caller sets the deadline.
pub(super) async fn connect(
    address: SocketAddr,
    socket_type: &str,
    identity: &str,
) -> Result<(FrameReader, FrameWriter), SocketError> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(OURS)?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    let (from_peer, to_peer) = stream.into_split();
    let mut reader = FrameReader::new(from_peer);
    let mut writer = FrameWriter { stream: to_peer };
    writer.stream.write_all(&introduction(socket_type, identity)).await?;
    reader.handshake().await?;
    Ok((reader, writer))
}

/// The receiving direction.
pub(super) struct FrameReader<R = OwnedReadHalf> {
    stream: R,
    buffer: BytesMut,
}

impl FrameReader {
    /// Number of bytes received but not read.
    pub(super) fn unread_bytes(&self) -> usize {
        self.buffer.len() + sys::readable_bytes(self.stream.as_ref().as_fd()).unwrap_or(0)
    }
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(stream: R) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Reads the peer's greeting and its READY command.
    pub(super) async fn handshake(&mut self) -> Result<(), SocketError> {
        self.greeting().await?;
        self.ready().await
    }

    /// The next frame of a message. Its body has to be read, whole or in pieces, before the next call.
    pub(super) async fn frame(&mut self) -> Result<Frame, SocketError> {
        loop {
            let header = self.header().await?;
            if !header.is_command() {
                return Ok(Frame { bytes: header.body_bytes, more: header.has_more() });
            }
            self.command(header.body_bytes).await?;
        }
    }

    /// The body of a frame whose length the caller has checked.
    pub(super) async fn whole(&mut self, bytes: usize) -> Result<Bytes, SocketError> {
        self.fill(bytes).await?;
        Ok(self.buffer.split_to(bytes).freeze())
    }

    /// The next piece of a body with `left` unread bytes: at least one byte, unless `left` is 0.
    pub(super) async fn piece(&mut self, left: u64) -> Result<Bytes, SocketError> {
        self.fill(usize::from(left > 0)).await?;
        let bytes = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
        Ok(self.buffer.split_to(bytes).freeze())
    }

    /// Skips a body.
    pub(super) async fn skip(&mut self, mut left: u64) -> Result<(), SocketError> {
        while left > 0 {
            left -= self.piece(left).await?.len() as u64;
        }
        Ok(())
    }

    async fn greeting(&mut self) -> Result<(), SocketError> {
        let greeting = self.whole(GREETING_BYTES).await?;
        if fits_greeting(0, &greeting) { Ok(()) } else { Err(SocketError::NotZmtp) }
    }

    async fn ready(&mut self) -> Result<(), SocketError> {
        let header = self.header().await?;
        if header.is_command() { self.command(header.body_bytes).await } else { Err(SocketError::NotZmtp) }
    }

    async fn command(&mut self, bytes: u64) -> Result<(), SocketError> {
        if bytes > MAX_COMMAND_BYTES {
            return Err(SocketError::LongCommand(bytes));
        }
        let body = self.whole(usize::try_from(bytes).unwrap_or(usize::MAX)).await?;
        match body.strip_prefix(b"\x05ERROR") {
            Some(reason) => Err(SocketError::Refused(reason.get(1..).unwrap_or_default().escape_ascii().to_string())),
            None => Ok(()),
        }
    }

    async fn header(&mut self) -> Result<FrameHeader, SocketError> {
        loop {
            if let Some((header, header_bytes)) = FrameHeader::parse(&self.buffer)? {
                self.buffer.advance(header_bytes);
                return Ok(header);
            }
            self.fill(self.buffer.len() + 1).await?;
        }
    }

    async fn fill(&mut self, bytes: usize) -> Result<(), SocketError> {
        while self.buffer.len() < bytes {
            self.buffer.reserve((bytes - self.buffer.len()).max(READ_BYTES / 4));
            let limit = (bytes - self.buffer.len()).max(READ_BYTES);
            if self.stream.read_buf(&mut (&mut self.buffer).limit(limit)).await? == 0 {
                return Err(SocketError::Closed);
            }
        }
        Ok(())
    }
}

/// The sending direction.
pub(super) struct FrameWriter {
    stream: OwnedWriteHalf,
}

impl FrameWriter {
    /// Sends one message. Not cancel safe: a dropped future leaves the connection unusable.
    pub(super) async fn send(&mut self, frames: &[Bytes]) -> Result<(), SocketError> {
        let bytes = frames.iter().map(|frame| frame.len() + 9).sum();
        let mut message = BytesMut::with_capacity(bytes);
        for (position, frame) in (1..).zip(frames) {
            put_frame(&mut message, if position < frames.len() { FLAG_MORE } else { 0 }, frame);
        }
        Ok(self.stream.write_all(&message).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    /// A peer that says these bytes and closes.
    async fn peer(said: Vec<u8>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn({
            let listener = listener.into_std().unwrap();
            move || {
                use std::io::Write as _;
                listener.set_nonblocking(false).unwrap();
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.write_all(&said);
                // Reads until the client leaves, so that what was said is not lost to a reset.
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
        });
        address
    }

    fn said(body: &[u8]) -> Vec<u8> {
        let mut bytes = introduction("PUB", "").to_vec();
        bytes.extend_from_slice(body);
        bytes
    }

    #[tokio::test]
    async fn frames_are_announced_before_they_are_read() {
        let address = peer(said(b"\x01\x02ab\x04\x03\x02xy\x02\0\0\0\0\0\0\0\x03cde")).await;
        let (mut reader, _writer) = connect(address, "SUB", "").await.unwrap();
        assert_eq!(reader.frame().await.unwrap(), Frame { bytes: 2, more: true });
        assert_eq!(reader.whole(2).await.unwrap(), "ab");
        assert_eq!(reader.frame().await.unwrap(), Frame { bytes: 3, more: false });
        reader.skip(3).await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_leaves_the_ports_of_kernels_alone() {
        let address = peer(said(b"")).await;
        let (_reader, writer) = connect(address, "SUB", "").await.unwrap();
        let ours = writer.stream.local_addr().unwrap();
        TcpListener::bind((address.ip(), ours.port())).await.expect("a kernel can take the same port");
    }

    #[tokio::test]
    async fn what_is_no_zmtp_is_told() {
        let refused = |said: Vec<u8>| async move {
            let (mut reader, _writer) = connect(peer(said).await, "SUB", "").await.map_err(|e| e.to_string())?;
            reader.frame().await.map_err(|e| e.to_string())
        };
        assert_eq!(refused([b'G'; 64].to_vec()).await.unwrap_err(), "the peer does not speak ZMTP 3 without security");
        assert_eq!(refused(said(b"\xf0\x01")).await.unwrap_err(), "unknown frame flags 0xf0");
        let huge = refused(said(b"\x06\x7f\xff\xff\xff\xff\xff\xff\xff")).await.unwrap_err();
        assert_eq!(huge, "ZMTP command of 9223372036854775807 bytes is too long");
        assert_eq!(refused(said(b"\x04\x09\x05ERROR\x02no")).await.unwrap_err(), "the peer refused the connection: no");
        let announced = refused(said(b"\x02\x7f\xff\xff\xff\xff\xff\xff\xff")).await.unwrap();
        assert_eq!(announced.bytes, i64::MAX.cast_unsigned(), "nothing is allocated for a mere claim");
    }

    proptest! {
        #[test]
        fn framing_has_an_inverse(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..5)) {
            let mut bytes = BytesMut::new();
            for frame in &frames {
                put_frame(&mut bytes, FLAG_MORE, frame);
            }
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                let (mut reader, _writer) = connect(peer(said(&bytes)).await, "SUB", "").await.unwrap();
                for expected in &frames {
                    let frame = reader.frame().await.unwrap();
                    assert_eq!(frame.bytes, expected.len() as u64);
                    assert_eq!(reader.whole(expected.len()).await.unwrap(), expected);
                }
            });
        }
    }
}
