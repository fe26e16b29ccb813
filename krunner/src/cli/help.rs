//! The text below the options of each command: examples, remarks, exit codes. `--help` and the manual pages both show it.

use std::fmt::Write as _;

use crate::exit::Exit;

/// The explanation of a longer command line is on the next line.
const COLUMN: usize = 50;

/// The text for one command.
pub(super) struct Help {
    /// Command lines with what each does.
    pub(super) examples: &'static [(&'static str, &'static str)],
    /// Paragraphs below the examples.
    pub(super) remarks: &'static [&'static str],
    /// Exit codes this command can return, with their meaning for it.
    pub(super) exits: &'static [(Exit, &'static str)],
}

/// An exit code with its general meaning.
const fn usual(exit: Exit) -> (Exit, &'static str) {
    (exit, exit.meaning())
}

const DONE: (Exit, &str) = (Exit::Ok, "done");
const FAILED: (Exit, &str) = usual(Exit::Failure);
const USAGE: (Exit, &str) = usual(Exit::Usage);

pub(super) const KRUNNER: Help = Help {
    examples: &[
        ("krunner c /usr/bin/gcc", "serve the agent on ports 2000 and 2001 with the C runtime"),
        ("krunner --debug python", "serve Python, with debug logs on stderr"),
        ("krunner send status", "query a running session"),
        ("krunner send exec 'make test'", "run a command in it and show its output"),
        ("krunner selftest", "verify that krunner works on this machine"),
        ("krunner monitor", "report OOM kills, without an agent"),
        ("krunner node", "trace a whole machine for its containers"),
        ("krunner oom list", "list the OOM kills of this session"),
        ("krunner doctor", "check how OOM kills would be detected here"),
        ("krunner languages", "list languages and the commands they run"),
        ("krunner services", "check this image's service definitions"),
        ("krunner man | man -l -", "read the manual"),
    ],
    remarks: &[
        "See `krunner COMMAND --help` for examples and exit codes of each command. A runner can be used without an \
                agent: `krunner send` takes the agent's place.",
    ],
    exits: &[
        usual(Exit::Ok),
        usual(Exit::Failure),
        usual(Exit::Usage),
        usual(Exit::Port),
        usual(Exit::NoAnswer),
        usual(Exit::Internal),
        usual(Exit::Forced),
    ],
};

pub(super) const SEND: Help = Help {
    examples: &[
        ("krunner send status", "wait until the session is ready"),
        ("krunner send status --now", "check at once whether the runner is alive"),
        ("krunner send exec 'echo hello; exit 3'; echo $?", "prints 3, the exit code of the command"),
        ("krunner send --json code - < snippet.c", "run a snippet from a file"),
        ("krunner send --in-port 12000 --out-port 12001 interrupt", "interrupt a session on other ports"),
        ("krunner send --wait 600 exec 'make test'", "allow ten minutes without output"),
    ],
    remarks: &[
        "A runner sends replies to its newest connection, so a connected agent receives none while this command waits \
         for replies. Ops without replies (input, interrupt, event, shutdown-service) do not affect it.",
        "After build, clean, exec and code the exit code is that of the step, or 128 plus the signal number if a signal \
         terminated it.",
        "If the runner exits before it replied, this command ends at once. It does not reconnect to a runner that starts \
         again: that one does not know the op, which may have run in part, so it is not sent twice.",
    ],
    exits: &[
        (Exit::Ok, "a reply arrived, or the op has none and was sent"),
        FAILED,
        USAGE,
        (Exit::NoAnswer, "no reply in time, or the runner exited before it replied"),
    ],
};

pub(super) const SELFTEST: Help = Help {
    examples: &[
        ("krunner selftest", "one line per step, with its duration"),
        ("krunner selftest --json | jq .ok", "true or false"),
    ],
    remarks: &[
        "Takes a few seconds, needs no agent and leaves nothing behind: the runner uses a temporary folder and free \
                ports. A C program is compiled if gcc is installed; as root with a memory cgroup, a process is OOM-killed \
                and the report checked. Steps that are impossible here are skipped with the reason.",
    ],
    exits: &[(Exit::Ok, "no step failed"), (Exit::Failure, "a step failed; its line starts with FAILED"), USAGE],
};

