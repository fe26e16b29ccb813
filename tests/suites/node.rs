//! `krunner node` and the runners of plain containers: every kill is confirmed in the right one, by its own numbers.

use std::env;
use std::io::Write as _;
use std::process::{Command, Stdio};

use krunner_tests::cgroup::Cgroup;
use krunner_tests::container::{self, HELPER, KRUNNER, Spec};
use krunner_tests::node::{Node, NodeLaunch, RUN_FOLDER};
use krunner_tests::prometheus::{Prometheus, promtool};
use krunner_tests::{LaunchMethod, Scenario, host, http, proc, require, wait};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::contained::{Contained, SEEN_MS, all, plain};
use crate::oom::{TOO_MUCH, VICTIM};
use crate::oom_burst::NO_ROOM_FOR;

/// How often the node is killed in a usual run; `KRUNNER_NODE_RESTARTS` is a larger number, for which a
/// container beside is killed all the time.
const RESTARTS: u64 = 5;

/// Follows the reason in the log of a session that uses the node.
const CONNECTED: &str = "the machine's OOM tracer (krunner node ";

/// What a server sends that reads the `OpenMetrics` format.
const OPEN_METRICS: &str = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";

/// A container without privileges that has the node's socket.
fn with_node(spec: Spec, node: &Node) -> Spec {
    spec.bind(node.run_folder(), RUN_FOLDER)
}

/// A node and a session in a plain container that uses it.
pub(crate) fn node_and_session(spec: impl FnOnce() -> Spec) -> Result<(Contained, Node), String> {
    host::program("runc")?;
    let node = Node::start()?;
    let session = Contained::start(&with_node(spec(), &node))?;
    session.runner.wait_for_log(&[CONNECTED]);
    Ok((session, node))
}

#[test]
fn plain_container_has_every_kill_confirmed() {
    let (mut session, node) = require!(node_and_session(plain));
    session.run_scenarios();
    session.assert_reported("node", "confirmed");
    for report in session.reports() {
        let limit = &report["explanation"]["limit"];
        assert_eq!((&limit["scope"], &limit["is_exact"]), (&json!("container"), &json!(true)), "{report}");
        assert!(report["explanation"]["usage"]["total_bytes"].as_u64() > Some(0), "{report}");
        assert_eq!(
            report["ancestors"].as_array().and_then(|above| above.last()).map(|first| &first["pid"]),
            Some(&json!(1))
        );
        assert!(report["victim"]["anon_bytes"].as_u64() > Some(0), "the kernel's figures: {report}");
    }
    let killed = session.container.cgroup().oom_kills();
    assert!(node.status()["kills"].as_u64() >= Some(killed), "{}", node.status());
}

#[test]
fn doctor_and_status_show_the_node() {
    let (mut session, node) = require!(node_and_session(plain));
    let told: Value = serde_json::from_str(&session.run(&format!("{KRUNNER} doctor --json"))).expect("JSON");
    assert_eq!(told["tracer"], "node", "{told}");
    let status = node.status();
    let peers = status["peers"].as_array().expect("peers");
    let scope = peers[0]["scope"].as_str().expect("a scope");
    assert!(peers.len() == 1 && scope.starts_with("pid:["), "{status}");
    let told = session.run(&format!("{KRUNNER} node status 2>&1; echo code $?"));
    assert!(told.contains("the node's status is for root on the host") && told.ends_with("code 1\n"), "{told}");
}

