//! Texts and objects of post-mortems.

use super::*;
use crate::monitor::report::recorder::record::RecordingHeader;

fn dated(second: u64, record: Record) -> DatedRecord {
    let ns = second * 1_000_000_000;
    DatedRecord { sequence: second, at_boot_ns: ns, unix_ns: ns, record }
}

fn sample(second: u64, usage_mib: u64) -> DatedRecord {
    let sample = MemorySample {
        at_boot_ns: second,
        usage_bytes: usage_mib << 20,
        inactive_file_bytes: None,
        limit_bytes: Some(256 << 20),
        processes: Vec::new(),
    };
    dated(second, Record::Sample(sample))
}

fn recording() -> Recording {
    let events = vec![
        dated(1, Record::step_begun(0, "build", "make")),
        dated(2, Record::StepEnded { number: 0, exit_code: 2 }),
        dated(3, Record::step_begun(1, "code", "import torch\ntrain()\n")),
    ];
    let header =
        RecordingHeader { pid: 7, kernel_id: Some("dead".into()), hostname: "main1".into(), ..Default::default() };
    Recording { header, events, samples: vec![sample(1, 10), sample(2, 128), sample(4, 255)], damaged: 0 }
}

fn post_mortem() -> PostMortem {
    PostMortem::of("recorder.bin".into(), &recording(), &CurrentState::default())
}

#[test]
fn text_has_the_end_the_step_the_memory_and_the_cause() {
    insta::with_settings!({
        prepend_module_to_snapshot => false,
        omit_expression => true,
        snapshot_path => "../snapshots",
    }, {
        insta::assert_snapshot!("post_mortem", post_mortem().to_string());
    });
}

#[test]
fn one_line_is_one_line() {
    let line = post_mortem().one_line();
    assert!(line.contains("while running code `import torch...`: OOM kill of the runner (likely)"), "{line}");
    assert!(!line.contains('\n'), "{line}");
}

#[test]
fn finished_step_has_its_exit_code() {
    let mut ended = recording();
    ended.events.pop();
    let step = PostMortem::of(String::new(), &ended, &CurrentState::default()).step.unwrap();
    assert_eq!((step.number, step.exit_code), (0, Some(2)));
}

#[test]
fn journal_has_the_last_sample_only() {
    let object = serde_json::to_value(post_mortem().for_journal()).unwrap();
    assert_eq!(object["event"], "session_ended_unexpectedly");
    assert_eq!(object["cause"], "killed_at_limit");
    assert_eq!(object["memory"]["usage_bytes"], 255 << 20);
    assert!(object.get("samples").is_none(), "{object}");
}

#[test]
fn sparkline_width_is_bounded() {
    let samples: Vec<MemorySample> = (0..192)
        .filter_map(|second| match sample(second, second).record {
            Record::Sample(sample) => Some(sample),
            _ => None,
        })
        .collect();
    assert_eq!((sparkline(&samples).chars().count(), sparkline(&[]).as_str()), (COLUMNS, ""));
}
