//! A service that runs for as long as the session does: started again when it ends, up to a point.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::backoff::Backoff;
use crate::error::chain;
use crate::process::{Control, Launcher};
use crate::service::{Launch, Phase, Supervised};

/// Once a service runs, its port opens within this time or somebody else's trouble is behind it.
const OPEN_DEADLINE: Duration = Duration::from_mins(1);

/// How a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It is prepared, or started, or waits to be started again.
    Coming,
    /// Its port is open.
    Open,
    /// It is not started any more, for this reason.
    Over(String),
}

/// The handle on a service. Dropping it leaves the service alone.
pub struct Kept {
    control: Control,
    status: watch::Receiver<Status>,
}

impl Kept {
    /// Starts the service as soon as the plan says how, and keeps it. The plan tells what it has to tell itself; its
    /// error is for whoever asks for the service. It ends soon after its control was told to.
    pub fn start<P>(launcher: &Launcher, plan: impl FnOnce(Control) -> P) -> Self
    where
        P: Future<Output = Result<Launch, String>> + Send + 'static,
    {
        let control = Control::new();
        let (tell, status) = watch::channel(Status::Coming);
        let keeper = Keeper { launcher: launcher.clone(), control: control.clone(), tell };
        let plan = plan(control.clone());
        launcher.tasks.spawn("kept service", async move {
            let end = match plan.await {
                Ok(launch) => keeper.keep(&launch).await,
                Err(problem) => problem,
            };
            keeper.tell.send_replace(Status::Over(end));
        });
        Self { control, status }
    }

    /// How it is now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Waits until it is open or over; as it is at the deadline. The handle may be dropped meanwhile.
    pub fn settled(&self, deadline: Instant) -> impl Future<Output = Status> + Send + 'static {
        let mut status = self.status.clone();
        async move {
            let _ = timeout_at(deadline, status.wait_for(|status| *status != Status::Coming)).await;
            status.borrow().clone()
        }
    }

    /// Ends it: SIGTERM to its process group, SIGKILL after two seconds; and it stays ended.
    pub fn stop(&self) {
        self.control.terminate();
    }

    /// Whether it was told to end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.control.is_terminated()
    }

    /// Waits until it is over; see [`Self::stop`]. The handle may be dropped meanwhile.
    pub fn over(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut status = self.status.clone();
        async move {
            // An error means that the keeper is gone, and nothing comes back.
            let _ = status.wait_for(|status| matches!(status, Status::Over(_))).await;
        }
    }
}

struct Keeper {
    launcher: Launcher,
    control: Control,
    tell: watch::Sender<Status>,
}

impl Keeper {
    /// Returns when the service is over, with the reason.
    async fn keep(&self, launch: &Launch) -> String {
        let name = &launch.name;
        let mut backoff = Backoff::default();
        while !self.control.is_terminated() {
            let begun = Instant::now();
            match Supervised::start(&self.launcher, launch).await {
                Ok(service) => {
                    if !self.follow(service, name).await {
                        break;
                    }
                }
                Err(error) => tracing::warn!("{name} was not started: {}", chain(&error)),
            }
            self.tell.send_replace(Status::Coming);
            let Some(pause) = backoff.after(begun.elapsed()) else {
                tracing::error!("{name} is not started again: it has ended too often");
                return format!("{name} has ended too often");
            };
            tracing::info!("{name} is started again in {} s", pause.as_secs());
            tokio::select! {
                () = sleep(pause) => {}
                () = self.control.terminated() => break,
            }
        }
        format!("{name} was stopped")
    }

    /// Stays with the process to its end; `false` when that was demanded.
    async fn follow(&self, mut service: Supervised, name: &str) -> bool {
        let mut opening = service.clone();
        let life = async {
            match opening.settled(Instant::now() + OPEN_DEADLINE).await {
                Phase::Open => _ = self.tell.send_replace(Status::Open),
                Phase::Starting => tracing::warn!("{name} runs, but its port does not open"),
                Phase::Ended(_) => {}
            }
            opening.ended().await;
        };
        tokio::select! {
            () = life => true,
            () = self.control.terminated() => {
                service.stop();
                service.ended().await;
                false
            }
        }
    }
}