#[test]
fn log_and_metrics_have_the_kill_and_no_command_line() {
    let (mut session, node) = require!(node_and_session(plain));
    let told = session.run(&format!("{HELPER} eat {TOO_MUCH} --name leaky -- --password=hunter2"));
    let (victim, name) = (all(&told, "victim")[0], session.container.cgroup().path().to_owned());
    session.until_report_of(victim);
    let folder = name.file_name().and_then(|name| name.to_str()).expect("a name");
    let is_ours = |line: &Value| line["cgroup"]["path"].as_str().is_some_and(|path| path.contains(folder));
    let line = wait::until("the node's line", || node.lines().into_iter().find(|line| is_ours(line)));
    assert_eq!((&line["event"], &line["confidence"]), (&json!("oom_kill"), &json!("confirmed")), "{line}");
    assert_eq!(line["explanation"]["limit"]["scope"], "container", "as the victim sees it: {line}");
    assert!(!line.to_string().contains("hunter2"), "{line}");
    let metrics = node.scrape(&[OPEN_METRICS]);
    assert!(!metrics.contains("hunter2") && metrics.contains("krunner_oom_kills_total{"), "{metrics}");
    assert!(metrics.contains("application/openmetrics-text") && metrics.trim_end().ends_with("# EOF"), "{metrics}");
}

/// The kernel's count.
fn kills_in(session: &Contained) -> f64 {
    u32::try_from(session.container.cgroup().oom_kills()).expect("a few").into()
}

/// Each container is killed for the first time while the server scrapes: `increase` counts from the first sample that it
/// has, so there must be one before the kill.
#[test]
fn prometheus_counts_the_kills_of_each_container() {
    let node = require!(Node::start());
    let prometheus = require!(Prometheus::start(node.metrics_port()));
    let slot = require!(container::available().and_then(|()| Cgroup::for_container()));
    let containers = [1, 2].map(|kills| (kills, slot.of_docker_beside().expect("a cgroup")));
    let mut sessions = containers.map(|(kills, (cgroup, id))| (kills, id, Contained::start_in(&plain(), cgroup)));
    prometheus.until("up", 1.0);
    for (kills, _, session) in &mut sessions {
        for _ in 0..*kills {
            session.kill(&format!("eat {TOO_MUCH}"), 1);
        }
    }
    for (_, id, session) in &sessions {
        let kills = kills_in(session);
        let labels = format!("container=\"{id}\",confidence=\"confirmed\",scope=\"cgroup\"");
        prometheus.until(&format!("krunner_oom_kills_total{{{labels}}}"), kills);
        // Extrapolation, to the end of the window, adds a part of a scrape interval.
        prometheus.until(&format!("round(increase(krunner_oom_kills_total{{container=\"{id}\"}}[5m]))"), kills);
    }
    assert_eq!(prometheus.value("krunner_tracer_attached"), Some(1.0));
}

/// A server that has scraped the node before.
#[test]
fn first_kill_after_a_restart_of_the_node_is_an_increase() {
    let mut node = require!(Node::start());
    let prometheus = require!(Prometheus::start(node.metrics_port()));
    let slot = require!(container::available().and_then(|()| Cgroup::for_container()));
    let (cgroup, id) = slot.of_docker_beside().expect("a cgroup");
    let mut session = Contained::start_in(&plain(), cgroup);
    prometheus.until("up", 1.0);
    node.kill();
    prometheus.until("up", 0.0);
    node.kill_and_restart();
    session.kill(&format!("eat {TOO_MUCH}"), 1);
    let kills = kills_in(&session);
    prometheus.until(&format!("round(increase(krunner_oom_kills_total{{container=\"{id}\"}}[5m]))"), kills);
}

#[test]
fn promtool_accepts_the_metrics() {
    let promtool = require!(promtool());
    let (mut session, node) = require!(node_and_session(plain));
    session.kill(&format!("eat {TOO_MUCH}"), 1);
    let metrics = wait::until("the kill", || Some(node.scrape(&[])).filter(|text| text.contains("_kills_total{")));
    assert!(metrics.contains("text/plain; version=0.0.4"), "who does not ask for another format: {metrics}");
    let mut check = Command::new(promtool);
    check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut check = check.spawn().expect("promtool starts");
    check.stdin.take().expect("a pipe").write_all(http::body(&metrics).as_bytes()).expect("it reads");
    let output = check.wait_with_output().expect("it ends");
    let complaints = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && complaints.is_empty(), "{}\n{metrics}", String::from_utf8_lossy(&complaints));
}

