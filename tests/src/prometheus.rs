//! A Prometheus server of Debian's package that scrapes a node every second.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::{free_port, host, http, wait};

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    folder: TempDir,
    port: u16,
}

impl Prometheus {
    /// Starts a server that scrapes this port, and waits until it is ready.
    pub fn start(target: u16) -> Result<Self, String> {
        let program = host::program("prometheus")?;
        let folder = TempDir::with_prefix("krp-").map_err(|error| error.to_string())?;
        let port = free_port();
        let config = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s }}\n\
             scrape_configs: [{{ job_name: krunner, static_configs: [{{ targets: ['127.0.0.1:{target}'] }}] }}]\n"
        );
        fs::write(folder.path().join("prometheus.yml"), config).map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.current_dir(folder.path()).args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"]);
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let log = File::create(folder.path().join("log")).map_err(|error| error.to_string())?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().map_err(|error| format!("cannot start prometheus: {error}"))?;
        let server = Self { child, folder, port };
        wait::until_true("prometheus to be ready", || {
            http::get(port, "/-/ready", &[]).is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
        });
        Ok(server)
    }

    /// The result of an instant query that yields at most one value (`/api/v1/query`).
    #[track_caller]
    pub fn value(&self, query: &str) -> Option<f64> {
        let path = format!("/api/v1/query?query={}", escaped(query));
        let answer = http::get(self.port, &path, &[]).expect("prometheus answers");
        let answer: Value =
            serde_json::from_str(http::body(&answer)).unwrap_or_else(|error| panic!("{error}: {answer}"));
        let results = answer["data"]["result"].as_array().unwrap_or_else(|| panic!("{query}: {answer}"));
        assert!(results.len() <= 1, "{query}: {answer}");
        results.first()?["value"][1].as_str()?.parse().ok()
    }

    /// Waits until this query yields this value.
    #[track_caller]
    pub fn until(&self, query: &str, value: f64) {
        let mut seen = None;
        let found = wait::within(wait::PATIENCE, || {
            seen = self.value(query);
            (seen == Some(value)).then_some(())
        });
        assert!(found.is_some(), "{query} is {seen:?}, not {value}");
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            eprintln!("--- prometheus\n{log}---");
        }
    }
}

/// `promtool`, which checks what exporters serve.
pub fn promtool() -> Result<PathBuf, String> {
    host::program("promtool")
}

fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat()
}
