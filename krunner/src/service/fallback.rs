//! Built-in services of a language, for images that define none of that name.
//!
//! They are definitions like those of an image. The path of the user's home depends on the session, hence functions and not
//! files.

use std::path::Path;

use serde_json::{Value, json};

use super::definition::Definition;

/// The built-in definition of this name, if the language has one.
#[must_use]
pub(crate) fn fallback(language: &str, service: &str, work: &Path) -> Option<Definition> {
    let definition = match language {
        "python" => python(service, work)?,
        "vendor.h2o" => h2o(service)?,
        "r" | "julia" => jupyter_on_path(service)?,
        "nodejs" if service == "node" => json!({ "command": ["{runtime_path}", "-i"] }),
        _ => return None,
    };
    // Our own definitions; a test parses every one of them.
    Definition::parse(definition.to_string().as_bytes()).ok()
}

/// Names of the built-in services, for help texts and tests; `h2o` stands for all names that contain it.
#[must_use]
pub(crate) fn offered(language: &str) -> &'static [&'static str] {
    match language {
        "python" => &["jupyter", "jupyterlab", "ipython", "digits", "tensorboard", "spectravis", "sftp"],
        "vendor.h2o" => &["jupyter", "jupyterlab", "sftp", "h2o"],
        "r" | "julia" => &["jupyter", "jupyterlab"],
        "nodejs" => &["node"],
        _ => &[],
    }
}

fn python(service: &str, work: &Path) -> Option<Value> {
    let at = |name: &str| escaped(&work.join(name));
    Some(match service {
        "jupyter" => jupyter(&["{runtime_path}", "-m", "notebook"]),
        "jupyterlab" => jupyter(&["{runtime_path}", "-m", "jupyterlab"]),
        "ipython" => json!({ "command": ["{runtime_path}", "-m", "IPython"] }),
        "digits" => json!({ "command": ["{runtime_path}", "-m", "digits"] }),
        "tensorboard" => json!({
            "prestart": [{ "action": "mkdir", "args": { "path": at("logs") } }],
            "command": [
                "{runtime_path}", "-m", "tensorboard.main",
                "--logdir", at("logs"), "--host", "0.0.0.0", "--port", "{ports[0]}",
            ],
        }),
        // `--directory` came with Python 3.7.
        "spectravis" => json!({
            "command": ["/bin/sh", "-c", "cd \"$1\" && exec \"$2\" -m http.server 8000", "sh", at("spectravis"), "{runtime_path}"],
        }),
        "sftp" => sftp(),
        _ => return None,
    })
}

fn h2o(service: &str) -> Option<Value> {
    Some(match service {
        "jupyter" | "jupyterlab" => return python(service, Path::new("/")),
        "sftp" => sftp(),
        // The runtime starts it; see `Runtime::init`.
        _ if service.contains("h2o") => json!({ "noop": true }),
        _ => return None,
    })
}

/// The runtime is not Python, so Jupyter's own program is looked up in `PATH`.
fn jupyter_on_path(service: &str) -> Option<Value> {
    match service {
        "jupyter" => Some(jupyter(&["jupyter", "notebook"])),
        "jupyterlab" => Some(jupyter(&["jupyter", "lab"])),
        _ => None,
    }
}

fn sftp() -> Value {
    json!({ "command": ["{runtime_path}", "-m", "sftpserver", "--port", "{ports[0]}"] })
}

/// Without a token: Jupyter is reached only through the agent's proxy, which authenticates the user. Notebook before 7 reads
/// `NotebookApp`, later versions `ServerApp` and `IdentityProvider`; an unknown class is not an error.
fn jupyter(program: &[&str]) -> Value {
    let mut body = Vec::new();
    for class in ["NotebookApp", "ServerApp"] {
        body.push(format!("c.{class}.allow_root = True\n"));
        body.push(format!("c.{class}.ip = \"0.0.0.0\"\n"));
        body.push(format!("c.{class}.port = {{ports[0]}}\n"));
        // The agent knows this port only.
        body.push(format!("c.{class}.port_retries = 0\n"));
        body.push(format!("c.{class}.token = \"\"\n"));
        body.push(format!("c.{class}.tornado_settings = {{{{\"ws_ping_interval\": 10000}}}}\n"));
    }
    body.push("c.IdentityProvider.token = \"\"\n".to_owned());
    body.push("c.FileContentsManager.delete_to_trash = False\n".to_owned());
    let command: Vec<&str> = program.iter().copied().chain(["--no-browser", "--config", "{config}"]).collect();
    json!({
        "prestart": [{ "action": "write_tempfile", "args": { "body": body }, "ref": "config" }],
        "command": command,
    })
}

fn escaped(path: &Path) -> String {
    path.display().to_string().replace('{', "{{").replace('}', "}}")
}

#[cfg(test)]
mod tests {
    use super::super::launch::{UserOptions, check, resolve};
    use super::super::template::{Value, Variables};
    use super::*;

    fn variables() -> Variables {
        Variables::from([
            ("ports".into(), Value::Numbers(vec![8080])),
            ("runtime_path".into(), Value::Text("/py".into())),
        ])
    }

    #[test]
    fn every_fallback_is_a_valid_definition() {
        for language in ["python", "vendor.h2o", "r", "julia", "nodejs"] {
            assert!(!offered(language).is_empty());
            for service in offered(language) {
                let definition = fallback(language, service, Path::new("/home/work")).expect(service);
                check(&definition, &variables()).expect(service);
            }
        }
        assert_eq!(fallback("app", "jupyter", Path::new("/")), None);
        assert!(offered("app").is_empty());
    }

    #[test]
    fn the_home_folder_is_no_template() {
        let definition = fallback("python", "tensorboard", Path::new("/odd {name}")).unwrap();
        let argv = resolve(&definition, &UserOptions::default(), &variables()).unwrap().argv;
        let expected = "/py -m tensorboard.main --logdir /odd {name}/logs --host 0.0.0.0 --port 8080";
        assert_eq!(argv.join(" "), expected);
    }
}
