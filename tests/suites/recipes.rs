//! Runs each recipe of `krunner/dist`: a container with exactly these privileges, an OOM kill, and its report.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command};

use krunner_tests::cgroup::Cgroup;
use krunner_tests::container::{self, Container, KRUNNER};
use krunner_tests::recipe::dockerfile::{self, Stage};
use krunner_tests::recipe::{self, Engine, Recipe};
use krunner_tests::{LaunchMethod, Scenario, proc, require, wait};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::contained::{Contained, SEEN_MS, missing};
use crate::oom::{LIMIT_MIB, TOO_MUCH, VICTIM};
use crate::oom_privilege::{Capable, capable_of};

macro_rules! recipes {
    ($($test:ident: $carry_out:ident($name:literal);)*) => {
        $(
            #[test]
            fn $test() {
                let carried_out = $carry_out($name);
                require!(carried_out);
            }
        )*

        /// Every recipe has a test.
        #[test]
        fn every_recipe_is_carried_out() {
            let known: BTreeSet<&str> = [$($name),*].into_iter().collect();
            let there = recipe::names();
            assert_eq!(there.iter().map(String::as_str).collect::<BTreeSet<_>>(), known);
        }
    };
}

recipes! {
    a_monitor_of_docker_with_all_rights: node("docker/node-privileged.sh");
    a_monitor_of_docker_with_two_capabilities: node("docker/node-capabilities.sh");
    a_session_of_docker_with_all_rights: session("docker/session-privileged.sh");
    a_session_of_docker_with_two_capabilities: session("docker/session-capabilities.sh");
    a_session_of_docker_without_rights: session("docker/session-plain.sh");
    a_daemon_set_with_all_rights: node("kubernetes/node-privileged.yaml");
    a_daemon_set_with_two_capabilities: node("kubernetes/node-capabilities.yaml");
    a_pod_with_all_rights: session("kubernetes/session-privileged.yaml");
    a_pod_with_two_capabilities: session("kubernetes/session-capabilities.yaml");
    a_pod_without_rights: session("kubernetes/session-plain.yaml");
    a_session_of_the_agent: session("agent-docker-container-opts.json");
}

/// A monitor that is the first process of a container.
struct Node {
    container: Container,
    runc: Child,
    folder: TempDir,
}

impl Node {
    fn start(recipe: &Recipe, program: &Path) -> Result<Self, String> {
        let spec = recipe.spec(Engine::New)?.krunner(program);
        let folder = TempDir::with_prefix("krn-").map_err(|error| error.to_string())?;
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("home/work")).expect("a folder");
        let capture = ["stdout", "stderr"].map(|name| File::create(folder.path().join(name)).expect("a capture file"));
        let (runc, container) = Container::start(&spec, Cgroup::for_container()?, &root, &recipe.command, &[], capture);
        Ok(Self { container, runc, folder })
    }

    fn said(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.path().join("stdout")).expect("the capture file");
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    #[track_caller]
    fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait::until(what, || self.said().into_iter().find(&wanted))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let stderr = fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default();
            eprintln!("--- monitor\n{:#?}\n{stderr}---", self.said());
        }
        // As the container's end is not before that of its first process.
        proc::signal(self.container.pid(), Signal::SIGKILL);
        let _ = self.runc.wait();
    }
}

fn stages() -> Vec<Stage> {
    let path = recipe::folder().join("../Dockerfile");
    dockerfile::stages(&fs::read_to_string(path).expect("the Dockerfile")).expect("its stages")
}

/// The binary with the capabilities that it has in the image.
fn image() -> Result<Capable, String> {
    container::available()?;
    let stages = stages();
    let runs = stages.iter().flat_map(|stage| stage.all("RUN"));
    let capabilities = runs.filter(|words| words[0] == "setcap").map(|words| &words[1]).next();
    capable_of(capabilities.expect("setcap"))
}

/// `krunner doctor` in the container, with the privileges of its first process, must agree with the recipe.
#[track_caller]
fn doctor_agrees(container: &Container, recipe: &Recipe) {
    let output = container.launch().command(KRUNNER).args(["doctor", "--json"]).output().expect("runc starts");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let expected: &[&str] = if recipe.tracer == "bpf" { &[] } else { &["capabilities"] };
    assert_eq!((&told["tracer"], missing(&told)), (&recipe.tracer.as_str().into(), expected.to_vec()), "{told}");
}

/// A machine-wide monitor reports a kill in another cgroup.
fn node(name: &str) -> Result<(), String> {
    let recipe = recipe::read(name)?;
    assert_eq!(recipe.command, [KRUNNER, "monitor", "--all-namespaces", "--json"]);
    let image = image()?;
    let monitor = Node::start(&recipe, &image.program)?;
    let watching = monitor.until("the monitor to watch", |line| line["event"] == "watching");
    assert_eq!((&watching["tracer"], &watching["scope"]), (&recipe.tracer.as_str().into(), &"all".into()));
    doctor_agrees(&monitor.container, &recipe);

    let victims = monitor.container.cgroup().beside()?;
    let limited = victims.limited("limited", LIMIT_MIB);
    let mut command = LaunchMethod::direct().cgroup(&limited).command(VICTIM);
    command.args(["eat", TOO_MUCH, "--after-ms", &SEEN_MS.to_string()]);
    let told = Scenario::start(command).end();
    assert_eq!(told.status.signal(), Some(9), "{told:?}");
    let pid = told.pid("victim");

    let report = monitor.until("the report", |line| line["victim"]["pid"] == pid);
    assert_eq!(report["confidence"], recipe.confidence.as_str(), "{report}");
    assert_eq!(report["tracer"], recipe.tracer.as_str(), "{report}");
    // If the victim has left its cgroup by then, the report has none. It never has the monitor's own.
    let (limit, own) = (&report["cgroup"]["limit_bytes"], recipe.memory_mib << 20);
    assert!(limit.is_null() || *limit == limited.limit_bytes() && *limit != own, "{report}");
    Ok(())
}

