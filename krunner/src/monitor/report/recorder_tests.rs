//! The recorder with a file, and which samples it records.

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

const MIB: u64 = 1 << 20;

fn sample(at_ms: u64, usage_mib: u64) -> MemorySample {
    MemorySample {
        at_boot_ns: at_ms * 1_000_000,
        usage_bytes: usage_mib * MIB,
        inactive_file_bytes: None,
        limit_bytes: Some(256 * MIB),
        processes: Vec::new(),
    }
}

fn started(folder: &Path) -> (Recorder, RecorderStart) {
    let place = RecordingPath::of_session(folder.to_owned());
    let (recorder, start) = Recorder::start(place, None).unwrap();
    (recorder, start.blocking_recv().unwrap())
}

fn flush(recorder: &Recorder) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    assert!(runtime.block_on(recorder.flush(DEADLINE)));
}

#[test]
fn records_are_in_the_file_while_the_process_lives() {
    let folder = tempfile::tempdir().unwrap();
    let (recorder, start) = started(folder.path());
    let path = start.path.unwrap();
    recorder.record(Record::step_begun(0, "exec", "make"));
    recorder.record_sample(&sample(0, 10));
    flush(&recorder);

    let running = post_mortem(&path).unwrap();
    assert_eq!((running.cause, running.pid), (EndCause::Running, std::process::id()));
    assert_eq!(running.step.unwrap().text, "make");
    assert_eq!(running.memory.unwrap().sample.usage_bytes, 10 * MIB);
}

#[test]
fn goodbye_means_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let (recorder, start) = started(folder.path());
    recorder.record(Record::Goodbye { reason: "SIGTERM".into() });
    flush(&recorder);
    assert_eq!(post_mortem(&start.path.unwrap()).unwrap().cause, EndCause::Stopped);
}

#[test]
fn unchanged_sample_waits_for_the_heartbeat() {
    let is_worth = |at_ms, usage_mib| is_worth_recording(&sample(at_ms, usage_mib), Some((0, 100 * MIB)));
    assert!(is_worth_recording(&sample(0, 0), None));
    assert!(!is_worth(1000, 100) && !is_worth(4999, 101));
    assert!(is_worth(5000, 100), "a heartbeat");
    assert!(is_worth(1000, 102) && is_worth(250, 110), "a change");
    assert!(!is_worth(100, 110), "too soon");
}

/// A runner that dies with its cgroup leaves nothing but what was recorded until then.
#[test]
fn burst_is_recorded_at_once() {
    let (last, limit) = (Some((0, 100 * MIB)), Some(1600 * MIB));
    let is_worth =
        |usage_mib, limit_bytes| is_worth_recording(&MemorySample { limit_bytes, ..sample(50, usage_mib) }, last);
    assert!(is_worth(201, limit) && !is_worth(200, limit));
    assert!(!is_worth(10, limit), "memory was freed");
    assert!(!is_worth(1 << 20, None), "nothing kills");
}

#[test]
fn page_is_resident_only_for_a_while() {
    let mut pages = RecentPages::new();
    assert!(!pages.written(65 * 1024, 1));
    assert!(pages.written(66 * 1024, 2) && !pages.written(1024, 3) && pages.written(67 * 1024, 4));
    assert!(!pages.written(67 * 1024, 4 + RESIDENT_NS), "an hour later");
}
