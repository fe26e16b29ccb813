//! Definitions as images have them, as `krunner services` shows them and `get-apps` lists them.

use std::process::{Command, Output, Stdio};

use krunner_tests::{Raw, binary, host, require};
use serde_json::{Value, json};

use crate::{app, with_agent};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/services");

fn services(arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.arg("services").args(arguments).stdin(Stdio::null());
    command.output().expect("krunner runs")
}

fn shown(arguments: &[&str]) -> Value {
    let output = services(&[arguments, &["--json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Every key of a definition and every action is in one of them.
#[test]
fn ten_realistic_definitions_start_what_they_say() {
    let told = shown(&["--definitions", FIXTURES, "--runtime-path", "/opt/py", "--port", "8081", "--port", "8082"]);

    assert_eq!(told["problems"], json!([]));
    let argv = |name: &str| told["services"][name]["argv"].clone();
    assert_eq!(
        argv("jupyter"),
        json!(["/opt/py", "-m", "jupyter", "notebook", "--no-browser", "--config", "<jupyter_cfg>"])
    );
    assert_eq!(
        argv("jupyterlab"),
        json!([
            "/opt/py",
            "-m",
            "jupyterlab",
            "--no-browser",
            "--config",
            "<config>",
            "--ServerApp.token",
            "",
            "--allow-root",
        ])
    );
    assert_eq!(told["services"]["jupyterlab"]["env"], json!({ "JUPYTER_CONFIG_DIR": "${HOME}/.jupyter" }));
    assert_eq!(
        argv("vscode"),
        json!([
            "/usr/local/bin/code-server",
            "--bind-addr=0.0.0.0:8081",
            "--auth",
            "none",
            "--user-data-dir",
            "/home/work/.vscode",
            "--disable-telemetry",
            "--enable-proposed-api",
            "ms-python.python",
            "ms-toolsai.jupyter",
        ])
    );
    assert_eq!(
        argv("tensorboard"),
        json!([
            "/opt/py",
            "-m",
            "tensorboard.main",
            "--port",
            "8081",
            "--host",
            "0.0.0.0",
            "--logdir",
            "/home/work/logs",
        ])
    );
    assert_eq!(
        argv("rstudio"),
        json!([
            "/usr/lib/rstudio-server/bin/rserver",
            "--config-file",
            "/tmp/rserver-8081.conf",
            "--server-user=<user[out]>",
        ])
    );
    assert_eq!(
        argv("mlflow-ui"),
        json!(["mlflow", "ui", "--host", "0.0.0.0", "--port", "8081", "--backend-store-uri", "/home/work/mlruns"])
    );
    assert_eq!(argv("nniboard"), json!(["nnictl", "view", "--port", "8082", "${NNI_EXPERIMENT}"]));
    let line = "cd \"${HOME}/app\" && exec /opt/py -m streamlit run main.py --server.port 8081 \
                --server.headless true --theme.base 'dark blue'";
    assert_eq!(argv("streamlit"), json!(["/bin/sh", "-c", line]));
    assert_eq!(
        argv("filebrowser"),
        json!(["filebrowser", "--address", "0.0.0.0", "--port", "8081", "--root", "/home/work/my files", "--noauth"])
    );
    assert_eq!(argv("h2o-dai"), Value::Null);
    assert_eq!(told["services"].as_object().map(serde_json::Map::len), Some(10));
}

#[test]
fn what_is_wrong_is_told_with_its_file_and_fails() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("web.json"), r#"{"command": ["x", "{prot}"]}"#).expect("a file");
    std::fs::write(folder.path().join("odd.json"), r#"{"command": ["x"], "colour": 1}"#).expect("a file");
    let folder = folder.path().to_str().expect("a UTF-8 path");

    let output = services(&["--definitions", folder]);

    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(&format!("PROBLEM {folder}/odd.json: unknown field `colour`, expected one of")), "{text}");
    assert!(text.contains("PROBLEM web: cannot expand the definition's `command`: `{prot}`: unknown name"), "{text}");
    let missing = services(&["nothing", "--definitions", folder]);
    let said = String::from_utf8_lossy(&missing.stderr);
    assert_eq!((missing.status.code(), said.contains("there is no service nothing in")), (Some(1), true), "{said}");
}

#[test]
fn a_language_offers_what_no_definition_has_the_name_of() {
    let told = shown(&["--definitions", FIXTURES, "--language", "python", "--runtime-path", "/py"]);

    assert_eq!(told["services"]["spectravis"]["fallback"], json!(true));
    assert_eq!(told["services"]["sftp"]["argv"], json!(["/py", "-m", "sftpserver", "--port", "8080"]));
    assert_eq!(told["services"]["jupyter"]["fallback"], json!(false));
}

#[test]
fn apps_are_those_of_the_usable_files() {
    let client = require!(host::agent_python());
    let file = |name: &str| format!("etc/backend.ai/service-defs/{name}.json");
    let setup = app()
        .file(&file("vscode"), r#"{"command": ["x"], "url_template": "{protocol}://x", "allowed_envs": ["A"]}"#)
        .file(&file("tensorboard"), r#"{"command": ["x"], "allowed_arguments": ["--logdir"]}"#)
        .file(&file("broken"), "{")
        .file(&file("odd"), r#"{"command": ["x"], "colour": 1}"#)
        .folder(&file("folder"));
    std::fs::File::create(setup.root().join(file("huge"))).and_then(|it| it.set_len(100 << 20)).expect("a sparse file");
    let (runner, agent) = with_agent(&client, setup);

    let apps = agent.apps();

    let expected = json!({ "status": "done", "data": [
        { "name": "tensorboard", "allowed_arguments": ["--logdir"] },
        { "name": "vscode", "url_template": "{protocol}://x", "allowed_envs": ["A"] },
    ]});
    assert_eq!(apps, expected);
    let mut raw = Raw::connect(&runner);
    for (name, expected) in [("vscode", json!([apps["data"][1]])), ("odd", json!([]))] {
        raw.op("get-apps", name);
        let told = raw.read_until(|message| message.kind == "apps-result");
        let told: Value = serde_json::from_slice(&told.messages.last().expect("a reply").payload).expect("JSON");
        assert_eq!(told["data"], expected, "{name}");
    }
    runner.wait_for_log(&["broken.json: EOF while parsing"]);
    runner.wait_for_log(&["odd.json: unknown field `colour`"]);
    runner.wait_for_log(&["folder.json: a directory, not a file"]);
    runner.wait_for_log(&["huge.json: larger than 1048576 bytes"]);
}
