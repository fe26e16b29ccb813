//! Free TCP ports for sessions that run side by side.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::process;
use std::sync::{Mutex, PoisonError};

/// Below Linux's ephemeral range (32768 and up), so that no outgoing connection takes a port between our probe and the
/// runner's bind.
const FIRST: u32 = 10_000;
const COUNT: u32 = 22_000;

static TAKEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port that nothing listens on and that no other test of this process was given.
pub fn free_port() -> u16 {
    let mut guard = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = guard.get_or_insert_with(HashSet::new);
    // Another test process starts its search elsewhere; 7919 is a prime, so neighbouring pids land far apart.
    let start = process::id().wrapping_mul(7919) % COUNT;
    (0..COUNT)
        .map(|step| FIRST + (start + step) % COUNT)
        .filter_map(|port| u16::try_from(port).ok())
        .find(|&port| {
            !taken.contains(&port) && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() && taken.insert(port)
        })
        .expect("no free TCP port below the ephemeral range")
}
