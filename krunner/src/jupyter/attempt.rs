//! One kernel from its start to its end, as an attempt of the supervisor.
//!
//! ```text
//!            kernelspec, ports, process         answers, is heard
//! begin ──▶ starting ─────────────────────────────▶ ready ──▶ stopped
//!             ▲  │ no kernelspec, exit, 30 s          │ exit, broken sockets, silence, its own wish
//!    wanted   │  ▼                                    ▼
//!             ├─ failed                              dead: output delivered, run ended, process gone
//!             └───────────────────────────────────────┘
//! ```
//!
//! A kernel that exits before it is ready is not restarted until code needs it, so there is no restart loop.

use std::io;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::FusedFuture as _;
use nix::sys::signal::Signal;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::client::{KernelClient, KernelExit};
use super::connection::{Endpoints, Sockets};
use super::frames::SocketError;
use super::kernelspec::{self, Kernelspec, NoKernelspec};
use super::raw_output::RawOutput;
use super::ready_kernel::{KernelEnd, KernelSettings, ReadyKernel};
use super::sockets::SocketLoop;
use crate::config::ChildEnv;
use crate::error::chain;
use crate::process::{ChildStatus, CommandOutcome, Control, ExplainedOutcome, Launcher, OutputSink, SpawnError};
use crate::supervisor::{Attempt, AttemptEnd, Backoff, Progress, RestartPolicy};
use crate::tasks::blocking;

/// From the start to the first reply. Interpreters on a cold network mount start slowly.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// From the shutdown request to SIGTERM.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(800);

/// A process that closes its sockets is usually about to exit.
const CLOSED_TIMEOUT: Duration = Duration::from_millis(500);

/// After the process exited, its output is complete when nothing arrives for this long.
const LAST_OUTPUT: Duration = Duration::from_millis(50);

/// Exit code of a run when the kernel failed without an exit code of its own.
const BROKEN: i32 = -1;

/// Set as Jupyter's own clients do: ipykernel then exits with its parent, and does not print its address.
const PARENT: &str = "JPY_PARENT_PID";

/// The implementation name of ipykernel.
const IPYKERNEL: &str = "ipython";

/// A kernel that ran code is started again at once.
pub(super) const RESTARTS: RestartPolicy = RestartPolicy::Always(Backoff::NONE);

pub(super) struct KernelAttempt {
    pub(super) settings: Arc<KernelSettings>,
}

type KernelProgress = Progress<ReadyKernel, KernelEnd>;

/// A kernel whose process was started.
struct StartedKernel {
    spec: Kernelspec,
    process: Control,
    raw: Arc<RawOutput>,
    /// When it has to be ready.
    deadline: Instant,
}

/// Why no kernel can be started. The texts contain their causes.
#[derive(Debug, thiserror::Error)]
enum KernelPrepareError {
    /// No usable kernelspec for the language.
    #[error("{error}; {remedy}")]
    NoKernelspec {
        /// Where it was looked for.
        error: NoKernelspec,
        /// How to install one.
        remedy: String,
    },
    /// The connection file cannot be written.
    #[error("cannot create the kernel's connection file in {}: {error}", folder.display())]
    ConnectionFile {
        /// The folder for such files.
        folder: PathBuf,
        /// The error of the file system.
        error: io::Error,
    },
}

/// How the supervision of one kernel ended.
enum KernelOutcome {
    /// The session is stopping.
    Stopped,
    /// The kernel was not started or not used, and why it exited.
    Failed(String),
    /// The kernel had run code.
    Died,
}

/// Why a running kernel ended.
enum KernelEndCause {
    Process(Result<ExplainedOutcome, SpawnError>),
    Sockets(SocketError),
    NotReady,
    ExitRequested,
    Stop,
}

impl Attempt for KernelAttempt {
    type Ready = ReadyKernel;
    type End = KernelEnd;

    async fn run(&mut self, progress: &KernelProgress) -> AttemptEnd<KernelEnd> {
        match Box::pin(self.run_kernel(progress)).await {
            KernelOutcome::Stopped => AttemptEnd::Final(KernelEnd::Ended),
            KernelOutcome::Died => AttemptEnd::Ended(KernelEnd::Ended),
            KernelOutcome::Failed(reason) => {
                tracing::debug!("query mode is not available: {reason}");
                AttemptEnd::Final(KernelEnd::Failed(reason.into()))
            }
        }
    }
}

