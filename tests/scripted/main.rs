//! The helper program of the model and fault suites and of `cargo xtask soak`: a child that asks for input or listens.
//!
//! It starts in a millisecond, where an interpreter takes fifty.

use std::env;
use std::fs;
use std::io::{Error, Read as _, Write as _, stdout};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::{ExitCode, id};

const USAGE: &str = "\
scripted ask SOCKET           asks for input and prints `answer: <TEXT>`
scripted listen PORT FILE     listens on the port, then writes its PID to the file";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["ask", socket] => ask(socket),
        ["listen", port, file] => listen(port, file),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(64);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scripted: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The answer is written at once, so that a reader sees all of it or nothing.
fn ask(socket: &str) -> Result<(), Error> {
    let mut text = String::new();
    UnixStream::connect(socket)?.read_to_string(&mut text)?;
    stdout().write_all(format!("answer: <{text}>\n").as_bytes())
}

fn listen(port: &str, file: &str) -> Result<(), Error> {
    let port = port.parse().map_err(Error::other)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    fs::write(file, format!("{}\n", id()))?;
    for connection in listener.incoming() {
        drop(connection?);
    }
    Ok(())
}
