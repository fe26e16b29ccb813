//! What a definition would start, without carrying out its actions: for whoever writes one.

use std::collections::BTreeMap;

use super::action::Act;
use super::definition::Definition;
use super::launch::{Assembled, Chosen, LaunchError, assemble, check};
use super::template::{Value, Variables};

/// Arguments and variables, with `<name>` for what an action would find out.
///
/// # Errors
/// What the service's start would fail with.
pub fn preview(definition: &Definition, ports: &[u16], runtime_path: &str) -> Result<Assembled, LaunchError> {
    let mut variables = Variables::from([
        ("ports".to_owned(), Value::Numbers(ports.iter().copied().map(u64::from).collect())),
        ("runtime_path".to_owned(), Value::Text(runtime_path.to_owned())),
    ]);
    check(definition, &variables)?;
    for action in &definition.prestart_actions {
        let Some(name) = action.reference.clone() else { continue };
        let value = match action.act {
            Act::WriteTempfile { .. } => Value::Text(format!("<{name}>")),
            Act::RunCommand { .. } => {
                let part = |part: &str| (part.to_owned(), format!("<{name}[{part}]>"));
                Value::Parts(BTreeMap::from([part("out"), part("err")]))
            }
            Act::WriteFile { .. } | Act::Mkdir { .. } | Act::Log { .. } => Value::Nothing,
        };
        variables.insert(name, value);
    }
    assemble(definition, &Chosen::default(), &variables)
}
