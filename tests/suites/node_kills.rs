//! Many kills in many containers at once: each is reported once, in its own container, and nothing of it anywhere else.
//!
//! `KRUNNER_NODE_KILLS=1000` causes as many, in 50 containers; it takes minutes. `KRUNNER_NODE_CONTAINERS` is another number of them.

use std::collections::BTreeSet;
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

/// The part of the kills, in percent, that may be of another process of the container than the one that fills it: while that one's
/// memory is not free yet, who allocates is killed as well (see [`Contained::kill`]).
const MAX_OTHERS_PERCENT: usize = 2;

/// With fewer than three, a kill that goes to all others looks like one that goes to the next.
const MIN_CONTAINERS: usize = 3;

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

    /// One kill for each step: a shell that starts another process, while the memory of the one before is not free yet, may be
    /// killed itself.
    fn begin_kill(&mut self) {
        let marker = &self.marker;
        self.session.raw.op("exec", &format!("{HELPER} eat {TOO_MUCH} --name {marker} -- {marker};"));
    }

    fn end_kill(&mut self) {
        let transcript = self.session.raw.read_runs(1);
        let output = transcript.stdout();
        let victims = all(&output, "victim");
        assert_eq!(victims.len(), 1, "{output}; {:?}", transcript.codes());
        self.session.victims.extend(victims);
        assert!(self.kills() >= self.session.victims.len(), "{output}");
    }

    /// The kernel's count.
    fn kills(&self) -> usize {
        usize::try_from(self.session.container.cgroup().oom_kills()).expect("a number of processes")
    }

    /// Kills that filling the container caused, of other processes than the one that does.
    fn others(&self) -> usize {
        self.kills() - self.session.victims.len()
    }

    /// Waits until as many kills are reported as the kernel counted.
    #[track_caller]
    fn until_accounted(&self) {
        let kills = self.kills();
        wait::until_true(&format!("{kills} reports in {}", self.marker), || self.session.reports().len() >= kills);
    }

    fn victims(&self) -> BTreeSet<u64> {
        self.session.victims.iter().map(|pid| u64::from(*pid)).collect()
    }

    /// The reported processes. All are confirmed by the node, and none is reported twice.
    #[track_caller]
    fn reported(&self) -> BTreeSet<u64> {
        let reports = self.session.reports();
        for report in &reports {
            assert_eq!((&report["tracer"], &report["confidence"]), (&json!("node"), &json!("confirmed")), "{report}");
        }
        let pids: BTreeSet<u64> = reports.iter().filter_map(|report| report["victim"]["pid"].as_u64()).collect();
        assert_eq!(pids.len(), reports.len(), "{}: {reports:#?}", self.marker);
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
    let number = |variable: &str, usual| env::var(variable).map_or(usual, |number| number.parse().expect("a number"));
    let kills: usize = number("KRUNNER_NODE_KILLS", KILLS);
    let containers = number("KRUNNER_NODE_CONTAINERS", (kills / KILLS_OF_A_CONTAINER).max(MIN_CONTAINERS));
    require!(host::program("python3"));
    let mut node = require!(Node::start());
    let slot = require!(container::available().and_then(|()| Cgroup::for_container()));
    let mut tenants: Vec<Tenant> =
        (0..containers).map(|number| Tenant::start(number, &node, &slot).expect("a container")).collect();
    node.until_peers(2 * containers);
    for _ in 0..kills.div_ceil(containers) {
        tenants.iter_mut().for_each(Tenant::begin_kill);
        tenants.iter_mut().for_each(Tenant::end_kill);
    }
    for tenant in &tenants {
        tenant.until_accounted();
    }
    let of = |lines: &[Value], id: &str| lines.iter().filter(|line| line["owner"]["container_id"] == id).count();
    let is_all = |lines: &[Value]| tenants.iter().all(|tenant| of(lines, &tenant.container_id) >= tenant.kills());
    let all_lines = wait::within(wait::PATIENCE, || Some(node.lines()).filter(|lines| is_all(lines)));
    let lines = all_lines.unwrap_or_else(|| {
        let lines = node.lines();
        let short =
            |tenant: &Tenant| format!("{}: {} of {}", tenant.marker, of(&lines, &tenant.container_id), tenant.kills());
        let others: Vec<&Value> = lines.iter().filter(|line| line["owner"]["container_id"].is_null()).collect();
        let counts: Vec<String> = tenants.iter().map(short).collect();
        panic!("the node's log lacks kills: {counts:?}; lines without a container: {others:#?}");
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
        let (marker, victims, reported) = (&tenant.marker, tenant.victims(), tenant.reported());
        assert_eq!(reported.len(), tenant.kills(), "{marker}: (left: reported; right: counted)");
        assert!(reported.is_superset(&victims), "{marker}: reported {reported:?}, killed {victims:?}");
        let logged = lines.iter().filter(|line| line["owner"]["container_id"] == tenant.container_id.as_str());
        let of_victims = logged.clone().filter(|line| line["victim"]["name"] == marker.as_str());
        assert_eq!(of_victims.count(), victims.len(), "{marker}: the node's log");
        assert_eq!(logged.count(), tenant.kills(), "{marker}: the node's log");
        let text = String::from_utf8_lossy(bytes);
        let crossed: Vec<Value> = messages(bytes).into_iter().filter(|message| message["type"] == "kill").collect();
        // The tap may be one of the others.
        assert!(crossed.len() == tenant.kills() || tenant.others() > 0, "{marker}: {text}");
        assert_eq!(text.contains(marker.as_str()), !victims.is_empty(), "{marker}");
        let others = tenants.iter().filter(|other| other.marker != *marker);
        let foreign = others.flat_map(|other| [&other.marker, &other.container_id]).map(String::as_str);
        for foreign in foreign.chain(["suites", "runc", "memory_map", "krunner-test-", "docker-"]) {
            assert!(!text.contains(foreign), "{foreign} crossed to {marker}: {text}");
        }
    }
    let sum = |number: fn(&Tenant) -> usize| tenants.iter().map(number).sum::<usize>();
    let (killed, others) = (sum(Tenant::kills), sum(Tenant::others));
    assert!(others * 100 <= killed * MAX_OTHERS_PERCENT, "{others} of {killed} kills were of other processes");
    let bytes: usize = received.iter().map(Vec::len).sum();
    println!(
        "{killed} kills ({others} of other processes) in {} containers, each reported once; {bytes} bytes searched",
        tenants.len()
    );
}
