//! For unit tests of the ports: a bare ZMTP peer that reads only when asked to, and a port for it.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::zmtp::{FLAG_MORE, FrameHeader, GREETING_BYTES, introduction, put_frame};

/// A port of this machine that has no listener.
pub(super) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A connection past its handshake.
pub(super) struct Peer {
    pub(super) stream: TcpStream,
    buffer: BytesMut,
}

impl Peer {
    /// Connects as this socket type. The receive buffer is small, so that an idle peer stalls the sender early.
    pub(super) async fn connect(port: u16, socket_type: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let address = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        let mut stream = socket.connect(address).await.unwrap();
        stream.write_all(&introduction(socket_type, "")).await.unwrap();
        let mut peer = Self { stream, buffer: BytesMut::new() };
        while peer.buffer.len() < GREETING_BYTES {
            assert!(peer.fill().await, "closed during the handshake");
        }
        peer.buffer.advance(GREETING_BYTES);
        let (header, _) = peer.frame().await.expect("READY");
        assert!(header.is_command());
        peer
    }

    async fn fill(&mut self) -> bool {
        self.stream.read_buf(&mut self.buffer).await.is_ok_and(|bytes| bytes > 0)
    }

    pub(super) async fn frame(&mut self) -> Option<(FrameHeader, Bytes)> {
        loop {
            if let Some((header, header_bytes)) = FrameHeader::parse(&self.buffer).unwrap() {
                let whole = header_bytes + usize::try_from(header.body_bytes).unwrap();
                if self.buffer.len() >= whole {
                    self.buffer.advance(header_bytes);
                    return Some((header, self.buffer.split_to(whole - header_bytes).freeze()));
                }
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The next message; `None` when the connection is closed.
    pub(super) async fn recv(&mut self) -> Option<Vec<Bytes>> {
        let mut frames = Vec::new();
        loop {
            let (header, body) = self.frame().await?;
            if !header.is_command() {
                frames.push(body);
                if !header.has_more() {
                    return Some(frames);
                }
            }
        }
    }

    /// Sends a message.
    pub(super) async fn send(&mut self, frames: &[&[u8]]) {
        let mut bytes = BytesMut::new();
        for (index, frame) in frames.iter().enumerate() {
            put_frame(&mut bytes, if index + 1 < frames.len() { FLAG_MORE } else { 0 }, frame);
        }
        self.stream.write_all(&bytes).await.unwrap();
    }
}
