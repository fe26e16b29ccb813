//! Shutdown of a session, within ten seconds in any case.
//!
//! | part | at most |
//! |---|---|
//! | the running step and the services: TERM, 2 s, KILL, their last output; concurrently the engine | [`STEP_DEADLINE`] |
//! | reports of OOM kills in that step | [`REPORT_DEADLINE`] |
//! | orphaned processes of user code | 2 x [`ORPHAN_TIMEOUT`] |
//! | replies to the agent; concurrently the shutdown record of the flight recorder | [`FLUSH_DEADLINE`] |
//! | our own tasks | [`TASKS_DEADLINE`] |
//! | our own stdout and stderr | [`CONSOLE_DEADLINE`] each |
//!
//! A second signal kills the remaining processes within [`FORCED_DEADLINE`].

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::dispatch::Session;
use super::event::SessionEvent;
use super::intrinsic::Intrinsic;
use super::signals::Signals;
use super::step_state::StepState;
use crate::exit::Exit;
use crate::process::{kill_children, terminate_orphans};
use crate::runtime::Engine;
use crate::writer::Writer;

const STEP_DEADLINE: Duration = Duration::from_millis(3500);
/// The monitor answers within one second.
const REPORT_DEADLINE: Duration = Duration::from_millis(1200);
const ORPHAN_TIMEOUT: Duration = Duration::from_millis(800);
const FLUSH_DEADLINE: Duration = Duration::from_secs(3);
/// Concurrent with flushing the replies.
const RECORD_DEADLINE: Duration = Duration::from_millis(500);
const CONSOLE_DEADLINE: Duration = Duration::from_millis(300);
const FORCED_DEADLINE: Duration = Duration::from_millis(100);
const TASKS_DEADLINE: Duration = Duration::from_millis(500);

/// Shuts down; a second signal forces it.
pub(super) async fn stop(mut session: Session, signals: &mut Signals, reason: &str) -> Exit {
    session.end_log.record_stopping(reason);
    tokio::select! {
        biased;
        second = signals.next() => {
            kill_children(FORCED_DEADLINE).await;
            session.end_log.record_shutdown(&format!("{reason}, then a second signal: {second}"), FORCED_DEADLINE).await;
            Exit::Forced
        }
        () = wind_down(&mut session, reason) => Exit::Ok,
    }
}

async fn wind_down(session: &mut Session, reason: &str) {
    tracing::debug!("stopping");
    // A blocked stdout or stderr must not delay the remaining program output to the agent.
    [&session.console.stdout, &session.console.stderr].into_iter().for_each(Writer::hurry);
    let deadline = Instant::now() + STEP_DEADLINE;
    let (engine, services) = (session.engine().cloned(), session.services.stop(STEP_DEADLINE));
    session.intrinsic.iter().for_each(Intrinsic::stop);
    let ((), (), services_ended) = tokio::join!(end_step(session, deadline), end_engine(engine), services);
    // `end_step` may have received sshd and ttyd together with the end of the bootstrap script.
    let intrinsic_ended = match &session.intrinsic {
        Some(intrinsic) => intrinsic.over(deadline).await,
        None => true,
    };
    if !(services_ended && intrinsic_ended) {
        tracing::warn!("some services did not stop in time");
    }
    if session.queue.waiting() > 0 {
        tracing::warn!("{} queued steps cancelled: the runner is shutting down", session.queue.waiting());
    }
    terminate_orphans(ORPHAN_TIMEOUT).await;
    let goodbye = session.end_log.record_shutdown(reason, RECORD_DEADLINE);
    let (is_flushed, ()) = tokio::join!(session.replies.flush(FLUSH_DEADLINE), goodbye);
    if !is_flushed {
        tracing::warn!("some replies were not delivered to the agent");
    }
    if !session.tasks.stop(TASKS_DEADLINE).await {
        tracing::warn!("some internal tasks did not stop in time");
    }
    for writer in [&session.console.stdout, &session.console.stderr] {
        // A failure cannot be reported any more.
        let _ = writer.flush(CONSOLE_DEADLINE).await;
    }
}

/// Terminates the running step or the bootstrap script, and answers the step.
async fn end_step(session: &mut Session, deadline: Instant) {
    if let StepState::Reporting { exit_code, .. } = session.step {
        report_kills(session).await;
        return session.step_done(exit_code);
    }
    let Some(control) = session.step.control() else { return };
    control.terminate();
    let ended = async {
        loop {
            match session.events.recv().await {
                Some(SessionEvent::StepDone { exit_code }) => return Some(exit_code),
                Some(SessionEvent::Ready(prepared)) => {
                    prepared.intrinsic.stop();
                    session.intrinsic = Some(prepared.intrinsic);
                    // The engine started during the shutdown, so it was not stopped yet.
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
            report_kills(session).await;
            session.step_done(exit_code);
        }
        Ok(None) => {}
        Err(_) => {
            tracing::warn!("a step did not stop in time; some of its output may be lost");
            session.step_done(-nix::libc::SIGKILL);
        }
    }
}

/// Reports the OOM kills so far, before the end of the step.
async fn report_kills(session: &mut Session) {
    let number = session.step_number;
    if !session.oom.request_barrier(number) {
        return;
    }
    let told = async {
        loop {
            let told = session.oom.next().await;
            if session.oom.handle(told, true, &mut session.end_log) == Some(number) {
                return;
            }
        }
    };
    if timeout(REPORT_DEADLINE, told).await.is_err() {
        tracing::warn!("an OOM kill report may be missing: the runner is shutting down");
    }
    session.oom.send_pending();
}

async fn end_engine(engine: Option<Arc<dyn Engine>>) {
    let Some(engine) = engine else { return };
    if timeout(STEP_DEADLINE, engine.stop()).await.is_err() {
        tracing::warn!("the query-mode engine did not stop in time");
    }
}
