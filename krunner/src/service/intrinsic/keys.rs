//! Installs ssh keys and configuration before the server starts.
//!
//! A part that fails is logged and skipped: with the host key alone the cluster can log in, even without the user's own key.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::authorized_keys::with_keys;
use super::home::HomeFolder;
use super::host_key::HostKey;
use super::ssh_config::{self, HostEntry, HostsError};
use super::sshd::{Dropbear, public_key};
use crate::config::{ChildEnv, Paths, read_regular};
use crate::error::chain;
use crate::process::{CaptureError, Command, Control, Launcher};
use crate::remove_tree::remove_tree;
use crate::tasks::blocking;

/// Generating an RSA key takes a second, or many if the container has a tenth of a CPU.
const KEY_DEADLINE: Duration = Duration::from_mins(2);

/// Variable with the roles of the cluster and the number of hosts of each.
const REPLICAS: &str = "BACKENDAI_CLUSTER_REPLICAS";

const HOST_KEY: &str = "dropbear_rsa_host_key";
const AUTHORIZED_KEYS: &str = "authorized_keys";
const CONFIG: &str = "config";

/// The user's private key in the home, for download.
const USER_KEY: &str = "id_container";

/// Why a part of the keys or the configuration is not installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    /// The runner stopped meanwhile.
    #[error("the runner is shutting down")]
    ShuttingDown,
    /// New keys have no place.
    #[error(transparent)]
    Folder(#[from] Arc<FolderError>),
    /// A program of dropbear failed.
    #[error(transparent)]
    Program(#[from] CaptureError),
    /// The output of `dropbearkey` lacks a line.
    #[error("dropbearkey did not print the public key")]
    NoPublicKey,
    /// A file outside the home cannot be read or written.
    #[error("{}", path.display())]
    File {
        /// The file's path.
        path: PathBuf,
        /// The OS error behind it.
        #[source]
        source: io::Error,
    },
    /// A file in the home cannot be read or written.
    #[error("{name} in {}", home.display())]
    Home {
        /// The file's name.
        name: &'static str,
        /// The path of the home.
        home: PathBuf,
        /// The OS error behind it.
        #[source]
        source: io::Error,
    },
    /// The agent's mapping of hosts is invalid.
    #[error("{}", path.display())]
    Mapping {
        /// Path of the mapping.
        path: PathBuf,
        /// What is invalid about it.
        #[source]
        source: HostsError,
    },
    /// The agent's list of roles is invalid.
    #[error("{REPLICAS}")]
    Replicas(#[source] HostsError),
}

/// Why there is no directory for the session's keys.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    /// The usual one cannot be recreated.
    #[error("cannot recreate {}: {error}", folder.display())]
    Recreate {
        /// The usual directory.
        folder: PathBuf,
        /// The OS error behind it.
        error: io::Error,
    },
    /// Neither can one next to it.
    #[error("{first}; cannot create a directory next to it: {error}")]
    Beside {
        /// The error of the usual one.
        first: Box<Self>,
        /// The OS error behind it.
        error: io::Error,
    },
}

/// What installing the keys needs.
pub(super) struct Keys<'a> {
    pub(super) dropbear: &'a Dropbear,
    pub(super) paths: &'a Paths,
    pub(super) launcher: &'a Launcher,
    pub(super) env: &'a ChildEnv,
    /// Stops key generation when the runner shuts down.
    pub(super) control: &'a Control,
}

/// The files that the server needs.
pub(super) struct ServerFiles {
    pub(super) host_key: HostKey,
    /// Directory for the server's other files.
    pub(super) folder: PathBuf,
}

