//! Names of user-space OOM killers.
//!
//! They run outside of containers, so a container sees neither their PID nor their name, and programs in the kernel report no
//! process that is not ours. Which of these well-known programs sent a SIGKILL says nothing about another tenant.

/// The name (`task_struct.comm`) of a user-space OOM killer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OomDaemon {
    name: &'static str,
    words: [u64; 2],
    mask: [u64; 2],
}

impl OomDaemon {
    /// Those that Linux distributions and Kubernetes nodes have.
    pub const ALL: [Self; 4] =
        [Self::named("earlyoom"), Self::named("nohang"), Self::named("oomd"), Self::named("systemd-oomd")];

    /// The longest name has 15 bytes.
    const fn named(name: &'static str) -> Self {
        let bytes = name.as_bytes();
        let (mut words, mut mask) = ([[0; 8]; 2], [[0; 8]; 2]);
        let mut index = 0;
        // With the NUL behind it. What follows may be left over from an earlier name.
        while index <= bytes.len() {
            let (word, byte) = (index / 8, index % 8);
            words[word][byte] = if index < bytes.len() { bytes[index] } else { 0 };
            mask[word][byte] = u8::MAX;
            index += 1;
        }
        let [low, high] = words;
        let [low_mask, high_mask] = mask;
        Self {
            name,
            words: [u64::from_ne_bytes(low), u64::from_ne_bytes(high)],
            mask: [u64::from_ne_bytes(low_mask), u64::from_ne_bytes(high_mask)],
        }
    }

    /// The name of its processes.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Whether these 16 bytes of a `comm`, as two words, are its name.
    #[inline]
    #[must_use]
    pub const fn is_named(&self, comm: [u64; 2]) -> bool {
        comm[0] & self.mask[0] == self.words[0] && comm[1] & self.mask[1] == self.words[1]
    }

    /// The daemon with a code ([`Kill::sender_daemon`](crate::Kill::sender_daemon)), which is its position in [`Self::ALL`] plus 1.
    #[must_use]
    pub fn of_code(code: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?.checked_sub(1)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(comm: &[u8; 16]) -> [u64; 2] {
        let word = |part: &[u8]| u64::from_ne_bytes(part.try_into().unwrap());
        [word(&comm[..8]), word(&comm[8..])]
    }

    #[test]
    fn names_are_recognized_whatever_is_left_behind_them() {
        let found = |comm| OomDaemon::ALL.iter().find(|daemon| daemon.is_named(words(comm))).map(OomDaemon::name);
        assert_eq!(found(b"earlyoom\0)\0left\0"), Some("earlyoom"));
        assert_eq!(found(b"systemd-oomd\0\0\0\0"), Some("systemd-oomd"));
        assert_eq!(found(b"oomd\0\0\0\0\0\0\0\0\0\0\0\0"), Some("oomd"));
        assert_eq!(found(b"systemd-oom\0\0\0\0\0"), None);
        assert_eq!(found(b"earlyoom2\0\0\0\0\0\0\0"), None);
        assert_eq!(found(b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), None);
    }

    #[test]
    fn codes_are_positions_and_0_is_none() {
        assert_eq!(OomDaemon::of_code(0), None);
        assert_eq!(OomDaemon::of_code(4).map(|daemon| daemon.name()), Some("systemd-oomd"));
        assert_eq!(OomDaemon::of_code(5), None);
    }
}
