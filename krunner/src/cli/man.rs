//! `krunner man`: manual pages, made of the command line's own help, so that there is no second account of it.

use std::fs;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use super::args::{ManArgs, command};
use super::stdout;
use crate::exit::Exit;

const SECTION: &str = "1";

/// What a person may set.
const ENVIRONMENT: [(&str, &str); 4] = [
    (
        "LOCAL_USER_ID, BACKEND_..., and all others",
        "The environment of user code, less what concerns the runner alone.",
    ),
    ("JUPYTER_PATH, JUPYTER_DATA_DIR, XDG_DATA_HOME", "Where kernelspecs are looked for, beside the usual places."),
    ("SSL_CERT_FILE, SSL_CERT_DIR", "Certificates by which servers are known, beside those that Mozilla trusts."),
    ("AWS_*, MRS_*", "Keys and addresses of the runtimes vendor.aws_polly and r_server_ms."),
];

/// What is read and written.
const FILES: [(&str, &str); 6] = [
    ("/home/config/environ.txt", "Variables of user code, a NAME=VALUE a line."),
    (
        "/home/config/intrinsic-ports.json",
        "Ports other than 2000 (replin), 2001 (replout), 2200 (sshd) and 7681 (ttyd).",
    ),
    ("/etc/backend.ai/service-defs/NAME.json", "Services that the image defines."),
    ("/opt/container/bootstrap.sh, /home/work/bootstrap.sh", "Run before the first step."),
    ("/home/work/.logs", "Where it is there: the task log, and oom.jsonl with a JSON object for each kill for memory."),
    ("/tmp/bai-user-input.sock", "Where programs ask the user for input."),
];

/// Prints a page, or writes all of them.
pub(super) fn man(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let krunner = command();
    let pages = || krunner.get_subcommands().filter(|command| command.get_name() != "help");
    if let Some(folder) = &args.dir {
        for page in [&krunner].into_iter().chain(pages()) {
            let file = folder.join(format!("{}.{SECTION}", title(page)));
            fs::write(&file, render(page)?).with_context(|| format!("cannot write {}", file.display()))?;
        }
        return Ok(Exit::Ok.into());
    }
    let wanted = args.command.as_deref().and_then(|name| pages().find(|page| page.get_name() == name));
    stdout::print(&render(wanted.unwrap_or(&krunner))?)?;
    Ok(Exit::Ok.into())
}

/// `krunner`, `krunner-monitor`.
fn title(command: &Command) -> String {
    match command.get_name() {
        "krunner" => "krunner".to_owned(),
        name => format!("krunner-{name}"),
    }
}

fn render(of: &Command) -> anyhow::Result<Vec<u8>> {
    let krunner = command();
    let is_whole = of.get_name() == krunner.get_name();
    let title = title(of);
    let usage = format!("krunner {}", of.get_name());
    let page = of.clone().name(title.clone());
    let page = if is_whole { page } else { page.bin_name(usage) };
    let man = Man::new(page);
    // No date: the same sources make the same page.
    let heading = format!(".TH {} {SECTION} \"\" \"krunner {}\"\n", title.to_uppercase(), env!("CARGO_PKG_VERSION"));
    let mut text = heading.into_bytes();
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    let mut rest = Roff::new();
    if is_whole {
        commands(&krunner, &mut rest);
    }
    let help = of.get_after_help().map(ToString::to_string).unwrap_or_default();
    after_help(&help, &mut rest);
    if is_whole {
        table("ENVIRONMENT", &ENVIRONMENT, &mut rest);
        table("FILES", &FILES, &mut rest);
    }
    see_also(&krunner, &title, &mut rest);
    text.extend_from_slice(rest.render().as_bytes());
    Ok(text)
}

fn commands(krunner: &Command, page: &mut Roff) {
    page.control("SH", ["COMMANDS"]);
    for command in krunner.get_subcommands() {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        page.control("TP", []);
        page.text([bold(command.get_name().to_owned())]);
        page.text([roman(about)]);
    }
}

/// Our help after the options: examples, paragraphs, exit codes; blank lines are between them.
fn after_help(help: &str, page: &mut Roff) {
    let mut has_notes = false;
    for block in help.split("\n\n") {
        if let Some(examples) = block.strip_prefix("Examples:\n") {
            page.control("SH", ["EXAMPLES"]);
            as_it_is(examples, page);
        } else if let Some(codes) = block.strip_prefix("Exit codes:") {
            page.control("SH", ["EXIT STATUS"]);
            if codes.starts_with('\n') { as_it_is(codes.trim_start_matches('\n'), page) } else { flowing(codes, page) }
        } else {
            page.control(if has_notes { "PP" } else { "SH" }, if has_notes { vec![] } else { vec!["NOTES"] });
            has_notes = true;
            flowing(block, page);
        }
    }
}

fn as_it_is(lines: &str, page: &mut Roff) {
    page.control("nf", []);
    for line in lines.lines() {
        page.text([roman(line)]);
    }
    page.control("fi", []);
}

fn flowing(text: &str, page: &mut Roff) {
    page.text([roman(text.split_whitespace().collect::<Vec<_>>().join(" "))]);
}

fn table(heading: &str, rows: &[(&str, &str)], page: &mut Roff) {
    page.control("SH", [heading]);
    for (term, meaning) in rows {
        page.control("TP", []);
        page.text([italic(*term)]);
        page.text([roman(*meaning)]);
    }
}

fn see_also(krunner: &Command, own: &str, page: &mut Roff) {
    page.control("SH", ["SEE ALSO"]);
    let others = [krunner].into_iter().chain(krunner.get_subcommands()).map(title).filter(|title| title != own);
    let named: Vec<_> = others.map(|title| format!("{title}({SECTION})")).collect();
    page.text([roman(named.join(", "))]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str) -> String {
        let krunner = command();
        let page = krunner.find_subcommand(name).unwrap_or(&krunner);
        String::from_utf8(render(page).unwrap()).unwrap()
    }

    #[test]
    fn the_page_of_krunner_has_all_commands_and_exit_codes() {
        let page = text("krunner");
        for code in Exit::ALL {
            assert!(page.contains(&format!("{:<4} {}", code as u8, code.meaning())), "{code:?}: {page}");
        }
        for command in command().get_subcommands() {
            assert!(page.contains(&format!("\\fB{}\\fR", command.get_name())), "{}: {page}", command.get_name());
        }
    }

    #[test]
    fn pages_of_commands_have_their_examples_and_notes() {
        let page = text("monitor");
        for part in
            [".TH KRUNNER-MONITOR 1", ".SH EXAMPLES", "krunner monitor \\-\\-json", ".SH NOTES", ".SH \"EXIT STATUS\""]
        {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("ENVIRONMENT"), "{page}");
    }
}
