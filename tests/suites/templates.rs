//! Templates beside what the Python runner of 23.9.10 makes of them, and the rules that came after it.

use std::process::Command;

use krunner::compared::{Syntax, render};
use krunner_tests::{Raw, free_port, host, require};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::app;
use crate::service_oracle::{CASES, ask, generated, variables};
use crate::services::{defined, request};

/// Pieces of templates: fields, what only looks like one, and what shells and JSON have braces for.
const TOKENS: &[&str] = &[
    "{ports[0]}",
    "{ports[1]}",
    "{ports[2]}",
    "{ports}",
    "{runtime_path}",
    "{ref[out]}",
    "{ref[}]}",
    "{nothing}",
    "{unknown}",
    "{}",
    "{ports[0}",
    "{ ports[0] }",
    "${{ports[0]}}",
    "${{ runtime_path }}",
    "${{",
    "${HOME}",
    "${PORT:-8000}",
    "${f%%.*}",
    "${A/x/${B}}",
    "${A:-{ports[0]}}",
    "{{",
    "}}",
    "{",
    "}",
    "$",
    "{\"a\": 1}",
    "{\"a\": {ports[1]}}",
    "\"",
    " ",
    "text",
    "ü",
    "\n",
    ":",
    "!",
    "[",
    "]",
];

fn template() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(TOKENS), 0..7).prop_map(|tokens| tokens.concat())
}

/// What a render is beside the oracle's, which is null where it raises.
fn compare(template: &str, syntax: Syntax, expected: &Value) -> Result<bool, String> {
    let (known, _) = variables();
    match (render(template, syntax, &known), expected[0].as_str()) {
        (Ok(ours), Some(theirs)) if ours == theirs => Ok(template.contains('{')),
        (Ok(ours), Some(theirs)) => Err(format!("{template:?} is {ours:?} here, {theirs:?} there")),
        (Ok(ours), None) if syntax == Syntax::Format => Err(format!("{template:?} is {ours:?} here, an error there")),
        // Shell text that 23.9.10 takes for a field.
        (Ok(_), None) => Ok(false),
        (Err(error), theirs) => {
            let text = error.to_string();
            let is_refused = text.contains("not supported") || text.contains("several parts");
            let agrees = theirs.is_none() || is_refused;
            if agrees { Ok(false) } else { Err(format!("{template:?} is {theirs:?} there, here: {text}")) }
        }
    }
}

fn oracle() -> Result<Command, String> {
    let mut command = Command::new(host::agent_python()?);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/service_oracle.py");
    command.arg(script).arg(host::later_python_runner()?);
    Ok(command)
}

/// A template is the only text of the value at `key`.
fn check(oracle: &mut Command, key: &str, syntax: Syntax, templates: &[String]) {
    let (_, values) = variables();
    let text = |template: &String| if key == "command" { json!([template]) } else { json!(template) };
    let cases: Vec<Value> = templates.iter().map(|it| json!({ key: text(it), "variables": values })).collect();

    let expected = ask(oracle, &cases);

    let compared: Result<Vec<bool>, String> =
        templates.iter().zip(&expected).map(|(template, expected)| compare(template, syntax, expected)).collect();
    let agreed = compared.unwrap_or_else(|problem| panic!("{problem}")).into_iter().filter(|agreed| *agreed).count();
    assert!(agreed > CASES / 20, "only {agreed} of {} cases had something to fill in and were right", templates.len());
}

#[test]
fn actions_are_filled_in_as_the_python_runner_does() {
    let mut oracle = require!(oracle());
    check(&mut oracle, "message", Syntax::Format, &generated(CASES, &template()));
}

/// Since 24.09.5 a `{` after a `$` is the shell's. Everything else that 23.9.10 fills in means what it meant there.
#[test]
fn commands_are_filled_in_as_the_python_runner_does() {
    let mut oracle = require!(oracle());
    let without_expansions = template().prop_filter("the shell's", |template| !template.contains("${"));
    check(&mut oracle, "command", Syntax::Shell, &generated(CASES, &without_expansions));
}

