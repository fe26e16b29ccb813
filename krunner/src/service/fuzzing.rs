//! Fuzz targets of service definitions, templates, model services and the responses to health checks.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use std::{cmp, io};

use http::uri::PathAndQuery;
use serde_json::Map;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::braces::without_blanks;
use super::definition::Definition;
use super::launch::{LaunchError, ResolvedCommand, check, resolve};
use super::model::{HealthCheck, MAX_SECONDS, MIN_SECONDS, ModelService};
use super::probe::Probe;
use super::template::{Value, Variables, names, render};
use super::{Syntax, UserOptions};
use crate::config::ChildEnv;

/// The longest text that a field of [`variables`] stands for, in bytes.
const LONGEST_VALUE_BYTES: usize = 24;

fn variables() -> Variables {
    let parts = [("out", "what\nit said {ports[0]}"), ("err", ""), ("}", "brace"), ("{", "other")];
    Variables::from([
        ("ports".into(), Value::Numbers(vec![8080, 65535])),
        ("runtime_path".into(), Value::Text("/ü/py".into())),
        ("ref".into(), Value::Parts(parts.map(|(key, value)| (key.into(), value.into())).into())),
        ("nothing".into(), Value::Nothing),
    ])
}

/// Whatever is accepted can be executed; what the check lets through has no mistake in a template.
pub(crate) fn definition(text: &[u8], options: &[u8]) {
    let Ok(definition) = Definition::parse(text) else { return };
    let checked = check(&definition, &variables());
    let session = ChildEnv::from([("HOME".into(), "/home/work".into())]);
    let options: Map<_, _> = serde_json::from_slice(options).unwrap_or_default();
    let user_options = UserOptions::read("service", &definition, &options, &session).unwrap_or_default();
    let has_actions = !definition.prestart_actions.is_empty();
    match resolve(&definition, &user_options, &variables()) {
        Ok(resolved) => {
            assert!(has_actions || checked.is_ok(), "{checked:?}");
            check_command(&resolved, &session);
        }
        Err(error @ LaunchError::Template { .. }) => assert!(has_actions || checked.is_err(), "{error:?}"),
        Err(_) => {}
    }
}

fn check_command(resolved: &ResolvedCommand, session: &ChildEnv) {
    assert!(!resolved.argv[0].is_empty());
    assert!(resolved.argv.iter().all(|word| !word.contains('\0')));
    for (name, value) in &resolved.env {
        assert!(!name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'), "{name:?}={value:?}");
    }
    assert_eq!(resolved.command().words().len(), resolved.argv.len());
    assert!(resolved.environment(session, "/opt".as_ref()).len() >= session.len());
}

/// The two syntaxes agree where both have a meaning, and text without fields is kept.
pub(crate) fn template(text: &str) {
    let variables = variables();
    let show = |template: &str, syntax| render(template, syntax, &variables).map_err(|error| error.to_string());
    let (format, shell) = (show(text, Syntax::Format), show(text, Syntax::Shell));
    for (syntax, rendered) in [(Syntax::Format, &format), (Syntax::Shell, &shell)] {
        match rendered {
            Ok(rendered) => assert!(rendered.len() <= text.len() * LONGEST_VALUE_BYTES),
            Err(error) => assert!(error.len() <= text.len() * 4 + 512, "{} bytes: {error}", error.len()),
        }
        if let Ok(names) = names(text, syntax) {
            let is_known = names.iter().all(|name| variables.contains_key(*name));
            assert!(is_known || rendered.is_err());
        } else {
            assert!(rendered.is_err());
        }
    }
    if format.is_ok() && !text.contains("${") {
        assert_eq!(shell, format);
    }
    if let Ok(trimmed) = without_blanks(text) {
        assert_eq!(show(&trimmed, Syntax::Shell), shell);
        assert_eq!(without_blanks(&trimmed).as_ref(), Ok(&trimmed));
    }
    let escaped = text.replace('{', "{{").replace('}', "}}");
    assert_eq!(show(&escaped, Syntax::Format).as_deref(), Ok(text));
    if !text.contains('$') {
        assert_eq!(show(&escaped, Syntax::Shell).as_deref(), Ok(text));
    }
}

/// The health check of a model service has bounded times and a path that can be requested.
pub(crate) fn model(text: &[u8]) {
    let Ok(json) = serde_json::from_slice(text) else { return };
    let Ok(service) = ModelService::read("model", Some("/models"), &json, None) else { return };
    assert_ne!(service.port, 0);
    assert!(service.definition.command.is_some());
    assert!(service.service_name().starts_with("model-"));
    if let Some(HealthCheck { target, interval, patience, initial_delay, .. }) = &service.check {
        assert!(target.as_str().starts_with('/'), "{target}");
        let range = Duration::from_secs_f64(MIN_SECONDS)..=Duration::from_secs_f64(MAX_SECONDS);
        assert!(range.contains(interval) && range.contains(patience) && *initial_delay <= *range.end());
    }
}

/// A server that takes everything and responds at once when it is asked.
struct CannedServer<'a> {
    response: &'a [u8],
    is_asked: bool,
    reader: Option<Waker>,
}

impl<'a> CannedServer<'a> {
    fn new(response: &'a [u8]) -> Self {
        Self { response, is_asked: false, reader: None }
    }
}

impl AsyncRead for CannedServer<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.is_asked {
            self.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let (read, rest) = self.response.split_at(cmp::min(self.response.len(), buffer.remaining()));
        buffer.put_slice(read);
        self.response = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for CannedServer<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.is_asked = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A response is a status or an error, and a redirect leads to a path of the same server that can be requested.
pub(crate) fn probe(response: &[u8]) {
    let target = PathAndQuery::from_static("/health");
    let probe = Probe { port: 8000, target: target.clone(), expected_status: 200, patience: Duration::from_secs(1) };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without I/O");
    let Ok((_, Some(location))) = runtime.block_on(probe.exchange(CannedServer::new(response), &target)) else {
        return;
    };
    let Some(next) = probe.here(&location) else { return };
    assert!(next.as_str().starts_with('/'), "{next}");
    assert!(location.port_u16().is_none_or(|port| port == 8000), "{location}");
    // Requesting it does not panic.
    let _ = runtime.block_on(probe.exchange(CannedServer::new(b""), &next));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Templates that the fuzzer and a generator made, each with what `str.format` of `CPython` 3 makes of it; null stands for an
    /// exception. The suites compare with the Python of the machine (`tests/suites/service_oracle.rs`).
    const RECORDED: &str = include_str!("../../../fuzz/recorded/str_format.json");

    #[test]
    fn templates_are_what_cpython_made_of_them() {
        let cases: Vec<(String, Option<String>)> = serde_json::from_str(RECORDED).unwrap();
        assert!(cases.iter().filter(|(_, expected)| expected.is_some()).count() > 100);
        for (template, expected) in cases {
            match (render(&template, Syntax::Format, &variables()), expected) {
                (Ok(ours), Some(theirs)) => assert_eq!(ours, theirs, "{template:?}"),
                (Ok(ours), None) => panic!("{template:?} is {ours:?} here and an exception there"),
                (Err(_), None) => {}
                (Err(error), Some(theirs)) => {
                    let is_refused =
                        ["not supported", "several parts"].iter().any(|part| error.to_string().contains(part));
                    assert!(is_refused, "{template:?} is {theirs:?} there, here: {error}");
                }
            }
        }
    }
}
