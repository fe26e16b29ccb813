//! The figures, their targets and their results. Plain data: nothing runs here.

use serde_json::{Value, json};

use super::sandbox::Implementation;

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Figure {
    /// From the runner's start to its first status reply
    Start,
    /// Resident memory after the start
    Rss,
    /// Round trip of a status op, compared with a bare libzmq echo
    Status,
    /// Round trip of `exec true`, compared with a bare spawn and wait
    Exec,
    /// Throughput of `head -c 512M /dev/zero`, compared with a bare copy loop
    Throughput,
    /// From the start to the end of the first `code`, compared with a bare kernel
    KernelStart,
    /// Round trip of `code 1` in a Jupyter kernel
    Code,
    /// Resident memory of the runner with a Jupyter kernel running
    KernelRss,
    /// Resident memory while a child writes 1 GiB and the agent reads nothing for 10 s
    Stall,
    /// From the start of `krunner monitor` until its tracer is attached
    OomAttach,
    /// Resident memory with the tracer attached
    OomRss,
    /// From a victim's exit to its report at the client, 99th percentile
    OomReport,
    /// Cost of the BPF program when a process exits
    BpfExit,
    /// Cost of the BPF program when a process forks
    BpfFork,
    /// Cost of the BPF program when a process executes a program
    BpfExec,
    /// Cost of the BPF program when a signal is sent
    BpfSignal,
    /// Slowdown of a fork loop with the tracer attached
    OomForks,
    /// CPU usage with 2,000 idle processes
    OomIdle,
    /// Time to scan /proc with 2,000 processes
    OomLook,
    /// From a victim's exit to its report in a plain container, by the machine's node, 99th percentile
    NodeReport,
    /// The same beside another container in a kill loop
    NodeStorm,
    /// Slowdown of a fork loop beside 200 plain containers and the node
    NodeForks,
    /// Slowdown of `make -j2` beside them
    NodeMake,
    /// Resident memory of the node with 20,000 processes
    NodeRss,
}

/// The protocol's pause before each `finished`.
const PAUSE_MS: f64 = 10.0;

/// What one container in a kill loop may add to the reports of another.
const STORM_MS: f64 = 50.0;

/// What a runner may add to its kernel's own start.
const KERNEL_START_MS: f64 = 50.0;

impl Figure {
    pub(super) const ALL: [Self; 24] = [
        Self::Start,
        Self::Rss,
        Self::Status,
        Self::Exec,
        Self::Throughput,
        Self::KernelStart,
        Self::Code,
        Self::KernelRss,
        Self::Stall,
        Self::OomAttach,
        Self::OomRss,
        Self::OomReport,
        Self::BpfExit,
        Self::BpfFork,
        Self::BpfExec,
        Self::BpfSignal,
        Self::OomForks,
        Self::OomIdle,
        Self::OomLook,
        Self::NodeReport,
        Self::NodeStorm,
        Self::NodeForks,
        Self::NodeMake,
        Self::NodeRss,
    ];

    /// Measured once per round, without a Jupyter kernel.
    pub(super) const ROUNDS: [Self; 5] = [Self::Start, Self::Rss, Self::Status, Self::Exec, Self::Throughput];

