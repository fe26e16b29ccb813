//! The command that a definition would start, without performing its actions. For authors of definitions.

use std::collections::BTreeMap;

use super::action::ActionKind;
use super::definition::Definition;
use super::launch::{LaunchError, ResolvedCommand, UserOptions, check, resolve};
use super::template::{Value, Variables};

/// Resolves a definition, with `<name>` for the results of actions.
///
/// # Errors
/// The error that the service's start would report.
pub(crate) fn preview(
    definition: &Definition,
    ports: &[u16],
    runtime_path: &str,
) -> Result<ResolvedCommand, LaunchError> {
    let mut variables = Variables::from([
        ("ports".to_owned(), Value::Numbers(ports.iter().copied().map(u64::from).collect())),
        ("runtime_path".to_owned(), Value::Text(runtime_path.to_owned())),
    ]);
    check(definition, &variables)?;
    for action in &definition.prestart_actions {
        let Some(name) = action.reference.clone() else { continue };
        let value = match action.kind {
            ActionKind::WriteTempfile { .. } => Value::Text(format!("<{name}>")),
            ActionKind::RunCommand { .. } => {
                let part = |part: &str| (part.to_owned(), format!("<{name}[{part}]>"));
                Value::Parts(BTreeMap::from([part("out"), part("err")]))
            }
            ActionKind::WriteFile { .. } | ActionKind::Mkdir { .. } | ActionKind::Log { .. } => Value::Nothing,
        };
        variables.insert(name, value);
    }
    resolve(definition, &UserOptions::default(), &variables)
}