impl Keys<'_> {
    /// # Errors
    /// With the reason why there is no host key.
    pub(super) async fn prepare(&self) -> Result<ServerFiles, KeysError> {
        let usual = self.paths.dropbear();
        let wanted = usual.clone();
        let folder = blocking(move || own_folder(&wanted)).await.map_err(Arc::new);
        if let Err(error) = self.user_pair(folder.as_deref()).await {
            if self.control.is_terminated() {
                return Err(KeysError::ShuttingDown);
            }
            tracing::warn!("cannot create the user's ssh key: {}", chain(&error));
        }
        let (paths, replicas) = (self.paths.clone(), self.env.get(OsStr::new(REPLICAS)).cloned());
        let replicas = replicas.map_or_else(|| "main:1".into(), |replicas| replicas.to_string_lossy().into_owned());
        for error in blocking(move || join_cluster(&paths, &replicas)).await {
            tracing::warn!("ssh within the cluster is only partly set up: {}", chain(&error));
        }
        let host_key = self.host_key(folder.as_deref()).await?;
        // The server runs without the other files.
        Ok(ServerFiles { host_key, folder: folder.unwrap_or(usual) })
    }

    /// Generates the user's key pair, unless `authorized_keys` exists.
    async fn user_pair(&self, folder: Result<&Path, &Arc<FolderError>>) -> Result<(), KeysError> {
        let work = self.paths.work();
        if blocking(move || authorized(&work)).await?.is_some() {
            return Ok(());
        }
        let folder = folder.map_err(Arc::clone)?;
        let (own, open) = (folder.join("id_dropbear"), folder.join(USER_KEY));
        let said = self.run(&self.dropbear.make_key(&own)).await?;
        let public = public_key(&said).ok_or(KeysError::NoPublicKey)?.to_vec();
        self.run(&self.dropbear.convert(&own, &open)).await?;
        let work = self.paths.work();
        blocking(move || {
            let private = take(&open).and_then(|text| fs::remove_file(&own).map(|()| text));
            let private = private.map_err(|source| KeysError::File { path: open, source })?;
            in_home(&work, USER_KEY, |home| home.write_private(USER_KEY, &private))?;
            // Last, so that the next start repeats everything if a step before this failed.
            let line = [&public[..], b"\n"].concat();
            in_home(&work, AUTHORIZED_KEYS, |home| ssh_folder(home)?.write_private(AUTHORIZED_KEYS, &line))
        })
        .await
    }

    /// The agent's host key, which clients recognize, or a new one for this session.
    async fn host_key(&self, folder: Result<&Path, &Arc<FolderError>>) -> Result<HostKey, KeysError> {
        let given = self.paths.given_ssh(HOST_KEY);
        let candidate = given.clone();
        match blocking(move || fs::File::open(candidate)?.metadata()).await {
            Ok(about) if about.is_file() => return Ok(HostKey::given(given)),
            Ok(_) => tracing::warn!("{} is not a file; generating a host key for this session", given.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("{}: {error}; generating a host key for this session", given.display()),
        }
        let made = folder.map_err(Arc::clone)?.join(HOST_KEY);
        self.run(&self.dropbear.make_key(&made)).await?;
        let path = made.clone();
        blocking(move || HostKey::made(made)).await.map_err(|source| KeysError::File { path, source })
    }

    async fn run(&self, command: &Command) -> Result<Vec<u8>, CaptureError> {
        self.launcher.capture(command, self.env, self.control, KEY_DEADLINE).await
    }
}

/// Creates a directory for the session's keys: at the usual path, or next to it if the existing one cannot be removed, such as
/// another user's directory that was committed with the image.
fn own_folder(usual: &Path) -> Result<PathBuf, FolderError> {
    let Err(error) = make_anew(usual) else { return Ok(usual.to_owned()) };
    let problem = FolderError::Recreate { folder: usual.to_owned(), error };
    let (Some(parent), Some(name)) = (usual.parent(), usual.file_name()) else { return Err(problem) };
    let prefix = format!("{}-", name.display());
    let beside = tempfile::Builder::new().prefix(&prefix).permissions(Permissions::from_mode(0o700)).tempdir_in(parent);
    match beside {
        Ok(beside) => {
            let beside = beside.keep();
            tracing::info!("{problem}; using {} instead", beside.display());
            Ok(beside)
        }
        Err(error) => Err(FolderError::Beside { first: Box::new(problem), error }),
    }
}

