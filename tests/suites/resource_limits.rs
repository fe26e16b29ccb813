//! Resource limits of the runner: a session works within them, or ends at the start with the limit, its value and the remedy.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use krunner_tests::cgroup::{Cgroup, Version};
use krunner_tests::zmtp::{Peer, dial, greeting, ready};
use krunner_tests::{LaunchMethod, Raw, Runner, Setup, binary, host, proc, require, wait};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::limited_session::NO_BPF;
use crate::{app, lines, wait_for_file};

/// Starts and stops within this time, whatever the limit.
const SOON: Duration = Duration::from_secs(10);

/// No other process on this machine has this user, so that `RLIMIT_NPROC` counts the session's.
fn user() -> u32 {
    60_000 + std::process::id() % 5_000
}

/// A session whose runner is an unprivileged user with these options of `prlimit`.
fn limited(user_id: u32, limits: &[&str]) -> Setup {
    let setup = app();
    let root = setup.root();
    // The user may not look into the folder that the binary under test is in.
    let program = root.join("krunner");
    let open = format!(
        "cp {} {}; chmod a+rx {root}/..; chown -R {user_id} {root}; exec \"$@\"",
        binary().display(),
        program.display(),
        root = root.display()
    );
    let setup = setup.program(program);
    let launch =
        LaunchMethod::direct().then(["sh", "-c", &open, "sh"]).user(user_id).then(["prlimit"]).then(limits.to_vec());
    setup.prefix_first(&launch)
}

#[track_caller]
fn assert_works(limits: &[&str]) {
    let mut runner = limited(user(), limits).start();
    let mut raw = Raw::connect(&runner);
    let run = raw.exec("echo hi | cat");
    assert_eq!((run.stdout().as_str(), run.codes()), ("hi\n", vec![("finished", 0)]), "{limits:?}: {}", run.stderr());
    stop(&mut runner);
}

#[track_caller]
fn stop(runner: &mut Runner) {
    let since = Instant::now();
    runner.signal(Signal::SIGTERM);
    assert_eq!(runner.wait_exit().code(), Some(0), "{}", runner.stderr());
    assert!(since.elapsed() < SOON, "the stop took {:?}", since.elapsed());
}

#[test]
fn session_works_within_small_limits() {
    require!(host::root());
    require!(host::util_linux());
    for limits in [
        "--stack=1048576:1048576",
        "--nofile=128:128",
        "--nproc=20:20",
        "--as=268435456:268435456",
        "--as=1073741824:1073741824",
        "--data=16777216:16777216",
        "--memlock=0:0",
        "--core=0:0",
        "--sigpending=0:0",
        "--msgqueue=0:0",
    ] {
        assert_works(&[limits]);
    }
}

#[test]
fn limit_without_which_nothing_works_ends_the_start_with_its_name() {
    require!(host::root());
    require!(host::util_linux());
    for (limit, told) in [
        (
            "--stack=65536:65536",
            "RLIMIT_STACK is 64 KiB, and krunner needs at least 512 KiB; raise it (`ulimit -s`, or --ulimit stack=",
        ),
        (
            "--nofile=16:16",
            "RLIMIT_NOFILE is 16, and krunner needs at least 128; raise it (`ulimit -n`, or --ulimit nofile=",
        ),
        ("--nofile=20:20", "RLIMIT_NOFILE is 20, and krunner needs at least 128; raise it ("),
        ("--nofile=32:32", "RLIMIT_NOFILE is 32, and krunner needs at least 128; raise it ("),
        ("--nofile=64:64", "RLIMIT_NOFILE is 64, and krunner needs at least 128; raise it ("),
        ("--nofile=127:127", "RLIMIT_NOFILE is 127, and krunner needs at least 128; "),
        ("--nproc=1:1", "the limit of 1 processes and threads of this user (RLIMIT_NPROC) may be reached; "),
    ] {
        let since = Instant::now();
        let mut runner = limited(user(), &[limit]).start();
        assert_eq!(runner.wait_exit().code(), Some(1), "{limit}: {}", runner.stderr());
        assert!(since.elapsed() < SOON, "{limit}: {:?}", since.elapsed());
        assert!(runner.stderr().contains(told), "{limit}: {}", runner.stderr());
    }
}

