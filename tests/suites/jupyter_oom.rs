//! A kernel that the OOM killer ends: the run says so, with the report.

use krunner_tests::cgroup::Cgroup;
use krunner_tests::{LaunchMethod, host, proc, require, wait};

use crate::jupyter::{kernel_but, session};
use crate::with_agent;

/// Enough for a kernel, and far less than it is going to ask for.
const LIMIT_MIB: u64 = 160;

#[test]
fn an_oom_killed_kernel_ends_the_run_with_the_report() {
    let python = require!(host::jupyter_python());
    let scratch = require!(Cgroup::scratch());
    let limited = scratch.limited("limited", LIMIT_MIB);
    let launch = LaunchMethod::direct().cgroup(&scratch);
    let links: Vec<_> = launch.argv_prefix().iter().map(|link| link.to_str().expect("UTF-8")).collect();
    let (runner, agent) = with_agent(&python, session(&python).prefix(&links));
    wait::until_true("BPF is attached", || proc::has_bpf(runner.pid()));
    let procs = limited.procs_file();
    assert_eq!(agent.query(&format!("_ = open({:?}, 'w').write('0')", procs.display().to_string())).codes(), [0]);
    let kernel = kernel_but(&runner, None);
    let run = agent.query("print('eating', flush=True)\nhoard = [bytearray(b'x' * 2**20) for _ in range(10000)]");
    assert_eq!(run.codes(), [-9], "{run:#?}");
    assert_eq!((run.stdout().as_str(), limited.oom_kills()), ("eating\n", 1));
    let told = run.stderr();
    assert!(told.contains("Out-of-memory detected!") && told.contains(&format!("{kernel} (running for")), "{told}");
    assert!(told.contains("the python3 kernel was killed by signal 9 (SIGKILL)"), "{told}");
    assert_eq!(agent.query("'a fresh one'").stdout(), "'a fresh one'");
}
