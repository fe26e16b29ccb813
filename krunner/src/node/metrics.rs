//! The node's metrics at `GET /metrics`: in the `OpenMetrics` format for those who accept it, else in Prometheus' text format.
//!
//! Labels have the names of pods and containers, never command lines. `kill_counts` bounds their number.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::{EncodeLabelSet, prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::kill_counts::{KillCounts, KillLabels};
use super::names::Owner;
use crate::monitor::OomReport;
use crate::tasks::TaskGroup;

/// Scrapes at the same time.
const MAX_SCRAPES: usize = 16;

/// How long a scrape may take.
const SCRAPE_PATIENCE: Duration = Duration::from_secs(10);

/// The media type of the `OpenMetrics` format.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// Every Prometheus server sends this header with a scrape (`scrapeAndReport`, scrape/scrape.go of prometheus).
const SCRAPE_TIMEOUT: &str = "x-prometheus-scrape-timeout-seconds";

/// A text format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TextFormat {
    OpenMetrics,
    Prometheus,
}

/// What became of a Kubernetes Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventOutcome {
    /// The API server has it.
    Created,
    /// The API server refused it.
    Refused,
    /// The name of the pod is not known.
    Unnamed,
    /// Too many containers had kills that waited to be announced.
    Dropped,
}

impl EventOutcome {
    const ALL: [Self; 4] = [Self::Created, Self::Refused, Self::Unnamed, Self::Dropped];

    fn labels(self) -> EventLabels {
        let outcome = match self {
            Self::Created => "created",
            Self::Refused => "refused",
            Self::Unnamed => "unnamed",
            Self::Dropped => "dropped",
        };
        EventLabels { outcome }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    outcome: &'static str,
}

/// What is counted.
#[derive(Debug)]
pub(super) struct Metrics {
    kills: Mutex<KillCounts>,
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
    pod_events: Family<EventLabels, Counter>,
    total: AtomicU64,
}

impl Metrics {
    #[must_use]
    pub(super) fn new() -> Self {
        Self {
            kills: Mutex::new(KillCounts::new(Instant::now())),
            lost_records: Counter::default(),
            suppressed: Counter::default(),
            refused: Counter::default(),
            peers: Gauge::default(),
            is_tracing: Gauge::default(),
            pod_events: Family::default(),
            total: AtomicU64::new(0),
        }
    }

    /// Counts the victims of a kill.
    pub(super) fn kill(&self, report: &OomReport, owner: &Owner, victims: u64) {
        self.total.fetch_add(victims, Ordering::Relaxed);
        self.counts().add(labels_of(report, owner), victims, Instant::now());
    }

    /// Counts a Kubernetes Event.
    pub(super) fn pod_event(&self, outcome: EventOutcome) {
        self.pod_events.get_or_create(&outcome.labels()).inc();
    }

    /// Shows all outcomes with 0, because `increase` counts from the first sample of a series.
    pub(super) fn expect_pod_events(&self) {
        for outcome in EventOutcome::ALL {
            drop(self.pod_events.get_or_create(&outcome.labels()));
        }
    }

