//! Completions: asked of the engine at once, answered in the order of the requests.
//!
//! The agent matches answers to requests by their order, so a slow one holds up those behind it, for
//! [`PATIENCE`] at most; they are worked on meanwhile.

use std::future::{pending, ready};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::time::timeout;

use crate::runtime::Engine;

/// A person who types has gone on by then.
const PATIENCE: Duration = Duration::from_secs(3);

/// Requests that are worked on; further ones get an empty answer, in their turn.
const MAX_ASKED: usize = 64;

/// Requests that wait for their answer.
#[derive(Default)]
pub(super) struct Completions {
    asked: FuturesOrdered<BoxFuture<'static, Vec<String>>>,
}

impl Completions {
    /// Begins to work on a request.
    pub(super) fn ask(&mut self, engine: Option<Arc<dyn Engine>>, request: String) {
        self.asked.push_back(match engine {
            Some(engine) if self.asked.len() < MAX_ASKED => {
                Box::pin(async move { timeout(PATIENCE, engine.complete(&request)).await.unwrap_or_default() })
            }
            _ => Box::pin(ready(Vec::new())),
        });
    }

    /// The answer to the oldest request.
    pub(super) async fn next(&mut self) -> Vec<String> {
        match self.asked.next().await {
            Some(suggestions) => suggestions,
            None => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Control;
    use async_trait::async_trait;

    /// Completes nothing but what it is asked, after as many milliseconds as that says.
    struct Slow;

    #[async_trait]
    impl Engine for Slow {
        async fn run(&self, _: &str, _: &Control) -> i32 {
            0
        }

        async fn complete(&self, request: &str) -> Vec<String> {
            tokio::time::sleep(Duration::from_millis(request.parse().unwrap())).await;
            vec![request.to_owned()]
        }
    }

    #[tokio::test]
    async fn answers_keep_the_order_of_the_requests_and_none_waits_for_ever() {
        let mut completions = Completions::default();
        let mut ask = |engine: Option<Arc<dyn Engine>>, request: &str| completions.ask(engine, request.to_owned());
        ask(Some(Arc::new(Slow)), "100");
        ask(None, "0");
        ask(Some(Arc::new(Slow)), "1");
        ask(Some(Arc::new(Slow)), "3600000");
        let mut answers = Vec::new();
        for _ in 0..4 {
            answers.push(completions.next().await.concat());
        }
        assert_eq!(answers, ["100", "", "1", ""]);
    }
}
