//! Reads the programs' ring buffers and merges them into one stream of events.
//!
//! ```text
//!  KILLS ──────▶ read first, all that is there ─▶ waiting ─┐
//!                                                          ├─ by time ─▶ batch ─▶ monitor
//!  PROCESSES ──▶ up to BATCH records ──────────────────────┘
//! ```
//!
//! A flood of forks fills only its own ring buffer, and `KILLS` is drained before anything else is read. Each kill is
//! emitted after the forks and execs that precede it, which identify the process: at most as many as the ring buffer
//! holds. The programs count dropped records, which are emitted as [`Trace::Lost`].

#![expect(unsafe_code, reason = "the readiness of aya's descriptor")]

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use aya::programs::raw_trace_point::RawTracePointLink;
use krunner_common::{Kind, LOST_KINDS};
use nix::unistd::{SysconfVar, sysconf};
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::program_log::{self, LogReader};
use crate::monitor::model::clock;
use crate::monitor::model::event::{Trace, TraceEvent};
use crate::monitor::sources::tracer::decode::{KernelUnits, decode};
use crate::sys::memory::CounterMap;

/// Records per batch: enough to amortize waiting, few enough to bound memory.
const BATCH: usize = 256;

/// Maximum number of kill records that wait for earlier records; more stay in the ring buffer.
const MAX_WAITING: usize = 4 * BATCH;

/// Polling interval for forks and execs, which do not wake the reader.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Converts records to events. Dropping it detaches the programs.
pub(in crate::monitor) struct RingReader {
    kills: AsyncFd<RingBuf<MapData>>,
    processes: AsyncFd<RingBuf<MapData>>,
    waiting: VecDeque<TraceEvent>,
    decoder: Decoder,
    poll: Interval,
    /// The last batch was full.
    is_more: bool,
    lost: CounterMap,
    reported: Lost,
    log: Option<AsyncFd<LogReader>>,
    _links: Vec<RawTracePointLink>,
}

/// Numbers of records dropped since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Lost {
    records: u64,
    of_kills: u64,
}

impl RingReader {
    pub(super) fn new(
        kills: RingBuf<MapData>,
        processes: RingBuf<MapData>,
        lost: CounterMap,
        log: Option<LogReader>,
        links: Vec<RawTracePointLink>,
    ) -> io::Result<Self> {
        let mut poll = interval(POLL_INTERVAL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            // SAFETY: a ring buffer owns its descriptor and keeps it until it is dropped together with the AsyncFd.
            kills: unsafe { AsyncFd::register(kills) }?,
            // SAFETY: as above.
            processes: unsafe { AsyncFd::register(processes) }?,
            waiting: VecDeque::new(),
            decoder: Decoder { units: kernel_units()?, was_error_logged: false },
            poll,
            is_more: false,
            lost,
            reported: Lost::default(),
            log: program_log::register(log),
            _links: links,
        })
    }

    /// Waits for records; may return an empty batch. Cancel-safe.
    ///
    /// # Errors
    /// If waiting for the ring buffers fails.
    pub(in crate::monitor) async fn next(&mut self) -> io::Result<Vec<TraceEvent>> {
        if !self.is_more {
            tokio::select! {
                ready = self.kills.readable_mut() => ready?.clear_ready(),
                ready = self.processes.readable_mut() => ready?.clear_ready(),
                () = program_log::forward(self.log.as_mut()) => {}
                _ = self.poll.tick() => {}
            }
        }
        Ok(self.read_batch())
    }

    /// Whether there may be more records after this batch.
    pub(in crate::monitor) fn is_full(batch: &[TraceEvent]) -> bool {
        batch.len() >= BATCH
    }

    /// Reads at least [`BATCH`] events if available, followed by the number of records dropped since the last batch.
    pub(in crate::monitor) fn read_batch(&mut self) -> Vec<TraceEvent> {
        while self.waiting.len() < MAX_WAITING {
            let Some(event) = self.decoder.next(self.kills.get_mut()) else { break };
            self.waiting.extend(event);
        }
        let mut batch = Vec::new();
        let mut taken = 0;
        while taken < BATCH {
            let Some(event) = self.decoder.next(self.processes.get_mut()) else { break };
            taken += 1;
            let Some(event) = event else { continue };
            emit_before(&mut self.waiting, event.at_boot_ns, &mut batch);
            batch.push(event);
        }
        if taken < BATCH {
            // No earlier record is left in PROCESSES.
            batch.extend(self.waiting.drain(..));
        }
        batch.extend(self.newly_lost());
        self.is_more = taken == BATCH || Self::is_full(&batch);
        batch
    }

    /// Reads all available events.
    pub(in crate::monitor) fn read_all(&mut self) -> Vec<TraceEvent> {
        let mut all = Vec::new();
        loop {
            let batch = self.read_batch();
            let is_full = Self::is_full(&batch);
            all.extend(batch);
            if !is_full {
                return all;
            }
        }
    }

    fn newly_lost(&mut self) -> Option<TraceEvent> {
        let lost = Lost::of(&self.lost);
        let before = std::mem::replace(&mut self.reported, lost);
        let what = Trace::Lost { records: lost.records - before.records, of_kills: lost.of_kills - before.of_kills };
        (lost != before).then(|| TraceEvent { at_boot_ns: clock::boot_ns(), what })
    }
}

