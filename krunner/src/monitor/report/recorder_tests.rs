//! The recorder with a file, and which samples it records.

use std::time::Instant;

use super::*;
use crate::monitor::sources::cgroup::{Cgroup, CgroupRoot};

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

/// A cgroup at its limit, whose OOM kills end all members or one.
struct Full(tempfile::TempDir);

impl Full {
    fn new(kills_group: bool) -> Self {
        let full = Self(tempfile::tempdir().unwrap());
        full.write("proc/self/cgroup", "0::/own\n");
        full.write("proc/self/mountinfo", "33 31 0:29 / /m rw - cgroup2 cgroup2 rw\n");
        full.write("m/own/memory.current", "67108000\n");
        full.write("m/own/memory.max", "67108864\n");
        full.write("m/own/memory.oom.group", if kills_group { "1\n" } else { "0\n" });
        full.count(0);
        full
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.0.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn count(&self, kills: u64) {
        self.write("m/own/memory.events", &format!("oom_kill {kills}\n"));
    }

    fn recorder(&self) -> Recorder {
        let cgroup = Cgroup::find(&CgroupRoot::below(self.0.path())).unwrap();
        let charge = Arc::new(OwnCharge::open(Some(&cgroup)));
        let place = RecordingPath::of_session(self.0.path().to_owned());
        let (recorder, start) = Recorder::start(place, Some(charge)).unwrap();
        start.blocking_recv().unwrap().path.unwrap();
        recorder
    }

    /// How long the first record after each of this many kills takes, all together.
    fn wait(&self, kills: u64) -> Duration {
        let recorder = self.recorder();
        let since = Instant::now();
        for count in 1..=kills {
            self.count(count);
            recorder.record(Record::OomKills { count });
            flush(&recorder);
        }
        since.elapsed()
    }
}

/// The kernel has reclaimed the recording's pages by then.
#[test]
fn record_after_a_kill_waits_for_memory_unless_a_kill_ends_all() {
    let waits = [false, true].map(|kills_group| Full::new(kills_group).wait(8));
    // 60 ms each.
    let patience = Duration::from_millis(8 * 60);
    assert!(waits[0] >= patience && waits[1] < patience, "{waits:?}");
}

/// As with a page cache that fills it.
#[test]
fn records_at_the_limit_hardly_wait_and_a_goodbye_never() {
    let recorder = Full::new(false).recorder();
    let since = Instant::now();
    for count in 0..50 {
        recorder.record(Record::OomKills { count });
    }
    recorder.record(Record::Goodbye { reason: "SIGTERM".into() });
    flush(&recorder);
    // 20 ms, once in 500 ms.
    assert!(since.elapsed() < Duration::from_millis(500), "{:?}", since.elapsed());
}
