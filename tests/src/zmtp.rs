//! A bare ZMTP 3.0 peer over TCP: just enough to be a PUSH or a PULL, and to misbehave as one.
//!
//! It reads only when asked to, so an idle peer behaves like a stalled agent. Framing as
//! in RFC 23: a flag byte (1 = more frames follow, 2 = eight length bytes instead of one, 4 = command), length, body.

use std::io::{BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt};

use crate::wait;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;
/// The flag for an eight-byte length field.
const SHORT_LIMIT: usize = 255;

/// Connects to the port as soon as a process listens on it.
#[track_caller]
pub fn dial(port: u16) -> TcpStream {
    let stream =
        wait::until(&format!("a listener on port {port}"), || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok());
    stream.set_nodelay(true).expect("TCP_NODELAY");
    stream.set_read_timeout(Some(wait::PATIENCE)).expect("a read timeout");
    stream.set_write_timeout(Some(wait::PATIENCE)).expect("a write timeout");
    stream
}

/// The greeting of a peer without security, or of one that names another mechanism.
pub fn greeting(mechanism: &str) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[0] = 0xff;
    bytes[9] = 0x7f;
    bytes[10] = 3;
    bytes[12..12 + mechanism.len()].copy_from_slice(mechanism.as_bytes());
    bytes
}

/// The READY command of a socket type.
pub fn ready(socket_type: &str) -> Vec<u8> {
    let mut body = b"\x05READY\x0bSocket-Type".to_vec();
    body.extend(u32::try_from(socket_type.len()).expect("a short name").to_be_bytes());
    body.extend(socket_type.as_bytes());
    let mut frame = vec![COMMAND, u8::try_from(body.len()).expect("a short command")];
    frame.extend(body);
    frame
}

/// The header of a message frame that announces a body of that size.
pub fn long_header(body_bytes: u64, more: bool) -> Vec<u8> {
    let mut header = vec![if more { LONG | MORE } else { LONG }];
    header.extend(body_bytes.to_be_bytes());
    header
}

/// A connection past its handshake.
#[derive(Debug)]
pub struct Peer {
    stream: BufReader<TcpStream>,
}

impl Peer {
    /// Connects as `PUSH` or `PULL` and shakes hands.
    #[track_caller]
    pub fn connect(port: u16, socket_type: &str) -> Self {
        Self::over(dial(port), socket_type)
    }

    /// Connects as `PULL` with a receive buffer of about that size, so that the sender is held up early.
    #[track_caller]
    pub fn connect_narrow(port: u16, receive_buffer_bytes: usize) -> Self {
        // The size must be set before the handshake of TCP to have an effect on its window.
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
        let fd = fd.expect("a TCP socket");
        setsockopt(&fd, sockopt::RcvBuf, &receive_buffer_bytes).expect("SO_RCVBUF");
        drop(dial(port));
        let address = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        connect(fd.as_raw_fd(), &address).expect("a connection to a port that listens");
        let stream = TcpStream::from(fd);
        stream.set_read_timeout(Some(wait::PATIENCE)).expect("a read timeout");
        Self::over(stream, "PULL")
    }

    #[track_caller]
    fn over(mut stream: TcpStream, socket_type: &str) -> Self {
        stream.write_all(&greeting("NULL")).expect("the runner takes a greeting");
        stream.write_all(&ready(socket_type)).expect("the runner takes a READY");
        let mut peer = Self { stream: BufReader::new(stream) };
        let mut theirs = [0; 64];
        peer.stream.read_exact(&mut theirs).expect("the runner's greeting");
        assert_eq!((theirs[0], theirs[9], theirs[10]), (0xff, 0x7f, 3), "the runner speaks ZMTP 3");
        let (flags, body) = peer.frame().expect("the runner's READY");
        assert!(flags & COMMAND != 0 && body.starts_with(b"\x05READY"), "the runner is READY");
        peer
    }

