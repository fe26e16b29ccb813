//! Where an agent's packages are, by the form in which it was delivered.
//!
//! | PATH | packages are in |
//! |---|---|
//! | a folder | it, or its `ai/backend`, `lib/python3*/site-packages`, `src` |
//! | a script of a virtual environment | the environment of the interpreter in its first line |
//! | a PEX file | `PEX_ROOT`, in a folder named by the hash in its `PEX-INFO`: it unpacks itself at its first start |
//! | a scie file (an ELF program that carries Python and a PEX file) | the same |
//!
//! Layout of `PEX_ROOT`: `pex/cache/dirs.py` of pex 2.105. Older versions have no number between the first two folders.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use serde_json::Value;
use zip::ZipArchive;

/// Folders that PEX files unpack themselves to.
#[derive(Debug, Clone)]
pub(in crate::cli::doctor) struct PexRoots(pub(super) Vec<PathBuf>);

/// How an agent was delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    Folder,
    /// Of the virtual environment there.
    Script(PathBuf),
    /// With the hash that its folder is named by.
    Pex(String),
    Scie(String),
}

impl Form {
    /// Whether the packages come out of the file when the agent starts.
    pub(super) fn is_unpacked_at_start(&self) -> bool {
        matches!(self, Self::Pex(_) | Self::Scie(_))
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder => f.write_str("a folder"),
            Self::Script(environment) => write!(f, "a script of {}", environment.display()),
            Self::Pex(hash) => write!(f, "a PEX file (unpacks to {hash})"),
            Self::Scie(hash) => write!(f, "a scie file (its PEX unpacks to {hash})"),
        }
    }
}

/// What was found of an agent.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) form: Form,
    /// Version of the package `ai.backend.agent`.
    pub(super) version: Option<String>,
    /// All `ai/backend/kernel` folders found.
    pub(super) packages: Vec<PathBuf>,
}

/// Why an agent's packages cannot be looked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum LocateError {
    /// A file cannot be read.
    #[error("{}", path.display())]
    File {
        /// The file that was opened.
        path: PathBuf,
        /// The OS error behind it.
        #[source]
        source: io::Error,
    },
    /// An ELF program that is no scie file.
    #[error("{} is an executable without an embedded PEX file", .0.display())]
    NoPex(PathBuf),
    /// Any other file.
    #[error("{} is neither a script of a virtual environment nor a PEX or scie file", .0.display())]
    NoAgent(PathBuf),
}

/// Finds the packages of the agent at that path.
///
/// # Errors
/// With the path, when it is no form of an agent.
pub(super) fn locate(path: &Path, roots: &PexRoots) -> Result<Located, LocateError> {
    let named = |source| LocateError::File { path: path.to_owned(), source };
    // The name of a program may be a link into its environment.
    let path = &fs::canonicalize(path).map_err(named)?;
    let form = if path.is_dir() { Form::Folder } else { form_of_file(path)? };
    let packages = match &form {
        Form::Folder => in_folder(path),
        Form::Script(environment) => in_folder(environment),
        Form::Pex(hash) | Form::Scie(hash) => roots.0.iter().flat_map(|root| unpacked(root, hash)).collect(),
    };
    let version = packages.iter().find_map(|package| {
        let text = fs::read_to_string(package.parent()?.join("agent/VERSION")).ok()?;
        Some(text.trim().to_owned())
    });
    Ok(Located { form, version, packages })
}

