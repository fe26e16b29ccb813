//! Peers of the node's socket that lie, stall, flood or leave: each is refused or closed, and no other notices.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use krunner_tests::container::{self, HELPER};
use krunner_tests::node::{Node, NodePeer, RUN_FOLDER};
use krunner_tests::{binary, host, require, wait};
use serde_json::{Value, json};

use crate::contained::{Contained, all, plain};
use crate::oom::TOO_MUCH;

/// A peer's greeting is waited for this long, and longer.
const LATE: Duration = Duration::from_secs(6);

/// Connections that a container may have.
const CONNECTIONS: usize = 8;

/// A peer in Python: greets, then writes every byte that it receives to stdout.
pub(crate) const TAP: &str = r#"
import json, socket, struct, sys
s = socket.socket(socket.AF_UNIX)
s.connect("/run/krunner/node.sock")
hello = json.dumps(json.loads(sys.argv[1])).encode()
s.sendall(struct.pack("<I", len(hello)) + hello)
while True:
    data = s.recv(65536)
    if not data:
        break
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
"#;

#[test]
fn malformed_greetings_are_refused_and_no_other_peer_notices() {
    let node = require!(Node::start());
    let mut honest = NodePeer::greet(&node);
    let cases: [(&str, &[u8]); 5] = [
        ("a length of 4 GiB", &u32::MAX.to_le_bytes()),
        ("not JSON", b"\x04\0\0\0abcd"),
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n"),
        ("half a greeting", b"\x40\0\0\0{\"type\":"),
        ("silence", b""),
    ];
    for (what, bytes) in cases {
        let mut peer = NodePeer::connect(&node);
        peer.say_bytes(bytes);
        assert!(peer.is_closed_within(LATE), "{what}");
    }
    let mut other = NodePeer::connect(&node);
    other.say(&json!({"type": "hello", "protocol": 7, "version": "9.9"}));
    let refusal = other.hear().expect("a refusal");
    let reason = refusal["reason"].as_str().expect("a reason");
    assert!(reason.contains("version 7") && reason.ends_with("the node speaks 1"), "{refusal}");
    assert!(other.hear().is_none());
    // It is root on the host, and sees the kills of other tests, too.
    let next = std::iter::from_fn(|| honest.hear()).find(|message| message["type"] != "kill");
    assert_eq!(next.expect("a sign of life")["type"], "alive");
}

#[test]
fn peer_that_says_more_than_its_greeting_is_closed() {
    let node = require!(Node::start());
    let mut peer = NodePeer::greet(&node);
    for _ in 0..1000 {
        peer.say(&json!({"type": "hello", "protocol": 1, "version": "again"}));
    }
    assert!(peer.is_closed_within(LATE));
}

#[test]
fn connections_of_one_container_are_limited() {
    let node = require!(Node::start());
    let peers: Vec<NodePeer> = (0..CONNECTIONS).map(|_| NodePeer::greet(&node)).collect();
    let mut one_more = NodePeer::connect(&node);
    let refusal = one_more.hear().expect("a refusal");
    assert!(refusal["reason"].as_str().is_some_and(|reason| reason.contains("8 connections")), "{refusal}");
    drop(peers);
    wait::until_true("the connections to be free", || {
        let mut peer = NodePeer::connect(&node);
        peer.say(&json!({"type": "hello", "protocol": 1, "version": "test"}));
        peer.hear().is_some_and(|hello| hello["type"] == "hello")
    });
}

