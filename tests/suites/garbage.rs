//! Messages and connections that no agent would make: each costs its sender something and the session nothing.

use std::io::Write as _;

use krunner_tests::zmtp::{self, Peer, dial, greeting, long_header, ready};
use krunner_tests::{Raw, Setup, host, proc, require};

use crate::{app, with_agent};

/// Messages that must be skipped, with a word on what is wrong with them.
const SKIPPED: [(&str, &[&[u8]]); 20] = [
    ("empty message", &[b""]),
    ("one frame", &[b"exec"]),
    ("three frames", &[b"exec", b"touch ran", b"more"]),
    ("five empty frames", &[b"", b"", b"", b"", b""]),
    ("empty op", &[b"", b"touch ran"]),
    ("op that is not ASCII", &["실행".as_bytes(), b"touch ran"]),
    ("op that is not UTF-8", &[b"\xff\xfe", b"touch ran"]),
    ("op with a NUL", &[b"exec\0", b"touch ran"]),
    ("op in capitals", &[b"EXEC", b"touch ran"]),
    ("unknown op", &[b"no-such-op", b"touch ran"]),
    ("reply type as an op", &[b"finished", b"{\"exitCode\": 0}"]),
    ("code that is not UTF-8", &[b"event", b"{\"type\": \"\xff\", \"data\": {}}"]),
    ("event that is no JSON", &[b"event", b"{"]),
    ("event of another shape", &[b"event", b"[1, 2, 3]"]),
    ("event of nothing", &[b"event", b""]),
    ("event nested too deep", &[b"event", &[b'['; 200_000]]),
    ("completion that is no JSON", &[b"complete", b"not json"]),
    ("service that is no JSON", &[b"start-service", b"nonsense"]),
    ("shutdown that is no JSON", &[b"shutdown-service", b"{"]),
    ("model service that is no JSON", &[b"start-model-service", b"{"]),
];

#[test]
fn working_run_follows_every_message_that_is_skipped() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    for (what, frames) in SKIPPED {
        raw.push.send(frames);
        let run = raw.exec("echo alive");
        assert_eq!(run.stdout(), "alive\n", "{what}");
        assert_eq!(run.codes(), [("finished", 0)], "{what}");
        assert!(!runner.home().join("ran").exists(), "{what}");
    }
}

#[test]
fn completion_request_that_is_broken_gets_an_empty_answer() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);
    for payload in [&b"not json"[..], b"", b"{\"code\": ", b"\xff"] {
        raw.push.send(&[b"complete", payload]);
        let answer = raw.read_until(|message| message.kind == "completion");
        assert_eq!(answer.messages.last().expect("the answer").payload, *b"{\"suggestions\":[]}");
    }
    raw.sync();
}

#[test]
fn agents_client_survives_what_it_never_sends() {
    let client = require!(host::agent_python());
    let (_runner, agent) = with_agent(&client, app());

    for (what, frames) in SKIPPED {
        agent.raw(frames);
        let run = agent.exec("echo alive");
        assert_eq!((run.exec().exit_code, run.stdout().as_str()), (Some(0), "alive\n"), "{what}");
    }
    assert!(agent.started_at() > 0.0);
}

#[test]
fn commands_that_cannot_be_run_fail_with_a_message() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);
    let too_long = format!("true {}", "x".repeat(3 << 20));

    for (what, command) in [("a NUL byte", "echo a\0b"), ("3 MiB in one argument", &too_long)] {
        let run = raw.exec(command);
        assert_eq!(run.stdout(), "", "{what}");
        assert_ne!(run.ends()[0].exit_code(), 0, "{what}");
        assert!(run.stderr().contains("app-kernel: "), "{what} is explained: {}", run.stderr());
        assert_eq!(raw.exec("echo alive").stdout(), "alive\n", "{what}");
    }
}

#[test]
fn command_that_is_not_utf8_ends_its_step_or_is_skipped_but_never_runs() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    raw.push.send(&[b"exec", b"touch ran; echo \xff\xfe"]);
    let run = raw.exec("echo alive");

    assert_eq!(run.stdout(), "alive\n");
    assert!(!runner.home().join("ran").exists());
}

/// What a connection says before it is found out.
fn hostile_openings() -> Vec<(&'static str, Vec<u8>)> {
    let valid = greeting("NULL").to_vec();
    let with = |tail: &[u8]| [valid.as_slice(), tail].concat();
    let noise: Vec<u8> = (0..4096_u32).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0] & 0x7f).collect();
    vec![
        ("noise", noise.clone()),
        ("HTTP", format!("GET / HTTP/1.1\r\nHost: krunner\r\nUser-Agent: {}\r\n\r\n", "x".repeat(200)).into_bytes()),
        ("TLS", [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 512]].concat()),
        ("0xff and noise", [&[0xff][..], &noise].concat()),
        ("greeting, then noise", with(&[&[0x80][..], &noise].concat())),
        ("another mechanism", [greeting("PLAIN").as_slice(), b"\x04\x0a\x05HELLO\x01u\x01p"].concat()),
        ("another command than READY", with(b"\x04\x08\x07NOTHING")),
        ("READY cut off inside", with(b"\x04\x0a\x05READY\x0bSoc")),
        ("message before READY", with(b"\x00\x06status")),
        ("command of 2^40 bytes", with(&[&[6][..], &(1_u64 << 40).to_be_bytes(), b"\x05READY"].concat())),
    ]
}