/// A session reports a kill in its own cgroup.
fn session(name: &str) -> Result<(), String> {
    let recipe = recipe::read(name)?;
    let mut session = start(&recipe, Engine::New)?;
    doctor_agrees(&session.container, &recipe);
    kill_one(&mut session, &recipe);
    let reports = session.reports();
    assert_eq!(reports[0]["confidence"], recipe.confidence.as_str(), "{reports:#?}");
    assert_eq!(reports[0]["tracer"], recipe.tracer.as_str(), "{reports:#?}");
    assert_eq!(reports[0]["cgroup"]["limit_bytes"], recipe.memory_mib << 20, "{reports:#?}");
    Ok(())
}

fn start(recipe: &Recipe, engine: Engine) -> Result<Contained, String> {
    assert_eq!(recipe.command, [KRUNNER, "app"]);
    let image = image()?;
    let session = Contained::start(&recipe.spec(engine)?.krunner(&image.program).helper(VICTIM))?;
    session.until_it_watches();
    Ok(session)
}

fn kill_one(session: &mut Contained, recipe: &Recipe) {
    session.kill(&format!("eat {} --after-ms {SEEN_MS}", recipe.memory_mib + 64), 1);
    session.until_report_of(session.victims[0]);
}

/// The outcome with engines that allow `bpf` only with `CAP_SYS_ADMIN`.
#[test]
fn an_old_engines_seccomp_profile_stands_in_the_way() {
    for name in ["docker/session-capabilities.sh", "kubernetes/session-capabilities.yaml"] {
        let recipe = require!(recipe::read(name));
        let mut session = require!(start(&recipe, Engine::Old));
        session.assert_snapshot("bpf-call", "blocked by seccomp (capabilities are sufficient)");
        kill_one(&mut session, &recipe);
        assert_eq!(session.reports()[0]["confidence"], "inferred", "{name}");
    }
}

#[test]
fn capabilities_of_the_file_do_not_count_without_new_privileges() {
    let recipe = require!(recipe::read("docker/session-capabilities.sh"));
    let image = require!(image());
    let spec = require!(recipe.spec(Engine::New)).krunner(&image.program).helper(VICTIM).no_new_privileges();
    let mut session = require!(Contained::start(&spec));
    session.assert_snapshot("capabilities", "no_new_privs disables file capabilities");
}

#[test]
fn the_image_has_the_right_binary_for_each_machine_and_its_capabilities() {
    let stages = stages();
    let by_name = dockerfile::by_name(&stages);
    // As `cargo xtask dist` lays them out in `target/dist`, which is what `docker build` is given.
    for (docker, rust) in [("amd64", "x86_64"), ("arm64", "aarch64")] {
        let stage = by_name[docker];
        assert_eq!(
            (stage.from.as_str(), stage.all("COPY")),
            ("scratch", vec![&words(&[&format!("{rust}/krunner"), "/krunner"])[..]])
        );
    }
    assert_eq!(by_name["static"].from, "${TARGETARCH}");
    let copies = by_name["capable"].all("COPY");
    assert_eq!(copies, [&words(&["--from=static", "/krunner", KRUNNER])[..]]);
    let setcap = words(&["setcap", "cap_bpf,cap_perfmon+p", KRUNNER]);
    assert!(by_name["capable"].all("RUN").contains(&setcap.as_slice()));

    let image = stages.last().expect("a stage");
    assert_eq!(
        (image.from.as_str(), image.all("COPY")),
        ("scratch", vec![&words(&["--from=capable", KRUNNER, KRUNNER])[..]])
    );
    assert_eq!((image.all("ENTRYPOINT"), image.all("RUN").len()), (vec![&words(&[KRUNNER])[..]], 0));
    let [[user]] = image.all("USER")[..] else { panic!("one user: {image:?}") };
    assert!(
        user.split(':').all(|id| id.parse::<u32>().is_ok_and(|id| id > 0)),
        "{user}: the image has no user database"
    );
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn the_image_of_the_recipes_is_of_this_version() {
    let own = format!("krunner:{}", env!("CARGO_PKG_VERSION"));
    let names = recipe::names();
    let nodes: Vec<_> = names.iter().filter(|name| name.contains("/node-")).collect();
    assert!(!nodes.is_empty(), "{names:?}");
    for name in nodes {
        assert_eq!(require!(recipe::read(name)).image.as_deref(), Some(own.as_str()), "{name}");
    }
    for file in ["Dockerfile", "README.md"] {
        let text = fs::read_to_string(recipe::folder().join("..").join(file)).expect("a text");
        assert!(text.contains(&own), "{file} tells of another version than {own}");
    }
}

/// Shells read them, too.
#[test]
fn the_scripts_have_no_mistakes_that_a_shell_sees() {
    let names = recipe::names();
    let is_script = |name: &&String| Path::new(name).extension().is_some_and(|kind| kind == "sh");
    let scripts: Vec<_> = names.iter().filter(is_script).collect();
    assert!(!scripts.is_empty(), "{names:?}");
    for name in scripts {
        let status = Command::new("sh").arg("-n").arg(recipe::folder().join(name)).status().expect("a shell");
        assert!(status.success(), "{name}");
    }
}
