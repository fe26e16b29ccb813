//! What needs `unsafe`: calls that neither std nor nix offers as safe functions.

mod fds;
pub mod memory;
pub mod privilege;
mod proctitle;
mod queues;
mod reap;

pub use fds::close_on_exec_from;
pub use proctitle::set_process_title;
pub use queues::{readable_bytes, unsent_bytes};
pub use reap::reap_any;
