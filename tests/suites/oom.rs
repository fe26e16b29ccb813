//! What the out-of-memory suites share: a field where processes are killed under a monitor's eyes, and the measure of what
//! it told.
//!
//! The truth comes from elsewhere than krunner: from the kernel's counter, and from how the processes have ended as
//! their parents saw it. That something was **not** told is shown by a sentinel, one more kill: once that is told, all
//! before it would have been.

use krunner_tests::cgroup::{Cgroup, Version};
use krunner_tests::{Monitor, Scene, Told, Way, World, host};
use serde_json::Value;

/// More than any limit here: whoever eats so much is killed.
pub(crate) const TOO_MUCH: &str = "96";

/// Small, since several tests run at a time.
pub(crate) const LIMIT_MIB: u64 = 32;

/// A limit under which a monitor can start, and still too little for one that eats.
pub(crate) const OWN_MIB: u64 = 64;

/// The helper program.
pub(crate) const VICTIM: &str = env!("CARGO_BIN_EXE_victim");

/// A monitor, and a cgroup below its own one in which memory is short.
pub(crate) struct Field {
    pub(crate) monitor: Monitor,
    inside: Way,
    pub(crate) limited: Cgroup,
    _world: Option<World>,
    pub(crate) scratch: Cgroup,
}

impl Field {
    /// In the tests' own pid namespace, where the monitor answers for its cgroup and those below.
    pub(crate) fn new() -> Result<Self, String> {
        Self::within(Cgroup::scratch()?, None)
    }

    /// In a pid namespace of its own, as in a container.
    pub(crate) fn in_world() -> Result<Self, String> {
        host::util_linux()?;
        Self::within(Cgroup::scratch()?, Some(World::new()))
    }

    /// The same, with a monitor that sees only its own cgroup of the memory controller's hierarchy.
    pub(crate) fn seeing_only_its_own() -> Result<Self, String> {
        host::util_linux()?;
        let scratch = Cgroup::scratch()?;
        let dir = scratch.path().display();
        let mount = match scratch.version() {
            Version::One => "/sys/fs/cgroup/memory",
            Version::Two => "/sys/fs/cgroup",
        };
        let commands =
            format!("mount --bind {dir} /mnt; umount -l {mount}; mkdir -p {mount}; mount --move /mnt {mount}");
        Self::seen_by(scratch, Some(World::new()), |way| way.mounts(&commands))
    }

    fn within(scratch: Cgroup, world: Option<World>) -> Result<Self, String> {
        Self::seen_by(scratch, world, |way| way)
    }

    fn seen_by(scratch: Cgroup, world: Option<World>, monitor: impl FnOnce(Way) -> Way) -> Result<Self, String> {
        let limited = scratch.limited("limited", LIMIT_MIB);
        let inside = world.as_ref().map_or_else(Way::here, |world| Way::here().world(world));
        let monitor = Monitor::start(&monitor(inside.clone().cgroup(&scratch)));
        monitor.needs_bpf()?;
        Ok(Self { monitor, inside, limited, _world: world, scratch })
    }

    /// How to start what lives where the monitor does.
    pub(crate) fn inside(&self) -> Way {
        self.inside.clone()
    }

    /// How to start what lives where the monitor does, and has little memory.
    pub(crate) fn way(&self) -> Way {
        self.inside.clone().cgroup(&self.limited)
    }

    /// Starts a scene where memory is short.
    #[track_caller]
    pub(crate) fn start(&self, args: &[&str]) -> Scene {
        let mut command = self.way().command(VICTIM);
        command.args(args);
        Scene::start(command)
    }

    /// Plays a scene where memory is short to its end.
    #[track_caller]
    pub(crate) fn play(&self, args: &[&str]) -> Told {
        let before = self.limited.oom_kills();
        let told = self.start(args).end();
        assert!(self.limited.oom_kills() > before, "{args:?}: the kernel has killed nobody: {told:?}");
        told
    }

    /// Plays a scene whose members are started beside the short memory, and go there by themselves.
    #[track_caller]
    pub(crate) fn play_many(&self, scene: &str, count: usize) -> Told {
        let mut command = self.inside.clone().cgroup(&self.scratch).command(VICTIM);
        command.args([scene, &count.to_string(), TOO_MUCH]).arg(self.limited.procs_file());
        Scene::start(command).end()
    }

    /// One more kill; when this returns, all that happened before has been told, or never will be.
    #[track_caller]
    pub(crate) fn sentinel(&mut self) -> u32 {
        let pid = self.play(&["eat", TOO_MUCH, "--name", "sentinel"]).pid("victim");
        self.monitor.until_report_of(pid);
        pid
    }

    /// Ends the monitor; exactly these must have been told of, each once and no surer than this. Returns their
    /// reports in this order.
    #[track_caller]
    pub(crate) fn finish(mut self, expected: &[(u32, &str)]) -> Vec<Value> {
        self.monitor.until_reports(expected.len());
        let sentinel = self.sentinel();
        let status = self.monitor.end();
        assert_eq!(status.code(), Some(0), "{status}");
        let mut reports: Vec<Value> = self.monitor.reports().into_iter().cloned().collect();
        let last = reports.iter().position(|report| report["victim"]["pid"] == sentinel).expect("it was told of");
        assert_eq!(reports.remove(last)["confidence"], "confirmed");
        let said = |report: &Value| (report["victim"]["pid"].to_string(), report["confidence"].clone());
        let mut actual: Vec<_> = reports.iter().map(said).collect();
        let mut wanted: Vec<_> = expected.iter().map(|(pid, sure)| (pid.to_string(), Value::from(*sure))).collect();
        actual.sort_by(|a, b| a.0.cmp(&b.0));
        wanted.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(actual, wanted, "(left: told; right: true)");
        assert!(self.monitor.said().iter().all(|line| line["event"] != "records_lost"), "{:?}", self.monitor.said());
        let of = |(pid, _): &(u32, &str)| {
            reports.iter().find(|report| report["victim"]["pid"] == *pid).expect("just compared").clone()
        };
        expected.iter().map(of).collect()
    }
}

/// The victim's figures are those of one that has filled this cgroup alone.
#[track_caller]
pub(crate) fn assert_filled(report: &Value, limit_bytes: u64, room_bytes: u64) {
    /// Pages of files that somebody else was charged for: the program, the C library.
    const SHARED_BYTES: u64 = 8 << 20;
    let victim = &report["victim"];
    let bytes = |field: &str| victim[field].as_u64().unwrap_or_else(|| panic!("{field} in {victim}"));
    assert!(bytes("rss_bytes") > limit_bytes / 10 * 8, "{victim}");
    assert!(bytes("rss_bytes") < room_bytes + SHARED_BYTES, "{victim}");
    assert!(bytes("anon_bytes") <= room_bytes, "{victim}");
    assert!(bytes("vm_bytes") >= bytes("rss_bytes"), "{victim}");
    assert_eq!(bytes("rss_bytes"), bytes("anon_bytes") + bytes("file_bytes") + bytes("shmem_bytes"), "{victim}");
    assert_eq!(victim["exited"], true, "{victim}");
}

/// The pids of the ancestors, the parent first.
pub(crate) fn ancestors(report: &Value) -> Vec<u64> {
    let ancestors = report["ancestors"].as_array().expect("a list");
    ancestors.iter().map(|process| process["pid"].as_u64().expect("a pid")).collect()
}
