//! The reference: what the runner owes, and whether a reply is owed. Pure.
//!
//! ```text
//! step sent ─▶ steps (queue) ─▶ the first runs: its output, its prompt, its end ─▶ next
//! status, get-apps, complete, start-service ─▶ one answer each, in the order of their kind
//! ```
//!
//! What depends on a race, such as an interrupt sent without looking, makes further ends possible for the steps it may hit,
//! and for no other.

use std::collections::VecDeque;

use krunner_tests::Message;
use serde_json::Value;

use super::action::Kind;
use super::script::{CAUGHT, Script, held_pid};

/// Exit codes by which a shell reports a death by SIGKILL or SIGBUS. The runner explains them in words of its own.
const EXPLAINED: [i64; 2] = [128 + 9, 128 + 7];

/// The exit code of an `exec` after a failed build.
const BUILD_FAILED: i64 = 127;

/// The ends of a program that an interrupt hit: its own death, or that of the program which its shell waits for.
const INTERRUPTED: [i64; 2] = [-2, 130];

/// The ends of a program that the runner terminated, and of a step that it did not start.
const TERMINATED: [i64; 2] = [-15, 143];

/// A step that is not finished.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) id: u32,
    pub(super) kind: Kind,
    pub(super) script: Script,
    /// It may have been interrupted.
    pub(super) is_interrupted: bool,
    /// The exit codes with which it may end early.
    cut: Vec<i64>,
    /// Its request for input arrived.
    pub(super) is_prompted: bool,
}

impl Step {
    /// Whether a signal was sent that may have ended it.
    pub(super) fn is_signalled(&self) -> bool {
        self.is_interrupted || !self.cut.is_empty()
    }
}

/// What is known of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Stopped,
    /// A start is not answered.
    Starting,
    Running,
    /// The runner may not know yet.
    Killed,
}

/// A start that is not answered.
#[derive(Debug)]
struct Start {
    /// The statuses that may come.
    statuses: Vec<&'static str>,
    service: Option<usize>,
}

/// Everything that the runner owes.
#[derive(Debug)]
pub(super) struct Reference {
    pub(super) steps: VecDeque<Step>,
    pub(super) services: Vec<Service>,
    starts: VecDeque<Start>,
    statuses: usize,
    completions: usize,
    lists: VecDeque<Value>,
    stdout: String,
    stderr: String,
    build_failed: bool,
    /// Texts for programs, the first of which may be lost with programs that were interrupted.
    typed: VecDeque<String>,
    maybe_lost: usize,
    started_at: Option<Vec<u8>>,
}

fn owed<T>(found: Option<T>, message: &Message) -> Result<T, String> {
    found.ok_or_else(|| format!("unasked: {:?}", shown(message)))
}

fn shown(message: &Message) -> String {
    let text: String = String::from_utf8_lossy(&message.payload).chars().take(300).collect();
    format!("{} {text}", message.kind)
}

impl Reference {
    pub(super) fn new(services: usize) -> Self {
        Self {
            steps: VecDeque::new(),
            services: vec![Service::Stopped; services],
            starts: VecDeque::new(),
            statuses: 0,
            completions: 0,
            lists: VecDeque::new(),
            stdout: String::new(),
            stderr: String::new(),
            build_failed: false,
            typed: VecDeque::new(),
            maybe_lost: 0,
            started_at: None,
        }
    }

    pub(super) fn step_sent(&mut self, id: u32, kind: Kind, script: Script) {
        let step = Step { id, kind, script, is_interrupted: false, cut: Vec::new(), is_prompted: false };
        self.steps.push_back(step);
    }

    pub(super) fn status_sent(&mut self) {
        self.statuses += 1;
    }

    pub(super) fn completion_sent(&mut self) {
        self.completions += 1;
    }

    pub(super) fn list_sent(&mut self, answer: Value) {
        self.lists.push_back(answer);
    }

    pub(super) fn typed(&mut self, text: String) {
        self.typed.push_back(text);
    }

    /// Any step so far may be the one that runs when the interrupt arrives.
    pub(super) fn interrupt_sent(&mut self) {
        for step in &mut self.steps {
            step.is_interrupted = true;
            step.cut.extend(INTERRUPTED);
        }
    }

    /// Only the first step is hit, because it says that it runs.
    pub(super) fn first_signalled(&mut self, signal: i32) {
        if let Some(first) = self.steps.front_mut() {
            first.cut.push(-i64::from(signal));
        }
    }

    pub(super) fn first_interrupted(&mut self) {
        if let Some(first) = self.steps.front_mut() {
            first.is_interrupted = true;
        }
    }

