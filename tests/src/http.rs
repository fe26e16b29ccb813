//! The smallest HTTP client: one GET.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::wait;

/// The answer at a port of this machine, with its head; `None` if nothing listens or it breaks off.
pub fn get(port: u16, path: &str, headers: &[&str]) -> Option<String> {
    get_from("127.0.0.1", port, path, headers)
}

/// The same from another host.
pub fn get_from(host: &str, port: u16, path: &str, headers: &[&str]) -> Option<String> {
    let mut stream = TcpStream::connect((host, port)).ok()?;
    stream.set_read_timeout(Some(wait::PATIENCE)).ok()?;
    let headers: String = headers.iter().flat_map(|header| [*header, "\r\n"]).collect();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The body of an answer.
pub fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}
