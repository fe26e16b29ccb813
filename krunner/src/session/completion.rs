//! Code completion: requests go to the engine at once, replies keep the order of the requests.
//!
//! The agent matches replies to requests by their order, so a slow request delays the replies after it, by [`TIMEOUT`]
//! at most. Requests are processed concurrently.

use std::collections::VecDeque;
use std::future::{pending, ready};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::time::timeout;

use crate::runtime::Engine;

/// The first completion of a session may load large libraries, which takes seconds. After this time the user has typed
/// on.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Concurrent requests; further ones get an empty reply in order.
const MAX_PENDING: usize = 64;

/// The pending completion requests.
#[derive(Default)]
pub(super) struct Completions {
    pending: FuturesOrdered<BoxFuture<'static, Vec<String>>>,
    /// Suggestions that cannot be sent yet. Replies of a kernel are large and are not kept for so long.
    unsent: VecDeque<Vec<String>>,
}

impl Completions {
    /// Starts a completion request.
    pub(super) fn request(&mut self, engine: Option<Arc<dyn Engine>>, request: String) {
        self.pending.push_back(match engine {
            Some(engine) if self.pending.len() + self.unsent.len() < MAX_PENDING => {
                Box::pin(async move { timeout(TIMEOUT, engine.complete(&request)).await.unwrap_or_default() })
            }
            _ => Box::pin(ready(Vec::new())),
        });
    }

    /// Resolves to the suggestions for the oldest request when they are there and may be sent.
    pub(super) async fn next(&mut self, may_send: impl Future<Output = ()>) -> Vec<String> {
        tokio::pin!(may_send);
        loop {
            let finished = async {
                match self.pending.next().await {
                    Some(suggestions) => suggestions,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                suggestions = finished => self.unsent.push_back(suggestions),
                () = &mut may_send, if !self.unsent.is_empty() => break,
            }
        }
        self.unsent.pop_front().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Control;
    use async_trait::async_trait;

    /// Suggests the request itself, after as many milliseconds as the request says.
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
    async fn answers_keep_the_order_of_the_requests() {
        let mut completions = Completions::default();
        let mut ask = |engine: Option<Arc<dyn Engine>>, request: &str| completions.request(engine, request.to_owned());
        ask(Some(Arc::new(Slow)), "100");
        ask(None, "0");
        ask(Some(Arc::new(Slow)), "1");
        let mut answers = Vec::new();
        for _ in 0..3 {
            answers.push(completions.next(ready(())).await.concat());
        }
        assert_eq!(answers, ["100", "", "1"]);
    }

    #[tokio::test]
    async fn answers_are_taken_from_the_engine_and_wait_until_they_may_be_sent() {
        let mut completions = Completions::default();
        for _ in 0..2 * MAX_PENDING {
            completions.request(Some(Arc::new(Slow)), "1".to_owned());
        }
        assert!(timeout(Duration::from_millis(50), completions.next(pending())).await.is_err());
        assert_eq!((completions.pending.len(), completions.unsent.len()), (0, 2 * MAX_PENDING));
        completions.request(Some(Arc::new(Slow)), "1".to_owned());
        let mut answers = Vec::new();
        for _ in 0..=2 * MAX_PENDING {
            answers.extend(completions.next(ready(())).await);
        }
        assert_eq!(answers.len(), MAX_PENDING, "those beyond the limit get no suggestions");
    }
}
