//! What can be said on the command line.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args as ClapArgs, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::exit::Exit;
use crate::runtime::KINDS;

const EXAMPLES: &str = "\
Examples:
  krunner c /usr/bin/gcc             serve the agent on ports 2000 and 2001 with the C runtime
  krunner --debug python             the same with Python, logging more, and only to stderr
  krunner send status                ask a running runner when it started
  krunner send exec 'make test'      run a command line in it and show its output
  krunner selftest                   see that everything works on this machine
  krunner monitor                    report every kill for memory here, without an agent
  krunner doctor                     see how OOM kills would be traced here, and why
  krunner languages                  see what each language runs, and which are found here
  krunner services                   check an image's service definitions and show what they start
  krunner man | man -l -             read the manual page";

/// The examples, and all exit codes.
fn after_help() -> String {
    let codes = Exit::ALL.map(|code| format!("\n  {:<4} {}", code as u8, code.meaning()));
    format!("{EXAMPLES}\n\nExit codes:{}", codes.concat())
}

/// Backend.AI kernel runner: takes orders from the node's agent and supervises user code.
#[derive(Debug, Parser)]
#[command(name = "krunner", version, after_help = after_help())]
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
    /// Print the manual page of krunner or of one of its commands
    Man(ManArgs),
    /// Print completions for a shell
    Completions(CompletionsArgs),
}

const SEND_EXAMPLES: &str = "\
Examples:
  krunner send status
  krunner send exec 'echo hello; exit 3'; echo $?        the command's own exit code
  krunner send --json code - < snippet.c
  krunner send --in-port 12000 --out-port 12001 interrupt

A runner sends its replies to the connection made last. While an op with replies is under way here, an agent
that is connected misses what is sent. Ops without replies (input, interrupt, event, shutdown-service)
take nothing from it.

Exit codes: that of the command for exec, build, clean and code; else 0 done, 1 refused or failed, 2 wrong usage, \
4 no answer in time.";

/// `krunner send`.
#[derive(Debug, ClapArgs)]
#[command(after_help = SEND_EXAMPLES)]
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

const SELFTEST_EXAMPLES: &str = "\
Examples:
  krunner selftest
  krunner selftest --json | jq '.steps[] | select(.ok | not)'

It listens on free ports of 127.0.0.1 and works in a temporary folder. As root, with the memory controller, it has a \
process killed for memory and attributes that.

Exit codes: 0 every step went well, 1 one did not, 2 wrong usage.";

/// `krunner selftest`.
#[derive(Debug, ClapArgs)]
#[command(after_help = SELFTEST_EXAMPLES)]
pub(super) struct SelftestArgs {
    /// Print the steps as one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

const MONITOR_EXAMPLES: &str = "\
Examples:
  krunner monitor                         until interrupted: kills in this container, or in this cgroup
  krunner monitor --json | jq .victim     a JSON object a line
  sudo krunner monitor --all-namespaces   every container of the machine

Precise with CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN) and a kernel with BTF; otherwise inferred from
snapshots and counters, with less confidence. `krunner doctor` says which it would be here, and why.

Exit codes: 0 interrupted by SIGINT or SIGTERM, 1 it cannot watch, 2 wrong usage.";

/// `krunner monitor`.
#[derive(Debug, ClapArgs)]
#[command(after_help = MONITOR_EXAMPLES)]
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

const DOCTOR_EXAMPLES: &str = "\
Examples:
  krunner doctor                             a line for each check: ok, MISSING or note
  krunner doctor --json | jq -r .tracer      bpf or snapshot
  setpriv --reuid 1000 --clear-groups krunner doctor         as a user without capabilities would see it

BPF is used when nothing is MISSING; `->` says what would help. A note rules nothing out.

Exit codes: 0 whichever tracer it is, 1 it cannot be told, 2 wrong usage.";

/// `krunner doctor`.
#[derive(Debug, ClapArgs)]
#[command(after_help = DOCTOR_EXAMPLES)]
pub(super) struct DoctorArgs {
    /// Print one JSON object: tracer, scope, and each check with its state, what was found and the remedy
    #[arg(long)]
    pub(super) json: bool,
}

const LANGUAGES_EXAMPLES: &str = "\
Examples:
  krunner languages                       every language: its program, and what each step runs
  krunner languages rust java             these two
  krunner languages --json | jq -r '.languages[] | select(.found) | .name'        those found here

