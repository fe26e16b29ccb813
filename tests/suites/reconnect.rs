//! Agents that come and go, on bare connections.

use krunner_tests::zmtp::{Peer, dial};
use krunner_tests::{Raw, Runner, wait};

use crate::{app, lines};

/// Requests the status over `push` and reads the reply from `pull`; log lines may come before it.
#[track_caller]
fn assert_answers(push: &mut Peer, pull: &mut Peer) {
    push.send(&[b"status", b""]);
    loop {
        let frames = pull.recv().expect("the runner keeps the connection");
        if frames[0] != b"stderr" {
            assert_eq!(frames[0], b"status");
            return;
        }
    }
}

fn connect(runner: &Runner) -> (Peer, Peer) {
    let (replin, replout) = runner.ports();
    (Peer::connect(replin, "PUSH"), Peer::connect(replout, "PULL"))
}

#[test]
fn first_reply_after_each_of_twenty_reconnects_arrives() {
    let runner = app().start();
    for _ in 0..20 {
        let (mut push, mut pull) = connect(&runner);
        assert_answers(&mut push, &mut pull);
        pull.close();
        push.close();
    }
}

#[test]
fn twenty_reconnects_of_the_out_port_alone() {
    let runner = app().start();
    let (mut push, mut pull) = connect(&runner);
    for _ in 0..20 {
        assert_answers(&mut push, &mut pull);
        pull.close();
        pull = Peer::connect(runner.ports().1, "PULL");
    }
    assert_answers(&mut push, &mut pull);
}

#[test]
fn twenty_reconnects_of_the_in_port_alone() {
    let runner = app().start();
    let (mut push, mut pull) = connect(&runner);
    for _ in 0..20 {
        assert_answers(&mut push, &mut pull);
        push.close();
        push = Peer::connect(runner.ports().0, "PUSH");
    }
    assert_answers(&mut push, &mut pull);
}

#[test]
fn op_sent_right_before_a_disconnect_counts() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);
    for i in 0..20 {
        let mut push = Peer::connect(runner.ports().0, "PUSH");
        push.send(&[b"exec", format!("echo {i}").as_bytes()]);
        push.close();
        assert_eq!(raw.read_runs(1).stdout(), format!("{i}\n"));
    }
}

#[test]
fn replies_go_to_the_newest_client_even_if_an_older_one_lingers() {
    let runner = app().start();
    let (mut push, mut oldest) = connect(&runner);
    assert_answers(&mut push, &mut oldest);
    let mut lingering = vec![oldest];
    for _ in 0..5 {
        let newest = Peer::connect(runner.ports().1, "PULL");
        // A client cannot know when the runner has taken it in; until then replies may go to the one before.
        wait::until_true("a reply to the newest client", || {
            push.send(&[b"status", b""]);
            newest.is_readable()
        });
        let mut raw = Raw { push, pull: newest };
        for round in 0..10 {
            let text = format!("{round}\n");
            assert_eq!(raw.exec(&format!("echo {round}")).stdout(), text);
        }
        lingering.push(raw.pull);
        push = raw.push;
    }
}

#[test]
fn run_goes_on_when_the_agent_leaves_in_the_middle_of_its_output() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);
    raw.op("exec", "seq 1 5000000");
    raw.read_until(|message| message.kind == "stdout");
    raw.pull.close();
    raw.pull = Peer::connect(runner.ports().1, "PULL");

    let rest = raw.read_runs(1);

    assert_eq!(rest.codes(), [("finished", 0)]);
    let all = lines(1..=5_000_000);
    let received = rest.stdout();
    assert!(received.ends_with("\n4999999\n5000000\n"));
    assert!(all.ends_with(&received), "what arrives is whole from some point on: {} bytes", received.len());
}

#[test]
fn silent_connections_do_not_disturb_others() {
    let runner = app().start();
    let mut raw = Raw::connect(&runner);
    let (replin, replout) = runner.ports();
    let mut held = Vec::new();
    for i in 0..100 {
        let silent = dial(if i % 2 == 0 { replin } else { replout });
        if i % 3 == 0 {
            held.push(silent);
        }
    }

    assert_eq!(raw.exec("echo alive").stdout(), "alive\n");
    assert_eq!(Raw::connect(&runner).exec("echo alive").stdout(), "alive\n");
}
