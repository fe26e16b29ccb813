//! Recordings that are intact, truncated, and damaged at every byte.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::monitor::model::process::ProcessKey;
use crate::monitor::model::{MemorySample, ProcessMemory};

/// Small enough to damage every byte.
const SMALL: Layout = Layout { events: 3, samples: 4 };

const NONCE: u64 = 0x1234_5678_9abc_def0;

fn header() -> RecordingHeader {
    RecordingHeader { pid: 7, boot_id: "boot".into(), nonce: NONCE, ..RecordingHeader::default() }
}

fn sample(usage_bytes: u64) -> Record {
    let process = |pid| ProcessMemory {
        key: ProcessKey { pid, start_ticks: 1 << 40 },
        name: Arc::from("fifteen_letters"),
        rss_bytes: 1 << 40,
    };
    let processes = (0..5).map(|pid| process((1 << 22) - pid)).collect();
    Record::Sample(MemorySample {
        at_boot_ns: 1 << 60,
        usage_bytes,
        inactive_file_bytes: Some(1 << 40),
        limit_bytes: Some(1 << 40),
        processes,
    })
}

fn write(encoder: &mut Encoder, file: &mut [u8], record: &Record, at_boot_ns: u64) {
    let (offset, bytes) = encoder.encode(&mut record.clone(), at_boot_ns, at_boot_ns).unwrap();
    let offset = usize::try_from(offset).unwrap();
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// A file in which both rings have wrapped around.
fn file() -> (Vec<u8>, Recording) {
    let mut file = vec![0; SMALL.bytes()];
    file[..SLOT_BYTES].copy_from_slice(&encode_header(&header()).unwrap());
    let mut encoder = Encoder::new(SMALL, NONCE);
    for number in 0..5 {
        write(&mut encoder, &mut file, &Record::step_begun(number, "exec", "make"), number);
    }
    for usage in 0..6 {
        write(&mut encoder, &mut file, &sample(usage), usage);
    }
    let recording = Recording::read_layout(&file, SMALL).unwrap();
    (file, recording)
}

#[test]
fn last_records_of_each_ring_are_kept_in_order() {
    let (_, recording) = file();
    let steps: Vec<u64> = recording.events.iter().map(|event| event.at_boot_ns).collect();
    let samples: Vec<&Record> = recording.samples.iter().map(|dated| &dated.record).collect();
    assert_eq!((steps, recording.damaged), (vec![2, 3, 4], 0));
    assert_eq!(samples, [&sample(2), &sample(3), &sample(4), &sample(5)], "whole, with five processes");
    assert_eq!(recording.header, header());
}

#[test]
fn power_failure_at_any_byte_leaves_valid_records_only() {
    let (file, whole) = file();
    for length in 0..=file.len() {
        match Recording::read_layout(&file[..length], SMALL) {
            Ok(cut) => assert!(is_part(&cut, &whole), "cut at {length}: {cut:#?}"),
            Err(problem) => assert!(length < SLOT_BYTES, "{problem} at {length}"),
        }
    }
}

#[test]
fn torn_record_loses_only_the_oldest() {
    let (file, whole) = file();
    let mut encoder = Encoder::new(SMALL, NONCE);
    encoder.next = [5, 6];
    let (offset, bytes) = encoder.encode(&mut sample(77), 6, 6).unwrap();
    let offset = usize::try_from(offset).unwrap();
    for length in 0..=bytes.len() {
        let mut torn = file.clone();
        torn[offset..offset + length].copy_from_slice(&bytes[..length]);
        let read = Recording::read_layout(&torn, SMALL).unwrap();
        let usages = read.samples.iter().map(|dated| dated.at_boot_ns).collect::<Vec<_>>();
        // A damaged byte may happen to equal the old content, so the first or last record may be intact.
        let is_true = [vec![2, 3, 4, 5], vec![3, 4, 5], vec![3, 4, 5, 6]].contains(&usages);
        assert!(is_true && read.events == whole.events, "{length}: {usages:?}");
    }
}

fn is_part(part: &Recording, whole: &Recording) -> bool {
    let is_known = |dated| whole.events.contains(dated) || whole.samples.contains(dated);
    part.header == whole.header && part.events.iter().chain(&part.samples).all(is_known)
}

proptest! {
    #[test]
    fn damaged_bytes_are_never_a_record(at in proptest::collection::vec((0..SMALL.bytes(), 1..=255_u8), 1..20)) {
        let (mut file, whole) = file();
        for (offset, change) in at {
            file[offset] ^= change;
        }
        if let Ok(read) = Recording::read_layout(&file, SMALL) {
            prop_assert!(is_part(&read, &whole));
        }
    }

    #[test]
    fn garbage_is_read_without_a_crash(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let with_magic: Vec<u8> = MAGIC.iter().chain(&VERSION.to_le_bytes()).chain(&bytes).copied().collect();
        prop_assert!(Recording::read(&bytes).is_err() && Recording::read(&with_magic).is_err());
    }

    #[test]
    fn any_text_fits(text in "\\PC{0,2000}|[\\x00-\\x1f]{0,500}") {
        let mut encoder = Encoder::new(SMALL, NONCE);
        prop_assert!(encoder.encode(&mut Record::step_begun(1, "code", &text), 1, 1).is_some());
    }
}

#[test]
fn record_of_another_slot_or_recording_is_skipped() {
    let (mut file, whole) = file();
    let (first, second) = (SLOT_BYTES..2 * SLOT_BYTES, 2 * SLOT_BYTES);
    file.copy_within(first, second);
    let read = Recording::read_layout(&file, SMALL).unwrap();
    assert_eq!((read.events.len(), read.damaged), (whole.events.len() - 1, 1));

    let other = RecordingHeader { nonce: 1, ..header() };
    file[..SLOT_BYTES].copy_from_slice(&encode_header(&other).unwrap());
    let read = Recording::read_layout(&file, SMALL).unwrap();
    assert!(read.events.is_empty() && read.samples.is_empty());
}

#[test]
fn foreign_file_is_rejected() {
    let error = |bytes: &[u8]| Recording::read(bytes).unwrap_err();
    let mut other_version = encode_header(&header()).unwrap();
    other_version[8] = 9;
    assert_eq!(error(b""), NotARecording::Empty);
    assert_eq!(error(&[0; 4096]), NotARecording::Foreign);
    assert_eq!(error(&other_version), NotARecording::Version(9));
    assert_eq!(error(&encode_header(&header()).unwrap()[..30]), NotARecording::Damaged);
}
