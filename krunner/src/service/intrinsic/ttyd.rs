//! The terminal in the browser as a plan: which ttyd, shell and tmux are there, and how they are called.
//!
//! Pure. ttyd runs the command anew for each connection; tmux lets all of them see the same session, and keeps it
//! while nobody is connected.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::config::Paths;
use crate::process::Command;

/// Best first; the last is taken unseen.
const SHELLS: [&str; 4] = ["zsh", "bash", "ash", "sh"];

/// The shell of images in which the agent's tmux cannot run.
const WITHOUT_TMUX: &str = "ash";

/// Joins the session of the connections before. The first connection starts tmux: the agent's `.tmux.conf` makes a
/// session, which is called 0 like every first one; where none does, `-A` does. `attach` alone would not do: it starts a
/// server that has nothing to attach to, and ends while the next command talks to it. A terminal without tmux is better
/// than a connection that closes. `$0` is the shell, `$1` is tmux.
const ATTACH: &str = "export SHELL=\"$0\"; \
    if \"$1\" has-session 2>/dev/null; then \"$1\" -2 attach; else \"$1\" -2 new-session -A -s 0; fi || exec \"$0\"";

/// How the terminal server is started on this `port`.
///
/// # Errors
/// A sentence that names what is missing.
pub(super) fn serve(paths: &Paths, port: u16, is_there: impl Fn(&Path) -> bool) -> Result<Command, String> {
    let mut argv = server(paths, &is_there)?;
    argv.extend(["-p".into(), port.to_string().into()]);
    let name = SHELLS.into_iter().find(|name| is_there(&paths.image_program(name))).unwrap_or("sh");
    let shell: OsString = paths.image_program(name).into();
    argv.push(shell.clone());
    let tmux = paths.kernel_program("tmux");
    if name != WITHOUT_TMUX && is_there(&tmux) {
        argv.extend(["-c".into(), ATTACH.into(), shell, tmux.into()]);
    }
    Ok(Command::argv(argv))
}

/// The newer ttyd shows and takes no input unless told to; the older knows no such option.
fn server(paths: &Paths, is_there: impl Fn(&Path) -> bool) -> Result<Vec<OsString>, String> {
    let (newer, older): (PathBuf, PathBuf) = (paths.kernel_program("ttyd"), paths.volume_ttyd());
    if is_there(&newer) {
        Ok(vec![newer.into(), "-W".into()])
    } else if is_there(&older) {
        Ok(vec![older.into()])
    } else {
        Err(format!("neither {} nor {} is there", newer.display(), older.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(there: &[&str]) -> Result<String, String> {
        serve(&Paths::default(), 7681, |path| there.iter().any(|known| Path::new(known) == path))
            .map(|command| command.to_string())
    }

    #[test]
    fn both_generations_are_called_as_they_need() {
        assert_eq!(
            planned(&["/opt/kernel/ttyd", "/opt/backend.ai/bin/ttyd", "/bin/sh"]).unwrap(),
            "/opt/kernel/ttyd -W -p 7681 /bin/sh"
        );
        assert_eq!(
            planned(&["/opt/backend.ai/bin/ttyd", "/bin/sh"]).unwrap(),
            "/opt/backend.ai/bin/ttyd -p 7681 /bin/sh"
        );
        assert_eq!(
            planned(&["/bin/sh"]).unwrap_err(),
            "neither /opt/kernel/ttyd nor /opt/backend.ai/bin/ttyd is there"
        );
    }

    #[test]
    fn the_best_shell_runs_tmux_and_ash_does_not() {
        let all = ["/opt/kernel/ttyd", "/opt/kernel/tmux", "/bin/sh", "/bin/ash", "/bin/bash", "/bin/zsh"];
        let through =
            |shell: &str| format!("/opt/kernel/ttyd -W -p 7681 {shell} -c '{ATTACH}' {shell} /opt/kernel/tmux");
        assert_eq!(planned(&all).unwrap(), through("/bin/zsh"));
        assert_eq!(planned(&all[..5]).unwrap(), through("/bin/bash"));
        assert_eq!(planned(&all[..4]).unwrap(), "/opt/kernel/ttyd -W -p 7681 /bin/ash");
        assert_eq!(planned(&all[..3]).unwrap(), through("/bin/sh"));
        assert_eq!(planned(&all[..1]).unwrap(), "/opt/kernel/ttyd -W -p 7681 /bin/sh");
    }
}
