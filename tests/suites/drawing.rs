//! Pictures that user code draws in a real Jupyter kernel, read back by the real msgpack.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use krunner_tests::{Raw, Setup, Transcript, host, require};
use serde_json::{Value, json};

const MIME: &str = "application/x-sorna-drawing";

#[track_caller]
fn output_of(command: &mut Command, input: &str) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python starts");
    child.stdin.take().expect("a piped stdin").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{command:?}");
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// A virtual environment with all that `python` has but Backend.AI's own packages, which no image has: user code
/// in it can import drawings from nowhere but the runner's files.
#[track_caller]
fn image_python(python: &Path, folder: &Path) -> PathBuf {
    output_of(Command::new(python).args(["-m", "venv", "--without-pip"]).arg(folder), "");
    let inside = folder.join("bin/python");
    let site = ["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"];
    let (from, to) = (output_of(Command::new(python).args(site), ""), output_of(Command::new(&inside).args(site), ""));
    for entry in fs::read_dir(from).expect("the packages").flatten() {
        if entry.file_name() != "ai" {
            symlink(entry.path(), Path::new(&to).join(entry.file_name())).expect("a link");
        }
    }
    inside
}

/// A session with a Python like an image's, and its only kernel.
fn session() -> Result<(PathBuf, Setup), String> {
    let python = host::agent_python_with("ipykernel, numpy, msgpack")?;
    let setup = Setup::new("python");
    let inside = image_python(&python, &setup.root().join("venv"));
    let argv = json!([inside, "-m", "ipykernel_launcher", "-f", "{connection_file}"]);
    let spec = json!({ "argv": argv, "display_name": "Python 3", "language": "python" });
    let setup = setup.file("home/work/.local/share/jupyter/kernels/python3/kernel.json", spec.to_string());
    Ok((python, setup.runtime(inside)))
}

/// The commands of the pictures in a run, decoded by a module that is not ours.
#[track_caller]
fn pictures(python: &Path, run: &Transcript) -> Vec<Value> {
    const DECODE: &str = "import base64, json, msgpack, sys; \
                          print(json.dumps(msgpack.unpackb(base64.b64decode(sys.stdin.read()))))";
    let media = run.messages.iter().filter(|message| message.kind == "media");
    media
        .map(|message| {
            let value: Value = serde_json::from_slice(&message.payload).expect("JSON");
            assert_eq!(value["type"], MIME);
            let text = output_of(Command::new(python).args(["-c", DECODE]), value["data"].as_str().expect("a text"));
            serde_json::from_str(&text).expect("JSON")
        })
        .collect()
}

#[track_caller]
fn query(raw: &mut Raw, code: &str) -> Transcript {
    raw.op("code", code);
    raw.read_runs(1)
}

const DRAW: &str = "
from ai.backend.kernel.python.drawing import Canvas, Color, Colors, Turtle, Vec2D
import numpy
canvas = Canvas(400, 300, bgcolor=Colors.White, fgcolor=Color.from_hex('#112233'))
circle = canvas.circle(numpy.int64(200), 150, numpy.float64(2.5), border=Colors.Blue, fill=Colors.Yellow)
canvas.line(-1, 70000, 0.5, 2**40)
canvas.show()
circle.set_x(300)
circle.set_x1(1)
circle.fill(Colors.Red)
canvas.show()
canvas.show()
";

#[test]
fn picture_of_a_kernel_arrives_as_media_and_then_its_changes() {
    let (python, setup) = require!(session());
    let runner = setup.start();
    let mut raw = Raw::connect(&runner);
    let run = query(&mut raw, DRAW);
    assert_eq!((run.codes(), run.stderr().as_str(), run.stdout().as_str()), (vec![("finished", 0)], "", ""));
    let picture = json!([
        [0, "canvas", 400, 300, "#ffffffff", "#112233ff"],
        [0, "obj", 0, ["circle", 200, 150, 2.5, "#0000ffff", "#ffff00ff", 0]],
        [0, "obj", 1, ["line", -1, 70000, 0.5, 1_099_511_627_776_u64, "#112233ff"]],
    ]);
    let changes = json!([[0, "update", 0, "x", 300], [0, "update", 0, "fill", "#ff0000ff"]]);
    assert_eq!(pictures(&python, &run), [picture, changes, json!([])]);

    let run = query(
        &mut raw,
        "turtle = Canvas(100, 100).create_turtle()\nturtle.forward(10)\nturtle.canvas.show(); turtle.pos()",
    );
    let walk = &pictures(&python, &run)[0];
    let verbs: Vec<_> = walk.as_array().expect("a list").iter().map(|command| &command[1]).collect();
    assert_eq!(verbs, ["canvas", "obj", "begin-group", "obj", "update", "update", "end-group"]);
    assert_eq!(walk[3][3], json!(["line", 50.0, 50.0, 60.0, 50.0, "#ff000080"]));
    assert_eq!(run.stdout().trim(), "(10.00,0.00)");
}

#[test]
fn drawing_that_cannot_be_shown_says_why() {
    let (_, setup) = require!(session());
    let main = "from ai.backend.kernel.python.drawing import Canvas\nCanvas(1, 1).show()\n";
    let runner = setup.file("home/work/main.py", main).start();
    let mut raw = Raw::connect(&runner);
    let batch = raw.exec("*");
    assert_eq!(batch.codes(), [("finished", 1)]);
    assert!(batch.stderr().contains("a drawing can be shown in query mode only"), "{}", batch.stderr());
    let run = query(&mut raw, "from ai.backend.kernel.python.drawing import Color\nColor(1, 2, 300)");
    assert_eq!(run.codes(), [("finished", 1)]);
    assert!(run.stderr().contains("blue is 300, not a number from 0 to 255"), "{}", run.stderr());
}

#[test]
fn own_packages_of_backend_ai_are_not_hidden_where_they_are_installed() {
    let python = require!(host::agent_python());
    let runner = Setup::new("python").runtime(&python).start();
    let mut raw = Raw::connect(&runner);
    let code = "import ai.backend.kernel.base, ai.backend.agent; print(ai.backend.kernel.base.__file__)";
    let run = raw.exec(&format!("{} -c '{code}'", python.display()));
    assert_eq!(run.codes(), [("finished", 0)], "{}", run.stderr());
    let file = run.stdout();
    assert!(file.ends_with("/ai/backend/kernel/base.py\n") && !Path::new(&file).starts_with(runner.home()), "{file}");
}
