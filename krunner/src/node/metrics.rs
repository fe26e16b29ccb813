//! The node's metrics in the `OpenMetrics` format, at `GET /metrics`.
//!
//! Labels have the names of pods and containers, never command lines. At most [`MAX_LABEL_SETS`] sets of them exist; further
//! kills are counted in one set with `other` in each label.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::names::Owner;
use crate::monitor::OomReport;
use crate::tasks::TaskGroup;

/// Sets of labels: twice the containers of a large node, with two confidences.
const MAX_LABEL_SETS: usize = 1000;

/// Scrapes at the same time.
const MAX_SCRAPES: usize = 16;

/// How long a scrape may take.
const SCRAPE_PATIENCE: Duration = Duration::from_secs(10);

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KillLabels {
    namespace: String,
    pod: String,
    container: String,
    confidence: String,
    scope: String,
}

/// What is counted.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Mutex<Registry>,
    kills: Family<KillLabels, Counter>,
    label_sets: Mutex<std::collections::HashSet<KillLabels>>,
    /// Records that the tracer dropped.
    pub(super) lost_records: Counter,
    /// Kills that the log only counts.
    pub(super) suppressed: Counter,
    /// Connections that were refused.
    pub(super) refused: Counter,
    /// Connections that are open.
    pub(super) peers: Gauge,
    /// 1 while the tracer is attached.
    pub(super) is_tracing: Gauge,
    total: AtomicU64,
}

impl Metrics {
    #[must_use]
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("krunner");
        let metrics = Self {
            kills: Family::default(),
            label_sets: Mutex::default(),
            lost_records: Counter::default(),
            suppressed: Counter::default(),
            refused: Counter::default(),
            peers: Gauge::default(),
            is_tracing: Gauge::default(),
            total: AtomicU64::new(0),
            registry: Mutex::default(),
        };
        registry.register("oom_kills", "Processes that the OOM killer killed", metrics.kills.clone());
        registry.register("lost_records", "Records that the tracer dropped", metrics.lost_records.clone());
        registry.register("suppressed_reports", "OOM kills that the log only counts", metrics.suppressed.clone());
        registry.register("refused_peers", "Connections that were refused", metrics.refused.clone());
        registry.register("peers", "Connected runners", metrics.peers.clone());
        registry.register("tracer_attached", "1 while the eBPF programs are attached", metrics.is_tracing.clone());
        *metrics.lock() = registry;
        metrics
    }

    /// Counts the victims of a kill.
    pub(super) fn kill(&self, report: &OomReport, owner: &Owner, victims: u64) {
        self.total.fetch_add(victims, Ordering::Relaxed);
        self.kills.get_or_create(&self.bounded(KillLabels::of(report, owner))).inc_by(victims);
    }

    /// All killed processes.
    pub(super) fn kills(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    fn bounded(&self, labels: KillLabels) -> KillLabels {
        let mut known = self.label_sets.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(&labels) {
            return labels;
        }
        if known.len() >= MAX_LABEL_SETS {
            return KillLabels::other();
        }
        known.insert(labels.clone());
        labels
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.lock());
        text
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KillLabels {
    fn of(report: &OomReport, owner: &Owner) -> Self {
        let word = |value: Result<serde_json::Value, _>| {
            value.ok().and_then(|value: serde_json::Value| value.as_str().map(str::to_owned)).unwrap_or_default()
        };
        let limit = report.explanation.limit.as_ref();
        let is_machine = limit.is_some_and(|limit| limit.scope == crate::monitor::LimitScope::Machine);
        Self {
            namespace: owner.namespace.clone().unwrap_or_default(),
            pod: owner.pod.clone().unwrap_or_default(),
            container: owner.container.clone().or_else(|| owner.text()).unwrap_or_default(),
            confidence: word(serde_json::to_value(report.confidence)),
            scope: if is_machine { "machine" } else { "cgroup" }.to_owned(),
        }
    }

    fn other() -> Self {
        let [namespace, pod, container, confidence, scope] = std::array::from_fn(|_| "other".to_owned());
        Self { namespace, pod, container, confidence, scope }
    }
}

/// Listens at this address.
///
/// # Errors
/// If the address is in use or not ours.
pub(super) async fn listen(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    tasks: &TaskGroup,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let group = tasks.clone();
    tasks.spawn("metrics", async move {
        let scrapes = Arc::new(AtomicUsize::new(0));
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            if scrapes.fetch_add(1, Ordering::Relaxed) >= MAX_SCRAPES {
                scrapes.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (metrics, scrapes) = (Arc::clone(&metrics), Arc::clone(&scrapes));
            group.spawn("metrics scrape", async move {
                let answer = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&request, &metrics))));
                let mut server = http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(SCRAPE_PATIENCE).keep_alive(false);
                let _ = timeout(SCRAPE_PATIENCE, server.serve_connection(TokioIo::new(stream), answer)).await;
                scrapes.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    Ok(bound)
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics.text()),
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(CONTENT_TYPE));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pod: &str) -> KillLabels {
        KillLabels { pod: pod.to_owned(), ..KillLabels::other() }
    }

    #[test]
    fn label_sets_are_bounded_and_no_kill_is_lost() {
        let metrics = Metrics::new();
        let kills = 2 * MAX_LABEL_SETS;
        for number in 0..kills {
            metrics.kills.get_or_create(&metrics.bounded(labels(&format!("pod-{number}")))).inc();
        }
        let text = metrics.text();
        let counts: Vec<u64> = text
            .lines()
            .filter(|line| line.starts_with("krunner_oom_kills_total{"))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        assert_eq!((counts.len(), counts.iter().sum::<u64>()), (MAX_LABEL_SETS + 1, kills as u64));
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
