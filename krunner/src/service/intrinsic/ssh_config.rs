//! The hosts of a cluster in the user's ssh configuration.
//!
//! Pure. A mounted home outlives the session, so sections of an earlier start are recognized, by their exact form, which is
//! also the Python runner's. Everything else in the file belongs to the user and stays.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

/// The ssh port of the other hosts, unless `port-mapping.json` names another.
const DEFAULT_PORT: u16 = 2200;

/// A host of the cluster, or a pattern of hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostEntry {
    pattern: String,
    address: Option<String>,
    port: u16,
}

/// Why the hosts of a cluster are not added.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostsError {
    /// The file is not the JSON of a mapping.
    #[error("not an object of [address, port] pairs ({0})")]
    NotPairs(serde_json::Error),
    /// ssh would parse the name as something else.
    #[error("{0:?} is not a valid host name")]
    Name(String),
    /// ssh would parse the address as something else.
    #[error("{name}: invalid address {address:?}")]
    Address {
        /// The host's name.
        name: String,
        /// The address in the file.
        address: String,
    },
    /// The port is not a number from 1 to 65535.
    #[error("{name}: invalid port {port}")]
    Port {
        /// The host's name.
        name: String,
        /// The port in the file, of any type.
        port: Value,
    },
    /// ssh would parse the role as something else.
    #[error("{0:?} is not a valid role")]
    Role(String),
}

/// The hosts of `port-mapping.json`: `{NAME: [ADDRESS, PORT]}`.
///
/// # Errors
/// Names the first entry that is invalid.
pub(super) fn mapped(json: &[u8]) -> Result<Vec<HostEntry>, HostsError> {
    let hosts: BTreeMap<String, (String, Value)> = serde_json::from_slice(json).map_err(HostsError::NotPairs)?;
    hosts
        .into_iter()
        .map(|(name, (address, port))| {
            let number = match &port {
                Value::Number(number) => number.as_u64().and_then(|number| u16::try_from(number).ok()),
                Value::String(text) => text.parse().ok(),
                _ => None,
            };
            match number.filter(|number| *number != 0) {
                _ if !is_plain(&name) => Err(HostsError::Name(name)),
                _ if !is_plain(&address) => Err(HostsError::Address { name, address }),
                None => Err(HostsError::Port { name, port }),
                Some(port) => Ok(HostEntry { pattern: name, address: Some(address), port }),
            }
        })
        .collect()
}

/// The hosts of `BACKENDAI_CLUSTER_REPLICAS`: `ROLE:COUNT,...`. Hosts of a role are numbered, so one pattern matches them all.
///
/// # Errors
/// Names the first entry that is invalid.
pub(super) fn by_role(replicas: &str) -> Result<Vec<HostEntry>, HostsError> {
    replicas
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let role = pair.rsplit_once(':').map_or(pair, |(role, _)| role);
            if !is_plain(role) {
                return Err(HostsError::Role(role.to_owned()));
            }
            Ok(HostEntry { pattern: format!("{role}*"), address: None, port: DEFAULT_PORT })
        })
        .collect()
}

/// Whether ssh parses the text as one word that is a name or an address.
fn is_plain(word: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:%[]".contains(&byte);
    !word.is_empty() && !word.starts_with('-') && word.bytes().all(allowed)
}

/// The user's `config` with these entries, each once, after the user's own lines, because ssh takes the first match.
pub(super) fn with_entries(config: &[u8], entries: &[HostEntry], identity: &Path) -> Vec<u8> {
    let identity = identity.to_string_lossy();
    let mut kept = without_entries(config, &identity);
    for entry in entries {
        if !kept.is_empty() {
            kept.extend_from_slice(b"\n");
        }
        kept.extend_from_slice(entry.render(&identity).as_bytes());
    }
    kept
}

impl HostEntry {
    fn render(&self, identity: &str) -> String {
        let Self { pattern, address, port } = self;
        let address = address.as_ref().map(|address| format!("\tHostName {address}\n")).unwrap_or_default();
        format!("Host {pattern}\n{address}\tPort {port}\n\tStrictHostKeyChecking no\n\tIdentityFile {identity}\n")
    }
}

/// Removes the sections that an earlier start added, with the empty line before each.
fn without_entries(config: &[u8], identity: &str) -> Vec<u8> {
    let lines: Vec<&[u8]> = config.split_inclusive(|byte| *byte == b'\n').collect();
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        match length_of_entry(&lines[at..], identity) {
            Some(length) => {
                at += length;
                if kept.last().is_some_and(|line| line.trim_ascii().is_empty()) {
                    kept.pop();
                }
            }
            None => {
                kept.push(lines[at]);
                at += 1;
            }
        }
    }
    let mut kept = kept.concat();
    if !kept.is_empty() && !kept.ends_with(b"\n") {
        kept.push(b'\n');
    }
    kept
}

/// Number of lines of the section that begins here, if it is exactly as we write it. A section with further lines belongs to
/// the user, who added them.
fn length_of_entry(lines: &[&[u8]], identity: &str) -> Option<usize> {
    let mut length = 0;
    let mut take = |fits: &dyn Fn(&str) -> bool| {
        let line = lines.get(length).and_then(|line| str::from_utf8(line).ok());
        let found = line.is_some_and(|line| fits(line.trim_end()));
        length += usize::from(found);
        found
    };
    let ours = take(&|line| line.starts_with("Host ")) && {
        take(&|line| line.starts_with("\tHostName "));
        take(&|line| line.starts_with("\tPort "))
            && take(&|line| line == "\tStrictHostKeyChecking no")
            && take(&|line| line.strip_prefix("\tIdentityFile ") == Some(identity))
    };
    let goes_on = lines.get(length).is_some_and(|line| line.starts_with(b" ") || line.starts_with(b"\t"));
    (ours && !goes_on).then_some(length)
}

#[cfg(test)]
#[path = "ssh_config_tests.rs"]
mod tests;
