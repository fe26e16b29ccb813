//! OOM kill counters, the fallback without a tracer. The sampler reads them too; the task never blocks on its lock.

use std::sync::TryLockError;

use super::MonitorTask;
use crate::monitor::model::clock;

impl MonitorTask {
    /// Without a tracer: reads the counter; `false` if the sampler has locked it.
    pub(super) fn count_now(&mut self) -> bool {
        let Some(counter) = &self.counter else { return true };
        let mut locked = match counter.try_lock() {
            Ok(counter) => counter,
            Err(TryLockError::Poisoned(counter)) => counter.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let mut count = locked.take();
        let sources: Vec<_> = count.kills.iter().map(|kills| locked.usage_source(kills)).collect();
        drop(locked);
        if !count.kills.is_empty() {
            match self.charge.patience() {
                Some(patience) => self.hold(patience, clock::boot_ns()),
                None => self.scan_if(true),
            }
        }
        // The sampler scans for the victim in the meantime.
        for (kills, source) in count.kills.iter_mut().zip(sources) {
            kills.facts.usage = source.and_then(|source| source.read());
        }
        let _ = self.engine.counted(count);
        true
    }
}
