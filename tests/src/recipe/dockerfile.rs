//! A Dockerfile's instructions, as far as they can be seen without building it.

use std::collections::BTreeMap;

/// One stage: its `FROM` without flags, and what follows.
#[derive(Debug, Default)]
pub struct Stage {
    /// The image or stage that it starts from.
    pub from: String,
    /// Its name, or its number.
    pub name: String,
    /// Instructions with their arguments.
    pub instructions: Vec<(String, Vec<String>)>,
}

impl Stage {
    /// The arguments of all instructions of that name.
    pub fn all(&self, instruction: &str) -> Vec<&[String]> {
        self.instructions.iter().filter(|(name, _)| name == instruction).map(|(_, words)| words.as_slice()).collect()
    }
}

/// Its stages, in order.
///
/// # Errors
/// When it has something else in it.
pub fn stages(text: &str) -> Result<Vec<Stage>, String> {
    const KNOWN: [&str; 5] = ["COPY", "RUN", "USER", "ENTRYPOINT", "CMD"];
    let joined = text.replace("\\\n", " ");
    let mut stages: Vec<Stage> = Vec::new();
    for line in joined.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, rest) = line.split_once(' ').ok_or_else(|| format!("{line:?} is no instruction"))?;
        // The exec form is JSON.
        let words = match serde_json::from_str(rest) {
            Ok(words) => words,
            Err(_) => shlex::split(rest).ok_or_else(|| format!("{line:?}: a quote has no end"))?,
        };
        match (name, stages.last_mut()) {
            ("FROM", _) => stages.push(stage(&words, stages.len())?),
            (name, Some(stage)) if KNOWN.contains(&name) => stage.instructions.push((name.to_owned(), words)),
            _ => return Err(format!("{line:?} is not known here")),
        }
    }
    Ok(stages)
}

fn stage(words: &[String], number: usize) -> Result<Stage, String> {
    let plain: Vec<&str> = words.iter().map(String::as_str).filter(|word| !word.starts_with("--platform=")).collect();
    let (from, name) = match plain[..] {
        [from] => (from, number.to_string()),
        [from, "AS", name] => (from, name.to_owned()),
        _ => return Err(format!("FROM {words:?} is not known here")),
    };
    Ok(Stage { from: from.to_owned(), name, instructions: Vec::new() })
}

/// The stages by their names.
pub fn by_name(stages: &[Stage]) -> BTreeMap<&str, &Stage> {
    stages.iter().map(|stage| (stage.name.as_str(), stage)).collect()
}
