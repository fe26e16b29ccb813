//! The few facts that suites read from `/proc`.

use std::fs;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A field of `/proc/PID/status`, without its unit.
fn status_field(pid: u32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim_start_matches(':').trim().to_owned())
}

fn kibibytes(pid: u32, field: &str) -> Option<u64> {
    let value = status_field(pid, field)?;
    value.strip_suffix(" kB")?.parse().ok()
}

/// What is resident of a process now.
pub fn rss_kib(pid: u32) -> Option<u64> {
    kibibytes(pid, "VmRSS")
}

/// The highest resident size that a process ever had.
pub fn peak_rss_kib(pid: u32) -> Option<u64> {
    kibibytes(pid, "VmHWM")
}

/// Has [`peak_rss_kib`] start again from what is resident now (proc(5), `clear_refs`).
pub fn forget_peak_rss(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("the process is ours to look at");
}

/// The names of a process's threads.
pub fn threads(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.map(|name| name.trim_end().to_owned()).collect()
}

/// The process that the kernel would tell about this one's death.
pub fn parent(pid: u32) -> Option<u32> {
    status_field(pid, "PPid")?.parse().ok()
}

/// The command name.
pub fn comm(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end_matches('\n').to_owned())
}

/// The command line, its arguments joined by spaces.
pub fn cmdline(pid: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
}

/// Its state as `/proc/PID/stat` has it, `T` when it is stopped.
pub fn state(pid: u32) -> Option<char> {
    status_field(pid, "State")?.chars().next()
}

/// The processor time it has used, in ticks.
pub fn cpu_ticks(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything. After it come the state, field 3, and in time utime and stime, 14 and 15 (proc(5)).
    let (_, after) = text.rsplit_once(") ")?;
    let mut fields = after.split(' ').skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// How many bytes a process has written so far, to pipes too.
pub fn written_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: "))?;
    line.parse().ok()
}

/// The PIDs of all processes.
pub fn all() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").expect("/proc is mounted").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Live processes whose environment contains the entry. A zombie has no environment any more and is not among them.
pub fn with_environment(entry: &str) -> Vec<u32> {
    all()
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|bytes| bytes.split(|&byte| byte == 0).any(|item| item == entry.as_bytes()))
        })
        .collect()
}

/// The inodes of the sockets that a process has descriptors of.
pub fn sockets(pid: u32) -> Vec<u64> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets = links.filter_map(|link| fs::read_link(link.path()).ok());
    targets.filter_map(|target| target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect()
}

/// Whether a process has a descriptor of BPF.
pub fn has_bpf(pid: u32) -> bool {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut targets = links.filter_map(|link| fs::read_link(link.path()).ok());
    targets.any(|target| target.to_string_lossy().starts_with("anon_inode:bpf"))
}

/// The size of a memory page; 4, 16 or 64 KiB.
///
/// # Panics
/// If the kernel does not say it.
#[must_use]
pub fn page_bytes() -> u64 {
    let bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    bytes.and_then(|bytes| bytes.try_into().ok()).expect("a page size")
}

/// The sizes in bytes of the BPF ring buffers that a process has descriptors of, the smallest first.
pub fn ring_buffers(pid: u32) -> Vec<u64> {
    /// The value of `BPF_MAP_TYPE_RINGBUF` in `include/uapi/linux/bpf.h`.
    const RING_BUFFER: u64 = 27;
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let texts = infos.filter_map(|info| fs::read_to_string(info.path()).ok());
    let mut sizes: Vec<u64> = texts
        .filter_map(|text| {
            let field = |name| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
            (field("map_type:") == Some(RING_BUFFER)).then(|| field("max_entries:")).flatten()
        })
        .collect();
    sizes.sort_unstable();
    sizes
}

/// Whether a process is there and not dead.
pub fn is_alive(pid: u32) -> bool {
    status_field(pid, "State").is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// The children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    all().filter(|&other| parent(other) == Some(pid)).collect()
}

/// Dead children that a process has not waited for.
pub fn zombies_of(pid: u32) -> Vec<u32> {
    all()
        .filter(|&other| {
            parent(other) == Some(pid) && status_field(other, "State").is_some_and(|state| state.starts_with('Z'))
        })
        .collect()
}

/// Whether something listens on the TCP port in the network namespace of the process.
pub fn listens(pid: u32, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    ["tcp", "tcp6"].iter().any(|table| {
        fs::read_to_string(format!("/proc/{pid}/net/{table}")).is_ok_and(|text| {
            text.lines().any(|line| {
                let mut fields = line.split_whitespace().skip(1);
                let local = fields.next();
                let state = fields.nth(1);
                local.is_some_and(|address| address.ends_with(&suffix)) && state == Some(LISTEN)
            })
        })
    })
}

/// Sends a signal to one process; one that is gone already is no error.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid fits in i32"));
    let _ = kill(pid, signal);
}

/// Sends SIGKILL from a process of this name, a copy of the shell. A stand-in for a user-space OOM killer, which would kill others on
/// this machine; the real one runs in virtual machines (`tests/vm/node`).
#[track_caller]
pub fn kill_as(name: &str, pid: u32) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = folder.path().join(name);
    std::fs::copy("/bin/sh", &program).expect("a copy");
    let status = Command::new(&program).args(["-c", &format!("kill -9 {pid}; exit $?")]).status().expect("it runs");
    assert!(status.success(), "{status}");
}

/// What the OOM killer adds to a process's size, in thousandths of the memory there is.
#[track_caller]
pub fn oom_score_adj(pid: u32) -> i32 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("the process is there");
    text.trim().parse().expect("a number")
}

/// How many descriptors a process has open.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