    /// All killed processes.
    pub(super) fn kills(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// The text for a server that scrapes from this address, or for anyone else.
    fn text(&self, format: TextFormat, server: Option<IpAddr>) -> String {
        let registry = self.registry(server);
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = match format {
            TextFormat::OpenMetrics => text::encode(&mut text, &registry),
            TextFormat::Prometheus => prometheus_text::encode(&mut text, &registry),
        };
        text
    }

    fn registry(&self, server: Option<IpAddr>) -> Registry {
        let kills = Family::<KillLabels, Counter>::default();
        let count = |(labels, count): (&KillLabels, u64)| {
            kills.get_or_create(labels).inc_by(count);
        };
        let mut counts = self.counts();
        match server {
            Some(server) => counts.scraped_by(server, Instant::now()).for_each(count),
            None => counts.all().for_each(count),
        }
        let mut registry = Registry::with_prefix("krunner");
        registry.register("oom_kills", "Processes that the OOM killer killed", kills);
        registry.register("lost_records", "Records that the tracer dropped", self.lost_records.clone());
        registry.register("suppressed_reports", "OOM kills that the log only counts", self.suppressed.clone());
        registry.register("refused_peers", "Connections that were refused", self.refused.clone());
        registry.register("kubernetes_events", "Kubernetes Events by outcome", self.pod_events.clone());
        registry.register("peers", "Connected runners", self.peers.clone());
        registry.register("tracer_attached", "1 while the eBPF programs are attached", self.is_tracing.clone());
        registry
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, KillCounts> {
        self.kills.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn labels_of(report: &OomReport, owner: &Owner) -> KillLabels {
    let word = |value: Result<serde_json::Value, _>| {
        value.ok().and_then(|value: serde_json::Value| value.as_str().map(str::to_owned)).unwrap_or_default()
    };
    let limit = report.explanation.limit.as_ref();
    let is_machine = limit.is_some_and(|limit| limit.scope == crate::monitor::LimitScope::Machine);
    KillLabels {
        namespace: owner.namespace.clone().unwrap_or_default(),
        pod: owner.pod.clone().unwrap_or_default(),
        container: owner.container.clone().or_else(|| owner.text()).unwrap_or_default(),
        confidence: word(serde_json::to_value(report.confidence)),
        scope: if is_machine { "machine" } else { "cgroup" }.to_owned(),
    }
}

impl TextFormat {
    /// The format that an `Accept` header asks for.
    fn accepted(headers: &HeaderMap) -> Self {
        let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let is_open =
            accepts.flat_map(|value| value.split(',')).any(|part| part.trim_start().starts_with(OPEN_METRICS));
        if is_open { Self::OpenMetrics } else { Self::Prometheus }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
        }
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
            let Ok((stream, peer)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            if scrapes.fetch_add(1, Ordering::Relaxed) >= MAX_SCRAPES {
                scrapes.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (metrics, scrapes) = (Arc::clone(&metrics), Arc::clone(&scrapes));
            group.spawn("metrics scrape", async move {
                let answer = service_fn(|request| {
                    std::future::ready(Ok::<_, Infallible>(answer(&request, peer.ip(), &metrics)))
                });
                let mut server = http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(SCRAPE_PATIENCE).keep_alive(false);
                let _ = timeout(SCRAPE_PATIENCE, server.serve_connection(TokioIo::new(stream), answer)).await;
                scrapes.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    Ok(bound)
}

fn answer(request: &Request<Incoming>, peer: IpAddr, metrics: &Metrics) -> Response<Full<Bytes>> {
    let format = TextFormat::accepted(request.headers());
    let server = request.headers().contains_key(SCRAPE_TIMEOUT).then_some(peer);
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics.text(format, server)),
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(format.content_type()));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(accept: &'static str) -> TextFormat {
        TextFormat::accepted(&HeaderMap::from_iter([(header::ACCEPT, header::HeaderValue::from_static(accept))]))
    }

    #[test]
    fn format_is_the_one_that_is_accepted() {
        let of_prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.75,*/*;q=0.1";
        assert_eq!(format(of_prometheus), TextFormat::OpenMetrics);
        assert_eq!(format("text/plain;version=0.0.4, application/openmetrics-text"), TextFormat::OpenMetrics);
        assert_eq!(format("*/*"), TextFormat::Prometheus);
        assert_eq!(TextFormat::accepted(&HeaderMap::new()), TextFormat::Prometheus);
    }

    #[test]
    fn both_formats_have_the_counters_and_their_help() {
        let metrics = Metrics::new();
        metrics.refused.inc();
        let text = metrics.text(TextFormat::OpenMetrics, None);
        assert!(text.contains("# TYPE krunner_refused_peers counter\nkrunner_refused_peers_total 1\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
        let text = metrics.text(TextFormat::Prometheus, None);
        assert!(text.contains("# TYPE krunner_refused_peers_total counter\nkrunner_refused_peers_total 1\n"), "{text}");
        assert!(!text.contains("# EOF"), "{text}");
    }
}
