//! What a virtual machine of `cargo xtask vm` checks beside the OOM matrix.

/// A check, by which `--only` selects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineCheck {
    /// A job and a service with the embedded defaults, `krunner selftest`.
    Selftest,
    /// Sessions in a cgroup that is killed.
    Survival,
    /// `krunner node` confirms a kill.
    Node,
    /// A program that the kernel slows down at `memory.high`.
    Throttle,
    /// Kernels that restrict BPF. Last, because the restrictions stay.
    Restrictions,
}

impl MachineCheck {
    /// Every check, in the order in which they run.
    pub const ALL: [Self; 5] = [Self::Selftest, Self::Survival, Self::Node, Self::Throttle, Self::Restrictions];

    /// The name by which it is selected.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Selftest => "selftest",
            Self::Survival => "survival",
            Self::Node => "krunner-node",
            Self::Throttle => "memory.high",
            Self::Restrictions => "restrictions",
        }
    }

    /// Whether it is selected; all are if nothing is.
    #[must_use]
    pub fn is_wanted(self, only: &[String]) -> bool {
        only.is_empty() || only.iter().any(|part| self.name().contains(part.as_str()))
    }
}
