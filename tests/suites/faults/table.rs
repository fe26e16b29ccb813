//! Which calls fail, with which errors, and how often each was made before.

use super::session::Fault;

/// A call, the errors that it can return to the runner, and the points at which it fails: a few of the first calls, and some
/// in the middle of a session.
struct Row(&'static str, &'static [&'static str], &'static [u32]);

const TABLE: &[Row] = &[
    Row("accept4", &["EMFILE", "ENOMEM", "ECONNABORTED"], &[1, 2, 3]),
    Row("bind", &["EADDRINUSE", "EACCES"], &[1, 2, 3, 5]),
    Row("bpf", &["EPERM", "ENOMEM"], &[1, 10, 30]),
    Row("clone", &["EAGAIN", "ENOMEM"], &[1, 2]),
    Row("clone3", &["EAGAIN", "ENOMEM"], &[1, 2, 5]),
    Row("close_range", &["ENOSYS", "EPERM"], &[1]),
    Row("connect", &["ENOMEM", "EAGAIN"], &[1, 2]),
    Row("epoll_create1", &["EMFILE", "ENOMEM"], &[1]),
    Row("epoll_ctl", &["ENOMEM", "ENOSPC"], &[1, 3, 8, 14]),
    Row("epoll_wait", &["EINTR"], &[1, 20]),
    Row("eventfd2", &["EMFILE", "ENOMEM"], &[1, 2]),
    Row("fcntl", &["EMFILE"], &[1, 2, 30]),
    Row("flock", &["ENOLCK", "EINTR"], &[1, 2]),
    Row("getdents64", &["EIO", "ENOMEM"], &[1, 3]),
    Row("getsockname", &["ENOBUFS"], &[1, 3]),
    Row("inotify_add_watch", &["ENOSPC"], &[1]),
    Row("inotify_init1", &["EMFILE"], &[1]),
    Row("ioctl", &["EIO"], &[1, 3]),
    Row("linkat", &["ENOSPC", "EPERM"], &[1]),
    Row("listen", &["EADDRINUSE"], &[1, 2, 4]),
    Row("lseek", &["EIO"], &[1, 20]),
    Row("mkdir", &["ENOSPC", "EROFS"], &[1, 2]),
    Row("mlock2", &["ENOMEM", "EPERM"], &[1]),
    Row("openat", &["EMFILE", "EACCES", "EIO", "ENOMEM"], &[7, 20, 60, 120]),
    Row("pipe2", &["EMFILE", "ENFILE"], &[1, 2, 3, 5, 8]),
    Row("prctl", &["EPERM"], &[1, 40, 85]),
    Row("pread64", &["EIO"], &[10, 100]),
    Row("pwrite64", &["EIO", "ENOSPC"], &[1, 2, 4]),
    Row("read", &["EIO"], &[8, 30, 100]),
    Row("recvfrom", &["ENOMEM", "ECONNRESET"], &[2, 10]),
    Row("renameat", &["ENOSPC"], &[1]),
    Row("rt_sigaction", &["EINVAL"], &[4, 7]),
    Row("sched_getaffinity", &["EPERM"], &[1]),
    Row("sendto", &["ENOMEM", "EPIPE"], &[2, 10]),
    Row("setsockopt", &["ENOMEM"], &[1, 2]),
    Row("socket", &["EMFILE", "ENOMEM"], &[1, 2, 3, 5]),
    // The second one is tokio's own, which panics; the first one is tried ahead of it.
    Row("socketpair", &["EMFILE"], &[1]),
    Row("splice", &["ENOMEM"], &[1, 30]),
    Row("statx", &["EIO", "EACCES"], &[1, 10, 50]),
    Row("unlink", &["EPERM"], &[1]),
];

fn faults(rows: impl Iterator<Item = (&'static str, &'static [&'static str], &'static [u32])>) -> Vec<Fault> {
    rows.flat_map(|(call, errors, points)| {
        errors.iter().flat_map(move |&error| points.iter().map(move |&when| Fault { call, error, when }))
    })
    .collect()
}

/// Every error of every call at every point.
pub(super) fn all() -> Vec<Fault> {
    faults(TABLE.iter().map(|Row(call, errors, points)| (*call, *errors, *points)))
}

/// The first error of each call at its last point.
pub(super) fn representative() -> Vec<Fault> {
    faults(TABLE.iter().map(|Row(call, errors, points)| (*call, &errors[..1], &points[points.len() - 1..])))
}
