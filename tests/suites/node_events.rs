//! `krunner node --events`: OOM kills in pods become Kubernetes Events. The API server is a stand-in (`tests/programs/api_server.py`)
//! that checks each object with the published schemas.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use krunner_tests::cgroup::Cgroup;
use krunner_tests::container::{self, HELPER};
use krunner_tests::node::{Node, NodeLaunch, RUN_FOLDER};
use krunner_tests::{Server, binary, host, require, wait};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::contained::{Contained, all, plain};
use crate::oom::TOO_MUCH;

/// Where a pod finds its service account, below `/run`.
const ACCOUNT: &str = "secrets/kubernetes.io/serviceaccount";

/// A node in a pod, and a session in a container of another pod. The fields are dropped in this order.
struct Cluster {
    session: Contained,
    node: Node,
    _cgroups: [Cgroup; 2],
    uid: String,
    container_id: String,
    server: Server,
    _folder: TempDir,
}

impl Cluster {
    /// The server gives these answers first (0: none).
    fn start(answers: &[&str]) -> Result<Self, String> {
        container::available()?;
        host::program("unshare")?;
        let python = host::agent_python_with("kubernetes_validate")?;
        let folder = TempDir::with_prefix("kre-").map_err(|error| error.to_string())?;
        let [log, run] = ["log", "run"].map(|name| folder.path().join(name));
        let account = run.join(ACCOUNT);
        for folder in [&log.join("containers"), &account] {
            fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        }
        let account_text = account.to_str().expect("a path in UTF-8");
        let server = Server::start(&python, "api_server.py", &[&[account_text], answers].concat());
        let slot = Cgroup::for_container()?;
        let uid = format!("{:08x}-9c1d-4a7e-8f53-{:012x}", std::process::id(), server.pid());
        let (pod, cgroup, container_id) = slot.of_pod_beside(&uid)?;
        let link = log.join("containers").join(format!("web-0_shop_app-{container_id}.log"));
        symlink("/does/not/exist", link).map_err(|error| error.to_string())?;
        let launch = NodeLaunch::default()
            .variable("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            .variable("KUBERNETES_SERVICE_PORT", server.told("port"))
            .variable("NODE_NAME", "worker-7")
            .argument("--events")
            .in_pod(&log, &run);
        let node = Node::start_with(launch)?;
        let session = Contained::start_in(&plain().bind(node.run_folder(), RUN_FOLDER), cgroup);
        session.runner.wait_for_log(&["the machine's OOM tracer (krunner node "]);
        Ok(Self { session, node, _cgroups: [pod, slot], uid, container_id, server, _folder: folder })
    }

    /// The next request as the server saw it, and its answer.
    #[track_caller]
    fn request(&self, code: u64) -> Value {
        let request = self.server.next();
        assert_eq!(request["code"], code, "{request:#}");
        request["event"].clone()
    }

    #[track_caller]
    fn until_counted(&self, outcome: &str, number: u64) {
        let line = format!("krunner_kubernetes_events_total{{outcome=\"{outcome}\"}} {number}");
        wait::until_true(&line, || self.node.scrape(&[]).contains(&line));
    }
}

#[test]
fn kill_in_a_pod_becomes_an_event_on_it() {
    let mut cluster = require!(Cluster::start(&[]));
    // The node looks for the ancestors after the kill, so the shell has to be there.
    let output = cluster.session.run(&format!("{HELPER} eat {TOO_MUCH} --name leaky -- --password=hunter2; sleep 1"));
    let victim = all(&output, "victim")[0];
    let event = cluster.request(201);
    let regarding =
        json!({"apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web-0", "uid": cluster.uid});
    assert_eq!(event["regarding"], regarding, "{event:#}");
    assert_eq!((&event["reason"], &event["reportingInstance"]), (&json!("OOMKilledProcess"), &json!("worker-7")));
    let note = event["note"].as_str().expect("a note");
    assert!(note.starts_with("container app: leaky was OOM-killed with "), "{note}");
    for part in
        ["; started by ", "krunner", "; limit: ", "m for this container, ", "; needed: at least ", "; remedies: "]
    {
        assert!(note.contains(part), "no {part:?} in {note}");
    }
    for foreign in ["hunter2", "suites", "runc", &cluster.container_id] {
        assert!(!event.to_string().contains(foreign), "{foreign} in {event:#}");
    }
    // A second kill is counted, and announced with others later.
    cluster.session.kill(&format!("eat {TOO_MUCH}"), 1);
    cluster.session.until_report_of(victim);
    cluster.until_counted("created", 1);
    assert_eq!(cluster.server.finish(), Vec::<Value>::new());
}

#[test]
fn event_is_sent_until_the_server_takes_it() {
    let mut cluster = require!(Cluster::start(&["503", "0", "401"]));
    cluster.session.kill(&format!("eat {TOO_MUCH}"), 1);
    let events = [503, 0, 401, 201].map(|code| cluster.request(code));
    assert!(events.iter().all(|event| *event == events[0]), "{events:#?}");
    cluster.until_counted("created", 1);
}

/// The answer was lost, the object was not.
#[test]
fn event_that_exists_was_created() {
    let mut cluster = require!(Cluster::start(&["409"]));
    cluster.session.kill(&format!("eat {TOO_MUCH}"), 1);
    cluster.request(409);
    cluster.until_counted("created", 1);
}

#[test]
fn refused_event_is_logged_with_the_remedy_and_the_node_goes_on() {
    let mut cluster = require!(Cluster::start(&["403"]));
    let output = cluster.session.run(&format!("{HELPER} eat {TOO_MUCH}"));
    cluster.request(403);
    cluster.until_counted("refused", 1);
    let expected = [
        "no Kubernetes Event for an OOM kill in the namespace shop: the API server answered 403 Forbidden: events.events.k8s.io is",
        "(the service account needs the permission `create` for `events` of the group `events.k8s.io`)",
    ];
    // Log lines are written by a thread.
    wait::until_true("the remedy in the log", || expected.iter().all(|part| cluster.node.stderr().contains(part)));
    cluster.session.until_report_of(all(&output, "victim")[0]);
}

#[test]
fn node_that_is_in_no_pod_says_so() {
    // Where a node can run at all.
    require!(Node::start());
    let mut command = Command::new(binary());
    command.args(["node", "--events"]).env_remove("KUBERNETES_SERVICE_HOST").stdin(Stdio::null());
    let output = command.output().expect("krunner starts");
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    let expected =
        "cannot create Kubernetes Events (--events): KUBERNETES_SERVICE_HOST is not set: the node must run in a pod";
    assert!(log.contains(expected), "{log}");
}
