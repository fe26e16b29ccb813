//! The file format of recordings. Pure.
//!
//! ```text
//! slot      0         1 .. 63                       64 .. 255
//!        ┌────────┬──────────────────────────────┬──────────────────────────────────┐
//!        │ header │ steps, kills, the end: a ring│ memory samples: a ring           │  of 1 KiB each
//!        └────────┴──────────────────────────────┴──────────────────────────────────┘
//! header │ magic 8 │ version 4 │ length 4 │ checksum 8 │ JSON
//! record │ checksum 8 │ length 8 │ sequence number 8 │ ns since boot 8 │ ns since 1970 8 │ JSON
//! ```
//!
//! Numbers are little-endian. There are two rings because a step may run for a day, in which the samples wrap around many times.
//!
//! A checksum is the first 8 bytes of a SHA-256 over the rest of the record, the header's nonce and the slot number. So records
//! that are torn, damaged, moved or from an earlier recording are skipped and the others are read: a torn write loses at most the
//! oldest record as well. CRC32 would accept one of four billion torn records. SHA-256 takes 2 us for each record, usually at most four
//! per second, and the crate is a dependency already.

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::record::{Record, RecordingHeader};

/// Size of the header and of each record. A sample with five processes takes up to 700 bytes.
pub(super) const SLOT_BYTES: usize = 1024;

const MAGIC: [u8; 8] = *b"KRUNNERR";

/// Version of this format. Other versions are not read.
pub(super) const VERSION: u32 = 1;

const HEADER_BYTES: usize = 24;
const RECORD_BYTES: usize = 40;
const CHECKSUM_BYTES: usize = 8;

/// Number of slots per ring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) events: usize,
    pub(super) samples: usize,
}

impl Layout {
    /// A file of 256 KiB.
    pub(super) const STANDARD: Self = Self { events: 63, samples: 192 };

    /// Size of the file.
    pub(super) const fn bytes(self) -> usize {
        (1 + self.events + self.samples) * SLOT_BYTES
    }

    /// The slot of a record.
    fn slot(self, ring: Ring, sequence: u64) -> u64 {
        match ring {
            Ring::Events => 1 + sequence % self.events as u64,
            Ring::Samples => 1 + self.events as u64 + sequence % self.samples as u64,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ring {
    Events,
    Samples,
}

impl Ring {
    pub(super) const fn of(record: &Record) -> Self {
        if matches!(record, Record::Sample(_)) { Self::Samples } else { Self::Events }
    }
}

/// A record with its times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DatedRecord {
    /// Number of the record in its ring.
    pub(super) sequence: u64,
    /// Time of the record, in nanoseconds since boot.
    pub at_boot_ns: u64,
    /// Wall-clock time, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// The record itself.
    pub record: Record,
}

/// The readable part of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recording {
    /// Identifies the recorded process.
    pub header: RecordingHeader,
    /// Steps, kills and the end, oldest first.
    pub events: Vec<DatedRecord>,
    /// Memory samples, oldest first.
    pub samples: Vec<DatedRecord>,
    /// Number of records skipped because they were torn or damaged.
    pub damaged: usize,
}

/// Why a file cannot be read as a recording.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotARecording {
    /// The file has no bytes.
    #[error("the file is empty")]
    Empty,
    /// It does not begin with the magic number.
    #[error("not a recording made by krunner")]
    Foreign,
    /// It has a different format version.
    #[error("recording format version {0} is not supported; this krunner reads version {VERSION}")]
    Version(u32),
    /// Its header is torn or damaged.
    #[error("the recording's header is damaged")]
    Damaged,
}