    /// Measured once per round, with a Jupyter kernel.
    pub(super) const KERNEL_ROUNDS: [Self; 3] = [Self::KernelStart, Self::Code, Self::KernelRss];

    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Rss => "rss",
            Self::Status => "status",
            Self::Exec => "exec",
            Self::Throughput => "throughput",
            Self::KernelStart => "kernel-start",
            Self::Code => "code",
            Self::KernelRss => "kernel-rss",
            Self::Stall => "stall",
            Self::OomAttach => "oom-attach",
            Self::OomRss => "oom-rss",
            Self::OomReport => "oom-report",
            Self::BpfExit => "bpf-exit",
            Self::BpfFork => "bpf-fork",
            Self::BpfExec => "bpf-exec",
            Self::BpfSignal => "bpf-signal",
            Self::OomForks => "oom-forks",
            Self::OomIdle => "oom-idle",
            Self::OomLook => "oom-look",
            Self::NodeReport => "node-report",
            Self::NodeStorm => "node-storm",
            Self::NodeForks => "node-forks",
            Self::NodeMake => "node-make",
            Self::NodeRss => "node-rss",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Start => "start to first status reply",
            Self::Rss => "RSS after start",
            Self::Status => "status round trip, p50",
            Self::Exec => "exec true, p50",
            Self::Throughput => "stdout of head -c 512M",
            Self::KernelStart => "start to the first code's end",
            Self::Code => "code 1 in a kernel, p50",
            Self::KernelRss => "RSS beside a kernel",
            Self::Stall => "peak RSS, agent stalls 10 s",
            Self::OomAttach => "start to OOM tracer attached",
            Self::OomRss => "RSS with the tracer attached",
            Self::OomReport => "victim's exit to report, p99",
            Self::BpfExit => "BPF for a process exit",
            Self::BpfFork => "BPF for a fork",
            Self::BpfExec => "BPF for an exec",
            Self::BpfSignal => "BPF for a signal",
            Self::OomForks => "loop of forks takes longer by",
            Self::OomIdle => "CPU beside 2,000 idle processes",
            Self::OomLook => "look at 2,000 processes",
            Self::NodeReport => "exit to report by the node, p99",
            Self::NodeStorm => "the same beside a kill loop",
            Self::NodeForks => "200 containers and node: forks +",
            Self::NodeMake => "200 containers and node: make +",
            Self::NodeRss => "RSS of the node, 20,000 processes",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Start
            | Self::Exec
            | Self::KernelStart
            | Self::Code
            | Self::OomAttach
            | Self::OomReport
            | Self::NodeReport
            | Self::NodeStorm
            | Self::OomLook => "ms",
            Self::Rss | Self::KernelRss | Self::Stall | Self::OomRss | Self::NodeRss => "MiB",
            Self::BpfExit | Self::BpfFork | Self::BpfExec | Self::BpfSignal => "ns",
            Self::OomForks | Self::OomIdle | Self::NodeForks | Self::NodeMake => "%",
            Self::Status => "us",
            Self::Throughput => "MiB/s",
        }
    }

    fn more_is_better(self) -> bool {
        self == Self::Throughput
    }

    /// The name of the baseline, if the figure has one.
    fn baseline(self) -> Option<&'static str> {
        match self {
            Self::Status => Some("libzmq echo"),
            Self::Exec => Some("spawn and wait"),
            Self::Throughput => Some("bare copy loop"),
            Self::KernelStart => Some("bare kernel"),
            Self::NodeStorm => Some("without the loop"),
            _ => None,
        }
    }

    /// The target and its derivation. `None` if a sample that it depends on is missing.
    fn target(self, python: Option<f64>, baseline: Option<f64>) -> Option<(f64, &'static str)> {
        match self {
            Self::Start | Self::NodeReport => Some((15.0, "fixed")),
            Self::Stall => Some((32.0, "fixed; and every byte arrives")),
            Self::NodeRss => Some((32.0, "fixed")),
            Self::OomAttach => Some((150.0, "fixed")),
            Self::Rss | Self::OomRss => Some((12.0, "fixed")),
            Self::KernelRss | Self::OomReport | Self::OomLook => Some((10.0, "fixed")),
            Self::BpfExit => Some((500.0, "fixed")),
            Self::BpfFork => Some((300.0, "fixed")),
            Self::BpfExec => Some((1000.0, "fixed")),
            Self::BpfSignal => Some((100.0, "fixed")),
            Self::OomForks | Self::NodeForks | Self::NodeMake => Some((3.0, "fixed")),
            Self::OomIdle => Some((0.3, "fixed")),
            Self::NodeStorm => Some((baseline? + STORM_MS, "without the loop + 50 ms")),
            Self::KernelStart => Some((baseline? + KERNEL_START_MS, "bare kernel + 50 ms")),
            Self::Code => Some((0.8 * python?, "0.8 x Python")),
            Self::Status => Some((1.3 * baseline?, "1.3 x libzmq echo")),
            Self::Exec => Some((PAUSE_MS + 2.0 * baseline?, "pause + 2 x spawn and wait")),
            Self::Throughput => {
                let (python, copy_loop) = (20.0 * python?, 0.7 * baseline?);
                let higher = if python > copy_loop { "20 x Python" } else { "70 % of copy loop" };
                Some((python.max(copy_loop), higher))
            }
        }
    }
}

/// The samples of a figure, one per round or start.
#[derive(Debug, Default, Clone)]
struct Samples {
    python: Vec<f64>,
    krunner: Vec<f64>,
    baseline: Vec<f64>,
}

