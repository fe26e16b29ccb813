//! The report of an OOM kill during a step comes before that step's `finished`, however the step ends.
//!
//! By default each ending runs a few rounds; `KRUNNER_REPORT_ROUNDS=125 cargo xtask test report_order::` runs so many of
//! each, and with `-- --nocapture` each test prints a table. A round is judged by the kernel's own counter.

use std::env;
use std::time::Duration;

use krunner_tests::zmtp::Peer;
use krunner_tests::{Setup, Transcript, host, require};

use crate::limited_session::{Limited, LimitedSession, Plan, Tracer, reports};
use crate::oom::{LIMIT_MIB, TOO_MUCH, VICTIM};
use crate::oom_phrases::{COUNTED, HEADING, LARGEST, REPORT};

/// Rounds of each ending, unless told otherwise.
const ROUNDS: usize = 3;

/// How long a report that did not come in time is waited for.
const LATE_PATIENCE: Duration = Duration::from_secs(2);

/// Room for the runner and for a Python program, where the limit is the runner's own.
const OWN_LIMIT_MIB: u64 = 128;

const MORE_THAN_OWN: &str = "300";

/// A step in which a process is killed, and how the step ends.
struct Ending {
    name: &'static str,
    command: &'static str,
    /// As long as only the hog is killed.
    code: i64,
}

const ENDINGS: [Ending; 9] = [
    Ending { name: "hog", command: "exec sh hog", code: -9 },
    Ending { name: "hog; true", command: "sh hog; true", code: 0 },
    Ending { name: "hog; exit 1", command: "sh hog; exit 1", code: 1 },
    Ending { name: "hog; exit 2", command: "sh hog; exit 2", code: 2 },
    Ending { name: "hog | cat", command: "sh hog | cat", code: 0 },
    Ending { name: "hog || exit 137", command: "sh hog || exit 137", code: 137 },
    Ending { name: "make", command: "make -s", code: 2 },
    Ending { name: "process pool", command: "PYTHON pool.py", code: 3 },
    Ending {
        name: "in the background",
        command: "(sh hog & echo $! > hog.pid); while kill -0 $(cat hog.pid) 2> /dev/null; do sleep 0.01; done",
        code: 0,
    },
];

/// A worker that eats, and a parent that survives it.
const POOL: &str = "
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

def eat(procs, mib):
    if procs:
        open(procs, 'w').write('0')
    return len([bytearray(b'x' * 2**20) for _ in range(mib)])

if __name__ == '__main__':
    try:
        with ProcessPoolExecutor(1) as pool:
            pool.submit(eat, PROCS, MIB).result()
    except BrokenProcessPool:
        sys.exit(3)
";

/// A session with the programs of all endings in its home.
fn session(tracer: Tracer, limited: Limited, plan: impl FnOnce(Plan) -> Plan) -> Result<LimitedSession, String> {
    let limit_mib = if limited == Limited::Runner { OWN_LIMIT_MIB } else { LIMIT_MIB };
    let session = plan(Plan::new(tracer, limited, limit_mib)).start()?;
    let procs = session.limited.procs_file();
    let procs = procs.display();
    let (hog, pool) = match limited {
        Limited::Runner => (
            format!("exec {VICTIM} eat {MORE_THAN_OWN}\n"),
            POOL.replace("PROCS", "None").replace("MIB", MORE_THAN_OWN),
        ),
        Limited::Below => (
            format!("echo 0 > {procs} && exec {VICTIM} eat {TOO_MUCH}\n"),
            POOL.replace("PROCS", &format!("'{procs}'")).replace("MIB", TOO_MUCH),
        ),
    };
    session.runner.write("hog", hog);
    session.runner.write("pool.py", pool);
    session.runner.write("Makefile", "all:\n\tsh hog\n");
    Ok(session)
}

/// What became of the rounds of one ending.
#[derive(Debug, Default)]
struct Rounds {
    in_time: usize,
    late: usize,
    never: usize,
    /// Whatever else was wrong.
    faults: Vec<String>,
    slowest_end: Duration,
}

/// How long after the last of the program's own output the step ended.
fn end_delay(transcript: &Transcript) -> Duration {
    let last = transcript.messages.iter().rev().find(|message| message.kind == "stdout");
    let end = transcript.messages.last().expect("a finished");
    last.map_or(Duration::ZERO, |last| end.at.saturating_duration_since(last.at))
}

