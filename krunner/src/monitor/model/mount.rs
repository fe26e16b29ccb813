//! The memory that a mount uses.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A tmpfs mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct MountUsage {
    /// The mount point.
    pub path: String,
    /// Memory in use (statvfs(3)).
    pub used_bytes: u64,
    /// Size limit of the mount.
    pub size_bytes: Option<u64>,
}