/// The samples of every requested figure.
#[derive(Debug, Default)]
pub(super) struct Results {
    wanted: Vec<(Figure, Samples)>,
    notes: Vec<String>,
}

/// A row of the table with its medians and target.
#[derive(Debug)]
struct Row {
    figure: Figure,
    python: Option<f64>,
    krunner: Option<f64>,
    baseline: Option<f64>,
    target: Option<(f64, &'static str)>,
}

impl Row {
    fn new(figure: Figure, samples: &Samples) -> Self {
        let [python, krunner, baseline] = [&samples.python, &samples.krunner, &samples.baseline].map(|s| median(s));
        Self { figure, python, krunner, baseline, target: figure.target(python, baseline) }
    }

    /// The factor by which krunner is better than the Python runner.
    fn ratio(&self) -> Option<f64> {
        let (python, krunner) = (self.python?, self.krunner?);
        Some(if self.figure.more_is_better() { krunner / python } else { python / krunner })
    }

    fn is_met(&self) -> bool {
        match (self.krunner, self.target) {
            (Some(krunner), Some((target, _))) if self.figure.more_is_better() => krunner >= target,
            (Some(krunner), Some((target, _))) => krunner <= target,
            _ => false,
        }
    }

    fn cells(&self) -> [String; 7] {
        let number =
            |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| shown(value, self.figure.unit()));
        [
            self.figure.title().to_owned(),
            number(self.python),
            number(self.krunner),
            self.ratio().map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.1} x")),
            self.figure.baseline().map_or_else(String::new, |name| format!("{} ({name})", number(self.baseline))),
            self.target.map_or_else(
                || "unknown".to_owned(),
                |(target, how)| {
                    let sign = if self.figure.more_is_better() { ">=" } else { "<=" };
                    format!("{sign} {} ({how})", shown(target, self.figure.unit()))
                },
            ),
            if self.is_met() { "ok" } else { "MISSED" }.to_owned(),
        ]
    }
}

impl Results {
    /// No samples yet, for these figures or for all if `only` is empty.
    pub(super) fn new(only: &[Figure]) -> Self {
        let wanted = Figure::ALL.into_iter().filter(|figure| only.is_empty() || only.contains(figure));
        Self { wanted: wanted.map(|figure| (figure, Samples::default())).collect(), notes: Vec::new() }
    }

    pub(super) fn wants(&self, figure: Figure) -> bool {
        self.wanted.iter().any(|(wanted, _)| *wanted == figure)
    }

    pub(super) fn wants_any(&self, figures: &[Figure]) -> bool {
        figures.iter().any(|figure| self.wants(*figure))
    }

    /// Adds a sample, unless its figure was not requested.
    pub(super) fn add(&mut self, figure: Figure, implementation: Implementation, value: f64) {
        if let Some(samples) = self.samples(figure) {
            match implementation {
                Implementation::Python => samples.python.push(value),
                Implementation::Krunner => samples.krunner.push(value),
            }
        }
    }

    pub(super) fn add_baseline(&mut self, figure: Figure, value: f64) {
        if let Some(samples) = self.samples(figure) {
            samples.baseline.push(value);
        }
    }

    fn samples(&mut self, figure: Figure) -> Option<&mut Samples> {
        self.wanted.iter_mut().find(|(wanted, _)| *wanted == figure).map(|(_, samples)| samples)
    }

    /// Adds a line below the table.
    pub(super) fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// Adds a line unless one with the same text before the colon exists.
    pub(super) fn note_once(&mut self, text: String) {
        let head = text.split(':').next().unwrap_or(&text);
        if !self.notes.iter().any(|note| note.starts_with(head)) {
            self.notes.push(text);
        }
    }

    fn rows(&self) -> Vec<Row> {
        self.wanted.iter().map(|(figure, samples)| Row::new(*figure, samples)).collect()
    }

    /// Whether every target is met.
    pub(super) fn all_met(&self) -> bool {
        self.rows().iter().all(Row::is_met)
    }

