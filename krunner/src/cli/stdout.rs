//! Printing what a command has to say.

use std::io::{self, Write as _};

use anyhow::Context as _;

/// Prints all of it. Whoever has closed stdout does not want to know.
pub(super) fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
        _ => Ok(()),
    }
}