pub(super) const MONITOR: Help = Help {
    examples: &[
        ("krunner monitor", "monitor this container or cgroup"),
        ("krunner monitor --json | jq .victim", "JSON, one object per line"),
        ("sudo krunner monitor --all-namespaces", "monitor all containers of the machine"),
        ("krunner monitor --no-bpf", "infer kills without eBPF"),
        ("krunner monitor --recorder monitor.bin", "keep a flight recorder"),
        ("krunner monitor --log /var/log/oom.jsonl", "keep a journal for `krunner oom`"),
        ("krunner monitor --schema", "print the JSON Schema of the output"),
    ],
    remarks: &[
        "Attribution is exact with CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN) and a kernel with BTF; otherwise victims are \
                inferred from cgroup counters and /proc, with less confidence. `krunner doctor` shows which applies here and \
                why. --all-namespaces requires eBPF. Sizes are in MiB in text and in bytes in JSON.",
        "A warning (`memory_warning` in JSON) precedes most OOM kills in krunner's own cgroup: memory that cannot be reclaimed \
                will reach the limit within seconds, or exceeds 90 % of it. KRUNNER_MEMORY_WARNING=off disables it. \
                KRUNNER_MEMORY_HOOK is a command to run with each warning; it reads the JSON object on stdin and is stopped \
                after KRUNNER_MEMORY_HOOK_TIMEOUT seconds (30).",
        "Where the kernel slows programs down at memory.high (cgroup v2), `memory_throttled` says so.",
    ],
    exits: &[(Exit::Ok, "stopped by SIGINT or SIGTERM, or stdout was closed"), FAILED, USAGE],
};

pub(super) const NODE: Help = Help {
    examples: &[
        ("krunner node", "trace this machine; print a JSON line for each OOM kill"),
        ("krunner node --metrics 127.0.0.1:9464", "serve metrics for Prometheus as well"),
        ("krunner node --events", "in a pod: also create Kubernetes Events"),
        ("krunner node status", "show the connected runners"),
    ],
    remarks: &[
        "The node runs on the host, as root or with CAP_BPF and CAP_PERFMON (CAP_SYS_PTRACE to read the PID namespaces of \
         others), in the host's PID namespace. A runner that may not use eBPF itself receives its OOM kills at \
         /run/krunner/node.sock, or at the path in KRUNNER_NODE_SOCKET: mount the folder into containers, read-only. It sees those in its own PID namespace and below, or, \
         in the host's PID namespace, those in its own memory cgroup and below.",
        "Kubernetes Events have names of programs, never command lines. The first OOM kill in a container is announced at once, further \
         ones together after 1, 2, 4, 8 and then every 10 minutes. The service account needs the permission `create` for `events` of the group \
         `events.k8s.io`.",
        "A SIGKILL that a user-space OOM killer of the host (earlyoom, nohang, oomd, systemd-oomd) sends to another cgroup is a line \
         `user_space_oom_kill`. It is no OOM kill in metrics and Events; in the container it explains the exit.",
        "Under systemd the node reports readiness and serves the watchdog (sd_notify(3)).",
    ],
    exits: &[(Exit::Ok, "stopped by SIGINT or SIGTERM"), (Exit::Failure, "eBPF or the socket cannot be used"), USAGE],
};

pub(super) const NODE_STATUS: Help = Help {
    examples: &[
        ("krunner node status", "show the connected runners"),
        ("krunner node status --json | jq .peers", "the same for programs"),
    ],
    remarks: &["Only root in the host's PID namespace may ask."],
    exits: &[DONE, (Exit::Failure, "the node cannot be reached, or refuses"), USAGE],
};

