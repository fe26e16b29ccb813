//! What stands below the options of a command: examples, remarks, exit codes. `--help` and the manual pages both show
//! it; what is the same for all commands is not said twice.

use std::fmt::Write as _;

use crate::exit::Exit;

/// Longer command lines have their explanation on the next line.
const COLUMN: usize = 50;

/// That of one command.
pub(super) struct Help {
    /// Command lines, and what each does.
    pub(super) examples: &'static [(&'static str, &'static str)],
    /// Paragraphs.
    pub(super) remarks: &'static [&'static str],
    /// The exit codes that this command has, and what they mean here.
    pub(super) exits: &'static [(Exit, &'static str)],
}

/// With the meaning that it has everywhere.
const fn usual(exit: Exit) -> (Exit, &'static str) {
    (exit, exit.meaning())
}

const DONE: (Exit, &str) = (Exit::Ok, "done");
const FAILED: (Exit, &str) = usual(Exit::Failure);
const USAGE: (Exit, &str) = usual(Exit::Usage);

pub(super) const KRUNNER: Help = Help {
    examples: &[
        ("krunner c /usr/bin/gcc", "serve the agent on ports 2000 and 2001 with the C runtime"),
        ("krunner --debug python", "the same with Python, logging more, and only to stderr"),
        ("krunner send status", "ask a running runner when it started"),
        ("krunner send exec 'make test'", "run a command line in it and show its output"),
        ("krunner selftest", "see that everything works on this machine"),
        ("krunner monitor", "report every kill for memory here, without an agent"),
        ("krunner doctor", "see how kills for memory would be traced here, and why"),
        ("krunner languages", "see what each language runs, and which are found here"),
        ("krunner services", "check an image's service definitions and show what they start"),
        ("krunner man | man -l -", "read the manual"),
    ],
    remarks: &["`krunner COMMAND --help` has the examples and exit codes of each command. A runner without an agent \
                is of use, too: `krunner send` plays the agent's part."],
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
        ("krunner send status", "when it started"),
        ("krunner send exec 'echo hello; exit 3'; echo $?", "3, the command line's own exit code"),
        ("krunner send --json code - < snippet.c", "a snippet in the runner's language, from a file"),
        ("krunner send --in-port 12000 --out-port 12001 interrupt", "SIGINT to what runs in a runner on other ports"),
        ("krunner send --wait 600 exec 'make test'", "for a command that is silent for minutes"),
    ],
    remarks: &[
        "A runner sends its replies to the connection made last. While an op with replies is under way here, an agent \
         that is connected misses what is sent. Ops without replies (input, interrupt, event, shutdown-service) take \
         nothing from it.",
        "After build, clean, exec and code the exit code is that of the step, as a shell says it: 128 and the signal's \
         number for one that a signal ended.",
    ],
    exits: &[
        (Exit::Ok, "answered, or sent where nothing is answered"),
        FAILED,
        USAGE,
        (Exit::NoAnswer, "no answer in time"),
    ],
};

pub(super) const SELFTEST: Help = Help {
    examples: &[
        ("krunner selftest", "a line for each step, with the time it took"),
        ("krunner selftest --json | jq .ok", "true or false"),
    ],
    remarks: &[
        "It takes seconds, needs no agent, and leaves nothing behind: the runner has a temporary folder and free \
                ports. A C program is compiled where there is gcc; as root with a memory cgroup a program is killed for \
                memory, and the report of it shown. What cannot be had here is skipped, with the reason.",
    ],
    exits: &[(Exit::Ok, "no step failed"), (Exit::Failure, "a step failed; its line says FAILED"), USAGE],
};