impl Lost {
    fn of(words: &CounterMap) -> Self {
        Self { records: words.sum_of(|_| true), of_kills: words.sum_of(is_of_kill) }
    }
}

/// Whether the counter at this index counts kill records: each CPU has a row of [`LOST_KINDS`] counters.
fn is_of_kill(index: usize) -> bool {
    Kind::ALL.iter().any(|kind| kind.is_of_kill() && index % LOST_KINDS as usize == *kind as usize)
}

/// Moves the kills before this time to the batch. They are in ring buffer order, which is nearly chronological.
fn emit_before(waiting: &mut VecDeque<TraceEvent>, before_ns: u64, batch: &mut Vec<TraceEvent>) {
    while let Some(event) = waiting.pop_front_if(|event| event.at_boot_ns < before_ns) {
        batch.push(event);
    }
}

struct Decoder {
    units: KernelUnits,
    was_error_logged: bool,
}

impl Decoder {
    /// The next record of a ring buffer; `None` if it is empty, `Some(None)` for a malformed record.
    #[expect(clippy::option_option, reason = "a malformed record is not the end of the ring buffer")]
    fn next(&mut self, ring: &mut RingBuf<MapData>) -> Option<Option<TraceEvent>> {
        let record = ring.next()?;
        match decode(&record, self.units) {
            Ok(event) => return Some(Some(event)),
            Err(error) if !self.was_error_logged => {
                self.was_error_logged = true;
                tracing::error!("bug: the eBPF tracer wrote {error}; such records are skipped");
            }
            Err(_) => {}
        }
        Some(None)
    }
}

fn kernel_units() -> io::Result<KernelUnits> {
    let bytes = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|bytes| u64::try_from(bytes).ok());
    let page_bytes = bytes.ok_or(io::ErrorKind::Unsupported)?;
    Ok(KernelUnits { page_bytes, boottime_offset_ns: clock::boottime_offset_ns() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::model::event::{Fork, ProcessExit};
    use crate::monitor::model::process::ProcessKey;

    fn key(pid: u32) -> ProcessKey {
        ProcessKey { pid, start_ticks: 0 }
    }

    fn exit(at_boot_ns: u64) -> TraceEvent {
        TraceEvent { at_boot_ns, what: Trace::Exit(ProcessExit { process: key(1) }) }
    }

    #[test]
    fn kills_are_emitted_after_earlier_records() {
        let fork = |at_boot_ns| TraceEvent { at_boot_ns, what: Trace::Fork(Fork { child: key(2), parent_pid: None }) };
        let mut waiting = VecDeque::from([exit(5), exit(7), exit(6), exit(20)]);
        let mut batch = Vec::new();
        for at_ns in [3, 5, 9] {
            emit_before(&mut waiting, at_ns, &mut batch);
            batch.push(fork(at_ns));
        }
        assert_eq!(batch, [fork(3), fork(5), exit(5), exit(7), exit(6), fork(9)]);
        assert_eq!(waiting, [exit(20)]);
    }

    #[test]
    fn dropped_kills_are_counted_separately() {
        let row = LOST_KINDS as usize;
        let indexes: Vec<usize> = (0..2 * row).filter(|index| is_of_kill(*index)).collect();
        assert_eq!(indexes, [1, 2, 3, row + 1, row + 2, row + 3]);
    }
}