#[test]
fn session_that_may_start_no_process_answers_and_stops() {
    require!(host::root());
    require!(host::util_linux());
    for count in 4..=6 {
        let mut runner = limited(user(), &[&format!("--nproc={count}:{count}")]).start();
        let is_up = wait::until("an end or a listener", || {
            if runner.is_running() {
                TcpStream::connect(("127.0.0.1", runner.ports().0)).is_ok().then_some(true)
            } else {
                Some(false)
            }
        });
        if !is_up {
            assert_eq!(runner.wait_exit().code(), Some(1), "{}", runner.stderr());
            assert!(runner.stderr().contains("RLIMIT_NPROC"), "{}", runner.stderr());
            continue;
        }
        let mut raw = Raw::connect(&runner);
        raw.sync();
        let run = raw.exec("echo hi | cat");
        // A thread of the runner may have ended just then, and left its place to the shell, but not to what that starts.
        if run.stderr().contains("Cannot fork") {
            assert_eq!(run.codes(), [("finished", 2)], "{count}: {}", run.stderr());
        } else {
            assert_eq!(run.codes(), [("finished", -1)], "{count}: {}", run.stderr());
            let limit = format!("the limit of {count} processes and threads of this user (RLIMIT_NPROC)");
            assert!(run.stderr().contains(&limit), "{count}: {}", run.stderr());
        }
        stop(&mut runner);
    }
}

#[test]
fn doctor_names_limits_that_are_too_low() {
    require!(host::root());
    require!(host::util_linux());
    let check = |limits: &[&str]| {
        let mut command = LaunchMethod::direct().then(["prlimit"]).then(limits.to_vec()).command(binary());
        let output = command.args(["doctor", "--json"]).output().expect("doctor runs");
        let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let checks = told["checks"].as_array().expect("checks").clone();
        checks.into_iter().find(|check| check["check"] == "limits").expect("one of the limits")
    };
    let low = check(&["--nofile=100:100", "--cpu=600:600"]);
    assert_eq!(low["state"], "note");
    let (found, remedy) = (low["found"].as_str().expect("text"), low["remedy"].as_str().expect("text"));
    assert!(found.contains("RLIMIT_NOFILE is 100 (256 or more recommended)"), "{found}");
    assert!(found.contains("RLIMIT_CPU is 600 s (unlimited recommended)"), "{found}");
    assert!(remedy.contains("--ulimit nofile=") && remedy.contains("--ulimit cpu="), "{remedy}");
    let fine = check(&[
        "--nofile=4096:4096",
        "--stack=8388608:8388608",
        "--as=unlimited",
        "--data=unlimited",
        "--fsize=unlimited",
        "--memlock=8388608:8388608",
        "--cpu=unlimited",
    ]);
    assert_eq!((&fine["state"], &fine["remedy"]), (&Value::from("ok"), &Value::Null), "{fine}");
}

/// As many connections as a port accepts.
const IDLE_PEERS: usize = 64;

#[test]
fn peers_that_use_up_the_descriptors_do_not_keep_the_agent_out() {
    require!(host::root());
    require!(host::util_linux());
    // Fewer than the connections that each port accepts would take.
    let mut runner = limited(user(), &["--nofile=160:160"]).start();
    let (ops, replies) = runner.ports();
    let idle: Vec<_> = [(ops, "PUSH"), (replies, "PULL")]
        .into_iter()
        .flat_map(|(port, kind)| (0..IDLE_PEERS).map(move |_| (dial(port), kind)))
        .map(|(mut stream, kind)| {
            // It may be closed by now.
            let _ = stream.write_all(&[&greeting("NULL")[..], &ready(kind)].concat());
            stream
        })
        .collect();
    wait::until_true("the agent to get in", || {
        let mut streams = [dial(ops), dial(replies)];
        streams.iter_mut().all(|stream| {
            stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a read timeout");
            stream.write_all(&greeting("NULL")).is_ok() && stream.read_exact(&mut [0; 64]).is_ok()
        })
    });
    assert_eq!(Raw::connect(&runner).exec("echo in").stdout(), "in\n", "{}", runner.stderr());
    drop(idle);
    stop(&mut runner);
}

