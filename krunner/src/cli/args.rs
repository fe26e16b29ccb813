//! The command line as clap types.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args as ClapArgs, CommandFactory as _, Parser, ValueHint};
use clap_complete::Shell;

use super::help;
use super::since::Since;
use crate::config::Paths;
use crate::monitor::node::SOCKET;
use crate::runtime::LANGUAGES;

/// clap's own usage line plus the form the agent uses, whose `-s` and `-m` are hidden elsewhere.
const USAGE: &str = "\
krunner [--debug] [--root DIR] LANG [RUNTIME_PATH]
       krunner [-s] -m ai.backend.kernel [--debug] LANG [RUNTIME_PATH]
       krunner COMMAND [ARGUMENTS]";

/// Backend.AI kernel runner: executes the agent's requests, supervises user code, explains OOM kills
#[derive(Debug, Parser)]
#[command(name = "krunner", version, override_usage = USAGE, after_help = help::KRUNNER.text())]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) subcommand: Option<Subcommand>,
    #[command(flatten)]
    pub(super) runner: RunnerArgs,
}

/// Arguments of the runner itself, compatible with `python -m ai.backend.kernel`.
#[derive(Debug, ClapArgs)]
pub(super) struct RunnerArgs {
    /// Log more, to stderr only: no log lines are sent to the agent
    #[arg(long)]
    pub(super) debug: bool,

    /// Use /home/work, /home/config, /tmp/... below DIR (for tests)
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(super) root: PathBuf,

    /// Accepted and ignored: the agent passes it for Python
    #[arg(short = 's', hide = true)]
    _no_user_site: bool,

    /// Accepted and ignored: the agent passes it for Python
    #[arg(short = 'm', hide = true, value_name = "MODULE")]
    _module: Option<String>,

    /// Language runtime to serve
    #[arg(value_name = "LANG", required = true, value_parser = languages())]
    pub(super) lang: Option<String>,

    /// Compiler or interpreter, e.g. /usr/bin/gcc [default: depends on LANG]
    #[arg(value_name = "RUNTIME_PATH")]
    pub(super) runtime_path: Option<PathBuf>,
}

/// Everything but the runner itself.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Subcommand {
    /// Send one op to a running session and print the replies
    Send(SendArgs),
    /// Start a runner in a temporary folder and exercise its main functions
    Selftest(SelftestArgs),
    /// Report OOM kills as they happen: the victim, its ancestors, its size, the cause, the confidence
    Monitor(MonitorArgs),
    /// Trace the OOM kills of the whole machine, and deliver each to the container that it belongs to
    #[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
    Node(NodeArgs),
    /// Show recorded OOM kills, and why a session ended
    #[command(disable_help_subcommand = true)]
    Oom(OomArgs),
    /// Check what OOM attribution can use here (eBPF or inference) and what limits it
    Doctor(DoctorArgs),
    /// List language runtimes: their programs and the commands each step runs
    Languages(LanguagesArgs),
    /// Check service definitions and show the command each would start, without starting it
    Services(ServicesArgs),
    /// Print a manual page, or write all manual pages to a folder
    Man(ManArgs),
    /// Print a shell completion script
    Completions(CompletionsArgs),
}

/// Arguments of `krunner send`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::SEND.text())]
pub(super) struct SendArgs {
    /// clean, build, exec, code, input, complete, interrupt, status, event, start-service,
    /// start-model-service, shutdown-service or get-apps
    pub(super) op: String,

    /// Payload of the op; - reads it from stdin
    #[arg(default_value = "", allow_hyphen_values = true)]
    pub(super) payload: String,

    /// With `status`: reply at once, even if the session is not ready yet
    #[arg(long)]
    pub(super) now: bool,

    /// Print each reply as a JSON object, one per line
    #[arg(long)]
    pub(super) json: bool,

    /// Host of the runner
    #[arg(long, default_value = "127.0.0.1")]
    pub(super) host: String,

    /// Port for ops
    #[arg(long, default_value_t = 2000)]
    pub(super) in_port: u16,

    /// Port for replies
    #[arg(long, default_value_t = 2001)]
    pub(super) out_port: u16,

    /// Fail if no reply arrives for this long
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(super) wait: u64,
}

/// Arguments of `krunner selftest`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::SELFTEST.text())]
pub(super) struct SelftestArgs {
    /// Print the result as one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// Arguments of `krunner monitor`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::MONITOR.text())]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of the command line")]
pub(super) struct MonitorArgs {
    /// Print JSON objects, one per line
    #[arg(long)]
    pub(super) json: bool,

