//! Grows along a given curve, so that the shape of the growth is known.

use std::ffi::OsString;
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use super::eat::{announce, eat};

/// The interval between two allocations.
const STEP: Duration = Duration::from_millis(10);

/// Runs the scenario `victim grow`.
pub(crate) fn run(args: &[OsString]) {
    announce("victim");
    let mut hoard = Vec::new();
    for arg in args {
        let (mib, seconds) = parse(arg);
        grow_to(&mut hoard, mib, Duration::from_secs_f64(seconds));
    }
    announce("grown");
    drop(black_box(hoard));
}

/// Allocates 1 MiB at a time at a constant rate.
fn grow_to(hoard: &mut Vec<Vec<Vec<u8>>>, mib: usize, time: Duration) {
    let (begun, had) = (Instant::now(), hoard.len());
    loop {
        let passed = begun.elapsed().min(time);
        let share = if time.is_zero() { 1.0 } else { passed.as_secs_f64() / time.as_secs_f64() };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "MiB")]
        let wanted = had + ((mib.saturating_sub(had)) as f64 * share) as usize;
        while hoard.len() < wanted {
            hoard.push(eat(1));
        }
        if passed == time {
            return;
        }
        thread::sleep(STEP);
    }
}

fn parse(arg: &OsString) -> (usize, f64) {
    let text = arg.to_str().expect("MIB:SECONDS");
    let (mib, seconds) = text.split_once(':').expect("MIB:SECONDS");
    (mib.parse().expect("MIB"), seconds.parse().expect("SECONDS"))
}
