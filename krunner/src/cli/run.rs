//! The drop-in form: be the kernel runner of this container.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use super::args::RunnerArgs;
use super::main::in_runtime;
use crate::config::{Paths, Ports, child_env};
use crate::error::{Critical, chain};
use crate::exit::Exit;
use crate::logging;
use crate::process::Console;
use crate::runtime::Kind;
use crate::session::{Session, Settings, Signals};
use crate::sys;
use crate::transport::{Outbox, Queue};

/// What `ps` shows. Without it the path of the interpreter would, and `pkill -f python` in a user's
/// terminal would end the session.
const TITLE: &str = "backend.ai: kernel runner";

/// Descriptors from here on are nobody's business but ours.
const FIRST_PRIVATE_FD: i32 = 3;

pub(super) fn run(args: RunnerArgs) -> anyhow::Result<ExitCode> {
    let kind = args.lang.as_deref().and_then(Kind::find).context("no such language")?;
    let console = Console::of_this_process().context("cannot use stdout and stderr")?;
    let (outbox, queue) = Outbox::new();
    let to_agent = outbox.clone();
    let bridge = (!args.debug).then(|| Box::new(move |line| to_agent.try_log(line)) as logging::Bridge);
    logging::init(kind.log_prefix, args.debug, console.stderr.clone(), bridge);

    if let Err(error) = sys::set_process_title(TITLE) {
        tracing::debug!("the process title is not set: {error}");
    }
    if let Err(error) = sys::close_on_exec_from(FIRST_PRIVATE_FD) {
        tracing::warn!("descriptors that krunner was started with may be passed on to programs: {error}");
    }
    let settings = settings(kind, args.root, args.runtime_path);
    match in_runtime(serve(settings, console, outbox, queue)) {
        Ok(exit) => Ok(exit.into()),
        Err(error) => match error.downcast_ref::<Critical>() {
            Some(critical) => {
                // The logger's own thread may be as stuck as the rest.
                eprintln!("{}: {}", kind.log_prefix, chain(critical));
                Ok(critical.exit().into())
            }
            None => Err(error),
        },
    }
}

fn settings(kind: &'static Kind, root: PathBuf, runtime_path: Option<PathBuf>) -> Settings {
    let paths = Paths::below(root);
    let (ports, port_warnings) = Ports::load(&paths.intrinsic_ports());
    let (env, env_warnings) = child_env(env::vars_os(), &paths);
    for warning in port_warnings.iter().chain(&env_warnings) {
        tracing::warn!("{warning}");
    }
    let runtime_path = runtime_path.unwrap_or_else(|| kind.default_path.into());
    Settings { paths, ports, env, kind, runtime_path }
}

async fn serve(settings: Settings, console: Console, outbox: Outbox, queue: Queue) -> anyhow::Result<Exit> {
    let mut signals = Signals::watch()?;
    let session = Session::start(settings, console, outbox, queue).await?;
    Ok(session.run(&mut signals).await?)
}