    /// Print the JSON Schema (2020-12) of monitor events and journal entries, then exit
    #[arg(long, exclusive = true)]
    pub(super) schema: bool,

    /// Monitor the whole machine, other containers included; PIDs are those of the host
    #[arg(long)]
    pub(super) all_namespaces: bool,

    /// Do not use eBPF; infer kills from cgroup counters and /proc
    #[arg(long, conflicts_with = "all_namespaces")]
    pub(super) no_bpf: bool,

    /// Keep a flight recorder in FILE (256 KiB), which `krunner oom post-mortem` reads
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) recorder: Option<PathBuf>,

    /// Also append reports to FILE as JSON lines; it is rotated to FILE.1 at 16 MiB
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) log: Option<PathBuf>,
}

/// Arguments of `krunner node`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::NODE.text())]
pub(super) struct NodeArgs {
    #[command(subcommand)]
    pub(super) command: Option<NodeCommand>,

    /// Listen at PATH for runners; mount its folder into containers
    #[arg(long, value_name = "PATH", default_value = SOCKET, value_hint = ValueHint::FilePath)]
    pub(super) socket: PathBuf,

    /// Serve metrics for Prometheus at ADDR, path /metrics; e.g. 127.0.0.1:9464
    #[arg(long, value_name = "ADDR")]
    pub(super) metrics: Option<SocketAddr>,

    /// Create a Kubernetes Event on the pod for OOM kills in it; needs a service account that may create events
    #[arg(long)]
    pub(super) events: bool,

    /// Also append reports to FILE as JSON lines; it is rotated to FILE.1 at 16 MiB
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) log: Option<PathBuf>,

    /// Include command lines in the log, which may contain secrets
    #[arg(long)]
    pub(super) command_lines: bool,
}

/// Subcommands of `krunner node`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum NodeCommand {
    /// Show the state of the running node: peers, kills, losses
    Status(NodeStatusArgs),
}

/// `krunner node status`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::NODE_STATUS.text())]
pub(super) struct NodeStatusArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,

    /// The node's socket
    #[arg(long, value_name = "PATH", default_value = SOCKET, value_hint = ValueHint::FilePath)]
    pub(super) socket: PathBuf,
}

/// Arguments of `krunner oom`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::OOM.text())]
pub(super) struct OomArgs {
    #[command(subcommand)]
    pub(super) command: OomCommand,
}

/// Subcommands of `krunner oom`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum OomCommand {
    /// List OOM kills, oldest first: number, time, victim, size, limit, confidence
    List(OomListArgs),
    /// Show the full report of one OOM kill
    Show(OomShowArgs),
    /// Render one OOM kill as an HTML page: memory over time, findings, process tree
    Plot(OomPlotArgs),
    /// Explain how a recorded session or monitor ended: what ran, its memory, the most likely cause
    PostMortem(PostMortemArgs),
}

/// `krunner oom list`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::OOM_LIST.text())]
pub(super) struct OomListArgs {
    /// Only kills since TIME: a duration ago (90s, 15m, 2h, 7d, 1h30m) or an RFC 3339 time
    #[arg(long, value_name = "TIME")]
    pub(super) since: Option<Since>,

    /// Only kills in which a process with this name (comm) died
    #[arg(long, value_name = "NAME")]
    pub(super) process: Option<String>,

    /// Print JSON objects, one per line
    #[arg(long)]
    pub(super) json: bool,

    /// Journal to read
    #[arg(default_value_os_t = journal(), value_hint = ValueHint::FilePath)]
    pub(super) file: PathBuf,
}

/// `krunner oom show`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::OOM_SHOW.text())]
pub(super) struct OomShowArgs {
    /// Number of the report; 1 is the newest
    #[arg(value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) number: u64,

    /// Print the report as a JSON object
    #[arg(long)]
    pub(super) json: bool,

    /// Journal to read
    #[arg(default_value_os_t = journal(), value_hint = ValueHint::FilePath)]
    pub(super) file: PathBuf,
}

/// `krunner oom plot`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::OOM_PLOT.text())]
pub(super) struct OomPlotArgs {
    /// Number of the report; 1 is the newest
    #[arg(value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) number: u64,

    /// Journal to read
    #[arg(default_value_os_t = journal(), value_hint = ValueHint::FilePath)]
    pub(super) file: PathBuf,

    /// Write the page to PAGE, replacing an existing file; - is stdout
    #[arg(short, long, value_name = "PAGE", value_hint = ValueHint::FilePath)]
    pub(super) output: PathBuf,
}

/// `krunner oom post-mortem`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::OOM_POST_MORTEM.text())]
pub(super) struct PostMortemArgs {
    /// Print one JSON object, with all samples of the memory
    #[arg(long)]
    pub(super) json: bool,

