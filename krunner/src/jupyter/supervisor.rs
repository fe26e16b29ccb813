//! The one task that owns the kernel's process, from its start to its end, and starts the next.
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
//! A kernel that dies before it is ready is not started again until code wants it, so nothing spins.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::FusedFuture as _;
use nix::sys::signal::Signal;
use tokio::time::{Instant, timeout, timeout_at};

use super::client::{Client, End};
use super::connection::{Endpoints, Sockets};
use super::frames::Broken;
use super::kernel::{KernelSettings, Live, Shared, State};
use super::kernelspec::{self, Kernelspec};
use super::raw_output::RawOutput;
use super::sockets::Traffic;
use crate::config::ChildEnv;
use crate::error::chain;
use crate::process::{Control, Exit, ExplainedEnd, Launcher, Outcome, OutputSink, SpawnError};
use crate::tasks::blocking;

/// From its start to its first answer. Interpreters on a cold network mount take their time.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// From the request to end to SIGTERM.
const SHUTDOWN_PATIENCE: Duration = Duration::from_millis(800);

/// A process that closes its sockets is mostly about to be gone.
const CLOSED_PATIENCE: Duration = Duration::from_millis(500);

/// After the process is gone: what it published is through when nothing has come for so long.
const LAST_OUTPUT: Duration = Duration::from_millis(50);

/// When the kernel is at fault in a way that has no exit code.
const BROKEN: i32 = -1;

/// Tells ipykernel whose child it is, as Jupyter's own clients do: it ends with its parent, and keeps its
/// address to itself.
const PARENT: &str = "JPY_PARENT_PID";

/// What ipykernel calls itself.
const IPYKERNEL: &str = "ipython";

pub(super) struct Supervisor {
    shared: Arc<Shared>,
}

/// How one kernel ended.
enum Ended {
    /// The session stops.
    Stopped,
    /// It never was ready, and why.
    Failed(String),
    /// It was ready before.
    Died,
}

/// What ends a kernel that runs.
enum Cause {
    Process(Result<ExplainedEnd, SpawnError>),
    Sockets(Broken),
    NotReady,
    OwnWish,
    Stop,
}

impl Supervisor {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(super) async fn run(self) {
        loop {
            match self.one_kernel().await {
                Ended::Stopped => break,
                Ended::Died => {}
                Ended::Failed(reason) => {
                    tracing::debug!("query mode is not available: {reason}");
                    self.shared.state.send_replace(State::Failed(reason.into()));
                    tokio::select! {
                        () = self.shared.stop.cancelled() => break,
                        () = self.shared.wanted.notified() => {}
                    }
                }
            }
            self.shared.state.send_replace(State::Starting);
        }
        self.shared.state.send_replace(State::Stopped);
    }

