//! When silence means that a kernel hangs. Pure.
//!
//! Some kernels answer heartbeats while code runs, from a thread of their own (`ipykernel`); some do not
//! (`IRkernel`). A kernel's silence counts when it is idle, or has been heard while busy before.

use std::time::Duration;

/// A machine that swaps may be slow; a kernel that hangs is rare, and can be interrupted by hand meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is known of a kernel's heartbeat.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    beats_while_busy: bool,
}

impl Pulse {
    /// A heartbeat was answered; `busy` when code ran all the while.
    pub(super) fn beaten(&mut self, busy: bool) {
        self.beats_while_busy |= busy;
    }

    /// Whether so long a silence is the end.
    pub(super) fn has_stopped(&self, silence: Duration, busy: bool) -> bool {
        silence >= PATIENCE && (!busy || self.beats_while_busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_of_one_thread_is_silent_while_it_works() {
        let mut pulse = Pulse::default();
        assert!(!pulse.has_stopped(PATIENCE * 100, true));
        assert!(pulse.has_stopped(PATIENCE, false));
        pulse.beaten(false);
        assert!(!pulse.has_stopped(PATIENCE * 100, true), "it was idle then");
        pulse.beaten(true);
        pulse.beaten(false);
        assert!(pulse.has_stopped(PATIENCE, true));
        assert!(!pulse.has_stopped(PATIENCE / 2, false));
    }
}
