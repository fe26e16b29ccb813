//! Peers that take what others need: a place as the reader of replies, memory, time. The agent beside them is served.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use krunner_tests::zmtp::{Peer, dial, greeting, long_header, ready};
use krunner_tests::{Message, Raw, Runner, Setup, host, proc, require, wait};

use crate::{app, wait_for_file};

/// Far more than an agent waits for on a busy machine, and far less than the peers below would hold it up.
const PROMPT: Duration = Duration::from_secs(20);

#[test]
fn slow_senders_of_large_messages_hold_up_no_other_peer() {
    const SLOW: usize = 20;
    const BODY_BYTES: u64 = 7 << 20;
    let runner = app().start();
    let mut agent = Raw::connect(&runner);
    agent.exec("true");
    let mut slow: Vec<Peer> = (0..SLOW).map(|_| Peer::connect(runner.ports().0, "PUSH")).collect();
    for peer in &mut slow {
        peer.send_bytes(&[&b"\x01\x04exec"[..], &long_header(BODY_BYTES, false), b"#"].concat()).expect("a header");
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let trickle = thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            // The runner closes them one after the other.
            for peer in &mut slow {
                let _ = peer.send_bytes(b"#");
            }
            thread::sleep(Duration::from_millis(500));
        }
    });

    let started = Instant::now();
    assert_eq!(agent.exec(&format!("echo served #{}", "x".repeat(100_000))).stdout(), "served\n");
    agent.sync();
    assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
    // Larger than what is free for each connection.
    agent.push.send(&[b"no-such-op", &vec![b'#'; 6 << 20]]);
    agent.sync();
    assert!(started.elapsed() < 2 * PROMPT, "{:?}", started.elapsed());

    is_over.store(true, Ordering::Relaxed);
    trickle.join().expect("the thread ends");
    runner.wait_for_log(&["closing the connection from 127.0.0.1:", "sent too slowly"]);
}

#[test]
fn message_longer_than_any_op_is_refused_before_it_is_in_memory() {
    let runner = app().start();
    runner.settle();
    let mut agent = Raw::connect(&runner);

    let mut peer = Peer::connect(runner.ports().0, "PUSH");
    let piece = vec![b'#'; 1 << 20];
    let _ = peer.send_bytes(&[&b"\x01\x04code"[..], &long_header(60 << 20, false)].concat());
    let _ = (0..60).try_for_each(|_| peer.send_bytes(&piece));

    assert!(peer.is_closed());
    assert_eq!(agent.exec("echo alive").stdout(), "alive\n");
    runner.wait_for_log(&["closing the connection from 127.0.0.1:", "62914564 bytes exceeds the limit of 8388608"]);
    let peak = proc::peak_rss_kib(runner.pid()).expect("the runner runs");
    assert!(peak <= 48 * 1024, "{peak} KiB resident");
}

#[test]
fn text_of_waiting_steps_is_bounded_and_its_memory_is_returned() {
    const STEPS: usize = 600;
    /// What the contract's queue may take, in KiB.
    const QUEUE_KIB: u64 = 16 * 1024;
    const SLACK_KIB: u64 = 8 * 1024;
    let runner = app().start();
    runner.settle();
    let mut agent = Raw::connect(&runner);
    agent.exec("true");
    let before = proc::rss_kib(runner.pid()).expect("the runner runs");

    agent.op("exec", &wait_for_file("go"));
    let step = format!("true #{}", "x".repeat(60_000));
    (0..STEPS).for_each(|_| agent.op("exec", &step));
    agent.sync();
    let peak = proc::peak_rss_kib(runner.pid()).expect("the runner runs");
    assert!(peak <= before + QUEUE_KIB + SLACK_KIB, "from {before} to {peak} KiB resident");

    runner.write("go", "");
    let run = agent.read_runs(1 + STEPS);
    let codes: Vec<i64> = run.codes().into_iter().map(|(_, code)| code).collect();
    let accepted = codes.iter().take_while(|code| **code == 0).count();
    assert!((200..400).contains(&accepted), "{accepted} fit");
    assert!(codes[accepted..].iter().all(|code| *code == -1), "{codes:?}");
    runner.wait_for_log(&["step queue full: `exec` rejected"]);
    wait::until_true("the memory is returned", || {
        proc::rss_kib(runner.pid()).is_some_and(|now| now <= before + SLACK_KIB)
    });
}

#[test]
fn answers_do_not_wait_for_the_pause_between_ends_of_steps() {
    const STEPS: usize = 3000;
    let runner = app().start();
    let mut agent = Raw::connect(&runner);
    agent.exec("true");

    (0..STEPS).for_each(|_| agent.op("exec", ""));
    agent.op("get-apps", "");
    let started = Instant::now();
    let run = agent.read_until(|message: &Message| message.kind == "apps-result");
    assert!(run.ends().len() < STEPS / 3, "{} ends of steps came first, in {:?}", run.ends().len(), started.elapsed());
    let rest = agent.read_runs(STEPS - run.ends().len());
    assert!(rest.codes().iter().all(|end| *end == ("finished", 0)));
}