    async fn one_kernel(&self) -> Ended {
        let (spec, mut endpoints) = match self.prepare().await {
            Ok(prepared) => prepared,
            Err(reason) => return Ended::Failed(reason),
        };
        let settings = &self.shared.settings;
        let deadline = Instant::now() + READY_DEADLINE;
        let command = spec.command(endpoints.file(), settings.interpreter.as_ref());
        let env = environment(settings, &spec);
        let process = Control::new();
        let raw = RawOutput::new(Arc::clone(&settings.launcher.sink));
        let launcher = Launcher { sink: Arc::clone(&raw) as Arc<dyn OutputSink>, ..settings.launcher.clone() };
        endpoints.release_ports();
        let mut exit = pin!(launcher.run_explained(&command, &env, &process));
        let cause = tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => Cause::Stop,
            outcome = &mut exit => Cause::Process(outcome),
            connected = timeout_at(deadline, endpoints.connect()) => match connected {
                Ok(Ok(sockets)) => return self.serve(&spec, sockets, deadline, &process, &raw, exit).await,
                Ok(Err(broken)) => Cause::Sockets(broken),
                Err(_) => Cause::NotReady,
            },
        };
        if !matches!(cause, Cause::Process(_)) {
            process.terminate();
            let _ = exit.await;
        }
        ended(&spec.name, &cause, false)
    }

    /// Finds out what to start, and where it will listen.
    async fn prepare(&self) -> Result<(Kernelspec, Endpoints), String> {
        let settings = &self.shared.settings;
        let folders = kernelspec::data_folders(&settings.env, settings.interpreter.as_ref());
        let (language, scratch) = (settings.language, settings.scratch.clone());
        let prepared = blocking(move || {
            let spec = kernelspec::find(language, &folders).map_err(|error| (error.to_string(), true))?;
            let endpoints = Endpoints::choose(&scratch, &spec.name).map_err(|error| {
                (format!("cannot prepare the kernel's connection file in {}: {error}", scratch.display()), false)
            })?;
            Ok((spec, endpoints))
        });
        let remedied = |problem| format!("{problem}; {}", settings.remedy);
        prepared.await.map_err(|(problem, no_kernel)| if no_kernel { remedied(problem) } else { problem })
    }

    /// Stays with a kernel that listens.
    async fn serve(
        &self,
        spec: &Kernelspec,
        sockets: Sockets,
        deadline: Instant,
        process: &Control,
        raw: &RawOutput,
        mut exit: Pin<&mut (impl Future<Output = Result<ExplainedEnd, SpawnError>> + Send)>,
    ) -> Ended {
        let (client, outgoing) = Client::new(sockets.signer);
        let traffic = Traffic { client: &client, sink: &*self.shared.settings.launcher.sink, process };
        let mut served = pin!(traffic.serve(sockets.served, outgoing).fuse());
        let mut delivered = pin!(traffic.deliver(sockets.iopub).fuse());
        let mut cause = tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => Cause::Stop,
            cause = self.life(&client, process, raw, spec, deadline) => cause,
            outcome = &mut exit => Cause::Process(outcome),
            broken = &mut served => Cause::Sockets(broken),
            broken = &mut delivered => Cause::Sockets(broken),
        };
        let was_ready = self.shared.leave(&client);
        {
            let mut farewell = pin!(farewell(&mut cause, &client, process, exit));
            loop {
                tokio::select! {
                    biased;
                    () = &mut farewell => break,
                    _ = &mut served => {}
                    _ = &mut delivered => {}
                }
            }
        }
        if !delivered.is_terminated() {
            tokio::select! {
                _ = &mut delivered => {}
                () = client.flow.dry_for(LAST_OUTPUT) => {}
            }
        }
        let ended = ended(&spec.name, &cause, was_ready && client.has_run());
        client.end(End { exit_code: exit_code(&cause) });
        ended
    }

    /// From the first question to the kernel's own wish to end.
    async fn life(
        &self,
        client: &Arc<Client>,
        process: &Control,
        raw: &RawOutput,
        spec: &Kernelspec,
        deadline: Instant,
    ) -> Cause {
        let Ok(implementation) = timeout_at(deadline, client.ready()).await else { return Cause::NotReady };
        if implementation == IPYKERNEL {
            raw.is_published();
        }
        tracing::debug!("the {} kernel is ready", spec.name);
        let live = Live {
            client: Arc::clone(client),
            process: process.clone(),
            interrupts_by_message: spec.interrupts_by_message(),
            exits: Arc::default(),
        };
        let exits = Arc::clone(&live.exits);
        self.shared.state.send_replace(State::Ready(live));
        exits.notified().await;
        Cause::OwnWish
    }
}

