//! An Event as the API takes it: `events.k8s.io/v1`, the fields that are sent.
//!
//! Each Event counts for itself: readers order Events by `eventTime` and drop old ones, so it is the time of the first kill that
//! this Event counts, and `series` has their number.
//!
//! The names of the fields, their lengths and which are required: `ValidateEventCreate` (pkg/apis/core/validation/events.go of
//! kubernetes). Tests check the objects with the published schemas of several versions.

use std::time::SystemTime;

use serde::Serialize;

use super::announcement::{Announcement, PodContainer};
use crate::monitor::utc;

/// Who reports, as in `kubectl describe`.
const CONTROLLER: &str = "krunner-node";

/// Names the reporting instance; the downward API can set it to the node's name.
const NODE_NAME_VARIABLE: &str = "NODE_NAME";

/// Longest note, in bytes.
const MAX_NOTE_BYTES: usize = 1024;

/// Bytes of the reporting instance.
const MAX_INSTANCE_BYTES: usize = 128;

/// Bytes of an object's name (RFC 1123 subdomain).
const MAX_NAME_BYTES: usize = 253;

/// The instance that reports.
#[derive(Debug, Clone)]
pub(super) struct Reporter {
    instance: String,
}

/// The object that is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodEvent {
    api_version: &'static str,
    kind: &'static str,
    pub(super) metadata: Metadata,
    #[serde(rename = "type")]
    severity: &'static str,
    reason: &'static str,
    action: &'static str,
    note: String,
    event_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    series: Option<EventSeries>,
    reporting_controller: &'static str,
    reporting_instance: String,
    regarding: ObjectReference,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) namespace: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct EventSeries {
    count: i32,
    last_observed_time: String,
}

/// The pod. Without a `fieldPath`: whether the container is an init container is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ObjectReference {
    api_version: &'static str,
    kind: &'static str,
    namespace: String,
    name: String,
    /// As the kubelet has it. That of a static pod is its manifest's hash, with which `kubectl describe` finds it.
    uid: String,
}

impl Reporter {
    /// The node, or else this pod.
    pub(super) fn of_this_process() -> Self {
        let host = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let node = std::env::var(NODE_NAME_VARIABLE).ok().filter(|name| !name.is_empty());
        let instance = node.or_else(host).unwrap_or_else(|| CONTROLLER.to_owned());
        Self { instance: cut(instance, MAX_INSTANCE_BYTES) }
    }
}

impl PodEvent {
    pub(super) fn new(reporter: &Reporter, container: PodContainer, announcement: Announcement) -> Self {
        let PodContainer { namespace, pod, pod_uid, container } = container;
        let Announcement { new, first, last, summary, killed, since } = announcement;
        let note = match (new, killed) {
            (_, 0 | 1) => format!("container {container}: {summary}"),
            (new, killed) if new == killed => {
                format!("container {container}: {killed} processes were OOM-killed; the first: {summary}")
            }
            (new, killed) => format!(
                "container {container}: {new} more processes were OOM-killed, {killed} since {}; the first of them: {summary}",
                utc(since)
            ),
        };
        let series = (new > 1)
            .then(|| EventSeries { count: i32::try_from(new).unwrap_or(i32::MAX), last_observed_time: utc(last) });
        Self {
            api_version: "events.k8s.io/v1",
            kind: "Event",
            metadata: Metadata { name: name_of(&pod, last), namespace: namespace.clone() },
            severity: "Warning",
            reason: "OOMKilledProcess",
            action: "OOMKill",
            note: cut(note, MAX_NOTE_BYTES),
            event_time: utc(first),
            series,
            reporting_controller: CONTROLLER,
            reporting_instance: reporter.instance.clone(),
            regarding: ObjectReference { api_version: "v1", kind: "Pod", namespace, name: pod, uid: pod_uid },
        }
    }
}

/// As client-go names Events: the object's name and the time.
fn name_of(pod: &str, at: SystemTime) -> String {
    let nanoseconds = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let suffix = format!(".{nanoseconds:x}");
    let end = pod.floor_char_boundary(MAX_NAME_BYTES - suffix.len());
    format!("{}{suffix}", pod[..end].trim_end_matches(['-', '.']))
}

fn cut(text: String, max: usize) -> String {
    if text.len() <= max {
        return text;
    }
    let end = text.floor_char_boundary(max - "…".len());
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn event(new: u64, killed: u64, summary: &str) -> PodEvent {
        let [namespace, pod, pod_uid, container] = ["shop", "web-0", "0b1f", "web"].map(str::to_owned);
        let container = PodContainer { namespace, pod, pod_uid, container };
        let first = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
        let last = first + Duration::from_secs(7);
        let reporter = Reporter { instance: "node-1".to_owned() };
        let since = first - Duration::from_mins(1);
        let summary = summary.to_owned();
        PodEvent::new(&reporter, container, Announcement { new, first, last, summary, killed, since })
    }

    #[test]
    fn first_event_has_no_series_and_later_ones_count() {
        let first = serde_json::to_value(event(1, 1, "python was OOM-killed")).unwrap();
        assert_eq!(
            first,
            json!({
                "apiVersion": "events.k8s.io/v1", "kind": "Event",
                "metadata": {"name": "web-0.18fae27834ef8600", "namespace": "shop"},
                "type": "Warning", "reason": "OOMKilledProcess", "action": "OOMKill",
                "note": "container web: python was OOM-killed",
                "eventTime": "2027-01-15T08:00:00.000000Z",
                "reportingController": "krunner-node", "reportingInstance": "node-1",
                "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web-0", "uid": "0b1f"},
            })
        );
        let later = serde_json::to_value(event(3, 9, "x")).unwrap();
        assert_eq!(
            later["note"],
            "container web: 3 more processes were OOM-killed, 9 since 2027-01-15T07:59:00.000000Z; the first of them: x"
        );
        assert_eq!(later["series"], json!({"count": 3, "lastObservedTime": "2027-01-15T08:00:07.000000Z"}));
    }

    #[test]
    fn lengths_are_within_what_the_api_takes() {
        assert_eq!(event(1, 1, &"é".repeat(2000)).note.len(), MAX_NOTE_BYTES);
        let name = name_of(&"a-".repeat(126), SystemTime::now());
        assert!(name.len() <= MAX_NAME_BYTES && !name.contains("-."), "{name}");
    }
}
