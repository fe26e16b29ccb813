//! Files in the user's site directory of Python: `input()` through the runner, and the drawing modules.

use std::io;
use std::path::Path;

use super::traits::InitError;
use crate::user_folder::{PRIVATE_FILE, UserFolder};

/// Loaded by the interpreter at its start (docs.python.org/3/library/site.html); the socket's path
/// is filled in.
const SITECUSTOMIZE: &str = include_str!("python/sitecustomize.py");
const SOCKET_PLACEHOLDER: &str = "\"@INPUT_SOCKET@\"";

/// The package of the drawing modules. Its parents have no `__init__.py`: as namespace packages they do not hide installed
/// packages of Backend.AI.
const DRAWING: &str = "ai/backend/kernel/python/drawing";

const DRAWING_FILES: [(&str, &str); 5] = [
    ("__init__.py", include_str!("python/drawing/__init__.py")),
    ("canvas.py", include_str!("python/drawing/canvas.py")),
    ("color.py", include_str!("python/drawing/color.py")),
    ("encoding.py", include_str!("python/drawing/encoding.py")),
    ("turtle.py", include_str!("python/drawing/turtle.py")),
];

/// Writes all files.
///
/// # Errors
/// [`InitError::Write`] for the first file that cannot be written.
pub(super) fn install(home: &Path, user_site: &Path, socket: &Path) -> Result<(), InitError> {
    // A JSON string is a Python string.
    let socket = serde_json::Value::from(socket.to_string_lossy()).to_string();
    let customize = SITECUSTOMIZE.replace(SOCKET_PLACEHOLDER, &socket);
    let drawing = user_site.join(DRAWING);
    let files = DRAWING_FILES.iter().map(|(name, text)| (drawing.join(name), *text));
    for (file, text) in std::iter::once((user_site.join("sitecustomize.py"), customize.as_str())).chain(files) {
        write(home, &file, text).map_err(|error| InitError::Write { file, error })?;
    }
    Ok(())
}

/// Replaces the file atomically, because an interpreter may start at any moment.
fn write(home: &Path, file: &Path, text: &str) -> io::Result<()> {
    let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // `PYTHONUSERBASE` may be outside of the home. What exists of that path is not the user's choice.
    let outside = || folder.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"));
    let base = if folder.starts_with(home) { home } else { outside() };
    let below = folder.strip_prefix(base).unwrap_or(folder);
    let folder = UserFolder::home(base)?.make_folders(below, 0o777)?;
    folder.replace_link(Path::new(name), text.as_bytes(), PRIVATE_FILE)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_socket_is_filled_in_and_the_drawings_are_there() {
        let folder = tempfile::tempdir().unwrap();
        install(folder.path(), &folder.path().join("site"), Path::new("/tmp/it's \"here\".sock")).unwrap();
        let text = fs::read_to_string(folder.path().join("site/sitecustomize.py")).unwrap();
        assert!(text.contains(r#"or "/tmp/it's \"here\".sock""#), "{text}");
        assert!(!text.contains("@INPUT_SOCKET@"));
        let drawing = folder.path().join("site").join(DRAWING);
        assert_eq!(fs::read_dir(&drawing).unwrap().count(), DRAWING_FILES.len());
        assert!(!drawing.with_file_name("__init__.py").exists());
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ai"), "").unwrap();
        let problem = install(folder.path(), folder.path(), Path::new("/s")).unwrap_err().to_string();
        assert!(
            problem.starts_with(&format!("cannot write {}/{DRAWING}/__init__.py: ", folder.path().display())),
            "{problem}"
        );
    }
}