/// Two tenants at once, who have the same node.
#[track_caller]
fn keep_apart(spec: impl Fn() -> Spec) {
    const TENANTS: [&str; 2] = ["tenant-a", "tenant-b"];
    let node = require!(Node::start());
    let first = require!(container::available().and_then(|()| Cgroup::for_container()));
    let second = first.beside().expect("a cgroup beside the first");
    let spec = with_node(spec(), &node);
    let mut sessions = [first, second].map(|cgroup| Contained::start_in(&spec, cgroup));
    for session in &sessions {
        session.runner.wait_for_log(&[CONNECTED]);
    }
    for (session, tenant) in sessions.iter_mut().zip(TENANTS) {
        let hog = format!("{HELPER} eat {TOO_MUCH} --after-ms 300 -- {tenant}");
        session.raw.op("exec", &format!("sh -c 'sleep 600; : {tenant}' & {hog}; {hog}; kill $!"));
    }
    for session in &mut sessions {
        session.victims = all(&session.raw.read_runs(1).stdout(), "victim");
        assert_eq!((session.victims.len(), session.container.cgroup().oom_kills()), (2, 2));
    }
    for ((session, own), other) in sessions.iter_mut().zip(TENANTS).zip(TENANTS.iter().rev()) {
        session.assert_reported("node", "confirmed");
        let told = [session.runner.stderr(), session.runner.read(".logs/oom.jsonl").unwrap_or_default()].concat();
        assert!(told.contains(own) && !told.contains(other), "{own}: {told}");
    }
}

#[test]
fn two_tenants_are_kept_apart() {
    keep_apart(plain);
}

#[test]
fn two_tenants_in_the_hosts_pid_namespace_are_kept_apart() {
    keep_apart(|| plain().host_pids());
}

/// Containers may share a memory cgroup: a kill in one of them is counted in the other, too. The process that exits at that moment
/// is what would be inferred without the node.
#[test]
fn kill_in_another_container_of_the_same_cgroup_has_no_victim_here() {
    let (mut session, node) = require!(node_and_session(plain));
    session.raw.op(
        "exec",
        &format!(
            "mkfifo hold; ({HELPER} eat 16 --hold < hold > printed &) ; exec 3> hold
             until grep -q ready printed; do sleep 0.05; done; sleep 2.5; echo yes > seen
             until [ -e killed ]; do sleep 0.01; done; exec 3>&-; sleep 0.2; cat printed"
        ),
    );
    session.runner.wait_for("seen");
    let mut command = LaunchMethod::direct().cgroup(session.container.cgroup()).command(VICTIM);
    command.args(["eat", TOO_MUCH]);
    let outcome = Scenario::start(command).end();
    session.runner.write("killed", "");
    assert_eq!(session.container.cgroup().oom_kills(), 1, "{outcome:?}");
    let bystander = session.raw.read_runs(1).stdout();
    assert!(bystander.contains("ready"), "{bystander}");
    session.runner.wait_for_log(&["krunner node saw no kill in this container"]);
    let reports = session.reports();
    assert!(reports.iter().all(|report| report["victim"].is_null()), "{reports:#?}");
    // Other tests kill on this machine, too.
    let victim = outcome.pid("victim");
    assert!(node.lines().iter().any(|line| line["victim"]["pid"] == victim), "{victim}: {:#?}", node.lines());
    let peers = &node.status()["peers"];
    assert_eq!((&peers[0]["sent"], &peers[0]["missed"]), (&json!(0), &json!(0)), "{peers}");
}

/// One tenant must not fill the ring buffer of all. The node records nothing that a process of a container sends.
#[test]
fn signals_of_a_tenant_take_no_room() {
    let (mut session, node) = require!(node_and_session(plain));
    proc::signal(node.pid(), Signal::SIGSTOP);
    session.run(&format!("{HELPER} kill-zombie {NO_ROOM_FOR}"));
    proc::signal(node.pid(), Signal::SIGCONT);
    session.kill(&format!("eat {TOO_MUCH}"), 1);
    session.assert_reported("node", "confirmed");
    assert_eq!(node.status()["lost_records"], 0, "{}", node.status());
}