    /// A text table with medians, ratio, target and whether the target is met.
    pub(super) fn table(&self) -> String {
        let head = ["figure", "Python runner", "krunner", "ratio", "baseline", "target", "ok?"].map(str::to_owned);
        let lines: Vec<[String; 7]> = [head].into_iter().chain(self.rows().iter().map(Row::cells)).collect();
        let widths: Vec<usize> =
            (0..7).map(|column| lines.iter().map(|line| line[column].len()).max().unwrap_or(0)).collect();
        let mut text = Vec::new();
        for (index, line) in lines.iter().enumerate() {
            let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
            text.push(format!("| {} |\n", cells.join(" | ")));
            if index == 0 {
                let dashes: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
                text.push(format!("| {} |\n", dashes.join(" | ")));
            }
        }
        text.extend(self.notes.iter().map(|note| format!("note: {note}\n")));
        text.concat()
    }

    /// The table as JSON, with every sample. The key `yardstick` is a contract; the code says baseline.
    pub(super) fn json(&self) -> Value {
        let figures: Vec<Value> = self
            .rows()
            .iter()
            .zip(&self.wanted)
            .map(|(row, (figure, samples))| {
                json!({
                    "figure": figure.name(),
                    "title": figure.title(),
                    "unit": figure.unit(),
                    "python": row.python,
                    "krunner": row.krunner,
                    "ratio": row.ratio(),
                    "yardstick": figure.baseline().map(|name| json!({"name": name, "value": row.baseline})),
                    "target": row.target.map(|(value, how)| json!({"value": value, "how": how})),
                    "ok": row.is_met(),
                    "samples": {
                        "python": samples.python,
                        "krunner": samples.krunner,
                        "yardstick": samples.baseline,
                    },
                })
            })
            .collect();
        json!({"ok": self.all_met(), "figures": figures, "notes": self.notes})
    }
}

/// The middle sample; of an even number, the mean of the middle two.
pub(super) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Formats a value with about three significant digits.
fn shown(value: f64, unit: &str) -> String {
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even_counts() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
    }

    fn row(figure: Figure, python: f64, krunner: f64, baseline: f64) -> Row {
        let samples = Samples { python: vec![python], krunner: vec![krunner], baseline: vec![baseline] };
        Row::new(figure, &samples)
    }

    #[test]
    fn targets_are_applied() {
        assert!(row(Figure::Start, 270.0, 15.0, 0.0).is_met());
        assert!(!row(Figure::Rss, 40.0, 12.1, 0.0).is_met());
        assert!(row(Figure::Status, 322.0, 129.0, 100.0).is_met());
        assert!(!row(Figure::Status, 322.0, 131.0, 100.0).is_met());
        assert!(row(Figure::Exec, 16.7, 11.9, 1.0).is_met());
        assert!(!row(Figure::Exec, 16.7, 12.1, 1.0).is_met());
        assert!(!row(Figure::Stall, 60.0, 32.1, 0.0).is_met());
        assert!(row(Figure::Code, 10.0, 8.0, 0.0).is_met());
        assert!(!row(Figure::Code, 10.0, 8.1, 0.0).is_met());
        assert!(row(Figure::KernelStart, 0.0, 650.0, 600.0).is_met());
        assert!(!row(Figure::KernelRss, 50.0, 10.1, 0.0).is_met());
    }

    #[test]
    fn throughput_has_two_targets_and_the_higher_one_counts() {
        assert!(!row(Figure::Throughput, 30.0, 599.0, 500.0).is_met());
        assert!(row(Figure::Throughput, 30.0, 700.0, 1000.0).is_met());
        assert!(!row(Figure::Throughput, 30.0, 699.0, 1000.0).is_met());
    }

    #[test]
    fn a_figure_without_samples_is_missed() {
        let results = Results::new(&[Figure::Start]);
        assert!(!results.all_met());
        assert!(results.table().contains("MISSED"));
    }

    #[test]
    fn the_table_has_the_requested_figures() {
        let mut results = Results::new(&[Figure::Throughput]);
        results.add(Figure::Throughput, Implementation::Python, 30.0);
        results.add(Figure::Throughput, Implementation::Krunner, 900.0);
        results.add(Figure::Start, Implementation::Krunner, 1.0);
        results.add_baseline(Figure::Throughput, 1000.0);
        results.note("a note".to_owned());
        let table = results.table();
        assert!(
            table.contains("30.0 x") && table.contains(">= 700 MiB/s (70 % of copy loop)") && table.contains("| ok ")
        );
        assert!(table.ends_with("note: a note\n") && !table.contains("first status"));
        assert_eq!(results.json()["figures"][0]["samples"]["krunner"][0], 900.0);
        assert_eq!(results.json()["ok"], true);
    }
}
