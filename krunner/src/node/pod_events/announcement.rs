//! What is announced of the kills in a container. Plain values.

use std::time::SystemTime;

use crate::node::names::Owner;

/// A container of a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PodContainer {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) pod_uid: String,
    pub(super) container: String,
}

impl PodContainer {
    /// `None` unless it is a pod's whose name is known.
    pub(super) fn of(owner: &Owner) -> Option<Self> {
        Some(Self {
            namespace: owner.namespace.clone()?,
            pod: owner.pod.clone()?,
            pod_uid: owner.pod_uid.clone()?,
            container: owner.container.clone()?,
        })
    }
}

/// What is announced of a container's series of kills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Announcement {
    /// Killed processes since the last announcement.
    pub(super) new: u64,
    /// The first of them.
    pub(super) first: SystemTime,
    /// The last of them.
    pub(super) last: SystemTime,
    /// About the first of them.
    pub(super) summary: String,
    /// Killed processes of the series.
    pub(super) killed: u64,
    /// The first kill of the series.
    pub(super) since: SystemTime,
}

/// An announcement with the container that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DueAnnouncement {
    pub(super) container: PodContainer,
    pub(super) announcement: Announcement,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pods_with_names_have_events() {
        let [namespace, pod, pod_uid, container] = ["shop", "web-0", "0b1f", "web"].map(str::to_owned);
        let owner = Owner {
            namespace: Some(namespace.clone()),
            pod: Some(pod.clone()),
            container: Some(container.clone()),
            ..Owner::default()
        };
        assert_eq!(PodContainer::of(&owner), None, "no pod has made this cgroup");
        let owner = Owner { pod_uid: Some(pod_uid.clone()), ..owner };
        assert_eq!(PodContainer::of(&owner), Some(PodContainer { namespace, pod, pod_uid, container }));
        assert_eq!(PodContainer::of(&Owner { namespace: None, ..owner }), None);
    }
}
