//! Fuzz targets of the flight recorder's file.

use super::cause::CurrentState;
use super::format::{Encoder, Layout, Recording, encode_header};
use super::post_mortem::PostMortem;
use super::record::{Record, RecordingHeader};

const LAYOUT: Layout = Layout { events: 3, samples: 5 };

/// Any file is read or rejected, and what was read can be shown.
pub(crate) fn recording(bytes: &[u8]) {
    if let Ok(recording) = Recording::read(bytes) {
        check_recording(&recording);
    }
}

/// Records that krunner wrote are read back, the last ones of each ring and in their order, whatever byte is damaged.
/// `lines` has the header, then a record in each line, as JSON.
pub(crate) fn records(lines: &[u8], damaged_at: u16) {
    let mut lines = lines.split(|byte| *byte == b'\n');
    let header = lines.next().and_then(|line| serde_json::from_slice::<RecordingHeader>(line).ok()).unwrap_or_default();
    let Some(first_slot) = encode_header(&header) else { return };
    let mut file = vec![0; LAYOUT.bytes()];
    file[..first_slot.len()].copy_from_slice(&first_slot);
    let mut encoder = Encoder::new(LAYOUT, header.nonce);
    let (mut events, mut samples) = (Vec::new(), Vec::new());
    for (line, time_ns) in lines.zip((0..).map(|index| header.at_boot_ns.wrapping_add(index << 40))) {
        let Ok(mut record) = serde_json::from_slice::<Record>(line) else { continue };
        let Some((offset, bytes)) = encoder.encode(&mut record, time_ns, time_ns) else { continue };
        let offset = usize::try_from(offset).expect("within the file");
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        let ring = if matches!(record, Record::Sample(_)) { &mut samples } else { &mut events };
        ring.push(record);
    }
    let recording = Recording::read_layout(&file, LAYOUT).expect("an undamaged recording is read");
    assert_eq!((&recording.header, recording.damaged), (&header, 0));
    let read =
        |dated: &[super::format::DatedRecord]| dated.iter().map(|dated| dated.record.clone()).collect::<Vec<_>>();
    assert_eq!(read(&recording.events), events[events.len().saturating_sub(LAYOUT.events)..]);
    assert_eq!(read(&recording.samples), samples[samples.len().saturating_sub(LAYOUT.samples)..]);
    check_recording(&recording);

    let damaged_at = usize::from(damaged_at) % file.len();
    file[damaged_at] ^= 1;
    if let Ok(damaged) = Recording::read_layout(&file, LAYOUT) {
        let all = |recording: &Recording| recording.events.len() + recording.samples.len();
        assert!(all(&damaged) <= all(&recording) && all(&damaged) + 1 >= all(&recording));
    }
}

fn check_recording(recording: &Recording) {
    let now = CurrentState {
        is_locked: false,
        boot_id: recording.header.boot_id.clone(),
        cgroup_id: recording.header.cgroup_id,
        oom_kill_count: recording.header.oom_kill_count,
    };
    let report = PostMortem::of("recorder.bin".to_owned(), recording, &now);
    for text in [report.to_string().replace('\n', ""), report.one_line()] {
        assert!(!text.contains(char::is_control), "{text:?}");
    }
    serde_json::to_string(&report.for_journal()).expect("a report has a JSON form");
}