    /// The runner was told to stop.
    pub(super) fn stop_sent(&mut self) {
        for step in &mut self.steps {
            step.cut.extend(TERMINATED);
            step.is_interrupted |= matches!(step.script, Script::Snippet { .. });
        }
    }

    pub(super) fn start_sent(&mut self, service: usize) {
        let state = &mut self.services[service];
        let statuses = match state {
            Service::Stopped => vec!["started"],
            Service::Starting | Service::Killed => vec!["started", "running"],
            Service::Running => vec!["running"],
        };
        if *state != Service::Running {
            *state = Service::Starting;
        }
        self.starts.push_back(Start { statuses, service: Some(service) });
    }

    pub(super) fn unknown_start_sent(&mut self) {
        self.starts.push_back(Start { statuses: vec!["failed"], service: None });
    }

    /// A start that is not answered yet may fail now.
    pub(super) fn service_stopped(&mut self, service: usize) {
        self.services[service] = Service::Stopped;
        for start in self.starts.iter_mut().filter(|start| start.service == Some(service)) {
            start.statuses.push("failed");
        }
    }

    /// Whether starts are not answered.
    pub(super) fn has_starts(&self) -> bool {
        !self.starts.is_empty()
    }

    /// Whether a `status` is not answered.
    pub(super) fn has_statuses(&self) -> bool {
        self.statuses > 0
    }

    /// Whether everything is answered.
    pub(super) fn is_settled(&self) -> bool {
        self.steps.is_empty()
            && self.starts.is_empty()
            && self.statuses == 0
            && self.completions == 0
            && self.lists.is_empty()
    }

    /// Whether the program that asks can only go on with a further text.
    pub(super) fn needs_text(&self) -> bool {
        let is_asked = self.steps.front().is_some_and(|step| step.is_prompted);
        is_asked && self.typed.len() <= self.maybe_lost
    }

    pub(super) fn has_typed(&self) -> bool {
        !self.typed.is_empty()
    }

    /// Whether the next `exec` is skipped.
    pub(super) fn skips_next(&self) -> bool {
        self.build_failed
    }

    /// The process of the first step, if that is held and says so.
    pub(super) fn held(&self) -> Option<u32> {
        held_pid(&self.stdout, self.steps.front()?.id)
    }

    /// Takes a reply, which must be owed.
    pub(super) fn receive(&mut self, message: &Message) -> Result<(), String> {
        match message.kind.as_str() {
            "stdout" | "stderr" => self.output(message),
            "waiting-input" => self.prompted(message),
            "status" => {
                self.statuses = owed(self.statuses.checked_sub(1), message)?;
                let first = self.started_at.get_or_insert_with(|| message.payload.clone());
                same(&message.payload, first, "status")
            }
            "completion" => {
                self.completions = owed(self.completions.checked_sub(1), message)?;
                same(&json(message)?, &serde_json::json!({ "suggestions": [] }), "completion")
            }
            "apps-result" => {
                let expected = owed(self.lists.pop_front(), message)?;
                same(&json(message)?, &expected, "apps-result")
            }
            "service-result" => self.started(message),
            _ if message.ends_step() => self.finished(message),
            _ => Err(format!("unasked: {:?}", shown(message))),
        }
    }

    fn output(&mut self, message: &Message) -> Result<(), String> {
        let step = self.steps.front().ok_or_else(|| format!("output without a step: {}", shown(message)))?;
        let text = str::from_utf8(&message.payload).map_err(|_| "output is not what the script wrote".to_owned())?;
        if message.kind == "stderr" {
            self.stderr.push_str(text);
            return Ok(());
        }
        self.stdout.push_str(text);
        match step.script.stdout(step.id) {
            Some(all) if !all.starts_with(&self.stdout) => Err(format!("{step:?} wrote {:?}", tail(&self.stdout))),
            _ => Ok(()),
        }
    }

    fn prompted(&mut self, message: &Message) -> Result<(), String> {
        let step = self.steps.front_mut().filter(|step| matches!(step.script, Script::Ask) && !step.is_prompted);
        let step = owed(step, message)?;
        step.is_prompted = true;
        same(&message.payload.as_slice(), &b"".as_slice(), "waiting-input")
    }

    fn started(&mut self, message: &Message) -> Result<(), String> {
        let start = owed(self.starts.pop_front(), message)?;
        let answer = json(message)?;
        let status = answer["status"].as_str().unwrap_or_default();
        if !start.statuses.contains(&status) {
            return Err(format!("{answer} to a start with one of {:?}", start.statuses));
        }
        let is_last = !self.starts.iter().any(|other| other.service == start.service);
        if let Some(service) = start.service.filter(|&service| is_last && self.services[service] == Service::Starting) {
            self.services[service] = Service::Running;
        }
        Ok(())
    }

