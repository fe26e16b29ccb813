//! Checks that `krunner node`, which loads eBPF programs of its own, is ready on this kernel and confirms a kill in a PID namespace.

use crate::watched_cgroup::WatchedCgroup;

/// `Err` describes what is missing.
pub(crate) fn check() -> Result<(), String> {
    let node = WatchedCgroup::start("node-check", &["node", "--socket", "/tmp/node-check.sock"]);
    let mut node = node.map_err(|error| format!("cannot start a node: {error}"))?;
    node.event("node_started")?;
    let report = node.kill("unshare -p -f victim eat 200")?;
    let is_right = report["confidence"] == "confirmed" && report["victim"]["name"] == "victim";
    if is_right { Ok(()) } else { Err(format!("the report of the kill: {report}")) }
}