pub(super) const OOM: Help = Help {
    examples: &[
        ("krunner oom list", "list the OOM kills of this session, oldest first"),
        ("krunner oom show", "show the full report of the newest"),
        ("krunner oom plot -o report.html", "write it as a page with a chart"),
        ("krunner oom post-mortem", "explain the last unexpected end of a session"),
    ],
    remarks: &[JOURNAL],
    exits: &[DONE, FAILED, USAGE],
};

const JOURNAL: &str = "A session keeps its journal in /home/work/.logs/oom.jsonl if that folder exists, `krunner monitor --log FILE` in \
                       FILE. At 16 MiB a journal is rotated to FILE.1, which these commands read as well. Lines that krunner \
                       did not write are skipped and counted on stderr.";

pub(super) const OOM_LIST: Help = Help {
    examples: &[
        ("krunner oom list --since 2h", "OOM kills of the last two hours"),
        ("krunner oom list --since 2026-11-27T09:00:00Z --process python3", "by time and process name"),
        ("krunner oom list --json /var/log/oom.jsonl | jq .victim", "another journal, as JSON lines"),
    ],
    remarks: &["Kills are numbered from the newest, which is 1; pass the number to `krunner oom show`."],
    exits: &[DONE, FAILED, USAGE],
};

pub(super) const OOM_SHOW: Help = Help {
    examples: &[
        ("krunner oom show", "show the newest report"),
        ("krunner oom show 3", "show the third newest"),
        ("krunner oom show 1 /var/log/oom.jsonl.1", "read another journal"),
    ],
    remarks: &[],
    exits: &[DONE, (Exit::Failure, "the journal cannot be read, or has no report with that number"), USAGE],
};

pub(super) const OOM_PLOT: Help = Help {
    examples: &[
        ("krunner oom plot -o report.html", "write the newest report as a self-contained page"),
        ("krunner oom plot 3 -o report.html", "write the third newest"),
        ("krunner oom plot 1 /var/log/oom.jsonl -o - > report.html", "read another journal, write to stdout"),
    ],
    remarks: &[
        "The page is a single file without scripts: a chart of memory against the limit before the kill, stacked by process, the \
                report, memory by kind, the process tree, and the samples as a table. It follows the browser's light or dark \
                theme and prints well. It is readable by its owner only, since command lines may contain secrets.",
    ],
    exits: &[
        DONE,
        (Exit::Failure, "the journal cannot be read or has no report with that number, or the page cannot be written"),
        USAGE,
    ],
};

pub(super) const OOM_POST_MORTEM: Help = Help {
    examples: &[
        ("krunner oom post-mortem", "explain the last unexpected end of a session"),
        ("krunner oom post-mortem --json recorder.bin | jq .cause", "read this recording, as JSON"),
    ],
    remarks: &[
        "A session records memory, steps and OOM kills in /home/work/.logs/recorder.bin if that folder exists. If the \
         runner did not shut down cleanly, the next session there keeps the recording as recorder.bin.1. `krunner monitor \
         --recorder FILE` keeps one as well.",
    ],
    exits: &[DONE, (Exit::Failure, "there is no recording, or it cannot be read"), USAGE],
};

pub(super) const DOCTOR: Help = Help {
    examples: &[
        ("krunner doctor", "one line per check: ok, MISSING or note"),
        ("krunner doctor --json | jq -r .tracer", "prints bpf, node or snapshot"),
        ("setpriv --reuid 1000 --clear-groups krunner doctor", "check as an unprivileged user"),
        ("krunner doctor --agent /opt/agent/bin/backend.ai", "on a node: which runner the agent mounts"),
    ],
    remarks: &[
        "eBPF is used if nothing is MISSING; `->` marks a remedy. A note does not rule eBPF out. Where `krunner node` \
                traces for this container, nothing is MISSING, and the tracer is `node`. A check that hangs is \
                reported on stderr and abandoned; doctor finishes within 10 s. With --agent only the agent is checked; an agent \
                shipped as one file unpacks itself below PEX_ROOT, or ~/.cache/pex or ~/.pex.",
    ],
    exits: &[(Exit::Ok, "done, whether or not eBPF is available"), FAILED, USAGE],
};

