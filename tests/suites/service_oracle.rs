//! Templates and argument lists beside what Python itself makes of the same cases: the two have to agree.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use krunner::compared::{ChildEnv, Definition, Syntax, UserOptions, Value as Known, Variables, render, resolve};
use krunner_tests::{host, require};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{RngSeed, TestRunner};
use serde_json::{Map, Value, json};

/// Enough that every pair of neighbouring tokens comes up many times.
pub(crate) const CASES: usize = 4000;

/// Pieces that templates are made of: the ones that definitions use, and whatever could be taken for one.
const TOKENS: &[&str] = &[
    "{ports[0]}",
    "{ports[1]}",
    "{ports[2]}",
    "{ports[00]}",
    "{ports[-1]}",
    "{ports[x]}",
    "{ports}",
    "{runtime_path}",
    "{runtime_path[0]}",
    "{ref[out]}",
    "{ref[err]}",
    "{ref[0]}",
    "{ref[no]}",
    "{nothing}",
    "{unknown}",
    "{}",
    "{0}",
    "{[0]}",
    "{ports[]}",
    "{ports[0}",
    "{ports]}",
    "{ports[0]x}",
    "{ref[}]}",
    "{ref[{]}",
    "{{",
    "}}",
    "{",
    "}",
    "[",
    "]",
    "$",
    "${",
    "text",
    " ",
    "ü",
    "\n",
    "'",
    "\"",
    "!",
    ":",
    ".",
    "ports",
    "{ports[0][0]}",
    "{runtime_path[3]}",
];

pub(crate) fn variables() -> (Variables, Value) {
    let parts = [("out", "what\nit said {ports[0]}"), ("err", ""), ("}", "brace"), ("{", "other")];
    let known = Variables::from([
        ("ports".into(), Known::Numbers(vec![8080, 65535])),
        ("runtime_path".into(), Known::Text("/ü/py".into())),
        ("ref".into(), Known::Parts(parts.map(|(key, value)| (key.into(), value.into())).into())),
        ("nothing".into(), Known::Nothing),
    ]);
    let parts: BTreeMap<_, _> = parts.into();
    (known, json!({ "ports": [8080, 65535], "runtime_path": "/ü/py", "ref": parts, "nothing": null }))
}

pub(crate) fn generated<S: Strategy>(count: usize, strategy: &S) -> Vec<S::Value> {
    // A seed of its own for each run of the suites would make a failure hard to see twice.
    let config = ProptestConfig { rng_seed: RngSeed::Fixed(23), ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    (0..count).map(|_| strategy.new_tree(&mut runner).expect("a case").current()).collect()
}

fn ask_python(python: &Path, cases: &[Value]) -> Vec<Value> {
    ask(Command::new(python).arg(concat!(env!("CARGO_MANIFEST_DIR"), "/programs/format_oracle.py")), cases)
}

/// What an oracle says of each case.
pub(crate) fn ask(oracle: &mut Command, cases: &[Value]) -> Vec<Value> {
    let mut child = oracle.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the oracle starts");
    let mut stdin = child.stdin.take().expect("a piped stdin");
    stdin.write_all(json!(cases).to_string().as_bytes()).expect("the oracle reads");
    drop(stdin);
    let output = child.wait_with_output().expect("the oracle ends");
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).expect("a list of results")
}

fn template() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(TOKENS), 0..7).prop_map(|tokens| tokens.concat())
}

#[test]
fn templates_are_what_python_makes_of_them() {
    let python = require!(host::user_python());
    let (known, for_python) = variables();
    let templates = generated(CASES, &template());
    let cases: Vec<_> = templates.iter().map(|it| json!({ "template": it, "variables": for_python })).collect();

    let expected = ask_python(&python, &cases);

    let mut agreed = 0;
    for (template, expected) in templates.iter().zip(expected) {
        match (render(template, Syntax::Format, &known), expected) {
            (Ok(ours), Value::String(theirs)) => {
                assert_eq!(ours, theirs, "{template:?}");
                agreed += usize::from(template.contains('{'));
            }
            (Err(_), Value::Null) => {}
            (Err(error), theirs) => {
                // What we refuse on purpose: see the template's own documentation.
                let refused = ["not supported", "several parts"];
                let text = error.to_string();
                assert!(refused.iter().any(|part| text.contains(part)), "{template:?} is {theirs} there, here: {text}");
            }
            (Ok(ours), theirs) => panic!("{template:?} is {ours:?} here, and {theirs} there"),
        }
    }
    assert!(agreed > CASES / 10, "only {agreed} cases had something to fill in and were right");
}

fn arguments() -> impl Strategy<Value = Map<String, Value>> {
    let flag = prop::sample::select(&["--a", "--b", "-c", "--d e", "{x}"][..]);
    let text = || prop::sample::select(&["", "1", "{ports[0]}", "a b", "${HOME}", "}", "ü"][..]).prop_map(Value::from);
    let value = prop_oneof![Just(Value::Null), text(), prop::collection::vec(text(), 0..3).prop_map(Value::from)];
    prop::collection::vec((flag, value), 0..5)
        .prop_map(|pairs| pairs.into_iter().map(|(flag, value)| (flag.to_owned(), value)).collect())
}

#[test]
fn argument_lists_are_what_python_makes_of_them() {
    let python = require!(host::user_python());
    let (known, for_python) = variables();
    let word =
        prop::sample::select(&["x", "--port={ports[0]}", "{runtime_path}", "{{}}", "{ref[out]}", "{ports[9]}"][..]);
    let shapes = generated(CASES / 2, &(prop::collection::vec(word, 1..5), arguments(), arguments()));
    let cases: Vec<_> = shapes
        .iter()
        .map(|(command, defaults, user_options)| {
            json!({ "command": command, "defaults": defaults, "chosen": user_options, "variables": for_python })
        })
        .collect();

    let expected = ask_python(&python, &cases);

    let mut filled_in = 0;
    for ((command, defaults, user_options), expected) in shapes.iter().zip(expected) {
        let allowed: Vec<_> = user_options.keys().collect();
        let text = json!({ "command": command, "default_arguments": defaults, "allowed_arguments": allowed });
        let definition = Definition::parse(text.to_string().as_bytes()).expect("a definition");
        let options = Map::from_iter([("arguments".to_owned(), json!(user_options))]);
        let user_options = UserOptions::read("s", &definition, &options, &ChildEnv::new()).expect("allowed arguments");
        let ours = resolve(&definition, &user_options, &known).map(|resolved| resolved.argv);
        assert_eq!(json!(ours.ok()), expected, "{text}");
        filled_in += usize::from(!expected.is_null());
    }
    assert!(filled_in > CASES / 10, "only {filled_in} lists could be filled in");
}
