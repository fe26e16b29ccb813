//! The real `/proc`, scanned by the thread.

use super::*;
use crate::monitor::model::process::ExitKind;

const DEADLINE: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_hours(1);

async fn next(samples: &mut mpsc::Receiver<SamplerEvent>) -> Option<Snapshot> {
    let sample = tokio::time::timeout(DEADLINE, samples.recv()).await.expect("no word from the sampler")?;
    let SamplerEvent::Snapshot(snapshot) = sample else { panic!("{sample:?}") };
    Some(snapshot)
}

fn charge() -> Arc<OwnCharge> {
    Arc::new(OwnCharge::open(None))
}

fn start(interval: Duration, capacity: usize) -> (Sampler, mpsc::Receiver<SamplerEvent>) {
    let (sender, snapshots) = mpsc::channel(capacity);
    (Sampler::start(ProcRoot::default(), None, charge(), interval, sender).unwrap(), snapshots)
}

#[tokio::test]
async fn the_first_scan_comes_at_once_and_the_next_when_asked_for() {
    let (sampler, mut snapshots) = start(HOUR, 1);
    let first = next(&mut snapshots).await.unwrap();
    assert!(!first.processes.is_empty());
    sampler.scan_now();
    let second = next(&mut snapshots).await.unwrap();
    assert!(second.at_boot_ns > first.at_boot_ns);
}

#[tokio::test]
async fn scans_repeat_by_themselves() {
    let (_sampler, mut snapshots) = start(Duration::from_millis(1), 1);
    for _ in 0..3 {
        assert!(next(&mut snapshots).await.is_some());
    }
}

#[tokio::test]
async fn many_requests_are_few_scans_far_enough_apart() {
    let (sampler, mut snapshots) = start(HOUR, 8);
    let mut last = next(&mut snapshots).await.unwrap();
    for _ in 0..3 {
        (0..100).for_each(|_| sampler.scan_now());
        let snapshot = next(&mut snapshots).await.unwrap();
        let apart_ns = u128::from(snapshot.at_boot_ns - last.at_boot_ns);
        assert!(apart_ns >= SHORTEST_PAUSE.as_nanos(), "{apart_ns}");
        last = snapshot;
    }
}

#[tokio::test]
async fn it_ends_with_its_owner() {
    let (sampler, mut snapshots) = start(HOUR, 1);
    assert!(next(&mut snapshots).await.is_some());
    drop(sampler);
    assert_eq!(next(&mut snapshots).await, None);
}

#[test]
fn it_ends_with_its_reader() {
    let (sampler, snapshots) = start(Duration::from_millis(1), 1);
    drop(snapshots);
    let begin = Instant::now();
    while !matches!(
        sampler.commands.try_send(SamplerCommand::Tick),
        Err(std::sync::mpsc::TrySendError::Disconnected(_))
    ) {
        assert!(begin.elapsed() < DEADLINE, "the thread is still there");
        thread::yield_now();
    }
}

#[tokio::test]
async fn while_watchful_newcomers_are_seen_and_how_they_end() {
    let (sampler, mut samples) = start(HOUR, 8);
    assert!(next(&mut samples).await.is_some());
    sampler.enable_fallback(Arc::new(Mutex::new(KillCounter::start(None))));
    let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let pid = child.id();
    let mut until_it = async |end: Option<ExitKind>| loop {
        let sample = tokio::time::timeout(DEADLINE, samples.recv()).await.expect("in time").unwrap();
        let SamplerEvent::PartialScan(partial_scan) = sample else { continue };
        if partial_scan.processes.iter().any(|observed| observed.key.pid == pid && observed.end == end) {
            return;
        }
    };
    until_it(None).await;
    child.kill().unwrap();
    until_it(Some(ExitKind::Killed)).await;
    child.wait().unwrap();
}

#[tokio::test]
async fn in_stand_by_nothing_is_read_again_right_after_a_scan() {
    let (sampler, mut samples) = start(SHORTEST_PAUSE * 2, 8);
    sampler.stand_by(true);
    sampler.enable_fallback(Arc::new(Mutex::new(KillCounter::start(None))));
    // The last process that was started is read by every partial scan.
    let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let mut scanned_ns = Vec::new();
    while scanned_ns.len() < 10 {
        match tokio::time::timeout(DEADLINE, samples.recv()).await.expect("in time").unwrap() {
            SamplerEvent::Snapshot(snapshot) => scanned_ns.push(snapshot.at_boot_ns),
            SamplerEvent::PartialScan(scan) => {
                let since_ns = scan.at_boot_ns - scanned_ns.last().expect("a scan came first");
                assert!(u128::from(since_ns) >= SHORTEST_PAUSE.as_nanos(), "{since_ns} ns after a scan");
            }
            SamplerEvent::Counted => {}
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn missing_root_is_an_error_at_start() {
    let (sender, _snapshots) = mpsc::channel(1);
    assert!(Sampler::start(ProcRoot::new("/nonexistent"), None, charge(), HOUR, sender).is_err());
}
