//! A browser's side of ttyd, as far as a terminal needs it.
//!
//! Messages of the websocket begin with a digit for what they are (ttyd, `html/src/components/terminal/xterm`):
//! input and output `0`, a new size `1`. The first one says who connects and how large the terminal is.

use std::net::{Ipv4Addr, TcpStream};
use std::time::Instant;

use serde_json::json;
use tungstenite::client::IntoClientRequest as _;
use tungstenite::http::HeaderValue;
use tungstenite::{Message, WebSocket};

use crate::wait;

const DATA: u8 = b'0';
const RESIZE: u8 = b'1';

/// A terminal that is open.
pub struct Tty {
    socket: WebSocket<TcpStream>,
    /// Everything shown so far.
    shown: String,
}

impl Tty {
    /// Connects as soon as something listens.
    #[track_caller]
    pub fn connect(port: u16, columns: u16, rows: u16) -> Self {
        let stream = wait::until("ttyd listens", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok());
        stream.set_read_timeout(Some(wait::PATIENCE)).expect("a read timeout");
        let mut request = format!("ws://127.0.0.1:{port}/ws").into_client_request().expect("a request");
        request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("tty"));
        let (mut socket, _) = tungstenite::client(request, stream).expect("a websocket");
        let hello = json!({ "AuthToken": "", "columns": columns, "rows": rows });
        socket.send(Message::binary(hello.to_string().into_bytes())).expect("ttyd takes the greeting");
        Self { socket, shown: String::new() }
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) {
        self.send(DATA, &format!("{line}\r"));
    }

    /// Makes the terminal another size.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        self.send(RESIZE, &json!({ "columns": columns, "rows": rows }).to_string());
    }

    fn send(&mut self, kind: u8, text: &str) {
        let message = [&[kind], text.as_bytes()].concat();
        self.socket.send(Message::binary(message)).expect("ttyd takes a message");
    }

    /// Reads until this was shown since the call before; returns all that was shown until then.
    #[track_caller]
    pub fn read_until(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + wait::PATIENCE;
        loop {
            if let Some(at) = self.shown.find(wanted) {
                let rest = self.shown.split_off(at + wanted.len());
                return std::mem::replace(&mut self.shown, rest);
            }
            assert!(Instant::now() < deadline, "{wanted:?} was not shown: {:?}", self.shown);
            match self.socket.read() {
                Ok(message) => {
                    if let Some((&DATA, text)) = message.into_data().split_first() {
                        self.shown.push_str(&String::from_utf8_lossy(text));
                    }
                }
                Err(error) => panic!("{error}; {wanted:?} was not shown: {:?}", self.shown),
            }
        }
    }
}
