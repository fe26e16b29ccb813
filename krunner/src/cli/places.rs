//! What the manual says of the environment and of files: what a person may set, and where krunner looks and writes.

use crate::config::Paths;

/// For krunner itself as the agent starts it.
const RUNNER: &str = "krunner";

/// Name, meaning, and the commands that look at it.
type Variable = (&'static str, &'static str, &'static [&'static str]);

const VARIABLES: &[Variable] = &[
    (
        "PATH",
        "where programs without a path are looked for; programs of steps get it, with the user's own folder first",
        &[RUNNER, "languages", "selftest"],
    ),
    ("HOME", "where the user's kernelspecs are, below .local/share; steps get /home/work in its place", &[RUNNER]),
    ("SHELL", "passed on to programs; /bin/ash or /bin/bash if it is not set", &[RUNNER]),
    ("TMPDIR", "the folder for temporary files in place of /tmp", &[RUNNER, "languages", "selftest"]),
    ("LD_LIBRARY_PATH", "passed on to programs, without /opt/backend.ai/lib", &[RUNNER]),
    ("BACKENDAI_KERNEL_ID", "a UUID, of which the path of a task log is made", &[RUNNER]),
    ("BACKENDAI_CLUSTER_REPLICAS", "ROLE:COUNT,...: the hosts of a cluster, for ssh from host to host", &[RUNNER]),
    ("JUPYTER_PATH", "folders of kernelspecs, separated by colons, looked at first", &[RUNNER]),
    ("JUPYTER_DATA_DIR", "the user's folder of kernelspecs in place of XDG_DATA_HOME/jupyter", &[RUNNER]),
    ("XDG_DATA_HOME", "the user's data in place of ~/.local/share", &[RUNNER]),
    ("SSL_CERT_FILE", "certificates of servers to trust, besides those that Mozilla trusts", &[RUNNER]),
    ("SSL_CERT_DIR", "the same, a folder of them", &[RUNNER]),
    ("AWS_ACCESS_KEY_ID", "for vendor.aws_polly: the account's key", &[RUNNER]),
    ("AWS_SECRET_ACCESS_KEY", "for vendor.aws_polly: the key's secret", &[RUNNER]),
    ("AWS_SESSION_TOKEN", "for vendor.aws_polly: with temporary keys", &[RUNNER]),
    ("AWS_DEFAULT_REGION", "for vendor.aws_polly: the region; ap-northeast-2 if it is not set", &[RUNNER]),
    ("AWS_ENDPOINT_URL_POLLY", "for vendor.aws_polly: another server", &[RUNNER]),
    ("AWS_ENDPOINT_URL", "for vendor.aws_polly: the same, for all services of AWS", &[RUNNER]),
    ("MRS_ENDPOINT", "for r_server_ms: the server; http://localhost:12800 if it is not set", &[RUNNER]),
    ("MRS_USERNAME", "for r_server_ms: who logs in", &[RUNNER]),
    ("MRS_PASSWORD", "for r_server_ms: the password", &[RUNNER]),
];

/// What the command looks at.
pub(super) fn variables(command: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    VARIABLES.iter().filter(move |(.., by)| by.contains(&command)).map(|(name, meaning, _)| (*name, *meaning))
}

/// Where the command looks and writes.
pub(super) fn files(command: &str) -> impl Iterator<Item = (String, &'static str)> {
    let paths = Paths::default();
    let rows = [
        (
            paths.intrinsic_ports(),
            "the ports as a JSON object: replin (2000), replout (2001), sshd (2200), ttyd (7681)",
            RUNNER,
        ),
        (paths.environ(), "variables that programs get beyond krunner's own: NAME=VALUE lines", RUNNER),
        (paths.given_ssh("*"), "host keys, and the key pair and ports of a cluster, from the agent", RUNNER),
        (paths.bootstrap(), "a script that is run at the start", RUNNER),
        (paths.service_definitions().join("*.json"), "the image's services, a file each", RUNNER),
        (
            paths.service_definitions().join("*.json"),
            "the services, a file each, unless --definitions is given",
            "services",
        ),
        (paths.logs(), "if this folder exists, the output of steps is kept below its task folder", RUNNER),
        (
            paths.logs().join("oom.jsonl"),
            "if that folder exists, kills for memory are kept here, a JSON object a line",
            RUNNER,
        ),
        (paths.work().join("id_container"), "the key to log in with ssh, made at the first start", RUNNER),
        (paths.input_socket(), "where a program asks the user for input", RUNNER),
        (paths.kernel_program("*"), "dropbear and ttyd, mounted by the agent", RUNNER),
    ];
    let wanted = command.to_owned();
    rows.into_iter().filter(move |(.., by)| *by == wanted).map(|(path, what, _)| (path.display().to_string(), what))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// All sources but this one, and those of libraries that look at variables for us.
    fn sources(folder: &Path, text: &mut String) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                sources(&entry.path(), text);
            } else if entry.file_name() != "places.rs" {
                text.push_str(&fs::read_to_string(entry.path()).unwrap_or_default());
            }
        }
    }

    #[test]
    fn every_variable_is_one_that_krunner_looks_at() {
        // `rustls-native-certs` and the standard library look at these.
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