    fn finished(&mut self, message: &Message) -> Result<(), String> {
        let step = owed(self.steps.pop_front(), message)?;
        let (stdout, stderr) = (std::mem::take(&mut self.stdout), std::mem::take(&mut self.stderr));
        same(&message.kind.as_str(), &step.kind.reply(), "end of a step")?;
        let code = message.exit_code();
        let is_skipped = step.kind == Kind::Exec && std::mem::take(&mut self.build_failed);
        if step.kind == Kind::Build {
            self.build_failed = code != 0;
        }
        let said = || format!("{step:?} ended with {code}: stdout {:?}, stderr {:?}", tail(&stdout), tail(&stderr));
        let is_silent = stdout.is_empty() && stderr.is_empty();
        // A step that waits when the runner stops is not run.
        let is_cancelled = is_silent && code == TERMINATED[0] && step.cut.contains(&code);
        let is_right = if is_skipped {
            is_silent && code == BUILD_FAILED || is_cancelled
        } else {
            self.is_right(&step, code, &stdout, &stderr)
        };
        if is_right { Ok(()) } else { Err(said()) }
    }

    fn is_right(&mut self, step: &Step, code: i64, stdout: &str, stderr: &str) -> bool {
        // A compiler that is interrupted exits with a code and words of its own.
        let is_compiler_cut = step.is_interrupted && matches!(step.script, Script::Snippet { .. });
        let is_cut = step.cut.contains(&code) || is_compiler_cut;
        let has_ended = step.script.code(step.kind) == Some(code);
        let err = step.script.stderr(step.id);
        // The reason for a death by a signal is in words of the runner's own.
        let is_stderr_right = if is_cut || code < 0 {
            let own: String = stderr.split_inclusive('\n').filter(|line| line.starts_with("err-")).collect();
            err.starts_with(&own)
        } else if EXPLAINED.contains(&code) {
            stderr.starts_with(&err)
        } else {
            stderr == err
        };
        let is_stdout_right = match &step.script {
            Script::Hold { trap } => Self::is_held_right(step, *trap, code, stdout),
            Script::Ask => self.is_answer_right(is_cut, stdout),
            script => {
                let all = script.stdout(step.id).unwrap_or_default();
                has_ended && stdout == all || is_cut && all.starts_with(stdout)
            }
        };
        let is_code_right = matches!(step.script, Script::Hold { .. }) || has_ended || is_cut;
        is_code_right && is_stdout_right && is_stderr_right
    }

    fn is_held_right(step: &Step, trap: bool, code: i64, stdout: &str) -> bool {
        let held = held_pid(stdout, step.id).map(|pid| format!("held-{} {pid}\n", step.id));
        let words = format!("caught-{}\n", step.id);
        let caught = held.clone().unwrap_or_default() + &words;
        let is_interrupted = if trap {
            // A shell runs its trap again if it is interrupted in it.
            let rest = held.as_deref().and_then(|held| stdout.strip_prefix(held));
            let is_caught = rest.is_some_and(|rest| !rest.is_empty() && rest.replace(&words, "").is_empty());
            code == CAUGHT && is_caught
        } else {
            code == INTERRUPTED[0] && held.as_deref() == Some(stdout)
        };
        step.is_interrupted && is_interrupted
            || step.cut.contains(&code) && (stdout.is_empty() || caught.starts_with(stdout))
    }

    fn is_answer_right(&mut self, is_cut: bool, stdout: &str) -> bool {
        let answer = stdout.strip_prefix("answer: <").and_then(|rest| rest.strip_suffix(">\n"));
        let Some(answer) = answer else {
            self.maybe_lost += 1;
            return is_cut && stdout.is_empty();
        };
        let position = self.typed.iter().position(|text| text == answer);
        let is_right = position.is_some_and(|skipped| skipped <= self.maybe_lost);
        let skipped = position.map_or(0, |skipped| skipped + 1);
        self.typed.drain(..skipped);
        // Programs ask in turn: what was lost was typed before this answer.
        self.maybe_lost = 0;
        is_right
    }
}

fn json(message: &Message) -> Result<Value, String> {
    serde_json::from_slice(&message.payload).map_err(|error| format!("{}: {error}", shown(message)))
}

fn same<T: PartialEq + std::fmt::Debug>(found: &T, expected: &T, what: &str) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?} instead of {expected:?}")) }
}

fn tail(text: &str) -> String {
    const SHOWN: usize = 300;
    let skipped = text.chars().count().saturating_sub(SHOWN);
    text.chars().skip(skipped).collect()
}
