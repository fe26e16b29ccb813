//! The eBPF programs that name the victims of the kernel's OOM killer.
//!
//! Built for `bpfel-unknown-none` by `cargo xtask build-ebpf`, which writes the objects next to this folder.
//! On the host the crate is an empty `main`, so that workspace-wide commands do not require BPF tools.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod object;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