/// Sees the process to its end, whatever the cause; what its exit explains becomes the cause.
async fn farewell(
    cause: &mut Cause,
    client: &Client,
    process: &Control,
    mut exit: Pin<&mut (impl Future<Output = Result<ExplainedEnd, SpawnError>> + Send)>,
) {
    let patience = match cause {
        Cause::Process(_) => return,
        Cause::Stop => {
            client.shut_down();
            SHUTDOWN_PATIENCE
        }
        Cause::OwnWish => SHUTDOWN_PATIENCE,
        Cause::Sockets(Broken::Closed) => CLOSED_PATIENCE,
        Cause::Sockets(_) | Cause::NotReady => Duration::ZERO,
    };
    match timeout(patience, &mut exit).await {
        Ok(outcome) => {
            if let Cause::Sockets(_) = cause {
                *cause = Cause::Process(outcome);
            }
        }
        Err(_) => {
            process.terminate();
            let _ = exit.await;
        }
    }
}

/// What is told, and what comes next. A kernel that no code has used is not started again unasked, so nothing spins.
fn ended(name: &str, cause: &Cause, was_used: bool) -> Ended {
    let what = match cause {
        Cause::Stop => return Ended::Stopped,
        Cause::OwnWish => {
            tracing::info!("the {name} kernel has ended as it was told; a new one is started");
            return Ended::Died;
        }
        Cause::NotReady => format!("has not answered within {READY_DEADLINE:?}"),
        Cause::Sockets(broken) => format!("was ended: {}", chain(broken)),
        Cause::Process(Ok(end)) => in_words(end),
        Cause::Process(Err(error)) => format!("was not started: {}", chain(error)),
    };
    if was_used {
        tracing::error!("the {name} kernel {what}; its variables are gone, and a new kernel is started");
        Ended::Died
    } else {
        Ended::Failed(format!("the {name} kernel {what}; what it said, if anything, is on stderr"))
    }
}

fn in_words(end: &ExplainedEnd) -> String {
    let what = match end.outcome {
        Outcome::Ended(Exit::Signal(signal)) => {
            let name = Signal::try_from(signal).map_or("a real-time signal", Signal::as_str);
            format!("was killed by signal {signal} ({name})")
        }
        outcome => format!("has ended with code {}", outcome.code()),
    };
    match &end.reason {
        Some(reason) => format!("{what}: {}", reason.text),
        None => what,
    }
}

/// For the code that was cut short, which has not succeeded.
fn exit_code(cause: &Cause) -> i32 {
    match cause {
        Cause::Process(Ok(end)) if end.outcome.code() != 0 => end.outcome.code(),
        Cause::Process(Ok(_)) | Cause::OwnWish => 1,
        Cause::Stop => -nix::libc::SIGTERM,
        Cause::Sockets(_) | Cause::NotReady | Cause::Process(Err(_)) => BROKEN,
    }
}

/// The kernel's variables.
fn environment(settings: &KernelSettings, spec: &Kernelspec) -> ChildEnv {
    let mut env = settings.env.clone();
    spec.add_variables(&mut env);
    env.insert(PARENT.into(), std::process::id().to_string().into());
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process_ended(exit: Exit) -> Cause {
        Cause::Process(Ok(ExplainedEnd { outcome: Outcome::Ended(exit), reason: None }))
    }

    #[test]
    fn code_that_was_cut_short_has_not_succeeded() {
        let exited = |exit| exit_code(&process_ended(exit));
        assert_eq!([exited(Exit::Code(0)), exited(Exit::Code(3)), exited(Exit::Signal(9))], [1, 3, -9]);
        assert_eq!(exit_code(&Cause::Sockets(Broken::Silent)), -1);
        assert_eq!(exit_code(&Cause::Stop), -15);
    }

    #[test]
    fn a_kernel_that_nobody_used_is_not_started_again_unasked() {
        let cause = process_ended(Exit::Signal(9));
        assert!(matches!(ended("python3", &cause, true), Ended::Died));
        let Ended::Failed(reason) = ended("python3", &cause, false) else { panic!("it would spin") };
        assert!(reason.starts_with("the python3 kernel was killed by signal 9 (SIGKILL);"), "{reason}");
        assert!(matches!(ended("python3", &Cause::OwnWish, true), Ended::Died));
    }
}
