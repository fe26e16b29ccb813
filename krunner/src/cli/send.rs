//! `krunner send`: the agent's part, for people.

use std::io::{self, ErrorKind::BrokenPipe, Read as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::args::SendArgs;
use crate::exit::Exit;
use crate::transport::{RawReply, RunnerAddress, RunnerClient, RunnerClientError};
use crate::wire::AT_ONCE;

/// The reply that ends the wait for an op's answer; `None` for an op that has none.
fn last_reply(op: &str) -> Option<&'static str> {
    Some(match op {
        "clean" => "clean-finished",
        "build" => "build-finished",
        "exec" | "code" => "finished",
        "complete" => "completion",
        "status" => "status",
        "start-service" => "service-result",
        "start-model-service" => "model-service-result",
        "get-apps" => "apps-result",
        // `input`, `interrupt`, `event`, `shutdown-service`, and whatever the runner may not know.
        _ => return None,
    })
}

pub(super) async fn send(args: SendArgs) -> anyhow::Result<ExitCode> {
    let patience = Duration::from_secs(args.wait);
    if args.now {
        ensure!(args.op == "status", "--now is for `status`, not `{}`", args.op);
        ensure!(args.payload.is_empty(), "`status --now` takes no payload");
    }
    let payload = match args.payload.as_str() {
        _ if args.now => AT_ONCE.as_bytes().to_vec(),
        "-" => {
            let mut text = Vec::new();
            io::stdin().read_to_end(&mut text).context("cannot read the payload from stdin")?;
            text
        }
        text => text.as_bytes().to_vec(),
    };
    let address = RunnerAddress { host: args.host, in_port: args.in_port, out_port: args.out_port };
    let mut client = RunnerClient::connect(&address, last_reply(&args.op).is_some(), patience).await?;
    let code = exchange(&mut client, &args.op, payload, patience, args.json).await;
    client.close().await;
    match code {
        Err(error) if error.downcast_ref().is_some_and(RunnerClientError::is_no_answer) => {
            eprintln!("krunner: {error}");
            Ok(Exit::NoAnswer.into())
        }
        code => code,
    }
}

async fn exchange(
    client: &mut RunnerClient,
    op: &str,
    payload: Vec<u8>,
    patience: Duration,
    json: bool,
) -> anyhow::Result<ExitCode> {
    client.send(op, payload).await?;
    if let Some(awaited) = last_reply(op) {
        return print_until(client, awaited, patience, json).await;
    }
    client.flush(patience).await?;
    Ok(Exit::Ok.into())
}

async fn print_until(
    client: &mut RunnerClient,
    last: &str,
    patience: Duration,
    json: bool,
) -> anyhow::Result<ExitCode> {
    loop {
        let reply = client.receive(patience).await?;
        if let Err(error) = print(&reply, json) {
            // The reader has seen enough, as with `krunner send exec ... | head`.
            return if error.kind() == BrokenPipe { Ok(Exit::Ok.into()) } else { Err(error).context("cannot write") };
        }
        if reply.kind == last {
            return Ok(exit_code(&reply));
        }
    }
}

/// That of the step, as a shell would say it; 0 for all other replies.
fn exit_code(reply: &RawReply) -> ExitCode {
    if !reply.kind.ends_with("finished") {
        return Exit::Ok.into();
    }
    let code = serde_json::from_slice::<Value>(&reply.payload).ok().and_then(|value| value["exitCode"].as_i64());
    match code {
        Some(signal @ -64..=-1) => u8::try_from(128 - signal).map_or(Exit::Failure.into(), ExitCode::from),
        Some(code) => u8::try_from(code).map_or(Exit::Failure.into(), ExitCode::from),
        None => Exit::Failure.into(),
    }
}

fn print(reply: &RawReply, json: bool) -> io::Result<()> {
    if !json && reply.kind == "stderr" {
        return io::stderr().write_all(&reply.payload);
    }
    let line = match (reply.kind.as_str(), readable(reply)) {
        (kind, payload) if json => format!("{}\n", json!({ "type": kind, "payload": payload })).into_bytes(),
        ("stdout", _) => reply.payload.to_vec(),
        (kind, Value::String(text)) => format!("[{kind}] {text}\n").into_bytes(),
        (kind, value) => format!("[{kind}] {value}\n").into_bytes(),
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()
}

/// The payload as what it encodes, else as text.
fn readable(reply: &RawReply) -> Value {
    let decoded = match reply.kind.as_str() {
        "stdout" | "stderr" | "html" | "log" => None,
        "status" => rmp_serde::from_slice(&reply.payload).ok(),
        _ => serde_json::from_slice(&reply.payload).ok(),
    };
    decoded.unwrap_or_else(|| Value::String(String::from_utf8_lossy(&reply.payload).into_owned()))
}
