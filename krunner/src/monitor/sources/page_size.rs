//! The page size of this machine, in which the kernel counts memory.

use nix::unistd::{SysconfVar, sysconf};

/// Page size if `sysconf` fails, which does not happen on Linux.
const COMMON_PAGE_BYTES: u64 = 4096;

/// The page size in bytes.
pub(super) fn page_bytes() -> u64 {
    let bytes = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(COMMON_PAGE_BYTES)
}
