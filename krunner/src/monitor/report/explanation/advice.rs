//! Formats the advice in two lines: what would have been enough, and remedies.

use std::fmt;

use crate::monitor::explain::{Advice, Remedy};
use crate::monitor::model::units::grouped;

/// Each line begins with a newline.
impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It may come from a journal that another user wrote.
        let reason = self.reason.escape_debug();
        match self.at_least_bytes {
            // Rounded up, because less would not have been enough.
            Some(bytes) => write!(f, "\nneeded: at least {}m ({reason})", grouped(bytes.div_ceil(1 << 20)))?,
            None => write!(f, "\nneeded: unknown ({reason})")?,
        }
        if !self.remedies.is_empty() {
            let remedies: Vec<&str> = self.remedies.iter().map(|remedy| in_words(*remedy)).collect();
            write!(f, "\nremedies: {}", remedies.join("; "))?;
        }
        Ok(())
    }
}

fn in_words(remedy: Remedy) -> &'static str {
    match remedy {
        Remedy::RaiseLimit => "raise the memory limit",
        Remedy::RaiseLimitAbove => {
            "raise that limit (the pod's; podman's --memory) or give other containers below it less memory"
        }
        Remedy::RaiseLimitBeside => "raise the memory limit of that sibling cgroup (another container of the pod)",
        Remedy::FewerWorkers => "run fewer or smaller worker processes",
        Remedy::FilesOnDisk => "store files on disk instead of in /dev/shm or another tmpfs",
        Remedy::FindLeak => "look for a memory leak",
        Remedy::MemoryHigh => "set memory.high (cgroup v2) below the limit to throttle instead of kill",
        Remedy::RelieveMachine => "add memory to the machine or run less on it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_and_remedies_are_a_line_each() {
        let remedies = vec![Remedy::FewerWorkers, Remedy::RaiseLimit];
        let advice = Advice { at_least_bytes: Some((1310 << 20) - 1), reason: "because".to_owned(), remedies };
        assert_eq!(
            advice.to_string(),
            "\nneeded: at least 1,310m (because)\nremedies: run fewer or smaller worker processes; raise the memory limit"
        );
        let unknown =
            Advice { at_least_bytes: None, reason: "usage was growing steadily".to_owned(), remedies: vec![] };
        assert_eq!(unknown.to_string(), "\nneeded: unknown (usage was growing steadily)");
    }
}