/// Connects to all four ports with heartbeats and prints how often one of them was disconnected in three seconds, and the
/// bytes of output that came meanwhile.
const HEARTBEATS: &str = r#"
import json, sys, time, zmq
from zmq.utils.monitor import recv_monitor_message

replin, replout, termin, termout = map(int, sys.argv[1:])
context = zmq.Context()

def connect(kind, port):
    socket = context.socket(kind)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 200)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 1000)
    socket.setsockopt(zmq.HEARTBEAT_TTL, 2000)
    monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    if kind == zmq.SUB:
        socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(f"tcp://127.0.0.1:{port}")
    return socket, monitor

sockets = [connect(*at) for at in
    [(zmq.PUSH, replin), (zmq.PULL, replout), (zmq.PUB, termin), (zmq.SUB, termout)]]
(push, _), (pull, _) = sockets[:2]
push.send_multipart([b"exec", b"head -c 67108864 /dev/zero; sleep 3; echo"])
output = 0
while True:
    kind, payload = pull.recv_multipart()
    if kind == b"stdout":
        output += len(payload)
    if kind == b"finished":
        break
disconnects = 0
for _, monitor in sockets:
    while monitor.poll(0):
        recv_monitor_message(monitor)
        disconnects += 1
print(json.dumps({"disconnects": disconnects, "output": output}))
context.destroy(linger=0)
"#;

#[test]
fn heartbeats_are_answered_on_every_port() {
    let python = require!(host::agent_python());
    let runner = Setup::new("git").start();
    Raw::connect(&runner).sync();
    let ((replin, replout), (termin, termout)) = (runner.ports(), runner.terminal_ports());

    let ports = [replin, replout, termin, termout].map(|port| port.to_string());
    let run = Command::new(python).args(["-c", HEARTBEATS]).args(ports).output().expect("the client runs");

    let printed = String::from_utf8_lossy(&run.stdout);
    let expected = format!("{{\"disconnects\": 0, \"output\": {}}}", (64 << 20) + 1);
    assert_eq!(printed.trim(), expected, "{}", String::from_utf8_lossy(&run.stderr));
}

/// Waits until the runner uses next to no processor time: it can answer no more, so it reads no more.
#[track_caller]
fn wait_until_idle(runner: &Runner) {
    const WINDOW: Duration = Duration::from_secs(2);
    const IDLE_TICKS: u64 = 10;
    const LIMIT: Duration = Duration::from_mins(3);
    let ticks = || proc::cpu_ticks(runner.pid()).expect("the runner runs");
    let idle = wait::within(LIMIT, || {
        let before = ticks();
        thread::sleep(WINDOW);
        (ticks() - before <= IDLE_TICKS).then_some(())
    });
    assert!(idle.is_some(), "the runner still reads after {LIMIT:?}");
}

#[test]
fn new_agent_is_served_beside_a_peer_that_asks_and_does_not_read() {
    let runner = app().start();
    runner.settle();
    let (replin, replout) = runner.ports();
    let _reads_nothing = Peer::connect_narrow(replout, 16 * 1024);
    let mut asks = Peer::connect(replin, "PUSH");
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    // Ends when the runner does.
    let flood = thread::spawn(move || {
        let piece = b"\x01\x06status\x00\x03now".repeat(1000);
        while asks.send_bytes(&piece).is_ok() {
            count.fetch_add(1000, Ordering::Relaxed);
        }
    });
    wait::until_true("the flood", || sent.load(Ordering::Relaxed) > 0);
    wait_until_idle(&runner);

    let started = Instant::now();
    let mut agent = Raw::connect(&runner);
    let run = agent.exec("echo served");

    assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
    assert_eq!((run.stdout().as_str(), run.codes()), ("served\n", vec![("finished", 0)]));
    let line = runner.wait_for_log(&["closing a stalled connection: 127.0.0.1:"]);
    assert!(line.contains("go to the newer one"), "{line}");
    assert_eq!(runner.stderr().matches("closing a stalled connection").count(), 1);
    let peak = proc::peak_rss_kib(runner.pid()).expect("the runner runs");
    assert!(peak <= 64 * 1024, "{peak} KiB resident");
    drop((runner, agent));
    flood.join().expect("the flood ends with the runner");
}

/// How a peer ends its connection right behind its READY.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Close,
    Garbage,
    Reset,
}

