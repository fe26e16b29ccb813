//! The terminal in the browser: which ttyd, shell and tmux exist, and the command line.
//!
//! Pure. ttyd runs the command for each connection; tmux shares one session between them and keeps it without connections.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::missing_program::MissingProgram;
use crate::config::Paths;
use crate::process::Command;

/// In order of preference; the last is used without a check.
const SHELLS: [&str; 4] = ["zsh", "bash", "ash", "sh"];

/// The shell of images in which the agent's tmux cannot run.
const WITHOUT_TMUX: &str = "ash";

/// Attaches to the session of earlier connections. The first connection starts tmux: the agent's `.tmux.conf` creates session
/// 0, and without it `-A` does. `attach` alone fails: it starts a server without a session, which exits while the next
/// command connects to it. If tmux fails, the plain shell runs. `$0` is the shell, `$1` is tmux.
const ATTACH: &str = "export SHELL=\"$0\"; \
    if \"$1\" has-session 2>/dev/null; then \"$1\" -2 attach; else \"$1\" -2 new-session -A -s 0; fi || exec \"$0\"";

/// The command line of the terminal server on this port.
///
/// # Errors
/// With the paths at which no server was found.
pub(super) fn serve(paths: &Paths, port: u16, is_there: impl Fn(&Path) -> bool) -> Result<Command, MissingProgram> {
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

/// The newer ttyd is read-only without `-W`; the older one does not know this option.
fn server(paths: &Paths, is_there: impl Fn(&Path) -> bool) -> Result<Vec<OsString>, MissingProgram> {
    let (newer, older): (PathBuf, PathBuf) = (paths.kernel_program("ttyd"), paths.volume_ttyd());
    if is_there(&newer) {
        Ok(vec![newer.into(), "-W".into()])
    } else if is_there(&older) {
        Ok(vec![older.into()])
    } else {
        Err(MissingProgram { preferred: newer, other: older })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(there: &[&str]) -> Result<String, MissingProgram> {
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
            planned(&["/bin/sh"]).unwrap_err().to_string(),
            "neither /opt/kernel/ttyd nor /opt/backend.ai/bin/ttyd exists"
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