pub(super) const LANGUAGES: Help = Help {
    examples: &[
        ("krunner languages", "show all languages"),
        ("krunner languages rust java", "show two languages"),
        ("krunner languages --json | jq -r '.languages[] | select(.found) | .name'", "names of installed languages"),
    ],
    remarks: &[
        "clean, build and exec show the payload `*`, whose commands depend on the files in the working directory: the \
                second column names the file that selects the command; a line without one applies if no such file exists. \
                tmp stands for a temporary name. Programs without a path are looked up in PATH.",
    ],
    exits: &[DONE, FAILED, USAGE],
};

pub(super) const SERVICES: Help = Help {
    examples: &[
        ("krunner services", "check the services of this image"),
        ("krunner services jupyter --language python", "include services the language provides"),
        ("krunner services --definitions ./service-defs --port 8080 --port 8081 --json", "check another folder"),
        ("krunner services --json | jq -r '.problems[]'", "print problems only"),
    ],
    remarks: &[
        "Values that an action would produce are shown as <name>.",
        "In commands and env, {ports[0]}, { ports[0] } and ${{ ports[0] }} are substituted; ${HOME}, ${PORT:-8000} and JSON are left \
         unchanged; {{ and }} are literal braces.",
    ],
    exits: &[DONE, (Exit::Failure, "a definition is invalid (PROBLEM), or the service does not exist"), USAGE],
};

pub(super) const MAN: Help = Help {
    examples: &[
        ("krunner man | man -l -", "read krunner(1)"),
        ("krunner man monitor | man -l -", "read krunner-monitor(1)"),
        ("krunner man --dir /usr/local/share/man/man1", "install all pages"),
    ],
    remarks: &[],
    exits: &[DONE, FAILED, USAGE],
};

pub(super) const COMPLETIONS: Help = Help {
    examples: &[
        ("source <(krunner completions bash)", "in this bash"),
        ("krunner completions bash > /usr/share/bash-completion/completions/krunner", "for all users of bash"),
        ("krunner completions zsh > /usr/local/share/zsh/site-functions/_krunner", "for all users of zsh"),
        ("krunner completions fish > ~/.config/fish/completions/krunner.fish", "for your own fish"),
    ],
    remarks: &[],
    exits: &[DONE, FAILED, USAGE],
};

/// The text of each subcommand, by name.
pub(super) const COMMANDS: [(&str, &Help); 10] = [
    ("send", &SEND),
    ("selftest", &SELFTEST),
    ("monitor", &MONITOR),
    ("node", &NODE),
    ("oom", &OOM),
    ("doctor", &DOCTOR),
    ("languages", &LANGUAGES),
    ("services", &SERVICES),
    ("man", &MAN),
    ("completions", &COMPLETIONS),
];

/// The commands below a subcommand, each with its text, by name.
type Below = (&'static str, &'static [(&'static str, &'static Help)]);

/// The subcommands that have commands of their own.
pub(super) const COMMANDS_BELOW: [Below; 2] = [
    ("oom", &[("list", &OOM_LIST), ("show", &OOM_SHOW), ("plot", &OOM_PLOT), ("post-mortem", &OOM_POST_MORTEM)]),
    ("node", &[("status", &NODE_STATUS)]),
];