impl KernelAttempt {
    async fn run_kernel(&self, progress: &KernelProgress) -> KernelOutcome {
        let prepared = tokio::select! {
            biased;
            // The files may be on a mount that hangs.
            () = progress.control().terminated() => return KernelOutcome::Stopped,
            prepared = self.prepare() => prepared,
        };
        let (spec, mut endpoints) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return KernelOutcome::Failed(error.to_string()),
        };
        let settings = &*self.settings;
        let deadline = Instant::now() + READY_DEADLINE;
        let command = spec.command(endpoints.file(), settings.interpreter.as_ref());
        let env = environment(settings, &spec);
        let raw = RawOutput::new(Arc::clone(&settings.launcher.sink));
        let launcher = Launcher { sink: Arc::clone(&raw) as Arc<dyn OutputSink>, ..settings.launcher.clone() };
        let kernel = StartedKernel { spec, process: Control::new(), raw, deadline };
        endpoints.release_ports();
        let mut exit = pin!(launcher.run_explained(&command, &env, &kernel.process));
        let cause = tokio::select! {
            biased;
            () = progress.control().terminated() => KernelEndCause::Stop,
            outcome = &mut exit => KernelEndCause::Process(outcome),
            connected = timeout_at(deadline, endpoints.connect()) => match connected {
                Ok(Ok(sockets)) => return self.serve(progress, &kernel, sockets, exit).await,
                Ok(Err(broken)) => KernelEndCause::Sockets(broken),
                Err(_) => KernelEndCause::NotReady,
            },
        };
        if !matches!(cause, KernelEndCause::Process(_)) {
            kernel.process.terminate();
            let _ = exit.await;
        }
        ended(&kernel.spec.name, &cause, false)
    }

    /// Finds the kernelspec and chooses the ports.
    async fn prepare(&self) -> Result<(Kernelspec, Endpoints), KernelPrepareError> {
        let settings = &*self.settings;
        let folders = kernelspec::data_folders(&settings.env, settings.interpreter.as_ref());
        let (language, scratch, remedy) = (settings.language, settings.scratch.clone(), settings.remedy.clone());
        blocking(move || {
            let spec = kernelspec::find(language, &folders)
                .map_err(|error| KernelPrepareError::NoKernelspec { error, remedy })?;
            let endpoints = Endpoints::choose(&scratch, &spec.name)
                .map_err(|error| KernelPrepareError::ConnectionFile { folder: scratch, error })?;
            Ok((spec, endpoints))
        })
        .await
    }

    /// Watches a kernel whose sockets are connected.
    async fn serve(
        &self,
        progress: &KernelProgress,
        kernel: &StartedKernel,
        sockets: Sockets,
        mut exit: Pin<&mut (impl Future<Output = Result<ExplainedOutcome, SpawnError>> + Send)>,
    ) -> KernelOutcome {
        let (client, outgoing) = KernelClient::new(sockets.signer);
        let StartedKernel { spec, process, .. } = kernel;
        let socket_loop = SocketLoop { client: &client, sink: &*self.settings.launcher.sink, process };
        let mut served = pin!(socket_loop.serve(sockets.served, outgoing).fuse());
        let mut delivered = pin!(socket_loop.deliver(sockets.iopub).fuse());
        let mut cause = tokio::select! {
            biased;
            () = progress.control().terminated() => KernelEndCause::Stop,
            cause = start_and_watch(progress, kernel, &client) => cause,
            outcome = &mut exit => KernelEndCause::Process(outcome),
            broken = &mut served => KernelEndCause::Sockets(broken),
            broken = &mut delivered => KernelEndCause::Sockets(broken),
        };
        // It accepts no more code.
        progress.waits_for("its end");
        {
            let mut shut_down_process = pin!(shut_down_process(&mut cause, &client, process, exit));
            loop {
                tokio::select! {
                    biased;
                    () = &mut shut_down_process => break,
                    _ = &mut served => {}
                    _ = &mut delivered => {}
                }
            }
        }
        if !delivered.is_terminated() {
            tokio::select! {
                _ = &mut delivered => {}
                () = client.output.wait_silent(LAST_OUTPUT) => {}
            }
        }
        let ended = ended(&spec.name, &cause, client.has_run());
        client.end(KernelExit { exit_code: exit_code(&cause) });
        ended
    }
}

/// Waits until the kernel is ready, publishes that, and waits for an exit requested by its code.
async fn start_and_watch(
    progress: &KernelProgress,
    kernel: &StartedKernel,
    client: &Arc<KernelClient>,
) -> KernelEndCause {
    let Ok(implementation) = timeout_at(kernel.deadline, client.ready()).await else { return KernelEndCause::NotReady };
    if implementation == IPYKERNEL {
        kernel.raw.is_published();
    }
    tracing::debug!("the {} kernel is ready", kernel.spec.name);
    let exit_requested = CancellationToken::new();
    progress.ready(ReadyKernel {
        client: Arc::clone(client),
        process: kernel.process.clone(),
        interrupts_by_message: kernel.spec.interrupts_by_message(),
        exit_requested: exit_requested.clone(),
    });
    exit_requested.cancelled().await;
    KernelEndCause::ExitRequested
}

