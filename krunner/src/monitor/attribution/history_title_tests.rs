//! Titles that processes write over their arguments.

use super::*;

fn titled(key: ProcessKey, title: &[u8]) -> ProcessSample {
    let cmdline = Arc::new(Cmdline { bytes: title.to_vec(), is_cut: false });
    ProcessSample { cmdline, name: "p10".into(), ..observed(key, 1, 9) }
}

/// The command line of a process, and that which it began with.
fn lines(history: &History, key: ProcessKey) -> (Vec<u8>, Option<Vec<u8>>) {
    let known = history.find(key).unwrap();
    (known.cmdline.bytes.clone(), known.first_cmdline.map(|first| first.bytes.clone()))
}

#[test]
fn forked_worker_keeps_inherited_arguments_under_its_title() {
    let mut history = begun();
    history.fold_event(&fork(HOG, 10));
    assert_eq!(lines(&history, HOG), (b"p10\0".to_vec(), None), "so far its parent's");
    let look = |at_ns, title: &[u8]| snapshot(at_ns, vec![observed(SHELL, 1, 7), titled(HOG, title)]);
    history.fold_snapshot(&look(3 * SECOND_NS, b"p10\0"));
    assert_eq!(lines(&history, HOG), (b"p10\0".to_vec(), None));
    for (at_ns, title) in [(4 * SECOND_NS, &b"ray::idle\0"[..]), (5 * SECOND_NS, &b"ray::train\0"[..])] {
        history.fold_snapshot(&look(at_ns, title));
        assert_eq!(lines(&history, HOG), (title.to_vec(), Some(b"p10\0".to_vec())));
    }
    assert_eq!(lines(&history, SHELL), (b"p10\0".to_vec(), None), "its parent has none of that");
    history.fold_event(&exec(6 * SECOND_NS, HOG, b"sh\0"));
    assert_eq!(lines(&history, HOG), (b"sh\0".to_vec(), None), "another program");
}

#[test]
fn arguments_of_which_the_tracer_had_the_beginning_are_no_title() {
    let mut history = begun();
    history.fold_event(&fork(HOG, 10));
    let cut = Exec { process: HOG, name: "p10".into(), cmdline: b"java -cp a".to_vec(), cmdline_is_cut: true };
    history.fold_event(&TraceEvent { at_boot_ns: 3 * SECOND_NS, what: Trace::Exec(cut) });
    history.fold_snapshot(&snapshot(4 * SECOND_NS, vec![titled(HOG, b"java -cp a:b\0")]));
    assert_eq!(lines(&history, HOG), (b"java -cp a:b\0".to_vec(), None));
}

#[test]
fn without_a_tracer_the_scanner_provides_the_original_arguments() {
    let mut history = begun();
    let first_cmdline = Some(Arc::new(Cmdline { bytes: b"first\0".to_vec(), is_cut: false }));
    let worker = ProcessSample { first_cmdline, ..titled(HOG, b"title\0") };
    history.fold_snapshot(&snapshot(4 * SECOND_NS, vec![worker]));
    assert_eq!(lines(&history, HOG), (b"title\0".to_vec(), Some(b"first\0".to_vec())));
}