/// Encodes the header; `None` if it does not fit.
pub(super) fn encode_header(header: &RecordingHeader) -> Option<[u8; SLOT_BYTES]> {
    let mut slot = [0; SLOT_BYTES];
    slot[..8].copy_from_slice(&MAGIC);
    slot[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let length = write_json(&mut slot[HEADER_BYTES..], header)?;
    slot[12..16].copy_from_slice(&u32::try_from(length).ok()?.to_le_bytes());
    let sum = checksum(&[&slot[..16], &slot[HEADER_BYTES..HEADER_BYTES + length]]);
    slot[16..HEADER_BYTES].copy_from_slice(&sum);
    Some(slot)
}

/// Encodes records for their slots.
#[derive(Debug)]
pub(super) struct Encoder {
    layout: Layout,
    nonce: u64,
    next: [u64; 2],
    slot: [u8; SLOT_BYTES],
}

impl Encoder {
    pub(super) fn new(layout: Layout, nonce: u64) -> Self {
        Self { layout, nonce, next: [0; 2], slot: [0; SLOT_BYTES] }
    }

    /// The offset and bytes of a record, truncated to fit. Does not allocate. `None` if it cannot be made to fit.
    pub(super) fn encode(&mut self, record: &mut Record, at_boot_ns: u64, unix_ns: u64) -> Option<(u64, &[u8])> {
        let length = loop {
            match write_json(&mut self.slot[RECORD_BYTES..], record) {
                Some(length) => break length,
                None if record.shrink() => {}
                None => return None,
            }
        };
        let ring = Ring::of(record);
        let next = &mut self.next[usize::from(ring == Ring::Samples)];
        let (sequence, slot_number) = (*next, self.layout.slot(ring, *next));
        *next += 1;
        self.slot[8..16].copy_from_slice(&(length as u64).to_le_bytes());
        for (place, value) in self.slot[16..RECORD_BYTES].chunks_exact_mut(8).zip([sequence, at_boot_ns, unix_ns]) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        let end = RECORD_BYTES + length;
        let sum = record_checksum(self.nonce, slot_number, &self.slot[CHECKSUM_BYTES..end]);
        self.slot[..CHECKSUM_BYTES].copy_from_slice(&sum);
        Some((slot_number * SLOT_BYTES as u64, &self.slot[..end]))
    }
}

impl Recording {
    /// Reads a recording, which may be truncated or damaged anywhere.
    ///
    /// # Errors
    ///
    /// When the header cannot be read.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, NotARecording> {
        Self::read_layout(bytes, Layout::STANDARD)
    }

    pub(super) fn read_layout(bytes: &[u8], layout: Layout) -> Result<Self, NotARecording> {
        let header = read_header(bytes)?;
        let mut recording = Self { header, events: Vec::new(), samples: Vec::new(), damaged: 0 };
        let slots = bytes.chunks(SLOT_BYTES).zip(0..).skip(1);
        for (slot, number) in slots.take(layout.events + layout.samples) {
            match read_record(slot, number, recording.header.nonce, layout) {
                Some(dated) if Ring::of(&dated.record) == Ring::Samples => recording.samples.push(dated),
                Some(dated) => recording.events.push(dated),
                // A slot that was never written is all zero.
                None => recording.damaged += usize::from(slot.iter().any(|byte| *byte != 0)),
            }
        }
        recording.events.sort_unstable_by_key(|dated| dated.sequence);
        recording.samples.sort_unstable_by_key(|dated| dated.sequence);
        Ok(recording)
    }
}

fn read_header(bytes: &[u8]) -> Result<RecordingHeader, NotARecording> {
    if bytes.is_empty() {
        return Err(NotARecording::Empty);
    }
    let magic = bytes.get(..8).ok_or(NotARecording::Foreign)?;
    if magic != MAGIC {
        return Err(NotARecording::Foreign);
    }
    let version = number(bytes, 8..12).ok_or(NotARecording::Damaged)?;
    if version != u64::from(VERSION) {
        return Err(u32::try_from(version).map_or(NotARecording::Damaged, NotARecording::Version));
    }
    let header = || {
        let length = usize::try_from(number(bytes, 12..16)?).ok()?;
        let json = bytes.get(HEADER_BYTES..HEADER_BYTES.checked_add(length)?.min(SLOT_BYTES))?;
        let is_whole = json.len() == length && checksum(&[&bytes[..16], json]) == bytes[16..HEADER_BYTES];
        is_whole.then(|| serde_json::from_slice(json).ok()).flatten()
    };
    header().ok_or(NotARecording::Damaged)
}

fn read_record(slot: &[u8], slot_number: u64, nonce: u64, layout: Layout) -> Option<DatedRecord> {
    let length = usize::try_from(number(slot, 8..16)?).ok().filter(|length| *length > 0)?;
    let covered = slot.get(CHECKSUM_BYTES..RECORD_BYTES.checked_add(length)?)?;
    if record_checksum(nonce, slot_number, covered) != slot[..CHECKSUM_BYTES] {
        return None;
    }
    let record: Record = serde_json::from_slice(&slot[RECORD_BYTES..RECORD_BYTES + length]).ok()?;
    let (sequence, at_boot_ns, unix_ns) = (number(slot, 16..24)?, number(slot, 24..32)?, number(slot, 32..40)?);
    let is_there = layout.slot(Ring::of(&record), sequence) == slot_number;
    is_there.then_some(DatedRecord { sequence, at_boot_ns, unix_ns, record })
}

/// A little-endian number of at most 8 bytes.
fn number(bytes: &[u8], place: std::ops::Range<usize>) -> Option<u64> {
    let bytes = bytes.get(place)?;
    let mut whole = [0; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    Some(u64::from_le_bytes(whole))
}

/// The length; `None` if there is not enough space.
fn write_json(mut room: &mut [u8], value: &impl Serialize) -> Option<usize> {
    let all = room.len();
    serde_json::to_writer(&mut room, value).ok()?;
    Some(all - room.len())
}

fn record_checksum(nonce: u64, slot_number: u64, covered: &[u8]) -> [u8; CHECKSUM_BYTES] {
    checksum(&[&nonce.to_le_bytes(), &slot_number.to_le_bytes(), covered])
}

fn checksum(parts: &[&[u8]]) -> [u8; CHECKSUM_BYTES] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&hash.finalize()[..CHECKSUM_BYTES]);
    sum
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
