//! Reads a journal line by line, in memory bounded by the longest permitted line.
//!
//! Lines may be truncated, foreign, or written by an older version. A line that is not an object of krunner is counted and
//! skipped.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::libc::O_NONBLOCK;
use serde::Deserialize;

use crate::monitor::attribution::oom_report::{self, OomReport};

/// Longer lines are skipped. A report has at most 64 members and 60 s of samples, far less than this.
const MAX_LINE_BYTES: u64 = 4 * 1024 * 1024;

/// A journal, up to the length that it had when it was opened.
#[derive(Debug)]
pub(crate) struct JournalFile {
    file: File,
    length: u64,
}

/// The result of reading a journal.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LineCounts {
    /// Reports of OOM kills.
    pub(crate) reports: u64,
    /// Lines that are not objects of krunner.
    pub(crate) skipped: u64,
}

enum JournalLine {
    Report(Box<OomReport>),
    /// An object of another kind.
    Other,
    Unreadable,
}

#[derive(Deserialize)]
struct EventTag {
    event: String,
}

impl JournalFile {
    /// Opens a journal. Does not block on a FIFO.
    ///
    /// # Errors
    ///
    /// When it cannot be opened or is not a regular file.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        Ok(Self { file, length: metadata.len() })
    }

    /// Visits each report, oldest first.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or when `visit` fails.
    pub(crate) fn for_each<E: From<io::Error>>(
        &mut self,
        mut visit: impl FnMut(&OomReport) -> Result<(), E>,
    ) -> Result<LineCounts, E> {
        self.file.seek(SeekFrom::Start(0))?;
        read_lines(BufReader::new((&self.file).take(self.length)), |_, report| visit(report))
    }

    /// The report with this number, counted from the newest, which is 1; and the line counts.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn find(&mut self, number: u64) -> io::Result<(Option<OomReport>, LineCounts)> {
        // Offsets of the last `number` reports.
        let mut offsets = VecDeque::new();
        self.file.seek(SeekFrom::Start(0))?;
        let counts = read_lines(BufReader::new((&self.file).take(self.length)), |offset, _| {
            offsets.push_back(offset);
            if offsets.len() as u64 > number {
                offsets.pop_front();
            }
            io::Result::Ok(())
        })?;
        if counts.reports < number {
            return Ok((None, counts));
        }
        let Some(offset) = offsets.front() else { return Ok((None, counts)) };
        self.file.seek(SeekFrom::Start(*offset))?;
        let mut line = Vec::new();
        BufReader::new((&self.file).take(MAX_LINE_BYTES)).read_until(b'\n', &mut line)?;
        Ok((serde_json::from_slice(&line).ok(), counts))
    }
}

/// Visits each report with the offset of its line.
pub(super) fn read_lines<E: From<io::Error>>(
    mut input: impl BufRead,
    mut visit: impl FnMut(u64, &OomReport) -> Result<(), E>,
) -> Result<LineCounts, E> {
    let mut counts = LineCounts::default();
    let mut offset = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut length = input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? as u64;
        if length == 0 {
            return Ok(counts);
        }
        let is_too_long = length == MAX_LINE_BYTES && line.last() != Some(&b'\n');
        if is_too_long {
            length += input.skip_until(b'\n')? as u64;
        }
        match if is_too_long { JournalLine::Unreadable } else { parse(&line) } {
            JournalLine::Report(report) => {
                counts.reports += 1;
                visit(offset, &report)?;
            }
            JournalLine::Other => {}
            JournalLine::Unreadable => counts.skipped += 1,
        }
        offset += length;
    }
}

fn parse(line: &[u8]) -> JournalLine {
    if line.trim_ascii().is_empty() {
        return JournalLine::Other;
    }
    match serde_json::from_slice::<EventTag>(line) {
        Ok(kind) if kind.event == oom_report::EVENT => {
            serde_json::from_slice(line).map_or(JournalLine::Unreadable, |report| JournalLine::Report(Box::new(report)))
        }
        Ok(_) => JournalLine::Other,
        Err(_) => JournalLine::Unreadable,
    }
}

#[cfg(test)]
#[path = "journal_reader_tests.rs"]
mod tests;
