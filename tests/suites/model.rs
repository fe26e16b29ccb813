//! A model-based test of the whole session: generated sequences of ops, signals, kills and peers that come and go,
//! against a runner and, beside it, a small reference of what is owed.
//!
//! One runner serves many sequences. The suite runs always the same ones; `KRUNNER_MODEL_CASES` asks for a number of new
//! ones, and `KRUNNER_MODEL_SEED` repeats a run that failed.

mod action;
mod reference;
mod script;
mod session;

use std::cell::RefCell;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use krunner_tests::{host, require};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

use self::action::{Sequence, sequences};
use self::session::Session;

/// About ten seconds.
const CASES: u32 = 300;

/// The seed of a run that nobody asked for: a test of every change must not depend on chance.
const SEED: u64 = 1;

/// Runners side by side: most of a sequence is spent in waiting for the distance between two `finished`.
const WORKERS: u32 = 4;

/// Shrinking a failure that is a hang takes a minute a step.
const MAX_SHRINK_MS: u32 = 240_000;

fn variable(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// Runs a sequence on the session that is there. One that failed is not used again, so that a shorter sequence is tried
/// on a runner of its own.
fn check(compiler: &Path, session: &RefCell<Option<Session>>, sequence: &Sequence) -> Result<(), TestCaseError> {
    let mut current = session.take().unwrap_or_else(|| Session::start(compiler));
    // A hang is a panic of the harness.
    let result = catch_unwind(AssertUnwindSafe(|| current.run(sequence)));
    let result = result.unwrap_or_else(|_| Err(format!("the harness gave up; owed: {}", current.describe())));
    if result.map_err(TestCaseError::fail)? {
        session.replace(Some(current));
    }
    Ok(())
}

fn run(compiler: &Path, cases: u32, seed: u64) {
    let config = Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_time: MAX_SHRINK_MS,
        ..Config::default()
    };
    let session = RefCell::new(None);
    let result = TestRunner::new(config).run(&sequences(), |sequence| check(compiler, &session, &sequence));
    if let Err(error) = result {
        let (reason, sequence) = match error {
            TestError::Fail(reason, sequence) => (reason, format!("{sequence:#?}")),
            TestError::Abort(reason) => (reason, String::new()),
        };
        panic!("{reason}\nthe shortest sequence: {sequence}\nrepeat it: KRUNNER_MODEL_SEED={seed}");
    }
}

#[test]
fn random_sequences_get_what_they_are_owed() {
    let compiler = require!(host::c_compiler());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    let asked = variable("KRUNNER_MODEL_CASES");
    let seed = variable("KRUNNER_MODEL_SEED").unwrap_or(if asked.is_some() { now.as_secs() } else { SEED });
    let cases = asked.map_or(CASES, |cases| u32::try_from(cases).expect("a number of cases"));
    let began = Instant::now();

    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let share = cases / WORKERS + u32::from(worker < cases % WORKERS);
            let compiler = &compiler;
            scope.spawn(move || run(compiler, share, seed + u64::from(worker)));
        }
    });

    eprintln!("{cases} sequences in {} s, seed {seed}", began.elapsed().as_secs());
}
