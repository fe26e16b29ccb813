//! The drop-in form: be the kernel runner of this container.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use super::args::RunnerArgs;
use super::main::in_runtime;
use crate::config::{Paths, Ports, child_env};
use crate::error::{Critical, chain};
use crate::exit::Exit;
use crate::logging;
use crate::monitor::{By, Cgroup, CgroupRoot, Means, ProgramLog, Wanted};
use crate::process::{Console, OomRank};
use crate::runtime::Kind;
use crate::session::{Session, Settings, Signals};
use crate::sys;
use crate::transport::{Outbox, Queue};

/// What `ps` shows. Without it the path of the interpreter would, and `pkill -f python` in a user's
/// terminal would end the session.
const TITLE: &str = "backend.ai: kernel runner";

/// For the last log lines.
const LAST_WORDS_DEADLINE: Duration = Duration::from_millis(300);

/// Descriptors from here on are nobody's business but ours.
const FIRST_PRIVATE_FD: i32 = 3;

pub(super) fn run(args: RunnerArgs) -> anyhow::Result<ExitCode> {
    // These three first of all, while there is one thread with all capabilities.
    let titled = sys::set_process_title(TITLE);
    let rank = OomRank::set_up(memory_limit());
    let means = Means::of_this_host(Wanted::Ours, By::TheBest, ProgramLog::under(args.debug));
    let kind = args.lang.as_deref().and_then(Kind::find).context("no such language")?;
    let console = Console::of_this_process().context("cannot use stdout and stderr")?;
    let (outbox, queue) = Outbox::new();
    let to_agent = outbox.clone();
    let bridge = (!args.debug).then(|| Box::new(move |line| to_agent.try_log(line)) as logging::Bridge);
    logging::init(kind.log_prefix, args.debug, console.stderr.clone(), bridge);

    match sys::memory::keep_code_resident() {
        Ok(bytes) => tracing::debug!("{} KiB of the program are locked in memory as they are used", bytes >> 10),
        Err(error) => tracing::debug!("the program is not locked in memory, and slow at a memory limit: {error}"),
    }
    sys::memory::reserve_heap();
    if let Err(error) = titled {
        tracing::debug!("the process title is not set: {error}");
    }
    if let Err(error) = sys::close_on_exec_from(FIRST_PRIVATE_FD) {
        tracing::warn!("descriptors that krunner was started with may be passed on to programs: {error}");
    }
    let settings = settings(kind, args.root, args.runtime_path, means, rank);
    Ok(in_runtime(serve(settings, console, outbox, queue))?.into())
}

fn settings(
    kind: &'static Kind,
    root: PathBuf,
    runtime_path: Option<PathBuf>,
    means: Means,
    rank: OomRank,
) -> Settings {
    let paths = Paths::below(root);
    let (ports, port_warnings) = Ports::load(&paths.intrinsic_ports());
    let (env, env_warnings) = child_env(environment(), &paths);
    for warning in port_warnings.iter().chain(&env_warnings) {
        tracing::warn!("{warning}");
    }
    Settings { paths, ports, env, kind, runtime_path: kind.program(runtime_path), means, rank }
}

/// The smallest limit that applies to this process, if one can be seen.
fn memory_limit() -> Option<u64> {
    Cgroup::find(&CgroupRoot::default()).ok()?.facts().limit_bytes
}

/// What we were started with. Where krunner's file has capabilities, libc has taken `LD_LIBRARY_PATH` and its
/// like away from us; programs are to have them.
fn environment() -> Vec<(OsString, OsString)> {
    let own = || env::vars_os().collect();
    if !sys::was_elevated() {
        return own();
    }
    sys::initial_environment().unwrap_or_else(|error| {
        tracing::warn!("programs may lack LD_LIBRARY_PATH and the like: {error}");
        own()
    })
}

async fn serve(settings: Settings, console: Console, outbox: Outbox, queue: Queue) -> anyhow::Result<Exit> {
    let stderr = console.stderr.clone();
    let exit = match session(settings, console, outbox, queue).await {
        Ok(exit) => exit,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            error.exit()
        }
    };
    // Our own stderr may be stuck; nobody else is left to be told.
    let _ = stderr.flush(LAST_WORDS_DEADLINE).await;
    Ok(exit)
}

async fn session(settings: Settings, console: Console, outbox: Outbox, queue: Queue) -> Result<Exit, Critical> {
    let mut signals = Signals::watch()?;
    Session::start(settings, console, outbox, queue).await?.run(&mut signals).await
}
