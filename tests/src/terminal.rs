//! A terminal client: types on one socket and reads the screen from the other.

use std::time::{Duration, Instant};

use crate::runner::Runner;
use crate::wait;
use crate::zmtp::Peer;

/// Longer than an idle shell takes to answer.
const ANSWER_PATIENCE: Duration = Duration::from_millis(300);

/// A publisher of what is typed and a subscriber to the screen, as a browser's terminal has them.
#[derive(Debug)]
pub struct Terminal {
    keyboard: Peer,
    /// The screen's connection.
    pub screen: Peer,
    /// Output that no call has consumed yet.
    seen: Vec<u8>,
}

impl Terminal {
    /// Connects both sockets and waits until the shell answers.
    #[track_caller]
    pub fn connect(runner: &Runner) -> Self {
        const HELLO: &[u8] = b"hello\r\n";
        let mut terminal = Self::connect_silently(runner);
        // Subscriptions are not acknowledged, so what is shown first may be missed; and a shell that starts may
        // throw away what was typed before. So ask until there is an answer.
        let asked = Instant::now();
        while !terminal.seen.windows(HELLO.len()).any(|window| window == HELLO) {
            assert!(asked.elapsed() < wait::PATIENCE, "the shell does not answer: {:?}", terminal.text());
            terminal.type_in(b"echo hel''lo\n");
            while wait::within(ANSWER_PATIENCE, || terminal.screen.is_readable().then_some(())).is_some() {
                terminal.look();
            }
        }
        terminal.run(":");
        terminal
    }

    /// Connects both sockets without typing.
    #[track_caller]
    pub fn connect_silently(runner: &Runner) -> Self {
        let (typed, shown) = runner.terminal_ports();
        let mut screen = Peer::connect(shown, "SUB");
        screen.send(&[b"\x01"]);
        let mut keyboard = Peer::connect(typed, "PUB");
        assert_eq!(keyboard.recv(), Some(vec![b"\x01".to_vec()]), "the runner wants all that is typed");
        Self { keyboard, screen, seen: Vec::new() }
    }

    /// Sends bytes as keyboard input.
    #[track_caller]
    pub fn type_in(&mut self, bytes: &[u8]) {
        self.keyboard.send(&[bytes]);
    }

    /// Reads until the screen shows this text. Consumes and returns the output up to and including it.
    #[track_caller]
    pub fn wait_for(&mut self, wanted: &[u8]) -> Vec<u8> {
        let mut searched = 0;
        loop {
            let found = self.seen[searched..].windows(wanted.len()).position(|window| window == wanted);
            if let Some(at) = found.map(|at| searched + at) {
                let rest = self.seen.split_off(at + wanted.len());
                let mut before = std::mem::replace(&mut self.seen, rest);
                before.truncate(at);
                return before;
            }
            searched = (self.seen.len() + 1).saturating_sub(wanted.len());
            self.look();
        }
    }

    /// Reads the next output of the screen.
    #[track_caller]
    fn look(&mut self) {
        let frames = self.screen.recv().unwrap_or_else(|| panic!("the screen is gone; it showed {:?}", self.text()));
        let [bytes] = <[Vec<u8>; 1]>::try_from(frames).expect("a message of one frame");
        self.seen.extend(bytes);
    }

    /// Runs a command line in the shell and returns what it shows.
    #[track_caller]
    pub fn run(&mut self, line: &str) -> String {
        // What is echoed has the quotes, what is printed has not.
        self.type_in(format!("echo beg''in; {line}; echo en''d\n").as_bytes());
        self.wait_for(b"begin\r\n");
        String::from_utf8_lossy(&self.wait_for(b"end\r\n")).replace("\r\n", "\n")
    }

    /// Output that no call has consumed.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }
}