/// The rules of 24.09.5 and later. JSON is ours: an error there.
#[test]
fn shell_text_passes_through() {
    let (known, _) = variables();
    let shell = |template: &str| render(template, Syntax::Shell, &known).map_err(|error| error.to_string());
    for text in [
        "${HOME}",
        "${PORT:-8000}",
        "${f%%.*}",
        "${#f}",
        "${A/x/${B}}",
        "${A:-${B:-${C}}}",
        "${ports[0]}",
        "${!name}",
        "$${A}",
        "${",
        "a } b",
        "[ -n \"$A\" ] && echo \"$A}\"",
        "{\"a\": 1}",
        "--hf-overrides '{\"rope\": {\"factor\": 4.0, \"of\": {}}}'",
        "{\\\"a\\\": {\\\"b\\\": [1]}}",
    ] {
        assert_eq!(shell(text).as_deref(), Ok(text));
    }
    for (template, expected) in [
        ("{ports[0]} { ports[0] } ${{ports[0]}} ${{ ports[0] }}", "8080 8080 8080 8080"),
        ("{\tports[1]\n}", "65535"),
        ("${A:-{ports[0]}} ${A:-${{ ports[0] }}}", "${A:-8080} ${A:-8080}"),
        ("{\"port\": {\"of\": { ports[0] }}}", "{\"port\": {\"of\": 8080}}"),
        ("{{\"a\": {{\"b\": {ports[0]}}}}}", "{\"a\": {\"b\": 8080}}"),
        ("{{x}} ${{x} }}", "{x} ${x} }"),
    ] {
        assert_eq!(shell(template).as_deref(), Ok(expected), "{template}");
    }
    for (template, named) in [
        ("x {ports[0]", "unbalanced `{` at `{ports[0]`;"),
        ("x {\"a\": 1", "unbalanced `{` at `{\"a\": 1`;"),
        ("find {} +", "`{}`: expected a name"),
        ("{ }", "`{}`: expected a name"),
        ("{prot}", "`{prot}`: unknown name `prot`; known names: `nothing`, `ports`, "),
        ("${{ prot }}", "`{prot}`: unknown name `prot`"),
        ("${A:-{prot}}", "`{prot}`: unknown name `prot`"),
        ("awk '{print $1}'", "`{print $1}`: unknown name `print $1`"),
        ("{ ports[7] }", "`{ports[7]}`: `ports` has no element `7`"),
    ] {
        let error = shell(template).unwrap_err();
        assert!(error.starts_with(named), "{template}: {error}");
    }
}

#[test]
fn shell_text_reaches_the_shell() {
    let line = "f=a.b; printf '%s|' \"${PORT:-8000}\" \"${f%%.*}\" \"${#f}\" \"$1\" \"$JSON\" > seen; echo >> seen; exec sleep 1000";
    let definition = json!({
        "command": ["sh", "-c", line, "sh", "{ ports[0] }"], "env": { "JSON": "{\"a\": {\"b\": ${{ ports[0] }}}}" },
    });
    let split =
        json!({ "shell": null, "command": "sh -c 'echo \"$@\" > words' sh { ports[0] } '{\"a\": ${{ ports[0] }}}'" });
    let runner = defined(defined(app(), "shell", &definition), "split", &split).start();
    let mut raw = Raw::connect(&runner);
    let port = free_port();

    raw.op("start-service", &request("shell", port).to_string());
    raw.op("start-service", &request("split", port).to_string());

    assert_eq!(runner.wait_for("seen"), format!("8000|a|3|{port}|{{\"a\": {{\"b\": {port}}}}}|\n"));
    assert_eq!(runner.wait_for("words"), format!("{port} {{\"a\": {port}}}\n"));
}