    /// The recording [default: the last in /home/work/.logs that ended without a goodbye]
    #[arg(value_hint = ValueHint::FilePath)]
    pub(super) file: Option<PathBuf>,
}

/// Where a session keeps its journal.
fn journal() -> PathBuf {
    Paths::default().logs().join("oom.jsonl")
}

/// Arguments of `krunner doctor`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::DOCTOR.text())]
pub(super) struct DoctorArgs {
    /// Report which runner the agent installed at PATH mounts into its sessions; PATH is its program, its PEX or scie file,
    /// its virtual environment or its site-packages
    #[arg(long, value_name = "PATH")]
    pub(super) agent: Option<PathBuf>,

    /// Print one JSON object: tracer, scope, and the state, finding and remedy of each check
    #[arg(long)]
    pub(super) json: bool,
}

/// Arguments of `krunner languages`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::LANGUAGES.text())]
pub(super) struct LanguagesArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,

    /// Show only these languages
    #[arg(value_name = "LANG", value_parser = languages())]
    pub(super) names: Vec<String>,
}

/// Arguments of `krunner services`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::SERVICES.text())]
pub(super) struct ServicesArgs {
    /// Show only this service
    pub(super) name: Option<String>,

    /// Print one JSON object: argv, env and user-settable options of each service, and problems
    #[arg(long)]
    pub(super) json: bool,

    /// Folder with NAME.json files
    #[arg(long, value_name = "DIR", default_value = "/etc/backend.ai/service-defs")]
    pub(super) definitions: PathBuf,

    /// Also show the services that LANG provides without a definition
    #[arg(long, value_name = "LANG", value_parser = languages())]
    pub(super) language: Option<String>,

    /// Value of `{runtime_path}` [default: that of the language]
    #[arg(long, value_name = "PATH")]
    pub(super) runtime_path: Option<PathBuf>,

    /// Values of `{ports[0]}`, `{ports[1]}`, ...
    #[arg(long = "port", value_name = "PORT", default_values_t = [8080, 8081, 8082, 8083])]
    pub(super) ports: Vec<u16>,
}

/// Arguments of `krunner man`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::MAN.text())]
pub(super) struct ManArgs {
    /// Print the page of this command [default: krunner(1)]
    #[arg(value_parser = commands())]
    pub(super) command: Option<String>,

    /// Write all pages (krunner.1, krunner-send.1, ...) to FOLDER, creating it if necessary
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath, conflicts_with = "command")]
    pub(super) dir: Option<PathBuf>,
}

/// Arguments of `krunner completions`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::COMPLETIONS.text())]
pub(super) struct CompletionsArgs {
    /// Shell to generate the script for
    pub(super) shell: Shell,
}

fn languages() -> PossibleValuesParser {
    PossibleValuesParser::new(LANGUAGES.iter().map(|kind| kind.name))
}

/// Not derived from the clap commands: `man` is one of them, so that would recurse.
fn commands() -> PossibleValuesParser {
    PossibleValuesParser::new(help::COMMANDS.iter().map(|(name, _)| *name))
}

/// The clap command.
pub(super) fn command() -> clap::Command {
    Args::command()
}

/// The clap command for manual pages and completions: built, without hidden arguments and without the `help` subcommand.
pub(super) fn documented() -> clap::Command {
    let command = command();
    let is_visible = |argument: &&clap::Arg| !argument.is_hide_set();
    let arguments: Vec<_> = command.get_arguments().filter(is_visible).cloned().collect();
    let mut documented = clap::Command::new("krunner")
        .version(env!("CARGO_PKG_VERSION"))
        .about(command.get_about().cloned().unwrap_or_default())
        .override_usage(USAGE)
        .disable_help_subcommand(true)
        .args(arguments)
        .subcommands(command.get_subcommands().cloned());
    documented.build();
    documented
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_agents_own_command_line_is_understood() {
        let args = parse("/opt/backend.ai/bin/python -s -m ai.backend.kernel --debug c /usr/bin/gcc").unwrap();
        assert!(args.runner.debug);
        assert_eq!(args.runner.lang.as_deref(), Some("c"));
        assert_eq!(args.runner.runtime_path, Some("/usr/bin/gcc".into()));
        assert_eq!(parse("krunner python").unwrap().runner.runtime_path, None);
    }

    #[test]
    fn a_language_is_needed_and_known() {
        assert!(parse("krunner").is_err());
        assert!(parse("krunner cobol").unwrap_err().to_string().contains("possible values: app, c, cpp"));
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }
}