/// Waits for the process to exit, and stops it if it does not. The exit replaces a socket error as the cause.
async fn shut_down_process(
    cause: &mut KernelEndCause,
    client: &KernelClient,
    process: &Control,
    mut exit: Pin<&mut (impl Future<Output = Result<ExplainedOutcome, SpawnError>> + Send)>,
) {
    let patience = match cause {
        KernelEndCause::Process(_) => return,
        KernelEndCause::Stop => {
            client.shut_down();
            SHUTDOWN_TIMEOUT
        }
        KernelEndCause::ExitRequested => SHUTDOWN_TIMEOUT,
        KernelEndCause::Sockets(SocketError::Closed) => CLOSED_TIMEOUT,
        KernelEndCause::Sockets(_) | KernelEndCause::NotReady => Duration::ZERO,
    };
    match timeout(patience, &mut exit).await {
        Ok(outcome) => {
            if let KernelEndCause::Sockets(_) = cause {
                *cause = KernelEndCause::Process(outcome);
            }
        }
        Err(_) => {
            process.terminate();
            let _ = exit.await;
        }
    }
}

/// Logs the cause and decides what follows. A kernel that ran no code is not restarted until code needs it.
fn ended(name: &str, cause: &KernelEndCause, was_used: bool) -> KernelOutcome {
    let what = match cause {
        KernelEndCause::Stop => return KernelOutcome::Stopped,
        KernelEndCause::ExitRequested => {
            tracing::info!("the {name} kernel exited as requested; starting a new one");
            return KernelOutcome::Died;
        }
        KernelEndCause::NotReady => format!("did not respond within {READY_DEADLINE:?}"),
        KernelEndCause::Sockets(broken) => format!("was stopped: {}", chain(broken)),
        KernelEndCause::Process(Ok(end)) => describe_exit(end),
        KernelEndCause::Process(Err(error)) => format!("could not be started: {}", chain(error)),
    };
    if was_used {
        tracing::error!("the {name} kernel {what}; its variables are lost; starting a new kernel");
        KernelOutcome::Died
    } else {
        KernelOutcome::Failed(format!("the {name} kernel {what}; its output, if any, is on stderr"))
    }
}

fn describe_exit(end: &ExplainedOutcome) -> String {
    let what = match end.outcome {
        CommandOutcome::Exited(ChildStatus::Signal(signal)) => {
            let name = Signal::try_from(signal).map_or("a real-time signal", Signal::as_str);
            format!("was killed by signal {signal} ({name})")
        }
        outcome => format!("exited with code {}", outcome.code()),
    };
    match &end.reason {
        Some(reason) => format!("{what}: {}", reason.text),
        None => what,
    }
}

/// The exit code of a run that the kernel's exit interrupted; never 0.
fn exit_code(cause: &KernelEndCause) -> i32 {
    match cause {
        KernelEndCause::Process(Ok(end)) if end.outcome.code() != 0 => end.outcome.code(),
        KernelEndCause::Process(Ok(_)) | KernelEndCause::ExitRequested => 1,
        KernelEndCause::Stop => -nix::libc::SIGTERM,
        KernelEndCause::Sockets(_) | KernelEndCause::NotReady | KernelEndCause::Process(Err(_)) => BROKEN,
    }
}

/// The kernel's environment.
fn environment(settings: &KernelSettings, spec: &Kernelspec) -> ChildEnv {
    let mut env = settings.env.clone();
    spec.add_variables(&mut env);
    env.insert(PARENT.into(), std::process::id().to_string().into());
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process_ended(exit: ChildStatus) -> KernelEndCause {
        KernelEndCause::Process(Ok(ExplainedOutcome { outcome: CommandOutcome::Exited(exit), reason: None }))
    }

    #[test]
    fn code_that_was_cut_short_has_not_succeeded() {
        let exited = |exit| exit_code(&process_ended(exit));
        assert_eq!(
            [exited(ChildStatus::Code(0)), exited(ChildStatus::Code(3)), exited(ChildStatus::Signal(9))],
            [1, 3, -9]
        );
        assert_eq!(exit_code(&KernelEndCause::Sockets(SocketError::Silent)), -1);
        assert_eq!(exit_code(&KernelEndCause::Stop), -15);
    }

    #[test]
    fn an_unused_kernel_is_not_restarted_unasked() {
        let cause = process_ended(ChildStatus::Signal(9));
        assert!(matches!(ended("python3", &cause, true), KernelOutcome::Died));
        let KernelOutcome::Failed(reason) = ended("python3", &cause, false) else { panic!("it would spin") };
        assert!(reason.starts_with("the python3 kernel was killed by signal 9 (SIGKILL);"), "{reason}");
        assert!(matches!(ended("python3", &KernelEndCause::ExitRequested, true), KernelOutcome::Died));
    }
}
