//! The drop-in form: be the kernel runner of this container.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use super::args::RunnerArgs;
use super::async_runtime::in_runtime;
use crate::config::{MemorySettings, Paths, Ports, child_env, foreign_home, require_for_session};
use crate::error::{FatalError, chain};
use crate::exit::Exit;
use crate::logging;
use crate::monitor::{BpfPolicy, Cgroup, CgroupRoot, MonitorSetup, ProgramLog, ScopeRequest};
use crate::process::{Console, OomScorePolicy, explain_limit};
use crate::runtime::Language;
use crate::session::{Session, SessionConfig, Signals};
use crate::sys;
use crate::transport::{ReplyReceiver, ReplySender};

/// What `ps` shows. Without it the path of the interpreter would, and `pkill -f python` in a user's
/// terminal would end the session.
const TITLE: &str = "backend.ai: kernel runner";

/// For the last log lines.
const LAST_WORDS_DEADLINE: Duration = Duration::from_millis(300);

/// Descriptors from this one on are private to krunner.
pub(super) const FIRST_PRIVATE_FD: i32 = 3;

pub(super) fn run(args: RunnerArgs) -> anyhow::Result<ExitCode> {
    require_for_session()?;
    // These three first of all, while there is one thread with all capabilities.
    let titled = sys::set_process_title(TITLE);
    let rank = OomScorePolicy::set_up(memory_limit());
    let monitor_setup = MonitorSetup::detect(ScopeRequest::Own, BpfPolicy::Auto, ProgramLog::under(args.debug));
    let kind = args.lang.as_deref().and_then(Language::find).context("no such language")?;
    let console = Console::of_this_process().map_err(explain_limit).context("cannot use stdout and stderr")?;
    let (replies, queue) = ReplySender::new();
    let to_agent = replies.clone();
    let bridge = (!args.debug).then(|| Box::new(move |line| to_agent.try_log(line)) as logging::Bridge);
    logging::init(kind.log_prefix, args.debug, console.stderr.clone(), bridge);

    match sys::memory::keep_code_resident() {
        Ok(bytes) => tracing::debug!("locking up to {} KiB of the program in memory", bytes >> 10),
        Err(error) => {
            tracing::debug!("cannot lock the program in memory, so it may be slow at a memory limit: {error}");
        }
    }
    sys::memory::reserve_heap();
    if let Err(error) = titled {
        tracing::debug!("cannot set the process title: {error}");
    }
    if let Err(error) = sys::close_on_exec_from(FIRST_PRIVATE_FD) {
        tracing::warn!("inherited descriptors may leak into programs: {error}");
    }
    let settings = settings(kind, args.root, args.runtime_path, monitor_setup, rank);
    Ok(in_runtime(serve(settings, console, replies, queue))?.into())
}

fn settings(
    kind: &'static Language,
    root: PathBuf,
    runtime_path: Option<PathBuf>,
    monitor_setup: MonitorSetup,
    rank: OomScorePolicy,
) -> SessionConfig {
    let paths = Paths::below(root);
    let (ports, port_warnings) = Ports::load(&paths.intrinsic_ports());
    let (env, env_warnings) = child_env(environment(), &paths);
    let (memory, memory_warnings) = MemorySettings::of(&env);
    let home_warning = foreign_home(&paths.work());
    for warning in home_warning.iter().chain(&port_warnings).chain(&env_warnings).chain(&memory_warnings) {
        tracing::warn!("{warning}");
    }
    let is_named = runtime_path.is_some();
    let runtime_path = kind.program(runtime_path, env.get(OsStr::new("PATH")).map(OsString::as_os_str));
    if !is_named && !kind.fallbacks.is_empty() && runtime_path != Path::new(kind.default_path) {
        tracing::info!("{} does not exist; using {}", kind.default_path, runtime_path.display());
    }
    SessionConfig { paths, ports, env, kind, runtime_path, monitor_setup, memory, rank }
}

/// The smallest limit that applies to this process, if one can be seen.
fn memory_limit() -> Option<u64> {
    Cgroup::find(&CgroupRoot::default()).ok()?.facts().limit_bytes
}

/// What we were started with. Where krunner's file has capabilities, libc has taken `LD_LIBRARY_PATH` and its
/// like away from us; programs are to have them.
pub(super) fn environment() -> Vec<(OsString, OsString)> {
    let own = || env::vars_os().collect();
    if !sys::was_elevated() {
        return own();
    }
    sys::initial_environment().unwrap_or_else(|error| {
        tracing::warn!("programs may lack LD_LIBRARY_PATH and the like: {error}");
        own()
    })
}

async fn serve(
    settings: SessionConfig,
    console: Console,
    replies: ReplySender,
    queue: ReplyReceiver,
) -> anyhow::Result<Exit> {
    let stderr = console.stderr.clone();
    let exit = match session(settings, console, replies, queue).await {
        Ok(exit) => exit,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            error.exit()
        }
    };
    // stderr may be blocked, and there is no other place to report this.
    let _ = stderr.flush(LAST_WORDS_DEADLINE).await;
    Ok(exit)
}

async fn session(
    settings: SessionConfig,
    console: Console,
    replies: ReplySender,
    queue: ReplyReceiver,
) -> Result<Exit, FatalError> {
    let mut signals = Signals::watch()?;
    Session::start(settings, console, replies, queue).await?.run(&mut signals).await
}