/// Kills in cgroups below its own are counted with two descriptors each (v1), as long as there are enough.
#[test]
fn cgroups_below_leave_descriptors_to_the_session() {
    require!(host::root());
    require!(host::util_linux());
    let scratch = require!(Cgroup::scratch());
    require!(
        matches!(scratch.version(), Version::One).then_some(()).ok_or("cgroup v2 counts those below with its own")
    );
    let _below: Vec<_> = (0..80).map(|number| scratch.limited(&number.to_string(), 64)).collect();
    let launch = LaunchMethod::direct().cgroup(&scratch).then(["prlimit", "--nofile=128:128"]).then(NO_BPF);
    let mut runner = app().prefix_first(&launch).start();
    let run = Raw::connect(&runner).exec("echo hi | cat");
    assert_eq!((run.stdout().as_str(), run.codes()), ("hi\n", vec![("finished", 0)]), "{}", runner.stderr());
    stop(&mut runner);
}

/// What the runner may have resident with ten thousand steps queued.
const QUEUED_RSS_KIB: u64 = 48 * 1024;

#[test]
fn ten_thousand_queued_steps_keep_their_order_and_a_stop_is_prompt() {
    const STEPS: usize = 10_000;
    const READ: usize = 200;
    let mut runner = app().start();
    runner.settle();
    let mut raw = Raw::connect(&runner);
    raw.op("exec", &wait_for_file("go"));
    for number in 1..=STEPS {
        raw.op("exec", &format!("echo {number}"));
    }
    let before = raw.sync();
    assert!(before.ends().is_empty(), "no step ends before its turn: {:?}", before.codes());
    let peak = proc::peak_rss_kib(runner.pid()).expect("the runner runs");
    assert!(peak <= QUEUED_RSS_KIB, "{peak} KiB");
    runner.write("go", "");

    let first = raw.read_runs(1 + READ);

    assert_eq!(first.stdout(), lines(1..=READ));
    assert!(first.codes().iter().all(|end| *end == ("finished", 0)));
    let since = Instant::now();
    runner.signal(Signal::SIGTERM);
    raw.read_to_end();
    assert!(runner.wait_exit().success() && since.elapsed() < SOON, "{:?}", since.elapsed());
}

#[test]
fn five_hundred_connections_leave_the_session_as_it_was() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);
    assert_eq!(raw.exec("echo before").stdout(), "before\n");
    let (ops, _) = runner.ports();
    let streams: Vec<_> = (0..500).map(|_| TcpStream::connect(("127.0.0.1", ops)).expect("the port")).collect();
    let run = raw.exec("echo during");
    assert_eq!(run.stdout(), "during\n", "{}", runner.stderr());
    drop(streams);
    wait::until_true("another peer to be served", || {
        let mut peer = Peer::connect(ops, "PUSH");
        peer.send(&[b"exec", b"echo after > after"]);
        wait::within(Duration::from_millis(500), || runner.read("after")).is_some()
    });
}

#[test]
fn thousand_services_are_refused_in_words() {
    const REQUESTS: usize = 1_000;
    let definition = json!({ "command": ["sleep", "1000"] }).to_string();
    let runner = app().file("etc/backend.ai/service-defs/sleeper.json", definition).start();
    let mut raw = Raw::connect(&runner);
    for number in 0..REQUESTS {
        let request = json!({
            "name": format!("none-{number}"), "port": 1, "ports": [1], "protocol": "http", "options": {},
        });
        raw.op("start-service", &request.to_string());
    }
    let mut answers = 0;
    raw.read_until(|message| {
        if message.kind == "service-result" {
            let answer: Value = serde_json::from_slice(&message.payload).expect("JSON");
            assert!(
                answer["status"] == "failed" && answer["error"].as_str().is_some_and(|error| !error.is_empty()),
                "{answer}"
            );
            answers += 1;
        }
        answers == REQUESTS
    });
    assert_eq!(raw.exec("echo hi").stdout(), "hi\n");
}