pub(super) const MONITOR: Help = Help {
    examples: &[
        ("krunner monitor", "until interrupted: kills in this container or cgroup"),
        ("krunner monitor --json | jq .victim", "a JSON object a line"),
        ("sudo krunner monitor --all-namespaces", "every container of the machine"),
        ("krunner monitor --no-bpf", "as where BPF is refused"),
    ],
    remarks: &[
        "Precise with CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN) and a kernel with BTF; otherwise inferred from \
                snapshots and counters, with less confidence. `krunner doctor` says which it would be here, and why. \
                --all-namespaces takes BPF. Sizes are in MiB in text and in bytes in JSON.",
    ],
    exits: &[(Exit::Ok, "stopped by SIGINT or SIGTERM, or stdout was closed"), FAILED, USAGE],
};

pub(super) const DOCTOR: Help = Help {
    examples: &[
        ("krunner doctor", "a line for each check: ok, MISSING or note"),
        ("krunner doctor --json | jq -r .tracer", "bpf or snapshot"),
        ("setpriv --reuid 1000 --clear-groups krunner doctor", "as a user without capabilities would see it"),
    ],
    remarks: &["BPF is used when nothing is MISSING; `->` says what would help. A note rules nothing out. A \
                check that hangs is named on stderr and given up; all end within 10 s."],
    exits: &[(Exit::Ok, "done, whichever tracer it is"), FAILED, USAGE],
};

pub(super) const LANGUAGES: Help = Help {
    examples: &[
        ("krunner languages", "every language: its program, and what each step runs"),
        ("krunner languages rust java", "these two"),
        ("krunner languages --json | jq -r '.languages[] | select(.found) | .name'", "those found here"),
    ],
    remarks: &[
        "clean, build and exec are the steps with `*`, which depend on the files of the working directory: the \
                file in the second column decides, and a line without one says what happens where there is none of \
                them. tmp stands for a temporary name. A program without a path is looked up in PATH.",
    ],
    exits: &[DONE, FAILED, USAGE],
};

pub(super) const SERVICES: Help = Help {
    examples: &[
        ("krunner services", "those of this image"),
        ("krunner services jupyter --language python", "with what the language offers by itself"),
        ("krunner services --definitions ./service-defs --port 8080 --port 8081 --json", "those of another folder"),
        ("krunner services --json | jq -r '.problems[]'", "only what is wrong"),
    ],
    remarks: &["What an action would find out is shown as <name>."],
    exits: &[DONE, (Exit::Failure, "a definition cannot be used (PROBLEM), or there is no such service"), USAGE],
};

pub(super) const MAN: Help = Help {
    examples: &[
        ("krunner man | man -l -", "read krunner(1)"),
        ("krunner man monitor | man -l -", "read krunner-monitor(1)"),
        ("krunner man --dir /usr/local/share/man/man1", "install all of them"),
    ],
    remarks: &[],
    exits: &[DONE, FAILED, USAGE],
};

pub(super) const COMPLETIONS: Help = Help {
    examples: &[
        ("source <(krunner completions bash)", "for this bash"),
        ("krunner completions bash > /usr/share/bash-completion/completions/krunner", "for every bash"),
        ("krunner completions zsh > /usr/local/share/zsh/site-functions/_krunner", "for every zsh"),
        ("krunner completions fish > ~/.config/fish/completions/krunner.fish", "for your fish"),
    ],
    remarks: &[],
    exits: &[DONE, FAILED, USAGE],
};

/// All but krunner's own, by name.
pub(super) const COMMANDS: [(&str, &Help); 8] = [
    ("send", &SEND),
    ("selftest", &SELFTEST),
    ("monitor", &MONITOR),
    ("doctor", &DOCTOR),
    ("languages", &LANGUAGES),
    ("services", &SERVICES),
    ("man", &MAN),
    ("completions", &COMPLETIONS),
];

impl Help {
    /// As it stands in `--help`, which wraps it.
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
    fn krunners_own_help_has_every_exit_code() {
        let told: Vec<(Exit, &str)> = Exit::ALL.iter().map(|exit| (*exit, exit.meaning())).collect();
        assert_eq!(KRUNNER.exits, told);
    }
}
