//! The capabilities of an executable file.

use std::fmt;
use std::io;
use std::path::Path;

use rustix::fs::getxattr;
use rustix::io::Errno;

use super::privilege::{Capabilities, Capability};

/// `struct vfs_cap_data` (include/uapi/linux/capability.h): a magic number with the revision, then permitted and
/// inheritable, 32 bits of each in turn, little-endian. Revision 3 has the user id of a namespace's root behind them.
const ATTRIBUTE: &str = "security.capability";
const MAX_BYTES: usize = 24;
const REVISION_MASK: u32 = 0xff00_0000;
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;

/// The permitted set in the capabilities of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FileCapabilities(Capabilities);

impl FileCapabilities {
    /// Reads the capabilities of a file.
    ///
    /// # Errors
    /// If the file cannot be read, or its attribute has an unknown format.
    pub(crate) fn of(file: &Path) -> io::Result<Self> {
        let mut bytes = [0; MAX_BYTES];
        match getxattr(file, ATTRIBUTE, &mut bytes) {
            Ok(length) => Self::parse(&bytes[..length]).ok_or_else(|| io::ErrorKind::InvalidData.into()),
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(Self::default()),
            Err(error) => Err(error.into()),
        }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |index: usize| Some(u32::from_le_bytes(bytes.get(4 * index..4 * index + 4)?.try_into().ok()?));
        matches!(word(0)? & REVISION_MASK, REVISION_2 | REVISION_3)
            .then_some(Self(Capabilities::from_bits(u64::from(word(1)?) | u64::from(word(3)?) << 32)))
    }

    /// Whether they suffice to load and attach the tracer's programs.
    #[must_use]
    pub(crate) fn may_trace(self) -> bool {
        [Capability::CAP_BPF, Capability::CAP_PERFMON].into_iter().all(|capability| self.0.contains(capability))
    }
}

impl fmt::Display for FileCapabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = [Capability::CAP_BPF, Capability::CAP_PERFMON, Capability::CAP_SYS_RESOURCE].into_iter();
        let held = known.filter(|capability| self.0.contains(*capability));
        // In the syntax of setcap(8).
        let held: Vec<_> = held.map(|capability| capability.to_string().to_lowercase()).collect();
        if held.is_empty() { f.write_str("no capabilities") } else { f.write_str(&held.join(",")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `setcap cap_bpf,cap_perfmon+p` writes it.
    const BPF_AND_PERFMON: [u8; 20] = [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn permitted_set_is_read() {
        let held = FileCapabilities::parse(&BPF_AND_PERFMON).unwrap();
        assert!(held.may_trace());
        assert_eq!(held.to_string(), "cap_bpf,cap_perfmon");
        let mut without = BPF_AND_PERFMON;
        without[12] = 0x40;
        let held = FileCapabilities::parse(&without).unwrap();
        assert_eq!((held.may_trace(), held.to_string().as_str()), (false, "cap_perfmon"));
    }

    #[test]
    fn unknown_forms_are_refused() {
        for bytes in [&[][..], &BPF_AND_PERFMON[..10], &[0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(FileCapabilities::parse(bytes), None);
        }
        assert_eq!(FileCapabilities::of(Path::new("/proc/self/status")).unwrap().to_string(), "no capabilities");
        assert!(FileCapabilities::of(Path::new("/nowhere")).is_err());
    }
}
