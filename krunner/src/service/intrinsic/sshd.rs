//! The ssh server: which dropbear is mounted, and its command lines.
//!
//! Pure. Older agents mount three programs of dropbear, newer ones a single file with all of them as applets. The options used
//! here are the same since 2020.81.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::missing_program::MissingProgram;
use crate::config::Paths;
use crate::process::Command;

/// dropbear recommends at least 2048 bits; larger keys take seconds to generate.
const RSA_BITS: &str = "2048";

/// Keepalive interval, so that proxies do not cut idle connections.
const KEEPALIVE_SECONDS: &str = "15";

/// The programs of a dropbear installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Dropbear {
    /// One file; the first argument selects the program.
    Multi(PathBuf),
    /// One file for each program.
    Single { server: PathBuf, key: PathBuf, convert: PathBuf },
}

impl Dropbear {
    /// Chooses the single file if it exists, else the three programs.
    ///
    /// # Errors
    /// With the paths at which a program was not found.
    pub(super) fn choose(paths: &Paths, is_there: impl Fn(&Path) -> bool) -> Result<Self, MissingProgram> {
        let multi = paths.kernel_program("dropbearmulti");
        if is_there(&multi) {
            return Ok(Self::Multi(multi));
        }
        let [server, key, convert] =
            ["dropbear", "dropbearkey", "dropbearconvert"].map(|name| paths.kernel_program(name));
        if let Some(missing) = [&server, &key, &convert].into_iter().find(|path| !is_there(path)) {
            return Err(MissingProgram { preferred: multi, other: missing.clone() });
        }
        Ok(Self::Single { server, key, convert })
    }

    /// Generates a key pair: the private key goes to `file`, the public key to stdout.
    pub(super) fn make_key(&self, file: &Path) -> Command {
        let words = ["-t", "rsa", "-s", RSA_BITS, "-f"].map(OsString::from);
        self.applet("dropbearkey", words.into_iter().chain([file.into()]))
    }

    /// Converts a private key to OpenSSH's format.
    pub(super) fn convert(&self, from: &Path, to: &Path) -> Command {
        let words = ["dropbear", "openssh"].map(OsString::from);
        self.applet("dropbearconvert", words.into_iter().chain([from.into(), to.into()]))
    }

    /// Runs the server in the foreground, with its log on stderr and without root logins.
    pub(super) fn serve(&self, host_key: &Path, pid_file: &Path, takes_passwords: bool, ports: &[u16]) -> Command {
        let files = ["-r".into(), host_key.into(), "-P".into(), pid_file.into()];
        let keys_only = (!takes_passwords).then_some("-s");
        let options = ["-F", "-E"].into_iter().chain(keys_only).chain(["-w", "-K", KEEPALIVE_SECONDS, "-I", "0"]);
        let options = options.map(OsString::from);
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

/// Finds the line with the public key in the output of `dropbearkey`.
pub(super) fn public_key(said: &[u8]) -> Option<&[u8]> {
    said.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).find(|line| line.starts_with(b"ssh-rsa "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(there: &[&str]) -> Result<Dropbear, MissingProgram> {
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
            chosen(&["dropbear", "dropbearkey"]).unwrap_err().to_string(),
            "neither /opt/kernel/dropbearmulti nor /opt/kernel/dropbearconvert exists"
        );
    }

    #[test]
    fn both_generations_are_called_alike() {
        let single = chosen(&["dropbear", "dropbearkey", "dropbearconvert"]).unwrap();
        let multi = chosen(&["dropbearmulti"]).unwrap();
        let rest = "-r /k -P /p -F -E -s -w -K 15 -I 0 -p 0.0.0.0:2200 -p 0.0.0.0:2201";
        let serve = |dropbear: &Dropbear, takes_passwords| {
            dropbear.serve(Path::new("/k"), Path::new("/p"), takes_passwords, &[2200, 2201]).to_string()
        };
        assert_eq!(serve(&single, false), format!("/opt/kernel/dropbear {rest}"));
        assert_eq!(serve(&multi, false), format!("/opt/kernel/dropbearmulti dropbear {rest}"));
        let with_passwords = serve(&single, true);
        assert!(with_passwords.contains(" -F -E -w -K "), "root is kept out in any case: {with_passwords}");
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
