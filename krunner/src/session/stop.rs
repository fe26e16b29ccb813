//! The end of a session, within ten seconds whatever happens.
//!
//! | part | at most |
//! |---|---|
//! | the running step and the services: TERM, 2 s, KILL, their last output; the engine meanwhile | [`STEP_DEADLINE`] |
//! | reports of OOM kills in that step | [`REPORT_DEADLINE`] |
//! | what user code left behind | 2 x [`ORPHAN_PATIENCE`] |
//! | replies to the agent | [`FLUSH_DEADLINE`] |
//! | our own tasks | [`TASKS_DEADLINE`] |
//! | our own stdout and stderr | [`CONSOLE_DEADLINE`] each |
//!
//! A second signal kills what is left within [`FORCED_DEADLINE`].

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::dispatch::Session;
use super::event::Event;
use super::intrinsic::Intrinsic;
use super::signals::Signals;
use crate::exit::Exit;
use crate::process::{end_adopted_children, kill_children};
use crate::runtime::Engine;
use crate::writer::Writer;

const STEP_DEADLINE: Duration = Duration::from_millis(3500);
/// The monitor answers within one second.
const REPORT_DEADLINE: Duration = Duration::from_millis(1200);
const ORPHAN_PATIENCE: Duration = Duration::from_millis(800);
const FLUSH_DEADLINE: Duration = Duration::from_secs(3);
const CONSOLE_DEADLINE: Duration = Duration::from_millis(300);
const FORCED_DEADLINE: Duration = Duration::from_millis(100);
const TASKS_DEADLINE: Duration = Duration::from_millis(500);

/// Stops; at once when a second signal comes.
pub(super) async fn stop(mut session: Session, signals: &mut Signals) -> Exit {
    tokio::select! {
        biased;
        () = signals.next() => {
            kill_children(FORCED_DEADLINE).await;
            Exit::Forced
        }
        () = wind_down(&mut session) => Exit::Ok,
    }
}

async fn wind_down(session: &mut Session) {
    tracing::debug!("stopping");
    // What a program still writes is for the agent; a pipe that nobody reads must not keep it from there.
    [&session.console.stdout, &session.console.stderr].into_iter().for_each(Writer::hurry);
    let deadline = Instant::now() + STEP_DEADLINE;
    let (engine, services) = (session.engine().cloned(), session.services.stop(STEP_DEADLINE));
    session.intrinsic.iter().for_each(Intrinsic::stop);
    let ((), (), services_ended) = tokio::join!(end_step(session, deadline), end_engine(engine), services);
    // Those that come with the session may have come to light with the end of the bootstrap script.
    let intrinsic_ended = match &session.intrinsic {
        Some(intrinsic) => intrinsic.over(deadline).await,
        None => true,
    };
    if !(services_ended && intrinsic_ended) {
        tracing::warn!("some services did not end in time");
    }
    if session.queue.waiting() > 0 {
        tracing::warn!("{} steps are not run any more: the runner stops", session.queue.waiting());
    }
    end_adopted_children(ORPHAN_PATIENCE).await;
    if !session.outbox.flush(FLUSH_DEADLINE).await {
        tracing::warn!("the agent has not taken all replies");
    }
    if !session.tasks.stop(TASKS_DEADLINE).await {
        tracing::warn!("some tasks did not end in time");
    }
    for writer in [&session.console.stdout, &session.console.stderr] {
        // Nobody is left to be told when this fails.
        let _ = writer.flush(CONSOLE_DEADLINE).await;
    }
}

/// Ends the running step, or the bootstrap script, and answers for it.
async fn end_step(session: &mut Session, deadline: Instant) {
    if let Some(ending) = session.ending.take() {
        tell_kills(session).await;
        return session.step_done(ending.exit_code);
    }
    let Some(control) = &session.current else { return };
    control.terminate();
    let ended = async {
        loop {
            match session.events.recv().await {
                Some(Event::StepDone { exit_code }) => return Some(exit_code),
                Some(Event::Ready(prepared)) => {
                    prepared.intrinsic.stop();
                    session.intrinsic = Some(prepared.intrinsic);
                    // Made while we stop, it has not been told yet.
                    end_engine(prepared.engine).await;
                    return None;
                }
                None => return None,
                Some(_) => {}
            }
        }
    };
    match timeout_at(deadline, ended).await {
        Ok(Some(exit_code)) => {
            tell_kills(session).await;
            session.step_done(exit_code);
        }
        Ok(None) => {}
        Err(_) => {
            tracing::warn!("a step did not end in time; some of its output may be lost");
            session.step_done(-nix::libc::SIGKILL);
        }
    }
}

/// Reports the kills up to now, which go before the end of the step.
async fn tell_kills(session: &mut Session) {
    let number = session.step_number;
    if !session.oom.settle(number) {
        return;
    }
    let told = async {
        loop {
            let told = session.oom.next().await;
            if session.oom.handle(told, true) == Some(number) {
                return;
            }
        }
    };
    if timeout(REPORT_DEADLINE, told).await.is_err() {
        tracing::warn!("a report of an OOM kill may be missing: the runner is shutting down");
    }
    session.oom.send_kept();
}

async fn end_engine(engine: Option<Arc<dyn Engine>>) {
    let Some(engine) = engine else { return };
    if timeout(STEP_DEADLINE, engine.stop()).await.is_err() {
        tracing::warn!("what runs the code of query mode did not end in time");
    }
}
