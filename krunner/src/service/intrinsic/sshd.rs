//! The ssh server as a plan: which dropbear is there, and how it is called.
//!
//! Pure. Older agents mount three programs of dropbear, newer ones a single file with all of them as applets. Their
//! options are the same, as far as they are used here, from 2020.81 on.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::config::Paths;
use crate::process::Command;

/// dropbear's own minimum for keys that are not to be frowned upon is 2048; larger ones take seconds to make.
const RSA_BITS: &str = "2048";

/// A connection that is silent for so long is asked for a sign of life, so that no proxy cuts it.
const KEEPALIVE_SECONDS: &str = "15";

/// The programs of one generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Dropbear {
    /// One file; the first argument says which program it is to be.
    Multi(PathBuf),
    /// A file each.
    Single { server: PathBuf, key: PathBuf, convert: PathBuf },
}

impl Dropbear {
    /// The newest generation that `is_there`.
    ///
    /// # Errors
    /// A sentence that names what is missing.
    pub(super) fn choose(paths: &Paths, is_there: impl Fn(&Path) -> bool) -> Result<Self, String> {
        let multi = paths.kernel_program("dropbearmulti");
        if is_there(&multi) {
            return Ok(Self::Multi(multi));
        }
        let [server, key, convert] =
            ["dropbear", "dropbearkey", "dropbearconvert"].map(|name| paths.kernel_program(name));
        if let Some(missing) = [&server, &key, &convert].into_iter().find(|path| !is_there(path)) {
            return Err(format!("neither {} nor {} is there", multi.display(), missing.display()));
        }
        Ok(Self::Single { server, key, convert })
    }

    /// Makes a key pair: the private part goes to `file`, the public one to stdout.
    pub(super) fn make_key(&self, file: &Path) -> Command {
        let words = ["-t", "rsa", "-s", RSA_BITS, "-f"].map(OsString::from);
        self.applet("dropbearkey", words.into_iter().chain([file.into()]))
    }

    /// Makes a private key of its own readable for OpenSSH.
    pub(super) fn convert(&self, from: &Path, to: &Path) -> Command {
        let words = ["dropbear", "openssh"].map(OsString::from);
        self.applet("dropbearconvert", words.into_iter().chain([from.into(), to.into()]))
    }

    /// The server: in the foreground, with its log on stderr, no password good for anything and no door for root.
    pub(super) fn serve(&self, host_key: &Path, pid_file: &Path, ports: &[u16]) -> Command {
        let files = ["-r".into(), host_key.into(), "-P".into(), pid_file.into()];
        let options = ["-F", "-E", "-s", "-w", "-K", KEEPALIVE_SECONDS, "-I", "0"].map(OsString::from);
        let listen = ports.iter().flat_map(|port| ["-p".into(), format!("0.0.0.0:{port}").into()]);
        self.applet("dropbear", files.into_iter().chain(options).chain(listen))
    }

    fn applet(&self, name: &str, words: impl Iterator<Item = OsString>) -> Command {
        let program = match self {
            Self::Multi(program) => return Command::argv([program.into(), name.into()].into_iter().chain(words)),
            Self::Single { server, .. } if name == "dropbear" => server,
            Self::Single { key, .. } if name == "dropbearkey" => key,
            Self::Single { convert, .. } => convert,
        };
        Command::argv(std::iter::once(program.into()).chain(words))
    }
}

/// The public key in what `dropbearkey` says: a line among others.
pub(super) fn public_key(said: &[u8]) -> Option<&[u8]> {
    said.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).find(|line| line.starts_with(b"ssh-rsa "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(there: &[&str]) -> Result<Dropbear, String> {
        let paths = Paths::default();
        let there: Vec<_> = there.iter().map(|name| paths.kernel_program(name)).collect();
        Dropbear::choose(&paths, |path| there.iter().any(|known| known == path))
    }

    #[test]
    fn the_newer_generation_is_preferred_and_what_is_missing_is_named() {
        let multi = Dropbear::Multi("/opt/kernel/dropbearmulti".into());
        assert_eq!(chosen(&["dropbearmulti", "dropbear", "dropbearkey", "dropbearconvert"]), Ok(multi));
        assert!(matches!(chosen(&["dropbear", "dropbearkey", "dropbearconvert"]), Ok(Dropbear::Single { .. })));
        assert_eq!(
            chosen(&["dropbear", "dropbearkey"]).unwrap_err(),
            "neither /opt/kernel/dropbearmulti nor /opt/kernel/dropbearconvert is there"
        );
    }

    #[test]
    fn both_generations_are_called_alike() {
        let single = chosen(&["dropbear", "dropbearkey", "dropbearconvert"]).unwrap();
        let multi = chosen(&["dropbearmulti"]).unwrap();
        let rest = "-r /k -P /p -F -E -s -w -K 15 -I 0 -p 0.0.0.0:2200 -p 0.0.0.0:2201";
        let serve = |dropbear: &Dropbear| dropbear.serve(Path::new("/k"), Path::new("/p"), &[2200, 2201]).to_string();
        assert_eq!(serve(&single), format!("/opt/kernel/dropbear {rest}"));
        assert_eq!(serve(&multi), format!("/opt/kernel/dropbearmulti dropbear {rest}"));
        assert_eq!(single.make_key(Path::new("/k")).to_string(), "/opt/kernel/dropbearkey -t rsa -s 2048 -f /k");
        assert_eq!(
            multi.convert(Path::new("/k"), Path::new("/o")).to_string(),
            "/opt/kernel/dropbearmulti dropbearconvert dropbear openssh /k /o"
        );
    }

    #[test]
    fn the_public_key_is_found_among_the_words_around_it() {
        let said = b"Public key portion is:\nssh-rsa AAAA me@here\r\nFingerprint: SHA256:x\n";
        assert_eq!(public_key(said), Some(&b"ssh-rsa AAAA me@here"[..]));
        assert_eq!(public_key(b"Exited: no entropy\n"), None);
    }
}