/// Answers the runner's greeting and READY in the moment in which it leaves.
fn leave_in_the_handshake(port: u16, socket_type: &str, ending: Ending) {
    let mut stream = dial(port);
    stream.write_all(&greeting("NULL")).expect("the runner takes a greeting");
    let mut theirs = [0; 64 + 2];
    stream.read_exact(&mut theirs).expect("a greeting and the header of a READY");
    let mut last = ready(socket_type);
    match ending {
        Ending::Garbage => last.extend(b"\xff\xff"),
        // Closed with bytes that were not read, a connection is reset.
        Ending::Close => _ = stream.read_exact(&mut vec![0; theirs[65].into()]),
        Ending::Reset => {}
    }
    // The runner may have closed it.
    let _ = stream.write_all(&last);
}

#[test]
fn peers_that_leave_in_the_handshake_leave_nothing_behind() {
    const PEERS: usize = 40;
    /// Connections of the runner's own that come and go.
    const OTHERS: usize = 4;
    let runner = app().start();
    runner.settle();
    Raw::connect(&runner).sync();
    let before = proc::descriptors(runner.pid());
    let (replin, replout) = runner.ports();
    for (port, socket_type) in [(replin, "PUSH"), (replout, "PULL")] {
        for ending in [Ending::Close, Ending::Garbage, Ending::Reset] {
            for _ in 0..PEERS {
                leave_in_the_handshake(port, socket_type, ending);
            }
            wait::until_true(&format!("descriptors of {ending:?} as a {socket_type} to be closed"), || {
                proc::descriptors(runner.pid()) <= before + OTHERS
            });
        }
    }
    Raw::connect(&runner).sync();
}

/// The listening sockets in the abstract namespace that a process has, by name.
fn abstract_listeners(pid: u32) -> Vec<String> {
    /// The flag of a listener, `__SO_ACCEPTCON` (include/uapi/linux/net.h).
    const LISTENS: &str = "00010000";
    let inodes: Vec<u64> = proc::sockets(pid);
    let table = fs::read("/proc/net/unix").expect("a table of unix sockets");
    let table = String::from_utf8_lossy(&table);
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let is_his = |row: &Vec<&str>| {
        row.len() > 7
            && row[3] == LISTENS
            && row[7].starts_with('@')
            && row[6].parse().is_ok_and(|inode| inodes.contains(&inode))
    };
    rows.filter(is_his).map(|row| row[7].to_owned()).collect()
}

#[test]
fn no_other_process_can_connect_to_an_internal_socket() {
    let runner = app().start();
    runner.settle();
    let (replin, replout) = runner.ports();
    // Handshakes that take until their deadline.
    let silent = [replin, replout].map(|port| {
        let mut stream = dial(port);
        stream.write_all(&greeting("NULL")).expect("the runner takes a greeting");
        stream.read_exact(&mut [0; 64]).expect("the runner's greeting");
        stream
    });
    assert_eq!(abstract_listeners(runner.pid()), [""; 0]);
    drop(silent);
    Raw::connect(&runner).sync();
}

/// As many connections as a port has places, and a few more than the limit of log lines.
const IDLE_PEERS: usize = 64;

#[test]
fn idle_peers_do_not_keep_the_agent_out_and_do_not_flood_the_log() {
    let runner = app().start();
    let (ops, replies) = runner.ports();
    let silent: Vec<_> = [ops, replies].into_iter().flat_map(|port| (0..IDLE_PEERS).map(move |_| dial(port))).collect();
    assert_eq!(Raw::connect(&runner).exec("echo in").stdout(), "in\n", "they did not begin the handshake");
    let half: Vec<_> = [ops, replies]
        .into_iter()
        .flat_map(|port| (0..IDLE_PEERS).map(move |_| dial(port)))
        .map(|mut stream| stream.write_all(&greeting("NULL")).map(|()| stream))
        .collect();
    assert_eq!(Raw::connect(&runner).exec("echo in").stdout(), "in\n", "they sent half a handshake");
    let idle: Vec<_> = [(ops, "PUSH"), (replies, "PULL")]
        .into_iter()
        .flat_map(|(port, kind)| (0..IDLE_PEERS).map(move |_| Peer::connect(port, kind)))
        .collect();
    let mut agent = Raw::connect(&runner);
    assert_eq!(agent.exec("echo in").stdout(), "in\n", "they completed the handshake");
    // Those that come later do not displace it.
    let later: Vec<_> = (0..2 * IDLE_PEERS).map(|_| Peer::connect(ops, "PUSH")).collect();
    assert_eq!(agent.exec("echo still in").stdout(), "still in\n");
    agent.sync();
    drop((silent, half, idle, later));
    runner.wait_for_log(&["closing a connection that did not complete its handshake", "the limit is 64 connections"]);
    let lines = runner.stderr().lines().filter(|line| line.contains("connection")).count();
    assert!(lines <= 40, "{lines} lines:\n{}", runner.stderr());
}