/// Removes what is at the path: it is from an earlier start or was planted.
fn make_anew(folder: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(folder) {
        Ok(about) if about.is_dir() => remove_tree(folder),
        Ok(_) => fs::remove_file(folder),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed?;
    fs::DirBuilder::new().mode(0o700).create(folder)
}

/// Authorizes the other hosts of the cluster and adds them to the ssh configuration; returns the problems.
fn join_cluster(paths: &Paths, replicas: &str) -> Vec<KeysError> {
    let identity = paths.given_ssh("id_cluster");
    let known = if identity.is_file() { add_hosts(paths, replicas, &identity) } else { Ok(()) };
    [known, add_key(paths)].into_iter().filter_map(Result::err).collect()
}

fn add_hosts(paths: &Paths, replicas: &str, identity: &Path) -> Result<(), KeysError> {
    let entries = entries(&paths.given_ssh("port-mapping.json"), replicas)?;
    in_home(&paths.work(), CONFIG, |home| {
        let ssh = ssh_folder(home)?;
        let config = ssh.read_private(CONFIG)?.unwrap_or_default();
        let new = ssh_config::with_entries(&config, &entries, identity);
        if new == config { Ok(()) } else { ssh.write_private(CONFIG, &new) }
    })
}

fn entries(mapping: &Path, replicas: &str) -> Result<Vec<HostEntry>, KeysError> {
    let path = || mapping.to_owned();
    match read_regular(mapping) {
        Ok(json) => ssh_config::mapped(&json).map_err(|source| KeysError::Mapping { path: path(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            ssh_config::by_role(replicas).map_err(KeysError::Replicas)
        }
        Err(source) => Err(KeysError::File { path: path(), source }),
    }
}

fn add_key(paths: &Paths) -> Result<(), KeysError> {
    let public = paths.given_ssh("id_cluster.pub");
    let key = match read_regular(&public) {
        Ok(key) => key,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(KeysError::File { path: public, source }),
    };
    let authorized = authorized(&paths.work())?.unwrap_or_default();
    match with_keys(&authorized, &key) {
        None => Ok(()),
        Some(new) => {
            in_home(&paths.work(), AUTHORIZED_KEYS, |home| ssh_folder(home)?.write_private(AUTHORIZED_KEYS, &new))
        }
    }
}

/// The content of `authorized_keys`; `None` if it does not exist.
fn authorized(work: &Path) -> Result<Option<Vec<u8>>, KeysError> {
    in_home(work, AUTHORIZED_KEYS, |home| ssh_folder(home)?.read_private(AUTHORIZED_KEYS))
}

fn ssh_folder(home: &HomeFolder) -> io::Result<HomeFolder> {
    home.private(".ssh")
}

/// Adds the file's name to an error.
fn in_home<T>(work: &Path, name: &'static str, act: impl FnOnce(&HomeFolder) -> io::Result<T>) -> Result<T, KeysError> {
    let done = HomeFolder::home(work).and_then(|home| act(&home));
    done.map_err(|source| KeysError::Home { name, home: work.to_owned(), source })
}

/// Reads a file and removes it.
fn take(file: &Path) -> io::Result<Vec<u8>> {
    let text = fs::read(file)?;
    fs::remove_file(file)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_is_new_at_its_usual_path() {
        let place = tempfile::tempdir().unwrap();
        let usual = place.path().join("dropbear");
        fs::create_dir(&usual).unwrap();
        fs::write(usual.join("left over"), "").unwrap();
        assert_eq!(own_folder(&usual).unwrap(), usual);
        assert_eq!(fs::read_dir(&usual).unwrap().count(), 0);
        assert_eq!(fs::metadata(&usual).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn folder_that_cannot_be_made_is_named() {
        let problem = own_folder(Path::new("/nonexistent/dropbear")).unwrap_err().to_string();
        assert!(problem.starts_with("cannot recreate /nonexistent/dropbear: "), "{problem}");
        assert!(problem.contains("; cannot create a directory next to it: "), "{problem}");
    }

    #[test]
    fn error_texts_are_stable() {
        let path = || PathBuf::from("/x");
        let source = || io::Error::from(io::ErrorKind::NotFound);
        let folder = FolderError::Recreate { folder: path(), error: source() };
        let command = "dropbearkey".to_owned();
        let errors = [
            KeysError::ShuttingDown,
            Arc::new(FolderError::Beside { first: Box::new(folder), error: source() }).into(),
            CaptureError::Failed { command, code: 1, stderr: "no entropy".to_owned() }.into(),
            KeysError::NoPublicKey,
            KeysError::File { path: path(), source: source() },
            KeysError::Home { name: CONFIG, home: "/home/work".into(), source: source() },
            KeysError::Mapping { path: path(), source: HostsError::Name("a b".to_owned()) },
            KeysError::Replicas(HostsError::Role("a b".to_owned())),
        ];
        insta::assert_snapshot!(errors.iter().map(|error| chain(error)).collect::<Vec<_>>().join("\n"), @r#"
        the runner is shutting down
        cannot recreate /x: entity not found; cannot create a directory next to it: entity not found
        `dropbearkey` failed with 1: no entropy
        dropbearkey did not print the public key
        /x: entity not found
        config in /home/work: entity not found
        /x: "a b" is not a valid host name
        BACKENDAI_CLUSTER_REPLICAS: "a b" is not a valid role
        "#);
    }
}
