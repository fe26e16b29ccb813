//! Fuzz targets of BTF and of the records in the ring buffers.

use krunner_common::Kind;

use super::btf::kernel_facts;
use super::decode::{KernelUnits, decode};
use crate::monitor::model::event::Trace;

/// Longer names and command lines do not fit into a record.
const MAX_TEXT_BYTES: usize = 256;

/// Any BTF is read to its end or rejected.
pub(crate) fn btf(bytes: &[u8]) {
    let Ok(facts) = kernel_facts(bytes) else { return };
    let again = kernel_facts(bytes).expect("it was read before");
    assert_eq!(facts, again);
}

/// A record means the same with bytes after it, and has no text longer than its fields.
pub(crate) fn ring_record(bytes: &[u8]) {
    for boottime_offset_ns in [0, i64::MIN, i64::MAX] {
        let units = KernelUnits { page_bytes: 4096, boottime_offset_ns };
        let Ok(event) = decode(bytes, units) else { continue };
        let longer = [bytes, &[0xff; 8]].concat();
        assert_eq!(decode(&longer, units), Ok(event.clone()));
        match &event.what {
            Trace::Exec(exec) => {
                assert!(exec.cmdline.len() <= MAX_TEXT_BYTES && !exec.name.contains('\0'));
            }
            Trace::CgroupMade(made) => assert!(made.name.len() <= MAX_TEXT_BYTES),
            Trace::Kill(kill) => assert!(!kill.name.contains('\0')),
            _ => {}
        }
    }
    assert!(Kind::of(bytes).is_some() || decode(bytes, KernelUnits { page_bytes: 1, boottime_offset_ns: 0 }).is_err());
}
