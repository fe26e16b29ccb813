//! What the eBPF programs and user space agree on: the fixed layouts that cross the ring buffer.
//!
//! `no_std`, because the kernel side is built for `bpfel-unknown-none`. The records themselves come
//! with the programs that write them (see `krunner-ebpf`).
#![no_std]