impl Help {
    /// The text as `--help` wraps it.
    pub(super) fn text(&self) -> String {
        let mut text = "Examples:\n".to_owned();
        let width = self.examples.iter().map(|(line, _)| line.len()).filter(|len| *len <= COLUMN).max().unwrap_or(0);
        for (line, what) in self.examples {
            // Writing to a String cannot fail.
            let _ = if line.len() <= COLUMN {
                writeln!(text, "  {line:width$}   {what}")
            } else {
                writeln!(text, "  {line}\n  {:width$}   {what}", "")
            };
        }
        for remark in self.remarks {
            let _ = writeln!(text, "\n{remark}");
        }
        text.push_str("\nExit codes:");
        for (exit, meaning) in self.exits {
            let _ = write!(text, "\n  {:<4} {meaning}", *exit as u8);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::args::{Args, command};
    use super::*;

    fn all() -> impl Iterator<Item = (&'static str, &'static Help)> {
        [("krunner", &KRUNNER)].into_iter().chain(COMMANDS)
    }

    /// Of a shell's line, the words of krunner's own command.
    fn own_words(line: &str) -> Vec<String> {
        let line = line.strip_prefix("source <(").map_or(line, |rest| rest.trim_end_matches(')'));
        let line = line.split_once("; echo").map_or(line, |(line, _)| line);
        let words = shlex::split(line).expect("quotes are closed");
        let own = words.into_iter().skip_while(|word| word != "krunner");
        own.take_while(|word| !["|", "<", ">"].contains(&word.as_str())).collect()
    }

    #[test]
    fn every_example_is_understood() {
        for (name, help) in all() {
            assert!(!help.examples.is_empty(), "{name}");
            for (line, _) in help.examples {
                let words = own_words(line);
                let parsed = Args::try_parse_from(&words);
                assert!(parsed.is_ok(), "{line}: {words:?}: {}", parsed.unwrap_err());
                assert!(name == "krunner" || words[1] == name, "{line} is no example of {name}");
            }
        }
    }

    #[test]
    fn every_command_has_its_help() {
        let root = command();
        let known: Vec<&str> = root.get_subcommands().map(clap::Command::get_name).collect();
        assert_eq!(known, COMMANDS.map(|(name, _)| name), "help::COMMANDS has the commands in the same order");
        for (name, help) in all() {
            let command = if name == "krunner" { &root } else { root.find_subcommand(name).unwrap() };
            let shown = command.clone().term_width(100).render_long_help().to_string();
            assert!(shown.contains("Examples:\n  "), "{shown}");
            for (exit, meaning) in help.exits {
                let row = format!("\n  {:<4} {meaning}", *exit as u8);
                assert!(shown.contains(&row), "{row:?} is not in the help on {name}:\n{shown}");
            }
            for line in help.text().lines().filter(|line| line.starts_with(' ')) {
                assert!(line.len() <= 100, "wrapped where columns matter: {line}");
            }
        }
    }

    #[test]
    fn every_command_of_oom_and_node_has_its_help() {
        let root = command();
        for (above, commands) in COMMANDS_BELOW {
            let above = root.find_subcommand(above).unwrap();
            let known: Vec<&str> = above.get_subcommands().map(clap::Command::get_name).collect();
            let named: Vec<&str> = commands.iter().map(|(name, _)| *name).collect();
            assert_eq!(known, named);
        }
        for (name, help) in COMMANDS_BELOW.into_iter().flat_map(|(_, commands)| commands) {
            for (line, _) in help.examples {
                let words = own_words(line);
                assert!(Args::try_parse_from(&words).is_ok() && words[2] == *name, "{line}");
            }
        }
    }

    /// Help of every command, so that a change of its text is seen in review.
    #[test]
    fn help_texts() {
        let root = command();
        let oom = root.find_subcommand("oom").unwrap();
        let own = root.get_subcommands().chain(oom.get_subcommands().filter(|command| command.get_name() != "help"));
        for shown in std::iter::once(&root).chain(own) {
            let text = shown.clone().term_width(100).render_long_help().to_string();
            let text = text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
            insta::assert_snapshot!(format!("help_of_{}", shown.get_name()), text);
        }
    }

    #[test]
    fn krunners_own_help_has_every_exit_code() {
        let told: Vec<(Exit, &str)> = Exit::ALL.iter().map(|exit| (*exit, exit.meaning())).collect();
        assert_eq!(KRUNNER.exits, told);
    }
}