clean, build and exec are the steps with `*`, which depend on the files of the working directory: the file
in the second column decides, and a line without one says what happens where there is none of them. tmp
stands for a temporary name. A program without a path is looked up in PATH.

Exit codes: 0 done, 1 no temporary folder, 2 wrong usage.";

/// `krunner languages`.
#[derive(Debug, ClapArgs)]
#[command(after_help = LANGUAGES_EXAMPLES)]
pub(super) struct LanguagesArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,

    /// Only these
    #[arg(value_name = "LANG", value_parser = languages())]
    pub(super) names: Vec<String>,
}

const SERVICES_EXAMPLES: &str = "\
Examples:
  krunner services                                   those of this image
  krunner services jupyter --language python         with what the language offers by itself
  krunner services --definitions ./service-defs --port 8080 --port 8081 --json
  krunner services --json | jq -r '.problems[]'      only what is wrong

What an action would find out is shown as <name>.

Exit codes: 0 done, 1 a definition cannot be used, 2 wrong usage.";

/// `krunner services`.
#[derive(Debug, ClapArgs)]
#[command(after_help = SERVICES_EXAMPLES)]
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

/// The names of all commands.
const COMMANDS: [&str; 8] = ["send", "selftest", "monitor", "doctor", "languages", "services", "man", "completions"];

const MAN_EXAMPLES: &str = "\
Examples:
  krunner man | man -l -                             read it
  krunner man monitor > krunner-monitor.1            of one command
  krunner man --dir /usr/local/share/man/man1        all of them, a file each

Exit codes: 0 done, 1 a file cannot be written, 2 wrong usage.";

/// `krunner man`.
#[derive(Debug, ClapArgs)]
#[command(after_help = MAN_EXAMPLES)]
pub(super) struct ManArgs {
    /// Of this command [default: of krunner as a whole]
    #[arg(conflicts_with = "dir", value_parser = COMMANDS)]
    pub(super) command: Option<String>,

    /// Write all pages to this folder, which has to be there
    #[arg(long, value_name = "DIR")]
    pub(super) dir: Option<PathBuf>,
}

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  krunner completions bash > /usr/share/bash-completion/completions/krunner
  krunner completions zsh > /usr/local/share/zsh/site-functions/_krunner
  krunner completions fish > ~/.config/fish/completions/krunner.fish

Exit codes: 0 done, 1 stdout cannot be written to, 2 wrong usage.";

/// `krunner completions`.
#[derive(Debug, ClapArgs)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub(super) struct CompletionsArgs {
    /// Whose
    pub(super) shell: Shell,
}

fn languages() -> PossibleValuesParser {
    PossibleValuesParser::new(KINDS.iter().map(|kind| kind.name))
}

/// The command line as clap knows it, for completions and manual pages.
#[must_use]
pub fn command() -> clap::Command {
    Args::command()
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

    #[test]
    fn every_command_has_a_page() {
        let command = command();
        assert_eq!(command.get_subcommands().map(clap::Command::get_name).collect::<Vec<_>>(), COMMANDS);
    }

    /// All lines of examples: what is said to krunner, up to a pipe, a redirection or the explanation.
    fn examples(help: &str) -> Vec<Vec<String>> {
        let lines = help.lines().skip_while(|line| *line != "Examples:").skip(1).take_while(|line| !line.is_empty());
        let ours = lines.filter_map(|line| line.find("krunner ").map(|at| &line[at..]));
        let said = |line: &str| {
            let ends = [" | ", " > ", " < ", "; echo ", "   "].map(|end| line.find(end).unwrap_or(line.len()));
            shlex::split(&line[..ends.into_iter().min().unwrap_or(line.len())]).expect("words")
        };
        ours.map(said).collect()
    }

    #[test]
    fn every_help_has_examples_that_can_be_said_and_its_exit_codes() {
        let command = command();
        for each in [&command].into_iter().chain(command.get_subcommands()) {
            let name = each.get_name();
            let help = each.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Exit codes:"), "{name}: {help}");
            let examples = examples(&help);
            assert!(!examples.is_empty(), "{name}: {help}");
            for example in examples {
                let parsed = Args::try_parse_from(&example);
                assert!(parsed.is_ok(), "{name}: {example:?}: {}", parsed.unwrap_err());
            }
        }
    }
}