#[test]
fn connection_that_does_not_speak_zmtp_is_closed_and_no_other() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);
    let (replin, replout) = runner.ports();

    for (what, bytes) in hostile_openings() {
        for port in [replin, replout] {
            let mut stream = dial(port);
            // The runner may close before it has read all.
            let _ = stream.write_all(&bytes);
            assert!(zmtp::is_closed(&mut stream), "{what} on port {port} of {replin}, {replout}");
            assert_eq!(raw.exec("echo alive").stdout(), "alive\n", "{what}");
        }
    }
    assert_eq!(Raw::connect(&runner).exec("echo alive").stdout(), "alive\n");
}

#[test]
fn peer_of_a_socket_type_that_does_not_fit_gets_nothing() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);
    let (replin, replout) = runner.ports();

    for (port, socket_type) in [(replin, "PULL"), (replin, "SUB"), (replout, "PUSH"), (replout, "PUB")] {
        let mut stream = dial(port);
        stream.write_all(&greeting("NULL")).expect("the runner takes a greeting");
        let _ = stream.write_all(&ready(socket_type));
        assert!(zmtp::is_closed(&mut stream), "{socket_type}");
        assert_eq!(raw.exec("echo alive").stdout(), "alive\n", "{socket_type}");
    }
}

#[test]
fn frame_that_claims_a_tebibyte_ends_its_connection_only() {
    let runner = app().start();
    runner.settle();
    let mut raw = Raw::connect(&runner);
    let header = long_header(1 << 40, false);

    for prefix in [&b""[..], b"\x01\x04exec"] {
        let mut peer = Peer::connect(runner.ports().0, "PUSH");
        let _ = peer.send_bytes(&[prefix, &header, b"touch ran"].concat());
        assert!(peer.is_closed());
        assert_eq!(raw.exec("echo alive").stdout(), "alive\n");
    }

    assert!(!runner.home().join("ran").exists());
    let peak = proc::peak_rss_kib(runner.pid()).expect("the runner runs");
    assert!(peak <= 64 * 1024, "memory was taken for what was only claimed: {peak} KiB");
}

#[test]
fn frame_over_the_limit_ends_its_connection_only() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    let mut peer = Peer::connect(runner.ports().0, "PUSH");
    let size = 9 << 20;
    let sent = peer.send_bytes(&[&b"\x01\x04exec"[..], &long_header(size, false)].concat()).and_then(|()| {
        let piece = vec![b'#'; 1 << 20];
        (0..9).try_for_each(|_| peer.send_bytes(&piece))
    });
    // Whether the runner hangs up at the header or later is its own affair.
    drop(sent);
    assert!(peer.is_closed());

    assert_eq!(raw.exec("echo alive").stdout(), "alive\n");
}

#[test]
fn frame_under_the_limit_is_read() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);

    raw.push.send(&[b"no-such-op", &vec![b'#'; (8 << 20) - 10]]);
    // On the same connection, so it was not closed.
    assert_eq!(raw.exec("echo alive").stdout(), "alive\n");
}

#[test]
fn endless_message_of_small_frames_does_not_grow_the_runner() {
    let runner = app().start();
    runner.settle();
    let mut raw = Raw::connect(&runner);

    let mut peer = Peer::connect(runner.ports().0, "PUSH");
    let frame = [long_header(64 << 10, true), vec![b'#'; 64 << 10]].concat();
    // 256 MiB; the runner may hang up on the way.
    let _ = (0..4096).try_for_each(|_| peer.send_bytes(&frame));

    assert_eq!(raw.exec("echo alive").stdout(), "alive\n");
    let peak = proc::peak_rss_kib(runner.pid()).expect("the runner runs");
    assert!(peak <= 128 * 1024, "{peak} KiB resident");
}

#[test]
fn messages_cut_off_by_a_disconnect_are_forgotten() {
    let runner = Setup::new("app").start();
    let mut raw = Raw::connect(&runner);

    for bytes in [&b"\x01"[..], b"\x01\x04exe", b"\x01\x04exec", b"\x01\x04exec\x00\x09touch", b"\x02\x00"] {
        let mut peer = Peer::connect(runner.ports().0, "PUSH");
        peer.send_bytes(bytes).expect("the runner takes a part of a message");
        peer.close();
    }

    assert_eq!(raw.exec("echo alive").stdout(), "alive\n");
    assert!(!runner.home().join("touch").exists());
}
