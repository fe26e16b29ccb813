//! `krunner completions`: what a shell needs to complete command lines of krunner.

use std::process::ExitCode;

use clap::Command;
use clap_complete::{Shell, generate};

use super::args::{CompletionsArgs, documented};
use super::stdout::print;
use crate::exit::Exit;

pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    generate(args.shell, &mut documented(), "krunner", &mut script);
    if args.shell == Shell::Fish {
        script.extend_from_slice(fish_values(&documented()).as_bytes());
    }
    print(&script)?;
    Ok(Exit::Ok.into())
}

/// What may stand where an argument without a name is expected: clap's generator leaves that out for fish.
fn fish_values(root: &Command) -> String {
    let line = |condition: &str, command: &Command| {
        let values = command.get_positionals().flat_map(clap::Arg::get_possible_values);
        let names: Vec<String> = values.map(|value| value.get_name().to_owned()).collect();
        let line = format!("complete -c krunner -n \"{condition}\" -f -a \"{}\"\n", names.join(" "));
        if names.is_empty() { String::new() } else { line }
    };
    let own = line("__fish_krunner_needs_command", root);
    let others = root
        .get_subcommands()
        .map(|command| line(&format!("__fish_krunner_using_subcommand {}", command.get_name()), command));
    others.fold(own, |text, line| text + &line)
}
