//! Decides when silence means that a kernel hangs. Pure.
//!
//! Some kernels answer heartbeats while code runs, from a separate thread (`ipykernel`); others do not (`IRkernel`). Silence
//! counts if the kernel is idle, or if it answered while busy before.

use std::time::Duration;

/// Generous, because a machine that swaps is slow, hangs are rare, and the user can interrupt meanwhile.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// History of a kernel's heartbeat.
#[derive(Debug, Default)]
pub(super) struct Heartbeat {
    replies_while_busy: bool,
}

impl Heartbeat {
    /// Records a reply; `busy` if code ran from the request to the reply.
    pub(super) fn record_reply(&mut self, busy: bool) {
        self.replies_while_busy |= busy;
    }

    /// Whether a silence of this length means that the kernel hangs.
    pub(super) fn is_dead(&self, silence: Duration, busy: bool) -> bool {
        silence >= SILENCE_LIMIT && (!busy || self.replies_while_busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_of_one_thread_is_silent_while_it_works() {
        let mut heartbeat = Heartbeat::default();
        assert!(!heartbeat.is_dead(SILENCE_LIMIT * 100, true));
        assert!(heartbeat.is_dead(SILENCE_LIMIT, false));
        heartbeat.record_reply(false);
        assert!(!heartbeat.is_dead(SILENCE_LIMIT * 100, true), "it was idle then");
        heartbeat.record_reply(true);
        heartbeat.record_reply(false);
        assert!(heartbeat.is_dead(SILENCE_LIMIT, true));
        assert!(!heartbeat.is_dead(SILENCE_LIMIT / 2, false));
    }
}