#[test]
fn node_enters_the_hosts_cgroup_namespace_or_says_that_it_must() {
    require!(host::root().and_then(|()| host::util_linux()).and_then(|()| Node::start().map(drop)));
    // The path of the socket is taken, so that the node ends.
    let started = |without: &str| {
        let mut command = Command::new("unshare");
        command.args(["--cgroup", "setpriv", &format!("--bounding-set={without}")]).arg(krunner_tests::binary());
        command.args(["node", "--socket", "/proc/version"]).output().expect("unshare starts")
    };
    let output = started("-sys_admin");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("must run in the host's cgroup namespace"), "{said}");
    let said = String::from_utf8_lossy(&started("+all").stderr).into_owned();
    assert!(said.contains("/proc/version") && !said.contains("cgroup namespace"), "{said}");
}

#[test]
fn killed_node_loses_no_kill_and_doubles_none() {
    let rounds = env::var("KRUNNER_NODE_RESTARTS").map_or(RESTARTS, |rounds| rounds.parse().expect("a number"));
    let (mut session, mut node) = require!(node_and_session(plain));
    let neighbour = (rounds > RESTARTS).then(|| {
        let beside = session.container.cgroup().beside().expect("a cgroup");
        let mut neighbour = Contained::start_in(&with_node(plain(), &node), beside);
        neighbour.raw.op("exec", &format!("while :; do {HELPER} eat {TOO_MUCH}; sleep 0.2; done"));
        neighbour
    });
    let peers = 1 + usize::from(neighbour.is_some());
    for round in 0..rounds {
        // Killed before, during and after a kill. The process is seen by a scan, so that it can be inferred.
        let hog = format!("{HELPER} eat {TOO_MUCH} --after-ms {SEEN_MS}; echo code $?");
        session.raw.op("exec", &hog);
        std::thread::sleep(std::time::Duration::from_millis(SEEN_MS + 40 * (round % RESTARTS) - 60));
        node.kill();
        let told = session.raw.read_runs(1).stdout();
        assert!(told.contains("code 137"), "{told}");
        session.victims.extend(all(&told, "victim"));
        session.kill_seen();
        node.kill_and_restart();
        node.until_peers(peers);
        session.kill(&format!("eat {TOO_MUCH}"), 1);
    }
    session.kill_holder();
    session.until_report_of(*session.victims.last().expect("the marker"));
    session.until_accounted();
    let reports = session.reports();
    let mut told: Vec<u64> = reports.iter().filter_map(|report| report["victim"]["pid"].as_u64()).collect();
    let mut killed: Vec<u64> = session.victims.iter().map(|pid| u64::from(*pid)).collect();
    told.sort_unstable();
    killed.sort_unstable();
    assert_eq!(told, killed, "each once (left: reported; right: killed)");
    let confirmed = reports.iter().filter(|report| report["tracer"] == "node").count() as u64;
    println!("{confirmed} of {} confirmed", reports.len());
    assert!(confirmed > rounds, "those while it was there: {reports:#?}");
}

#[test]
fn stopped_node_removes_its_socket() {
    let mut node = require!(Node::start());
    assert!(node.socket().exists());
    assert_eq!(node.end(), Some(0), "{}", node.stderr());
    assert!(!node.socket().exists());
}

#[test]
fn systemd_is_told_that_the_node_is_ready_and_alive() {
    let folder = tempfile::TempDir::with_prefix("krn-").expect("a temporary folder");
    let path = folder.path().join("notify");
    let notified = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    notified.set_read_timeout(Some(wait::PATIENCE)).expect("a timeout");
    let launch = NodeLaunch::default().variable("NOTIFY_SOCKET", &path).variable("WATCHDOG_USEC", "400000");
    let _node = require!(Node::start_with(launch));
    let hear = || {
        let mut bytes = [0; 64];
        let length = notified.recv(&mut bytes).expect("a message");
        String::from_utf8_lossy(&bytes[..length]).trim().to_owned()
    };
    let mut told: Vec<String> = (0..4).map(|_| hear()).collect();
    told.dedup();
    told.sort();
    assert_eq!(told, ["READY=1", "WATCHDOG=1"]);
}
