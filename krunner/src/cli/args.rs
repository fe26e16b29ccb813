//! What can be said on the command line.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args as ClapArgs, CommandFactory as _, Parser, Subcommand, ValueHint};
use clap_complete::Shell;

use super::help;
use crate::runtime::KINDS;

/// As clap would write it, and the agent's form, which has options that are of no use to anybody else.
const USAGE: &str = "\
krunner [--debug] [--root DIR] LANG [RUNTIME_PATH]
       krunner [-s] -m ai.backend.kernel [--debug] LANG [RUNTIME_PATH]
       krunner COMMAND [ARGUMENTS]";

/// Backend.AI kernel runner: takes orders from the node's agent and supervises user code.
#[derive(Debug, Parser)]
#[command(name = "krunner", version, override_usage = USAGE, after_help = help::KRUNNER.text())]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) task: Option<Task>,
    #[command(flatten)]
    pub(super) runner: RunnerArgs,
}

/// The drop-in form.
#[derive(Debug, ClapArgs)]
pub(super) struct RunnerArgs {
    /// Log more, and only to stderr: the agent gets no log lines
    #[arg(long)]
    pub(super) debug: bool,

    /// Look for /home/work, /home/config, /tmp/... below DIR (for tests)
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(super) root: PathBuf,

    /// Tolerated, as the agent says it to Python
    #[arg(short = 's', hide = true)]
    _no_user_site: bool,

    /// Tolerated, as the agent says it to Python
    #[arg(short = 'm', hide = true, value_name = "MODULE")]
    _module: Option<String>,

    /// The language to serve
    #[arg(value_name = "LANG", required = true, value_parser = languages())]
    pub(super) lang: Option<String>,

    /// The language's own program, e.g. /usr/bin/gcc [default: depends on LANG]
    #[arg(value_name = "RUNTIME_PATH")]
    pub(super) runtime_path: Option<PathBuf>,
}

/// Everything else.
#[derive(Debug, Subcommand)]
pub(super) enum Task {
    /// Send one op to a running runner and print the replies
    Send(SendArgs),
    /// Start a runner in a temporary place and drive it through its main jobs
    Selftest(SelftestArgs),
    /// Report each kill for memory: which process, started by whom, how big, how sure
    Monitor(MonitorArgs),
    /// Say which tracer of OOM kills a runner started here would use, and why not the better one
    Doctor(DoctorArgs),
    /// List the languages: where each is looked for, and what its steps run
    Languages(LanguagesArgs),
    /// Check service definitions and show what each would start; nothing is started
    Services(ServicesArgs),
    /// Print a manual page, or write all of them to a folder
    Man(ManArgs),
    /// Print what makes a shell complete command lines of krunner
    Completions(CompletionsArgs),
}

/// `krunner send`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::SEND.text())]
pub(super) struct SendArgs {
    /// clean, build, exec, code, input, complete, interrupt, status, event, start-service,
    /// start-model-service, shutdown-service or get-apps
    pub(super) op: String,

    /// The payload; - reads it from stdin
    #[arg(default_value = "", allow_hyphen_values = true)]
    pub(super) payload: String,

    /// Print each reply as a JSON object on a line of its own
    #[arg(long)]
    pub(super) json: bool,

    /// Where the runner is
    #[arg(long, default_value = "127.0.0.1")]
    pub(super) host: String,

    /// Its port for ops
    #[arg(long, default_value_t = 2000)]
    pub(super) in_port: u16,

    /// Its port for replies
    #[arg(long, default_value_t = 2001)]
    pub(super) out_port: u16,

    /// Give up when nothing comes for this long
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(super) wait: u64,
}

/// `krunner selftest`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::SELFTEST.text())]
pub(super) struct SelftestArgs {
    /// Print the steps as one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// `krunner monitor`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::MONITOR.text())]
pub(super) struct MonitorArgs {
    /// Print a JSON object a line
    #[arg(long)]
    pub(super) json: bool,

    /// Report kills of the whole machine, other containers' included; ids are the host's
    #[arg(long)]
    pub(super) all_namespaces: bool,

    /// Infer from counters and snapshots, as where BPF is refused
    #[arg(long, conflicts_with = "all_namespaces")]
    pub(super) no_bpf: bool,
}

/// `krunner doctor`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::DOCTOR.text())]
pub(super) struct DoctorArgs {
    /// Print one JSON object: tracer, scope, and each check with its state, what was found and the remedy
    #[arg(long)]
    pub(super) json: bool,
}

/// `krunner languages`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::LANGUAGES.text())]
pub(super) struct LanguagesArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,

    /// Only these
    #[arg(value_name = "LANG", value_parser = languages())]
    pub(super) names: Vec<String>,
}

/// `krunner services`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::SERVICES.text())]
pub(super) struct ServicesArgs {
    /// Only this one
    pub(super) name: Option<String>,

    /// Print one JSON object: services with argv, env and what users may set, and problems
    #[arg(long)]
    pub(super) json: bool,

    /// The folder of NAME.json files
    #[arg(long, value_name = "DIR", default_value = "/etc/backend.ai/service-defs")]
    pub(super) definitions: PathBuf,

    /// Show what this language offers where no definition has the name
    #[arg(long, value_name = "LANG", value_parser = languages())]
    pub(super) language: Option<String>,

    /// What `{runtime_path}` stands for [default: that of the language]
    #[arg(long, value_name = "PATH")]
    pub(super) runtime_path: Option<PathBuf>,

    /// What `{ports[0]}`, `{ports[1]}`, ... stand for
    #[arg(long = "port", value_name = "PORT", default_values_t = [8080, 8081, 8082, 8083])]
    pub(super) ports: Vec<u16>,
}

/// `krunner man`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::MAN.text())]
pub(super) struct ManArgs {
    /// The page of this command [default: krunner's own]
    #[arg(value_parser = commands())]
    pub(super) command: Option<String>,

    /// Write all pages to this folder, which is made if it is missing: krunner.1, krunner-send.1, ...
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath, conflicts_with = "command")]
    pub(super) dir: Option<PathBuf>,
}

/// `krunner completions`.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::COMPLETIONS.text())]
pub(super) struct CompletionsArgs {
    /// The shell
    pub(super) shell: Shell,
}

fn languages() -> PossibleValuesParser {
    PossibleValuesParser::new(KINDS.iter().map(|kind| kind.name))
}

/// Asked of the commands themselves it would not end: `man` is one of them.
fn commands() -> PossibleValuesParser {
    PossibleValuesParser::new(help::COMMANDS.iter().map(|(name, _)| *name))
}

/// The command line as clap knows it.
pub(super) fn command() -> clap::Command {
    Args::command()
}

/// The same for manual pages and completions: built, without what is only tolerated and without `help`, which says what
/// `--help` says.
pub(super) fn documented() -> clap::Command {
    let command = command();
    let tolerated = |argument: &&clap::Arg| !argument.is_hide_set();
    let arguments: Vec<_> = command.get_arguments().filter(tolerated).cloned().collect();
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
