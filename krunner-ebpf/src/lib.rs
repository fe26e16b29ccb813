//! Room of the eBPF programs that name the victims of the kernel's OOM killer.
//!
//! Not a default member of the workspace: a plain `cargo build` needs no BPF tools.
#![no_std]
