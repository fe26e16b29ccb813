//! The ENVIRONMENT and FILES sections of the manual pages.

use crate::config::Paths;

/// Rows for krunner(1).
const RUNNER: &str = "krunner";

/// Name, meaning, and the commands that read it.
type Variable = (&'static str, &'static str, &'static [&'static str]);

const VARIABLES: &[Variable] = &[
    (
        "PATH",
        "search path for programs; steps get it with the user's own folder prepended",
        &[RUNNER, "languages", "selftest"],
    ),
    ("HOME", "the user's kernelspecs are below .local/share; steps get /home/work instead", &[RUNNER]),
    ("SHELL", "passed to programs; /bin/ash or /bin/bash if unset", &[RUNNER]),
    ("TMPDIR", "folder for temporary files instead of /tmp", &[RUNNER, "languages", "selftest"]),
    ("LD_LIBRARY_PATH", "passed to programs, without /opt/backend.ai/lib", &[RUNNER]),
    ("BACKENDAI_KERNEL_ID", "UUID from which the path of a task log is derived", &[RUNNER]),
    ("BACKENDAI_CLUSTER_REPLICAS", "ROLE:COUNT,...: hosts of a cluster, for ssh between them", &[RUNNER]),
    ("KRUNNER_SSH_PASSWORD", "off: sshd accepts no password, even if the agent's entrypoint set one", &[RUNNER]),
    (
        "KRUNNER_NODE_SOCKET",
        "socket of the machine's krunner node instead of /run/krunner/node.sock; empty: none is used",
        &[RUNNER, "monitor", "doctor"],
    ),
    ("JUPYTER_PATH", "kernelspec folders to search first, separated by colons", &[RUNNER]),
    ("JUPYTER_DATA_DIR", "the user's kernelspec folder instead of XDG_DATA_HOME/jupyter", &[RUNNER]),
    ("XDG_DATA_HOME", "the user's data folder instead of ~/.local/share", &[RUNNER]),
    ("SSL_CERT_FILE", "server certificates to trust in addition to Mozilla's", &[RUNNER]),
    ("SSL_CERT_DIR", "the same, as a folder", &[RUNNER]),
    ("AWS_ACCESS_KEY_ID", "for vendor.aws_polly: access key id", &[RUNNER]),
    ("AWS_SECRET_ACCESS_KEY", "for vendor.aws_polly: secret access key", &[RUNNER]),
    ("AWS_SESSION_TOKEN", "for vendor.aws_polly: session token of temporary keys", &[RUNNER]),
    ("AWS_DEFAULT_REGION", "for vendor.aws_polly: region; ap-northeast-2 if unset", &[RUNNER]),
    ("AWS_ENDPOINT_URL_POLLY", "for vendor.aws_polly: endpoint", &[RUNNER]),
    ("AWS_ENDPOINT_URL", "for vendor.aws_polly: endpoint of all AWS services", &[RUNNER]),
    ("MRS_ENDPOINT", "for r_server_ms: endpoint; http://localhost:12800 if unset", &[RUNNER]),
    ("MRS_USERNAME", "for r_server_ms: user name", &[RUNNER]),
    ("MRS_PASSWORD", "for r_server_ms: password", &[RUNNER]),
];

/// Environment variables that the command reads.
pub(super) fn variables(command: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    VARIABLES.iter().filter(move |(.., by)| by.contains(&command)).map(|(name, meaning, _)| (*name, *meaning))
}

/// Files that the command reads or writes.
pub(super) fn files(command: &str) -> impl Iterator<Item = (String, &'static str)> {
    let paths = Paths::default();
    let rows = [
        (
            paths.intrinsic_ports(),
            "ports as a JSON object: replin (2000), replout (2001), sshd (2200), ttyd (7681)",
            RUNNER,
        ),
        (paths.environ(), "additional environment of programs, as NAME=VALUE lines", RUNNER),
        (paths.given_ssh("*"), "host keys, cluster key pair and cluster ports, from the agent", RUNNER),
        (paths.bootstrap(), "script run at startup", RUNNER),
        (paths.service_definitions().join("*.json"), "service definitions of the image, one per file", RUNNER),
        (
            paths.service_definitions().join("*.json"),
            "service definitions, one per file, unless --definitions is given",
            "services",
        ),
        (paths.logs(), "if this folder exists, output of steps is logged below its task folder", RUNNER),
        (paths.logs().join("oom.jsonl"), "if that folder exists, the journal of OOM kills (JSON lines)", RUNNER),
        (
            paths.logs().join("recorder.bin"),
            "likewise: the flight recorder with memory, steps and OOM kills; .1 is the last one that ended unexpectedly",
            RUNNER,
        ),
        (paths.logs().join("last-end.json"), "likewise: how the last session ended, as JSON", RUNNER),
        (
            paths.termination_message(),
            "if this file exists (Kubernetes), the first lines of the last OOM report",
            RUNNER,
        ),
        (paths.logs().join("oom.jsonl"), "the journal of a session, unless another file is given", "oom"),
        (paths.work().join("id_container"), "private key for ssh, created at the first start", RUNNER),
        (paths.password(), "if this file exists, ssh also accepts the account's password", RUNNER),
        (paths.input_socket(), "socket through which programs request user input", RUNNER),
        (paths.kernel_program("*"), "dropbear and ttyd, mounted by the agent", RUNNER),
        (paths.agent_version_pattern(), "version of the agent, in a package it mounts", RUNNER),
    ];
    let wanted = command.to_owned();
    rows.into_iter().filter(move |(.., by)| *by == wanted).map(|(path, what, _)| (path.display().to_string(), what))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// The text of all sources except this one.
    fn sources(folder: &Path, text: &mut String) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                sources(&entry.path(), text);
            } else if entry.file_name() != "environment.rs" {
                text.push_str(&fs::read_to_string(entry.path()).unwrap_or_default());
            }
        }
    }

    #[test]
    fn every_variable_is_read() {
        // Read by `rustls-native-certs` and the standard library.
        let by_libraries = ["SSL_CERT_FILE", "SSL_CERT_DIR", "TMPDIR"];
        let mut text = String::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
        for (name, ..) in VARIABLES {
            assert!(by_libraries.contains(name) || text.contains(&format!("\"{name}\"")), "{name}");
        }
    }

    #[test]
    fn paths_are_those_of_the_contract() {
        let files: Vec<String> = files(RUNNER).map(|(path, _)| path).collect();
        assert!(files.contains(&"/home/work/.logs/oom.jsonl".to_owned()), "{files:?}");
        assert!(files.contains(&"/home/config/environ.txt".to_owned()), "{files:?}");
    }
}