/// What crosses the socket to the peers of two containers, byte for byte.
#[test]
fn no_byte_at_any_peer_names_another_tenant() {
    const TENANTS: [&str; 2] = ["tenant-a", "tenant-b"];
    require!(host::program("python3"));
    let node = require!(Node::start());
    let first = require!(container::available().and_then(|()| krunner_tests::cgroup::Cgroup::for_container()));
    let second = first.beside().expect("a cgroup beside the first");
    let spec = plain().bind(node.run_folder(), RUN_FOLDER);
    let mut sessions = [first, second].map(|cgroup| Contained::start_in(&spec, cgroup));
    // It claims to be another.
    let hello = json!({"type": "hello", "protocol": 1, "version": "1", "pid": 1, "namespace": 4_026_531_836_u64, "cgroup": "/"});
    let taps: Vec<_> = sessions
        .iter()
        .map(|session| {
            let mut command = session.container.launch().command("python3");
            command.args(["-c", TAP, &hello.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
            command.spawn().expect("runc exec starts")
        })
        .collect();
    node.until_peers(4);
    for (session, tenant) in sessions.iter_mut().zip(TENANTS) {
        let told = session.run(&format!("{HELPER} eat {TOO_MUCH} --after-ms 100 --name {tenant} -- {tenant}"));
        session.victims = all(&told, "victim");
        session.until_report_of(session.victims[0]);
    }
    // Ends the taps.
    let mut node = node;
    node.kill();
    for ((tap, own), other) in taps.into_iter().zip(TENANTS).zip(TENANTS.iter().rev()) {
        let bytes = tap.wait_with_output().expect("the tap ends").stdout;
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains(own), "{own}: {text}");
        for foreign in [other, "suites", "runc", "memory_map", "krunner-test-"] {
            assert!(!text.contains(foreign), "{foreign} crossed to {own}: {text}");
        }
    }
}

/// The descriptor outlives the process that connected, and is then held by one that the node did not let in.
#[test]
fn connection_ends_with_the_process_that_made_it() {
    const HEIR: &str = r#"
import json, os, socket, struct, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
hello = json.dumps({"type": "hello", "protocol": 1, "version": "1"}).encode()
s.sendall(struct.pack("<I", len(hello)) + hello)
s.settimeout(20)
s.recv(65536)
if os.fork():
    os._exit(0)
while s.recv(65536):
    pass
print("closed", flush=True)
"#;
    require!(host::program("python3"));
    let node = require!(Node::start());
    let mut command = Command::new("python3");
    let output = command.args(["-c", HEIR]).arg(node.socket()).stdin(Stdio::null()).output().expect("python3 starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "closed\n", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn socket_of_a_program_in_the_container_is_not_taken_for_the_node() {
    const IMPOSTOR: &str = r#"
import socket
s = socket.socket(socket.AF_UNIX)
s.bind("/tmp/node.sock")
s.listen(1)
if s.accept()[0].recv(1):
    print("spoke", flush=True)
"#;
    require!(host::program("python3"));
    let mut session = require!(Contained::start(&plain()));
    let told = session.run(&format!(
        "python3 -c '{IMPOSTOR}' > heard & until test -S /tmp/node.sock; do sleep 0.05; done
         KRUNNER_NODE_SOCKET=/tmp/node.sock {} doctor --json; kill $!; cat heard",
        krunner_tests::container::KRUNNER
    ));
    let told: Value = serde_json::from_str(told.trim()).expect("JSON, and nothing was said to the impostor");
    assert_eq!(told["tracer"], "snapshot", "{told}");
    let node = told["checks"].as_array().and_then(|checks| checks.iter().find(|check| check["check"] == "node"));
    let found = node.and_then(|node| node["found"].as_str()).unwrap_or_default();
    assert!(found.contains("belongs to a process of this PID namespace"), "{told}");
}

#[test]
fn path_that_is_taken_is_told_and_left_alone() {
    let node = require!(Node::start());
    let folder = tempfile::TempDir::with_prefix("krn-").expect("a temporary folder");
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    std::fs::File::create(&file).and_then(|mut file| file.write_all(b"kept")).expect("a file");
    std::os::unix::fs::symlink(&file, &link).expect("a link");
    for (path, reason) in
        [(&file, "is not a socket"), (&link, "is not a socket"), (&node.socket(), "another process listens")]
    {
        let mut command = Command::new(binary());
        let output =
            command.args(["node", "--socket"]).arg(path).stdin(Stdio::null()).output().expect("krunner starts");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains(reason), "{path:?}: {text}");
    }
    assert_eq!(std::fs::read(&file).expect("the file"), b"kept");
    NodePeer::greet(&node);
}
