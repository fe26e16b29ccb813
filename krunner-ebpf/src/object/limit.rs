//! Finds the limit that caused an OOM kill: the one at or above the task's memory cgroup with the least headroom.
//!
//! A charge walks from the cgroup to the root and fails at the first counter without headroom
//! (`page_counter_try_charge`, mm/page_counter.c). The kernel then reclaims, and kills if that is not enough, so at the
//! time of the kill the counter that failed has next to no headroom. Cgroup v1 has a second counter, of memory and swap
//! together, which is charged first.

use krunner_common::{ABSENT, CHARGE_BATCH_PAGES, limit_kind};

use super::address::{Address, KernelPointer};
use super::cgroup;
use super::globals::offset;

/// Maximum number of levels to walk. Kubernetes nests six levels; each level costs the verifier about 1,000
/// instructions.
const LEVELS: u32 = 10;

/// Limits from this value on mean "no limit" (`PAGE_COUNTER_MAX`, include/linux/page_counter.h).
const NO_LIMIT_PAGES: u64 = 1 << 50;

/// A limit and its usage, in pages.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    pub(super) cgroup_id: u64,
    pub(super) pages: u64,
    pub(super) usage_pages: u64,
    /// One of [`limit_kind`].
    pub(super) kind: u32,
}

/// The counter with the least headroom so far. Verifiers before 6.12 follow each branch through all levels, so there is none.
#[derive(Clone, Copy)]
struct Tightest {
    room: u64,
    css: u64,
    pages: u64,
    usage_pages: u64,
    kind: u64,
}

impl Limit {
    pub(super) const NONE: Self = Self { cgroup_id: 0, pages: 0, usage_pages: 0, kind: limit_kind::NONE };

    /// The limit with the least headroom at or above the task's cgroup.
    #[inline(always)]
    pub(super) fn tightest(task: Address) -> Self {
        let Some(first) = cgroup::charged_state_of(task) else { return Self::NONE };
        let none = u64::from(limit_kind::NONE);
        let mut tightest = Tightest { room: NO_LIMIT_PAGES, css: 0, pages: 0, usage_pages: 0, kind: none };
        let mut css = first;
        for _ in 0..LEVELS {
            if offset!(css_memsw_usage) != ABSENT {
                let counter = [offset!(css_memsw_usage), offset!(css_memsw_max)];
                // When this counter is at its limit, the memory counter is as well: the kernel swaps only then.
                tightest.compare(css, counter, !(CHARGE_BATCH_PAGES - 1), limit_kind::MEMORY_AND_SWAP);
            }
            tightest.compare(css, [offset!(css_memory_usage), offset!(css_memory_max)], u64::MAX, limit_kind::MEMORY);
            css = Address::new(css.u64_or_0(offset!(css_parent)));
            if css.raw() == 0 {
                break;
            }
        }
        let id = Address::new(tightest.css).pointer(offset!(css_cgroup)).and_then(cgroup::id);
        let Tightest { pages, usage_pages, kind, .. } = tightest;
        Self { cgroup_id: id.unwrap_or(0), pages, usage_pages, kind: kind as u32 }
    }
}

impl Tightest {
    /// Replaces `self` by this counter if it has less headroom, compared after masking with `room_bits`. Unreadable
    /// counters are skipped.
    #[inline(always)]
    fn compare(&mut self, css: Address, [usage, max]: [u32; 2], room_bits: u64, kind: u32) {
        let (usage_pages, usage_error) = css.u64_and_error(usage);
        let (pages, max_error) = css.u64_and_error(max);
        let room = pages.wrapping_sub(usage_pages);
        let room = room & !ones_if_negative(room) & room_bits;
        let is_none = (NO_LIMIT_PAGES - 1).wrapping_sub(pages) | usage_error as u64 | max_error as u64;
        // More than any other, and not negative.
        let room = (room | ones_if_negative(is_none)) & (u64::MAX >> 1);
        let is_less = ones_if_negative(room.wrapping_sub(self.room));
        let choose = |new: u64, old: u64| new & is_less | old & !is_less;
        *self = Self {
            room: choose(room, self.room),
            css: choose(css.raw(), self.css),
            pages: choose(pages, self.pages),
            usage_pages: choose(usage_pages, self.usage_pages),
            kind: choose(u64::from(kind), self.kind),
        };
    }
}

/// All bits if this signed number is negative, else none. Volatile, so that the compiler does not see the two cases and make
/// branches of them.
#[inline(always)]
fn ones_if_negative(number: u64) -> u64 {
    let mut ones = 0;
    // SAFETY: a local variable.
    unsafe {
        (&raw mut ones).write_volatile((number as i64 >> 63) as u64);
        (&raw const ones).read_volatile()
    }
}
