//! `krunner man`: the manual pages, made from the command line's own definition and from `help`.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Arg, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::args::{ManArgs, documented};
use super::environment;
use super::help::{self, Help};
use super::stdout::print;
use crate::exit::Exit;

/// When what the pages say has changed last; a page has to have a date.
const DATE: &str = "2026-11-27";

pub(super) fn man(args: &ManArgs) -> Result<ExitCode> {
    let root = documented();
    match (&args.dir, &args.command) {
        (Some(folder), _) => write_all(&root, folder)?,
        (None, Some(name)) => print(&page(command(&root, name)?, help_of(name)?)?)?,
        (None, None) => print(&page(&root, &help::KRUNNER)?)?,
    }
    Ok(Exit::Ok.into())
}

fn write_all(root: &Command, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let write = |command: &Command, help: &Help| {
        let file = folder.join(format!("{}.1", title(command)));
        fs::write(&file, page(command, help)?).with_context(|| format!("cannot write {}", file.display()))
    };
    write(root, &help::KRUNNER)?;
    help::COMMANDS.iter().try_for_each(|(name, help)| write(command(root, name)?, help))?;
    for (above, commands) in help::COMMANDS_BELOW {
        let above = command(root, above)?;
        commands.iter().try_for_each(|(name, help)| write(command(above, name)?, help))?;
    }
    Ok(())
}

fn command<'a>(root: &'a Command, name: &str) -> Result<&'a Command> {
    root.find_subcommand(name).with_context(|| format!("a bug: there is no command {name}"))
}

fn help_of(name: &str) -> Result<&'static Help> {
    let found = help::COMMANDS.iter().find(|(known, _)| *known == name);
    found.map(|(_, help)| *help).with_context(|| format!("a bug: there is no help on {name}"))
}

/// The name of the page, e.g. `krunner-send`.
fn title(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

/// The page of one command as roff.
fn page(command: &Command, help: &Help) -> Result<Vec<u8>> {
    let man = Man::new(command.clone().mut_args(values_in_line))
        .title(title(command).to_uppercase())
        .date(DATE)
        .source(format!("krunner {}", env!("CARGO_PKG_VERSION")))
        .manual("Backend.AI kernel runner");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    paragraphs(help.remarks).to_writer(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    let exits: Vec<_> = help.exits.iter().map(|(exit, meaning)| ((*exit as u8).to_string(), *meaning)).collect();
    for (heading, rows) in [
        ("EXIT STATUS", exits),
        ("ENVIRONMENT", owned(environment::variables(command.get_name()))),
        ("FILES", owned(environment::files(command.get_name()))),
        ("EXAMPLES", owned(help.examples.iter().copied())),
    ] {
        section(heading, &rows).to_writer(&mut text)?;
    }
    see_also(command).to_writer(&mut text)?;
    Ok(text)
}

/// The generator would give each language three lines.
fn values_in_line(argument: Arg) -> Arg {
    let values = argument.get_possible_values();
    if values.is_empty() || !argument.get_action().takes_values() {
        return argument;
    }
    let names: Vec<_> = values.iter().map(|value| value.get_name().to_owned()).collect();
    let help = format!("{}: {}", argument.get_help().cloned().unwrap_or_default(), names.join(", "));
    argument.help(help).hide_possible_values(true)
}

fn owned(rows: impl Iterator<Item = (impl Into<String>, &'static str)>) -> Vec<(String, &'static str)> {
    rows.map(|(term, meaning)| (term.into(), meaning)).collect()
}

fn paragraphs(texts: &[&str]) -> Roff {
    let mut roff = Roff::new();
    for text in texts {
        roff.control("PP", []).text([roman(*text)]);
    }
    roff
}

/// Terms, each with what it means; nothing where there are none.
fn section(heading: &str, rows: &[(String, &str)]) -> Roff {
    let mut roff = Roff::new();
    if !rows.is_empty() {
        roff.control("SH", [heading]);
    }
    for (term, meaning) in rows {
        roff.control("TP", []).text([bold(term)]).text([roman(*meaning)]);
    }
    roff
}

fn see_also(command: &Command) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let own = title(command);
    let others = help::COMMANDS.iter().map(|(name, _)| format!("krunner-{name}"));
    let pages: Vec<String> = ["krunner".to_owned()].into_iter().chain(others).filter(|page| page != own).collect();
    for (index, page) in pages.iter().enumerate() {
        let after = if index + 1 == pages.len() { "(1)" } else { "(1)," };
        roff.text([bold(page), roman(after)]);
    }
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_for_every_command() {
        let folder = tempfile::tempdir().unwrap();
        write_all(&documented(), folder.path()).unwrap();
        for command in documented().get_subcommands() {
            let name = command.get_name();
            let page = fs::read_to_string(folder.path().join(format!("krunner-{name}.1"))).unwrap();
            assert!(page.contains(&format!("krunner\\-{name} \\- ")), "{page}");
            for heading in ["SYNOPSIS", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"] {
                let line =
                    if heading.contains(' ') { format!(".SH \"{heading}\"\n") } else { format!(".SH {heading}\n") };
                assert!(page.contains(&line), "{name} has no {heading}:\n{page}");
            }
        }
        let page = fs::read_to_string(folder.path().join("krunner-oom-list.1")).unwrap();
        assert!(page.contains("krunner\\-oom\\-list \\- ") && page.contains("\\-\\-since"), "{page}");
        let page = fs::read_to_string(folder.path().join("krunner-node-status.1")).unwrap();
        assert!(page.contains("krunner\\-node\\-status \\- ") && page.contains("\\-\\-json"), "{page}");
    }

    #[test]
    fn krunners_own_page_has_the_agents_line_and_what_is_around() {
        let page = String::from_utf8(page(&documented(), &help::KRUNNER).unwrap()).unwrap();
        for part in [
            "\\-m ai.backend.kernel [\\-\\-debug] LANG",
            ".SH ENVIRONMENT",
            "JUPYTER_PATH",
            ".SH FILES",
            "intrinsic\\-ports.json",
        ] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
        assert!(!page.contains("\\-\\-module") && !page.contains("Tolerated"), "{page}");
    }
}
