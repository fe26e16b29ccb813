//! `krunner oom plot`: an OOM kill as an HTML page.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};

use super::super::args::OomPlotArgs;
use super::super::stdout::print;
use super::find;
use crate::monitor::plot::page;

pub(super) fn plot(args: &OomPlotArgs) -> anyhow::Result<()> {
    let page = page(&find(&args.file, args.number)?)?;
    if args.output == Path::new("-") {
        return print(page);
    }
    let output = args.output.display();
    check_target(&args.output)?;
    replace(&args.output, &page).with_context(|| {
        format!("cannot write the page to {output} (-o takes a file in an existing, writable folder; - is stdout)")
    })
}

/// A device, a link or a folder is not replaced by a page.
fn check_target(output: &Path) -> anyhow::Result<()> {
    match fs::symlink_metadata(output) {
        Ok(there) if !there.is_file() => {
            bail!("{} exists and is not a regular file; -o takes a file name, or - for stdout", output.display())
        }
        // What else is wrong with it the writing tells.
        _ => Ok(()),
    }
}

/// At once: a reader finds the old page or the new one, and only the owner may read it (mode 0600, as `tempfile` has it).
fn replace(output: &Path, page: &str) -> io::Result<()> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(page.as_bytes())?;
    new.persist(output)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const REPORT: &str = r#"{"event":"oom_kill","confidence":"confirmed","tracer":"bpf","time":"2026-11-20T10:11:12Z","victim":{"pid":7,"name":"hog"}}"#;

    fn plot_to(output: &Path, number: u64) -> anyhow::Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("oom.jsonl");
        fs::write(&file, format!("{REPORT}\n")).unwrap();
        plot(&OomPlotArgs { number, file, output: output.to_owned() })
    }

    #[test]
    fn page_is_private_and_replaces_an_older_one() {
        let folder = tempfile::tempdir().unwrap();
        let page = folder.path().join("report.html");
        fs::write(&page, "old").unwrap();
        fs::set_permissions(&page, fs::Permissions::from_mode(0o644)).unwrap();
        plot_to(&page, 1).unwrap();
        assert!(fs::read_to_string(&page).unwrap().starts_with("<!DOCTYPE html>"));
        assert_eq!(fs::metadata(&page).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_is_not_a_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        symlink("/dev/null", &link).unwrap();
        for output in [folder.path(), &link, Path::new("/dev/null")] {
            let error = format!("{:#}", plot_to(output, 1).unwrap_err());
            assert!(error.starts_with(&format!("{} exists and is not a regular file", output.display())), "{error}");
        }
    }

    #[test]
    fn errors_name_file_and_remedy() {
        let missing = format!("{:#}", plot_to(Path::new("/missing/report.html"), 1).unwrap_err());
        assert!(missing.starts_with("cannot write the page to /missing/report.html (-o takes"), "{missing}");
        let number = format!("{:#}", plot_to(Path::new("/missing/report.html"), 2).unwrap_err());
        assert!(number.contains("has no report 2: it has 1 (see `krunner oom list`"), "{number}");
    }
}