impl Rounds {
    /// One round; `false` when there can be no further one.
    fn play(&mut self, session: &mut LimitedSession, command: &str, code: i64) -> bool {
        let before = session.limited.oom_kills();
        let Some(transcript) = session.exec(command) else {
            self.faults.push("the runner was killed".to_owned());
            return false;
        };
        let kills = usize::try_from(session.limited.oom_kills() - before).expect("a few");
        let text = transcript.stderr();
        if kills == 0 {
            self.faults.push(format!("no OOM kill: {transcript:?}"));
        } else if kills == 1 && transcript.codes() != [("finished", code)] {
            self.faults.push(format!("it ended with {:?}", transcript.codes()));
        }
        self.slowest_end = self.slowest_end.max(end_delay(&transcript));
        match reports(&text) {
            told if told == kills => self.in_time += 1,
            told if told > kills => self.faults.push(format!("{told} reports of {kills} kills: {text}")),
            told => {
                let missing = kills - told;
                let late = session.read_for(LATE_PATIENCE, |late| reports(&late.stderr()) >= missing);
                if reports(&late.stderr()) >= missing { self.late += 1 } else { self.never += 1 }
            }
        }
        true
    }
}

/// A step without a kill says nothing of kills.
#[track_caller]
fn assert_silent_without_a_kill(session: &mut LimitedSession) {
    let run = session.exec("sh -c 'exit 1'; echo well").expect("the runner lives");
    assert_eq!((run.codes(), run.stdout().as_str()), (vec![("finished", 0)], "well\n"));
    let text = run.stderr();
    assert!(!text.contains(REPORT) && !text.contains(HEADING), "{text}");
}

