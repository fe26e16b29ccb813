//! The capabilities of a thread, and dropping those that krunner's file capabilities added.
//!
//! A non-root runner gets its BPF capabilities from its file (`setcap cap_bpf,cap_perfmon+p`). User code must run with
//! the capabilities it would have had without that. Facts from capabilities(7) and the kernel:
//!
//! - Capabilities belong to threads. A new thread copies those of its creator; later changes do not affect other
//!   threads.
//! - Executing a file with capabilities clears the ambient set; executing one without them sets permitted and effective
//!   to the ambient set. So permitted capabilities that are not ambient come from the file and are dropped. The
//!   inheritable set and the bounding set pass through an exec unchanged and are left alone. A previous ambient set
//!   cannot be restored: use ambient capabilities or file capabilities, not both.
//! - An exec by uid 0 yields what the bounding set allows, regardless of the file. Root keeps all of it, unless the
//!   securebit NOROOT makes it an ordinary user.
//! - With `+ep`, exec fails with EPERM if the bounding set lacks one of the file's capabilities
//!   (`bprm_caps_from_vfs_caps`, security/commoncap.c). With `+p` it does not, so krunner uses `+p` and
//!   [`raise_permitted`].
//!
//! A process whose exec added capabilities is not dumpable (`commit_creds`, kernel/cred.c), unless its parent had them
//! too. Other processes of the same user can neither trace a process that is not dumpable nor take its descriptors
//! (`__ptrace_may_access`, kernel/ptrace.c). [`drop_added`] ensures this, and it is never undone: at first another
//! thread still has capabilities and shares our memory, later we hold BPF descriptors. The cost, tested on 6.18 as a
//! user without capabilities: `/proc/self/{environ,io,auxv,mem}` cannot be read, nor `/proc/self/fd/N` be opened anew
//! (`/dev/stdout` is such a path), nor `comm`, `oom_score_adj`, `uid_map` and `coredump_filter` there be written; there
//! are no core dumps; under `hidepid` the user does not see krunner. All else works: `stat` with the addresses of the
//! arguments, `status`, `cgroup`, `mountinfo`, `maps`, listing `fd`, the links `exe`, `cwd`, `fd/N` and `ns/*`.
//! Children are dumpable again after their exec.
//!
//! Such an exec also sets `AT_SECURE`, and glibc then takes `LD_PRELOAD`, `LD_LIBRARY_PATH`, `TMPDIR` and more out
//! of the environment before `main`. See [`initial_environment`](super::initial_environment).

use std::collections::HashSet;
use std::fmt;
use std::io;

use caps::CapSet;
pub(crate) use caps::Capability;

/// A set of capabilities, as the kernel writes it: bit N is the capability number N.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Capabilities(u64);

impl Capabilities {
    /// From the hexadecimal number in `/proc/PID/status`.
    #[must_use]
    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Whether the set contains the capability.
    #[must_use]
    pub(crate) fn contains(self, capability: Capability) -> bool {
        self.0 & capability.bitmask() != 0
    }

    /// Whether the set is empty.
    #[must_use]
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The capabilities that are not in `other`.
    #[must_use]
    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The capabilities that are also in `other`.
    #[must_use]
    pub(crate) fn common_with(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    fn to_set(self) -> HashSet<Capability> {
        caps::all().into_iter().filter(|capability| self.contains(*capability)).collect()
    }
}

impl FromIterator<Capability> for Capabilities {
    fn from_iter<T: IntoIterator<Item = Capability>>(capabilities: T) -> Self {
        Self(capabilities.into_iter().fold(0, |bits, capability| bits | capability.bitmask()))
    }
}

/// The names in the kernel's order, or `none`.
impl fmt::Display for Capabilities {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<Capability> = self.to_set().into_iter().collect();
        names.sort_by_key(Capability::index);
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        to.write_str(&if names.is_empty() { "none".to_owned() } else { names.join(", ") })
    }
}

/// The effective set of the calling thread.
///
/// # Errors
/// If a seccomp filter forbids the call.
pub(crate) fn effective() -> io::Result<Capabilities> {
    read(CapSet::Effective)
}

/// The permitted set of the calling thread.
///
/// # Errors
/// If a seccomp filter forbids the call.
pub(crate) fn permitted() -> io::Result<Capabilities> {
    read(CapSet::Permitted)
}

/// Makes all permitted capabilities of the calling thread effective and returns them. A file with `+p` leaves this to
/// the program.
///
/// # Errors
/// If a seccomp filter forbids the call.
pub(crate) fn raise_permitted() -> io::Result<Capabilities> {
    let permitted = permitted()?;
    write(CapSet::Effective, permitted)?;
    Ok(permitted)
}

/// Permanently drops the capabilities that the calling thread has only from krunner's file, and returns them.
///
/// Threads and children created by this thread from now on have none of them. If there were any, the process is not
/// dumpable from now on.
///
/// # Errors
/// If a seccomp filter forbids it. The thread may then still have its capabilities, so it must not run user
///   code.
pub(crate) fn drop_added() -> io::Result<Capabilities> {
    let permitted = permitted()?;
    let ambient = read(CapSet::Ambient)?;
    let added = permitted.without(ambient);
    if added.is_empty() || is_root() {
        return Ok(Capabilities::default());
    }
    nix::sys::prctl::set_dumpable(false)?;
    // In this order, because effective must stay a subset of permitted.
    write(CapSet::Effective, effective()?.common_with(ambient))?;
    write(CapSet::Permitted, ambient)?;
    Ok(added)
}

