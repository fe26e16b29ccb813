//! A home that outlives its containers, in which the next session says how the one before ended.

use std::fs;
use std::os::unix::fs::chown;

use serde_json::Value;

use crate::engine::{Container, HOME};
use crate::session::Session;

/// Makes the home, empty and with a folder for logs.
pub(crate) fn make() -> Result<(), String> {
    let logs = format!("{HOME}/.logs");
    if fs::exists(HOME).unwrap_or(false) {
        fs::remove_dir_all(HOME).map_err(|error| format!("{HOME}: {error}"))?;
    }
    fs::create_dir_all(&logs).map_err(|error| format!("{logs}: {error}"))?;
    for folder in [HOME, &logs] {
        chown(folder, Some(1000), Some(1000)).map_err(|error| format!("{folder}: {error}"))?;
    }
    Ok(())
}

/// What the next session prints, and what it writes to `last-end.json`.
pub(crate) fn last_end(next: &Container) -> Result<(String, Value), String> {
    let printed = Session::until_ready(next)?.send("exec", "true")?;
    let path = format!("{HOME}/.logs/last-end.json");
    let end = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let end = serde_json::from_str(&end).map_err(|error| format!("{path}: {error}: {end}"))?;
    Ok((printed, end))
}