    /// Sends one message of these frames.
    #[track_caller]
    pub fn send(&mut self, frames: &[&[u8]]) {
        self.try_send(frames).expect("the runner takes a message");
    }

    /// Sends one message; an error means that the runner has closed the connection.
    pub fn try_send(&mut self, frames: &[&[u8]]) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        for (i, frame) in frames.iter().enumerate() {
            let more = i + 1 < frames.len();
            if let (true, Ok(length)) = (frame.len() <= SHORT_LIMIT, u8::try_from(frame.len())) {
                bytes.extend([u8::from(more), length]);
            } else {
                bytes.extend(long_header(frame.len() as u64, more));
            }
            bytes.extend(*frame);
        }
        self.stream.get_mut().write_all(&bytes)
    }

    /// Sends bytes as they are; an error means that the runner has closed the connection.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Whether there is something to receive already.
    pub fn is_readable(&self) -> bool {
        let socket = self.stream.get_ref();
        socket.set_nonblocking(true).expect("a socket option");
        let readable = !self.stream.buffer().is_empty() || socket.peek(&mut [0]).is_ok_and(|bytes| bytes > 0);
        socket.set_nonblocking(false).expect("a socket option");
        readable
    }

    /// Whether the runner has closed the connection and everything before is received.
    pub fn has_ended(&self) -> bool {
        let socket = self.stream.get_ref();
        socket.set_nonblocking(true).expect("a socket option");
        let peeked = socket.peek(&mut [0]);
        socket.set_nonblocking(false).expect("a socket option");
        let is_closed = match peeked {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        };
        self.stream.buffer().is_empty() && is_closed
    }

    /// Receives one message; `None` when the runner has closed the connection.
    #[track_caller]
    pub fn recv(&mut self) -> Option<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        loop {
            let (flags, body) = self.frame()?;
            if flags & COMMAND != 0 {
                continue;
            }
            frames.push(body);
            if flags & MORE == 0 {
                return Some(frames);
            }
        }
    }

    #[track_caller]
    fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut flags = [0];
        if !self.fill(&mut flags) {
            return None;
        }
        let length = if flags[0] & LONG == 0 {
            let mut length = [0];
            self.fill(&mut length).then_some(u64::from(length[0]))?
        } else {
            let mut length = [0; 8];
            self.fill(&mut length).then_some(u64::from_be_bytes(length))?
        };
        let mut body = vec![0; usize::try_from(length).expect("a frame fits in memory")];
        self.fill(&mut body).then_some((flags[0], body))
    }

    /// Fills the buffer; `false` when the connection is closed. A silent runner fails the test.
    #[track_caller]
    fn fill(&mut self, buffer: &mut [u8]) -> bool {
        use std::io::ErrorKind::{TimedOut, WouldBlock};
        match self.stream.read_exact(buffer) {
            Ok(()) => true,
            Err(error) if matches!(error.kind(), WouldBlock | TimedOut) => {
                panic!("nothing from the runner in {:?}", self.stream.get_ref().read_timeout())
            }
            Err(_) => false,
        }
    }

    /// Whether the runner closes the connection, whatever it still says before.
    pub fn is_closed(&mut self) -> bool {
        is_closed(self.stream.get_mut())
    }

    /// Sets how long the runner may be silent while something is received.
    pub fn set_patience(&self, patience: Duration) {
        self.stream.get_ref().set_read_timeout(Some(patience)).expect("a read timeout");
    }

    /// Tells the runner that this peer leaves. What the runner has sent by then can still be received.
    pub fn leave(&self) {
        let _ = self.stream.get_ref().shutdown(Shutdown::Write);
    }

    /// Ends the connection at once.
    pub fn close(self) {
        let _ = self.stream.get_ref().shutdown(Shutdown::Both);
    }
}

/// Whether the other side closes the connection within the deadline, whatever it still says before.
pub fn is_closed(stream: &mut TcpStream) -> bool {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            // A reset is an end as well.
            Err(error) => return !matches!(error.kind(), WouldBlock | TimedOut),
        }
    }
}
