//! Many kills in many containers at once: each is reported once, in its own container, and nothing of it anywhere else.
//!
//! `KRUNNER_NODE_KILLS=1000` causes as many, in 50 containers; it takes minutes.

use std::env;
use std::process::{Child, Stdio};

use krunner_tests::cgroup::Cgroup;
use krunner_tests::container::{self, HELPER};
use krunner_tests::node::{Node, RUN_FOLDER};
use krunner_tests::{host, require, wait};
use serde_json::{Value, json};

use crate::contained::{Contained, all, plain};
use crate::node_peers::TAP;
use crate::oom::TOO_MUCH;

/// Kills in a usual run.
const KILLS: usize = 24;

/// Kills in a container, of a run that has enough of them for [`MIN_CONTAINERS`].
const KILLS_OF_A_CONTAINER: usize = 20;

/// With fewer than three, a kill that goes to all others looks like one that goes to the next.
const MIN_CONTAINERS: usize = 3;

/// Kills that a container causes in a row, while all others do so.
const KILLS_IN_A_ROW: usize = 2;

/// A container, its session, and a second peer that keeps every byte that it receives.
struct Tenant {
    /// In the names and arguments of its processes. None is a part of another.
    marker: String,
    container_id: String,
    session: Contained,
    tap: Child,
}

impl Tenant {
    fn start(number: usize, node: &Node, slot: &Cgroup) -> Result<Self, String> {
        let (cgroup, container_id) = slot.of_docker_beside()?;
        let session = Contained::start_in(&plain().bind(node.run_folder(), RUN_FOLDER), cgroup);
        let hello = json!({"type": "hello", "protocol": 1, "version": "1"});
        let mut tap = session.container.launch().command("python3");
        tap.args(["-c", TAP, &hello.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
        let tap = tap.spawn().expect("runc exec starts");
        Ok(Self { marker: format!("tenant-{number:03}-"), container_id, session, tap })
    }

    fn begin_kills(&mut self, kills: usize) {
        let marker = &self.marker;
        let hog = format!("{HELPER} eat {TOO_MUCH} --name {marker} -- {marker}; ");
        self.session.raw.op("exec", &hog.repeat(kills));
    }

    fn end_kills(&mut self, kills: usize) {
        let output = self.session.raw.read_runs(1).stdout();
        let victims = all(&output, "victim");
        assert_eq!(victims.len(), kills, "{output}");
        self.session.victims.extend(victims);
        assert_eq!(self.session.container.cgroup().oom_kills(), self.session.victims.len() as u64, "{output}");
    }

    fn victims(&self) -> Vec<u64> {
        let mut victims: Vec<u64> = self.session.victims.iter().map(|pid| u64::from(*pid)).collect();
        victims.sort_unstable();
        victims
    }

    /// The reported processes, after every kill was reported. All are confirmed by the node.
    #[track_caller]
    fn reported(&self) -> Vec<u64> {
        let reports = self.session.reports();
        for report in &reports {
            assert_eq!((&report["tracer"], &report["confidence"]), (&json!("node"), &json!("confirmed")), "{report}");
        }
        let mut pids: Vec<u64> = reports.iter().filter_map(|report| report["victim"]["pid"].as_u64()).collect();
        pids.sort_unstable();
        pids
    }
}

/// The messages in what a tap received.
fn messages(mut bytes: &[u8]) -> Vec<Value> {
    let mut messages = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        // The last message is cut off if the node was killed meanwhile.
        let Some((message, rest)) = rest.split_at_checked(length) else { break };
        messages.push(serde_json::from_slice(message).expect("JSON"));
        bytes = rest;
    }
    messages
}

#[test]
fn many_kills_are_reported_once_each_in_the_right_container_only() {
    let kills = env::var("KRUNNER_NODE_KILLS").map_or(KILLS, |kills| kills.parse().expect("a number"));
    let containers = (kills / KILLS_OF_A_CONTAINER).max(MIN_CONTAINERS);
    require!(host::program("python3"));
    let mut node = require!(Node::start());
    let slot = require!(container::available().and_then(|()| Cgroup::for_container()));
    let mut tenants: Vec<Tenant> =
        (0..containers).map(|number| Tenant::start(number, &node, &slot).expect("a container")).collect();
    node.until_peers(2 * containers);
    let mut left = kills.div_ceil(containers);
    while left > 0 {
        let kills = left.min(KILLS_IN_A_ROW);
        for tenant in &mut tenants {
            tenant.begin_kills(kills);
        }
        for tenant in &mut tenants {
            tenant.end_kills(kills);
        }
        left -= kills;
    }
    for tenant in &tenants {
        tenant.session.until_accounted();
    }
    let lines = wait::until("all kills in the node's log", || {
        let of = |lines: &[Value], id: &str| lines.iter().filter(|line| line["owner"]["container_id"] == id).count();
        let lines = node.lines();
        let is_all = |tenant: &Tenant| of(&lines, &tenant.container_id) >= tenant.session.victims.len();
        tenants.iter().all(is_all).then_some(lines)
    });
    // Ends the taps.
    node.kill();
    let received: Vec<Vec<u8>> = tenants
        .iter_mut()
        .map(|tenant| {
            let mut bytes = Vec::new();
            let mut stdout = tenant.tap.stdout.take().expect("a pipe");
            std::io::Read::read_to_end(&mut stdout, &mut bytes).expect("the tap's output");
            tenant.tap.wait().expect("the tap ends");
            bytes
        })
        .collect();
    for (tenant, bytes) in tenants.iter().zip(&received) {
        let (marker, victims) = (&tenant.marker, tenant.victims());
        assert_eq!(tenant.reported(), victims, "{marker}: (left: reported; right: killed)");
        let logged = lines.iter().filter(|line| line["owner"]["container_id"] == tenant.container_id.as_str());
        assert!(logged.clone().all(|line| line["victim"]["name"] == marker.as_str()), "{marker}: the node's log");
        assert_eq!(logged.count(), victims.len(), "{marker}: the node's log");
        let text = String::from_utf8_lossy(bytes);
        let crossed: Vec<Value> = messages(bytes).into_iter().filter(|message| message["type"] == "kill").collect();
        assert_eq!(crossed.len(), victims.len(), "{marker}: {text}");
        assert_eq!(text.contains(marker.as_str()), !victims.is_empty(), "{marker}");
        let others = tenants.iter().filter(|other| other.marker != *marker);
        let foreign = others.flat_map(|other| [&other.marker, &other.container_id]).map(String::as_str);
        for foreign in foreign.chain(["suites", "runc", "memory_map", "krunner-test-", "docker-"]) {
            assert!(!text.contains(foreign), "{foreign} crossed to {marker}: {text}");
        }
    }
    let killed: usize = tenants.iter().map(|tenant| tenant.session.victims.len()).sum();
    let bytes: usize = received.iter().map(Vec::len).sum();
    println!("{killed} kills in {} containers, each reported once; {bytes} bytes searched", tenants.len());
}
