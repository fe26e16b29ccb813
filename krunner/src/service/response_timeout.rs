//! How long the response to `start-service` may take. Pure.
//!
//! | the agent | waits for | is answered after |
//! |---|---|---|
//! | says `launch_timeout` | so many seconds | half a second less |
//! | is 26.4.10 or a later 26.4, or later than 26.8.1 | 35 s | 30 s at most |
//! | is another, or not known | 10 s | 8.5 s at most |

use std::time::Duration;

use crate::config::AgentVersion;

/// Older agents wait for ten seconds.
pub(crate) const DEFAULT_RESPONSE_TIMEOUT: Duration = Duration::from_millis(8500);

/// How long newer agents give a service to open its port; they wait five seconds longer for the response.
const LONG: Duration = Duration::from_secs(30);

/// Time for the transport of request and response.
const MARGIN: Duration = Duration::from_millis(500);

/// Upper limit of `launch_timeout`.
const MAX: Duration = Duration::from_hours(1);

/// The longest time from a request to its response.
pub(super) fn response_timeout(launch_timeout: Option<f64>, agent: Option<AgentVersion>) -> Duration {
    match launch_timeout {
        Some(seconds) if seconds > 0.0 => {
            let timeout = Duration::try_from_secs_f64(seconds).unwrap_or(MAX).min(MAX);
            timeout.saturating_sub(MARGIN.min(timeout / 4))
        }
        _ if agent.is_some_and(AgentVersion::waits_long_for_services) => LONG,
        _ => DEFAULT_RESPONSE_TIMEOUT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(launch_timeout: Option<f64>, agent: &str) -> u128 {
        response_timeout(launch_timeout, AgentVersion::parse(agent)).as_millis()
    }

    #[test]
    fn the_answer_comes_while_the_agent_waits() {
        assert_eq!(millis(None, "unknown"), 8500);
        assert_eq!(["23.03.8", "26.4.9", "26.8.1"].map(|agent| millis(None, agent)), [8500; 3]);
        assert_eq!(["26.4.10", "26.8.2"].map(|agent| millis(None, agent)), [30_000; 2]);
        assert_eq!([35.0, 2.5, 1.0, 0.1].map(|seconds| millis(Some(seconds), "23.03.8")), [34_500, 2000, 750, 75]);
        assert_eq!([0.0, -3.0].map(|seconds| millis(Some(seconds), "unknown")), [8500; 2], "none of these is a time");
        assert_eq!(millis(Some(1e300), "unknown"), 3_599_500);
    }
}
