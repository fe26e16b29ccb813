//! Fuzz targets of the user's ssh files, into which the runner merges the cluster's hosts and keys.

use std::path::Path;

use super::authorized_keys::with_keys;
use super::ssh_config::{by_role, mapped, with_entries};

/// Hosts are added once however often the session starts, and the user's lines stay in their order.
pub(crate) fn ssh_config(mapping: &[u8], config: &[u8]) {
    let identity = Path::new("/home/config/ssh/id_cluster");
    let by_role = str::from_utf8(mapping).ok().and_then(|replicas| by_role(replicas).ok());
    for entries in [mapped(mapping).ok(), by_role].into_iter().flatten() {
        let once = with_entries(config, &entries, identity);
        assert_eq!(with_entries(&once, &entries, identity), once, "{}", once.escape_ascii());
        // Without hosts, what we added before is gone, and nothing else.
        let without = with_entries(&once, &[], identity);
        assert_eq!(without, with_entries(config, &[], identity));
        assert!(once.starts_with(&without));
        assert!(is_subsequence(&lines(&without), &lines(config)), "{}", without.escape_ascii());
        let added = once.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"\tIdentityFile ")).count();
        assert!(added >= entries.len());
    }
}

/// Keys are added once, and no other line changes.
pub(crate) fn authorized_keys(authorized: &[u8], keys: &[u8]) {
    let Some(new) = with_keys(authorized, keys) else { return };
    assert_eq!(with_keys(&new, keys), None, "{}", new.escape_ascii());
    let (before, after) = (lines(authorized), lines(&new));
    let added = lines(keys);
    let others =
        |lines: &[&[u8]]| lines.iter().filter(|line| !added.contains(line)).map(|line| line.to_vec()).collect();
    let (others_before, others_after): (Vec<_>, Vec<_>) = (others(&before), others(&after));
    assert_eq!(others_before, others_after);
    assert!(before.iter().all(|line| after.contains(line)), "a line is lost");
    assert!(new.len() <= authorized.len() + keys.len() + 2);
}

fn lines(text: &[u8]) -> Vec<&[u8]> {
    text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()).collect()
}

fn is_subsequence(part: &[&[u8]], whole: &[&[u8]]) -> bool {
    let mut whole = whole.iter();
    part.iter().all(|line| whole.any(|other| other == line))
}
