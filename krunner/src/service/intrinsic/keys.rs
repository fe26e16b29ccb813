//! Keys and configuration of ssh, put in their places before the server starts.
//!
//! A part that fails is told, and the rest goes on: with the server's host key the cluster can log in even if the
//! user's own pair could not be made.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::authorized_keys::with_keys;
use super::home::Folder;
use super::ssh_config::{self, Entry};
use super::sshd::{Dropbear, public_key};
use crate::config::{ChildEnv, Paths};
use crate::process::{Command, Control, Launcher};
use crate::tasks::blocking;

/// An RSA key takes a second, or many when the container has a tenth of a processor.
const KEY_DEADLINE: Duration = Duration::from_mins(2);

/// Which roles the cluster has, and how many of each.
const REPLICAS: &str = "BACKENDAI_CLUSTER_REPLICAS";

const HOST_KEY: &str = "dropbear_rsa_host_key";
const AUTHORIZED_KEYS: &str = "authorized_keys";
const CONFIG: &str = "config";

/// The user's own private key, where the user finds it to take it home.
const USER_KEY: &str = "id_container";

/// Puts keys in their places.
pub(super) struct Keys<'a> {
    pub(super) dropbear: &'a Dropbear,
    pub(super) paths: &'a Paths,
    pub(super) launcher: &'a Launcher,
    pub(super) env: &'a ChildEnv,
    /// Ends the makers of keys when the runner stops.
    pub(super) control: &'a Control,
}

impl Keys<'_> {
    /// Returns the host key's file.
    ///
    /// # Errors
    /// A sentence on why there is none.
    pub(super) async fn prepare(&self) -> Result<PathBuf, String> {
        let folder = self.paths.dropbear();
        let fresh = folder.clone();
        let made = blocking(move || make_anew(&fresh)).await;
        made.map_err(|error| format!("cannot make {} anew: {error}", folder.display()))?;
        if let Err(problem) = self.user_pair().await {
            if self.control.is_terminated() {
                return Err("the runner stops".to_owned());
            }
            tracing::warn!("the user has no ssh key of this session: {problem}");
        }
        let (paths, replicas) = (self.paths.clone(), self.env.get(OsStr::new(REPLICAS)).cloned());
        let replicas = replicas.map_or_else(|| "main:1".into(), |replicas| replicas.to_string_lossy().into_owned());
        for problem in blocking(move || join_cluster(&paths, &replicas)).await {
            tracing::warn!("ssh within the cluster is not fully set up: {problem}");
        }
        self.host_key().await
    }

    /// Makes the user's pair, unless somebody can log in already.
    async fn user_pair(&self) -> Result<(), String> {
        let work = self.paths.work();
        if blocking(move || authorized(&work)).await?.is_some() {
            return Ok(());
        }
        let folder = self.paths.dropbear();
        let (own, open) = (folder.join("id_dropbear"), folder.join(USER_KEY));
        let said = self.run(&self.dropbear.make_key(&own)).await?;
        let public = public_key(&said).ok_or("dropbearkey did not tell the public key")?.to_vec();
        self.run(&self.dropbear.convert(&own, &open)).await?;
        let work = self.paths.work();
        blocking(move || {
            let private = take(&open).and_then(|text| fs::remove_file(&own).map(|()| text));
            let private = private.map_err(|error| format!("{}: {error}", open.display()))?;
            in_home(&work, USER_KEY, |home| home.write_private(USER_KEY, &private))?;
            // The last, so that a start that has failed before it is made up for by the next.
            let line = [&public[..], b"\n"].concat();
            in_home(&work, AUTHORIZED_KEYS, |home| ssh_folder(home)?.write_private(AUTHORIZED_KEYS, &line))
        })
        .await
    }

    /// The key that the agent gives, so that clients know the host again; or one for this session.
    async fn host_key(&self) -> Result<PathBuf, String> {
        let given = self.paths.given_ssh(HOST_KEY);
        let candidate = given.clone();
        match blocking(move || fs::File::open(candidate)?.metadata()).await {
            Ok(about) if about.is_file() => return Ok(given),
            Ok(_) => tracing::warn!("{} is no file; a host key for this session is made", given.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("{}: {error}; a host key for this session is made", given.display()),
        }
        let made = self.paths.dropbear().join(HOST_KEY);
        self.run(&self.dropbear.make_key(&made)).await?;
        Ok(made)
    }

    async fn run(&self, command: &Command) -> Result<Vec<u8>, String> {
        self.launcher.capture(command, self.env, self.control, KEY_DEADLINE).await
    }
}

/// Whatever is there belongs to an earlier start, or was put there to be found.
fn make_anew(folder: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(folder) {
        Ok(about) if about.is_dir() => fs::remove_dir_all(folder),
        Ok(_) => fs::remove_file(folder),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed?;
    fs::DirBuilder::new().mode(0o700).create(folder)
}

/// Lets the other hosts of the cluster in and tells ssh how to get there; what could not be done.
fn join_cluster(paths: &Paths, replicas: &str) -> Vec<String> {
    let identity = paths.given_ssh("id_cluster");
    let known = if identity.is_file() { add_hosts(paths, replicas, &identity) } else { Ok(()) };
    [known, add_key(paths)].into_iter().filter_map(Result::err).collect()
}

fn add_hosts(paths: &Paths, replicas: &str, identity: &Path) -> Result<(), String> {
    let entries = entries(&paths.given_ssh("port-mapping.json"), replicas)?;
    in_home(&paths.work(), CONFIG, |home| {
        let ssh = ssh_folder(home)?;
        let config = ssh.read_private(CONFIG)?.unwrap_or_default();
        let new = ssh_config::with_entries(&config, &entries, identity);
        if new == config { Ok(()) } else { ssh.write_private(CONFIG, &new) }
    })
}

fn entries(mapping: &Path, replicas: &str) -> Result<Vec<Entry>, String> {
    match fs::read(mapping) {
        Ok(json) => ssh_config::mapped(&json).map_err(|problem| format!("{}: {problem}", mapping.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            ssh_config::by_role(replicas).map_err(|problem| format!("{REPLICAS}: {problem}"))
        }
        Err(error) => Err(format!("{}: {error}", mapping.display())),
    }
}

fn add_key(paths: &Paths) -> Result<(), String> {
    let public = paths.given_ssh("id_cluster.pub");
    let key = match fs::read(&public) {
        Ok(key) => key,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{}: {error}", public.display())),
    };
    let authorized = authorized(&paths.work())?.unwrap_or_default();
    match with_keys(&authorized, &key) {
        None => Ok(()),
        Some(new) => {
            in_home(&paths.work(), AUTHORIZED_KEYS, |home| ssh_folder(home)?.write_private(AUTHORIZED_KEYS, &new))
        }
    }
}

/// The keys that open the account; `None` if there is no such file.
fn authorized(work: &Path) -> Result<Option<Vec<u8>>, String> {
    in_home(work, AUTHORIZED_KEYS, |home| ssh_folder(home)?.read_private(AUTHORIZED_KEYS))
}

fn ssh_folder(home: &Folder) -> io::Result<Folder> {
    home.private(".ssh")
}

/// An error names the file it is about.
fn in_home<T>(work: &Path, name: &str, act: impl FnOnce(&Folder) -> io::Result<T>) -> Result<T, String> {
    let done = Folder::home(work).and_then(|home| act(&home));
    done.map_err(|error| format!("{name} in {}: {error}", work.display()))
}

/// Reads a file and removes it.
fn take(file: &Path) -> io::Result<Vec<u8>> {
    let text = fs::read(file)?;
    fs::remove_file(file)?;
    Ok(text)
}