/// Whether this process has more privileges than its parent (getauxval(3), `AT_SECURE`), so that it must not trust
/// everything the parent passes.
///
/// Also `true` if the parent had the same capabilities as ambient ones, and after some changes of LSM domain.
#[must_use]
pub(crate) fn was_elevated() -> bool {
    // SAFETY: getauxval reads the vector that the kernel gave this process, and takes any key.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Whether this is uid 0 with root's privileges.
fn is_root() -> bool {
    // SAFETY: PR_GET_SECUREBITS takes no further argument and returns the bits (prctl(2)).
    let securebits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS) };
    nix::unistd::geteuid().is_root() && (securebits < 0 || securebits & libc::SECBIT_NOROOT == 0)
}

fn read(set: CapSet) -> io::Result<Capabilities> {
    caps::read(None, set).map(Capabilities::from_iter).map_err(io::Error::other)
}

fn write(set: CapSet, value: Capabilities) -> io::Result<()> {
    caps::set(None, set, &value.to_set()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc;
    use std::thread;

    use nix::sys::prctl::{get_dumpable, set_dumpable};

    use super::*;

    const NOBODY: libc::uid_t = 65_534;

    /// Whether the process is dumpable is one for all threads.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    /// Runs it on a thread of user nobody whose permitted set is root's and whose effective one is empty:
    /// what exec makes of a file with all capabilities and `+p`. Not as root, there is no such thread.
    fn as_user_with_file_capabilities(test: impl FnOnce() + Send) {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs root to become another user");
            return;
        }
        let alone = ONE_AT_A_TIME.lock();
        thread::scope(|scope| {
            scope.spawn(|| {
                caps::securebits::set_keepcaps(true).unwrap();
                // SAFETY: the bare system call changes the calling thread alone, which ends after the test.
                let changed = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
                assert_eq!(changed, 0);
                test();
            });
        });
        set_dumpable(true).unwrap();
        drop(alone);
    }

    #[test]
    fn what_the_file_added_is_gone_for_good_from_this_thread_alone() {
        as_user_with_file_capabilities(|| {
            let added = permitted().unwrap();
            assert!(added.contains(Capability::CAP_CHOWN) && effective().unwrap().is_empty());
            let (go, wait) = mpsc::channel::<()>();
            let loader = thread::spawn(move || {
                wait.recv().unwrap();
                (raise_permitted().unwrap(), effective().unwrap())
            });
            set_dumpable(true).unwrap();

            assert_eq!(drop_added().unwrap(), added);

            assert!(permitted().unwrap().is_empty() && effective().unwrap().is_empty());
            assert!(raise_permitted().unwrap().is_empty());
            assert!(!get_dumpable().unwrap(), "others of the same user must not trace what has BPF descriptors");
            assert!(thread::spawn(|| permitted().unwrap()).join().unwrap().is_empty(), "nor do later threads have it");
            assert!(drop_added().unwrap().is_empty(), "nothing is left to drop");
            go.send(()).unwrap();
            assert_eq!(loader.join().unwrap(), (added, added), "a thread made before keeps its own");
        });
    }

    #[test]
    fn what_others_gave_stays() {
        as_user_with_file_capabilities(|| {
            let ambient: Capabilities = [Capability::CAP_CHOWN].into_iter().collect();
            caps::raise(None, CapSet::Inheritable, Capability::CAP_KILL).unwrap();
            caps::raise(None, CapSet::Inheritable, Capability::CAP_CHOWN).unwrap();
            caps::raise(None, CapSet::Ambient, Capability::CAP_CHOWN).unwrap();
            raise_permitted().unwrap();
            let (before, inheritable) = (permitted().unwrap(), read(CapSet::Inheritable).unwrap());

            assert_eq!(drop_added().unwrap(), before.without(ambient));

            assert_eq!((permitted().unwrap(), effective().unwrap()), (ambient, ambient));
            assert_eq!(read(CapSet::Ambient).unwrap(), ambient);
            assert_eq!(
                read(CapSet::Inheritable).unwrap(),
                inheritable,
                "passes through an exec, so it is not the file's"
            );
        });
    }

    #[test]
    fn root_keeps_all() {
        let _alone = ONE_AT_A_TIME.lock();
        if nix::unistd::geteuid().is_root() {
            let before = (permitted().unwrap(), effective().unwrap(), get_dumpable().unwrap());
            assert!(drop_added().unwrap().is_empty());
            assert_eq!((permitted().unwrap(), effective().unwrap(), get_dumpable().unwrap()), before);
        }
        assert!(!was_elevated(), "cargo has no capabilities to give");
    }

    #[test]
    fn sets_are_shown_in_the_kernels_order() {
        let set = Capabilities::from_bits(1 << 39 | 1 << 38 | 1);
        assert_eq!(set.to_string(), "CAP_CHOWN, CAP_PERFMON, CAP_BPF");
        assert_eq!(Capabilities::default().to_string(), "none");
        assert_eq!(
            set.without(Capabilities::from_bits(1)),
            [Capability::CAP_BPF, Capability::CAP_PERFMON].into_iter().collect()
        );
    }
}