fn form_of_file(path: &Path) -> Result<Form, LocateError> {
    let named = |source| LocateError::File { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(named)?;
    let mut line = Vec::new();
    BufReader::new(&file).take(4096).read_until(b'\n', &mut line).map_err(named)?;
    if line.starts_with(b"\x7fELF") {
        let hash = carried_pex_hash(&mut file).map_err(named)?;
        return hash.map(Form::Scie).ok_or_else(|| LocateError::NoPex(path.to_owned()));
    }
    if let Some(hash) = pex_hash(&mut file) {
        return Ok(Form::Pex(hash));
    }
    environment(&line).map(Form::Script).ok_or_else(|| LocateError::NoAgent(path.to_owned()))
}

/// The virtual environment in a shebang line like `#!/environment/bin/python`.
fn environment(line: &[u8]) -> Option<PathBuf> {
    let line = std::str::from_utf8(line.strip_prefix(b"#!")?).ok()?;
    let interpreter = Path::new(line.split_whitespace().next()?);
    let bin = interpreter.parent().filter(|bin| bin.file_name() == Some(OsStr::new("bin")))?;
    bin.parent().filter(|environment| environment.join("pyvenv.cfg").is_file()).map(Path::to_owned)
}

/// The hash in a file's `PEX-INFO`, if it is a zip with one in it.
fn pex_hash<R: Read + Seek>(file: R) -> Option<String> {
    const MAX_INFO_BYTES: u64 = 16 << 20;
    let mut archive = ZipArchive::new(file).ok()?;
    let info = archive.by_name("PEX-INFO").ok()?.take(MAX_INFO_BYTES);
    let info: Value = serde_json::from_reader(info).ok()?;
    let hash = info["pex_hash"].as_str()?;
    // It becomes a part of a path.
    hash.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| hash.to_owned())
}

/// The hash of a PEX file among those that a scie file is made of, which follow each other.
fn carried_pex_hash(file: &mut File) -> io::Result<Option<String>> {
    for end in ends_of_archives(file)? {
        file.rewind()?;
        if let Some(hash) = pex_hash(file.take(end)) {
            return Ok(Some(hash));
        }
    }
    Ok(None)
}

/// Behind each end-of-central-directory record (APPNOTE.TXT 4.3.16) of 22 bytes.
fn ends_of_archives(file: &mut File) -> io::Result<Vec<u64>> {
    const SIGNATURE: &[u8] = b"PK\x05\x06";
    const RECORD_BYTES: u64 = 22;
    const CHUNK_BYTES: usize = 1 << 20;
    file.rewind()?;
    let (mut ends, mut window, mut window_at) = (Vec::new(), Vec::new(), 0_u64);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(ends);
        }
        window.extend_from_slice(&chunk[..read]);
        let found = window.windows(SIGNATURE.len()).enumerate().filter(|(_, bytes)| *bytes == SIGNATURE);
        ends.extend(found.map(|(at, _)| window_at + at as u64 + RECORD_BYTES));
        // A signature may be cut by the end of a chunk.
        let kept = window.len().min(SIGNATURE.len() - 1);
        window_at += (window.len() - kept) as u64;
        window.drain(..window.len() - kept);
    }
}

/// Package folders of a PEX file that unpacked itself. One that made virtual environments runs from these, one for each Python that
/// it was started with; else it runs from what it unpacked.
fn unpacked(root: &Path, hash: &str) -> Vec<PathBuf> {
    let versions = |kind: &str| -> Vec<PathBuf> {
        let folder = root.join(kind);
        let numbered = entries(&folder).filter(|path| is_number(path));
        std::iter::once(folder.clone()).chain(numbered).map(|folder| folder.join(hash)).collect()
    };
    let plain = versions("unzipped_pexes").into_iter().flat_map(|folder| in_folder(&folder));
    let environments = versions("venvs").into_iter().flat_map(|folder| entries(&folder).collect::<Vec<_>>());
    let made: Vec<PathBuf> = environments.flat_map(|environment| in_folder(&environment)).collect();
    if made.is_empty() { plain.collect() } else { made }
}

fn is_number(path: &Path) -> bool {
    path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.parse::<u32>().is_ok())
}

/// Package folders in a virtual environment, site-packages, a source tree, or what is named itself.
fn in_folder(folder: &Path) -> Vec<PathBuf> {
    let libraries = entries(&folder.join("lib"))
        .filter(|path| path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with("python3")));
    let bases = [folder.to_owned(), folder.join("src")].into_iter();
    let bases = bases.chain(libraries.map(|library| library.join("site-packages")));
    let named = [folder.to_owned(), folder.join("kernel"), folder.join("backend/kernel")];
    let candidates = named.into_iter().chain(bases.map(|base| base.join("ai/backend/kernel")));
    let is_package = |path: &PathBuf| path.ends_with("ai/backend/kernel") && path.is_dir();
    // PEX links to what several files share.
    let mut found: Vec<PathBuf> =
        candidates.filter(is_package).filter_map(|path| fs::canonicalize(path).ok()).collect();
    found.dedup();
    found
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.into_iter()
}