/// All endings, so many rounds each.
fn all_endings(tracer: Tracer, limited: Limited) -> Result<(), String> {
    host::program("make")?;
    let python = host::user_python()?;
    let rounds = env::var("KRUNNER_REPORT_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("a number"));
    let mut failures = Vec::new();
    for ending in &ENDINGS {
        let mut session = session(tracer, limited, |plan| plan)?;
        let mut result = Rounds::default();
        let command = ending.command.replace("PYTHON", &python.display().to_string());
        for _ in 0..rounds {
            if !result.play(&mut session, &command, ending.code) {
                session = self::session(tracer, limited, |plan| plan)?;
            }
        }
        println!(
            "{:<18} {:<8} {limited:<6?}  in time {:>3}/{rounds}  late {:>3}  never {:>3}  other {:>3}  slowest end {:?}",
            ending.name,
            tracer.name(),
            result.in_time,
            result.late,
            result.never,
            result.faults.len(),
            result.slowest_end,
        );
        if result.in_time < rounds || !result.faults.is_empty() {
            failures.push(format!("{}: {result:?}", ending.name));
        } else {
            assert_silent_without_a_kill(&mut session);
        }
    }
    assert!(failures.is_empty(), "{} of {} endings:\n{}", failures.len(), ENDINGS.len(), failures.join("\n"));
    Ok(())
}

#[test]
fn in_the_runners_cgroup_bpf() {
    require!(all_endings(Tracer::Bpf, Limited::Runner));
}

#[test]
fn in_the_runners_cgroup_snapshot() {
    require!(all_endings(Tracer::Snapshot, Limited::Runner));
}

#[test]
fn in_a_cgroup_below_bpf() {
    require!(all_endings(Tracer::Bpf, Limited::Below));
}

#[test]
fn in_a_cgroup_below_snapshot() {
    require!(all_endings(Tracer::Snapshot, Limited::Below));
}

/// One step with kills, whose reports all come before its `finished`; its stderr.
#[track_caller]
fn reported_in_time(session: &mut LimitedSession, command: &str) -> String {
    reported_in_time_but(0, session, command)
}

/// The same, where so many kills may be reported as a number only.
#[track_caller]
fn reported_in_time_but(unnamed: usize, session: &mut LimitedSession, command: &str) -> String {
    let before = session.limited.oom_kills();
    let run = session.exec(command).expect("the runner lives");
    let kills = usize::try_from(session.limited.oom_kills() - before).expect("a few");
    let text = run.stderr();
    let named = reports(&text);
    assert!(kills > 0, "no OOM kill: {text}");
    assert!(kills - unnamed <= named && named <= kills, "{named} of {kills} reported, {} bytes of stderr", text.len());
    // One that was counted may have its name by now.
    assert!(named + counted(&text) >= kills, "{named} of {kills} reported, and not all others counted: {text}");
    text
}

/// The number of kills that are reported as a number.
fn counted(text: &str) -> usize {
    text.lines()
        .filter_map(|line| line.strip_prefix(COUNTED)?.split(' ').next())
        .map(|number| number.parse::<usize>().expect("a number of kills"))
        .sum()
}

/// `--debug` keeps log lines from the client, but a report is no log line.
fn under_debug(tracer: Tracer) -> Result<(), String> {
    let mut session = session(tracer, Limited::Below, |plan| plan.setup(Setup::debug))?;
    reported_in_time(&mut session, "sh hog; true");
    Ok(())
}

#[test]
fn under_debug_bpf() {
    require!(under_debug(Tracer::Bpf));
}

#[test]
fn under_debug_snapshot() {
    require!(under_debug(Tracer::Snapshot));
}

/// Output that a program floods does not push a report out.
fn in_a_flood(tracer: Tracer, limited: Limited) -> Result<(), String> {
    const ROUNDS: usize = 3;
    let mut session = session(tracer, limited, |plan| plan)?;
    for _ in 0..ROUNDS {
        reported_in_time(&mut session, "yes flood >&2 & flood=$!; sh hog; kill $flood");
    }
    Ok(())
}

#[test]
fn in_a_flood_bpf() {
    require!(in_a_flood(Tracer::Bpf, Limited::Runner));
}

#[test]
fn in_a_flood_snapshot() {
    require!(in_a_flood(Tracer::Snapshot, Limited::Runner));
}

/// Starts `$2` below so many shells, each with a command line of 4 KB: a report of some 20 KiB.
const NEST: &str = "[ $1 -gt 0 ] || exec sh -c \"$2\"\nsh nest $(($1 - 1)) \"$2\" $3; true\n";

/// The command that has this run below [`NEST`], as deep as ancestries are shown.
fn nested(command: &str) -> String {
    const DEPTH: usize = 31;
    format!("sh nest {DEPTH} '{command}' $(head -c 4000 /dev/zero | tr '\\0' x); true")
}

/// Long reports arrive to their last line.
fn long_reports(tracer: Tracer) -> Result<(), String> {
    let mut session = session(tracer, Limited::Below, |plan| plan)?;
    session.runner.write("nest", NEST);

    // Without BPF one of four that die together may stay without a name, and on a busy machine one that lives for less than a scan
    // of /proc takes. The shells live a while longer than the last victim: the sizes of those that began since the last look are
    // not known once they are gone.
    let (unnamed, hogs) = match tracer {
        Tracer::Bpf => (0, "sh hog & sh hog & sh hog & sh hog & wait; sleep 0.3"),
        Tracer::Snapshot => (1, "for i in 1 2 3 4; do sh hog; done; sleep 0.3"),
    };
    let text = reported_in_time_but(unnamed, &mut session, &nested(hogs));

    assert!(text.len() > 32 * 1024, "{} bytes are not long enough to be cut", text.len());
    for report in text.split(REPORT).skip(1) {
        let (_, largest) = report.split_once(LARGEST).unwrap_or_else(|| panic!("no {LARGEST:?} in {report}"));
        let whole = largest.lines().filter(|line| line.starts_with("  ") && line.contains("running for")).count();
        assert_eq!(whole, 5, "lines after {LARGEST:?}: {largest}");
    }
    Ok(())
}

#[test]
fn long_reports_bpf() {
    require!(long_reports(Tracer::Bpf));
}

#[test]
fn long_reports_snapshot() {
    require!(long_reports(Tracer::Snapshot));
}

/// Neither is one dropped when the client does not read, and all that krunner keeps of output is used up.
#[test]
fn in_a_flood_to_a_client_that_stalls() {
    /// Together more than 1 MiB, and not so many that they are counted instead.
    const KILLS: usize = 60;
    const RECEIVE_BUFFER_BYTES: usize = 4096;
    let mut session = require!(session(Tracer::Bpf, Limited::Below, |plan| plan));
    session.runner.write("nest", NEST);
    session.raw().pull = Peer::connect_narrow(session.runner.ports().1, RECEIVE_BUFFER_BYTES);
    let hogs = nested(&format!("for i in $(seq {KILLS}); do sh hog; done"));
    session
        .send("exec", &format!("yes flood >&2 & flood=$!; {{ {hogs}; }} > hogs 2>&1; kill $flood; echo done > done"));

    session.runner.wait_for("done");
    let run = session.read_until(|message| message.kind == "finished").expect("the runner lives");

    assert_eq!(session.limited.oom_kills(), KILLS as u64);
    assert_eq!(reports(&run.stderr()), KILLS, "(left: reported)");
}
