//! `krunner services`: what an image's definitions would start, and what is wrong with them.

use std::collections::BTreeMap;
use std::env;
use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;
use serde_json::{Map, Value, json};

use super::args::ServicesArgs;
use super::stdout::print;
use crate::error::chain;
use crate::exit::Exit;
use crate::runtime::Language;
use crate::service::{Catalogue, Definition, ResolvedCommand, fallback, offered, preview};

/// The user's home in an image.
const WORK: &str = "/home/work";

/// Reads, fills in, prints.
pub(super) fn services(args: &ServicesArgs) -> anyhow::Result<ExitCode> {
    let shown = ServicesOutput::collect(args);
    if let Some(name) = args.name.as_ref().filter(|name| !shown.knows(name)) {
        bail!("there is no service {name} in {}", args.definitions.display());
    }
    let text = if args.json { shown.to_json() } else { shown.to_text() };
    print(text)?;
    Ok(if shown.problems.is_empty() { Exit::Ok } else { Exit::Failure }.into())
}

/// What is printed.
struct ServicesOutput {
    services: BTreeMap<String, Service>,
    problems: BTreeMap<String, String>,
}

struct Service {
    definition: Definition,
    /// None for one that starts nothing.
    starts: Option<ResolvedCommand>,
    /// Offered by the language.
    is_fallback: bool,
}

impl ServicesOutput {
    fn collect(args: &ServicesArgs) -> Self {
        let catalogue = Catalogue::load(&args.definitions);
        let kind = args.language.as_deref().and_then(Language::find);
        let named = args.runtime_path.clone();
        let runtime_path = match kind {
            Some(kind) => kind.program(named, env::var_os("PATH").as_deref()),
            None => named.unwrap_or_else(|| "/usr/bin/python".into()),
        };
        let runtime_path = runtime_path.display().to_string();
        let mut shown = Self { services: BTreeMap::new(), problems: catalogue.problems };
        let language = args.language.as_deref().unwrap_or_default();
        let offered = offered(language).iter().filter_map(|name| {
            let definition = fallback(language, name, Path::new(WORK))?;
            (!catalogue.services.contains_key(*name)).then(|| ((*name).to_owned(), definition, true))
        });
        let defined = catalogue.services.iter().map(|(name, definition)| (name.clone(), definition.clone(), false));
        for (name, definition, is_fallback) in defined.chain(offered) {
            let starts = (!definition.noop).then(|| preview(&definition, &args.ports, &runtime_path)).transpose();
            match starts {
                Ok(starts) => _ = shown.services.insert(name, Service { definition, starts, is_fallback }),
                Err(error) => _ = shown.problems.insert(name.clone(), format!("{name}: {}", chain(&error))),
            }
        }
        if let Some(only) = &args.name {
            shown.services.retain(|name, _| name == only);
            shown.problems.retain(|name, _| name == only);
        }
        shown
    }

    fn knows(&self, name: &str) -> bool {
        self.services.contains_key(name) || self.problems.contains_key(name)
    }

    fn to_json(&self) -> String {
        let services: Map<String, Value> =
            self.services.iter().map(|(name, it)| (name.clone(), it.to_json())).collect();
        let problems: Vec<&String> = self.problems.values().collect();
        format!("{:#}\n", json!({ "services": services, "problems": problems }))
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        for (name, service) in &self.services {
            service.describe(name, &mut text);
        }
        for problem in self.problems.values() {
            text.extend(["PROBLEM ", problem, "\n"]);
        }
        text
    }
}

impl Service {
    fn to_json(&self) -> Value {
        let env =
            |starts: &ResolvedCommand| starts.env.iter().cloned().map(|(k, v)| (k, v.into())).collect::<Map<_, _>>();
        json!({
            "argv": self.starts.as_ref().map(|starts| &starts.argv),
            "env": self.starts.as_ref().map(env).unwrap_or_default(),
            "actions": self.definition.prestart_actions.iter().map(|action| action.kind.name()).collect::<Vec<_>>(),
            "allowed_arguments": self.definition.allowed_arguments,
            "allowed_envs": self.definition.allowed_envs,
            "url_template": self.definition.url_template,
            "fallback": self.is_fallback,
        })
    }

    fn describe(&self, name: &str, text: &mut String) {
        let note = if self.is_fallback { " (offered by the language)" } else { "" };
        let command =
            self.starts.as_ref().map_or("nothing is started: another program serves the port".to_owned(), |it| {
                // What has a NUL byte is refused before.
                it.argv.iter().map(|word| shlex::try_quote(word).unwrap_or_default()).collect::<Vec<_>>().join(" ")
            });
        let actions: Vec<&str> = self.definition.prestart_actions.iter().map(|action| action.kind.name()).collect();
        let env = self.starts.iter().flat_map(|starts| &starts.env);
        let env: Vec<String> = env.map(|(name, value)| format!("{name}={value}")).collect();
        let Definition { allowed_arguments, allowed_envs, .. } = &self.definition;
        text.extend([name, note, "\n    ", &command, "\n"]);
        for (label, values) in [
            ("first", actions.join(", ")),
            ("with", env.join(" ")),
            ("users may give", allowed_arguments.join(" ")),
            ("users may set", allowed_envs.join(" ")),
        ] {
            if !values.is_empty() {
                text.extend(["    ", label, ": ", &values, "\n"]);
            }
        }
    }
}
