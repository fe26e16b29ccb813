//! Fuzz targets of the monitor: files of the kernel, records of the tracer, and its own files read back.

pub(crate) use super::report::fuzzing::journal;
pub(crate) use super::report::recorder::fuzzing::{recording, records};
pub(crate) use super::sources::cgroup::fuzzing::{cgroup_files, mountinfo, process_cgroup};
pub(crate) use super::sources::node::fuzzing::node_socket;
pub(crate) use super::sources::procfs::fuzzing::{cmdline, stat, tmpfs};
pub(crate) use super::sources::tracer::fuzzing::{btf, ring_record};
