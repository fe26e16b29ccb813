//! Renders the messages that a kernel publishes.
//!
//! | message | shown as |
//! |---|---|
//! | `stream` | its text, on stdout or stderr |
//! | `error` | the traceback on stderr, colours kept |
//! | `execute_result`, `display_data` | the richest form that can be shown: see [`Forms`] |
//!
//! Other messages are for notebooks and are ignored. Pure.

use jupyter_protocol::{Stdio, StreamContent};
use serde::Deserialize;
use serde::de::Error as _;
use serde_json::value::RawValue;

use super::raw_json::text;
use crate::process::{RichOutput, Stream};

/// Output for the user.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Rendered {
    Text(Stream, String),
    Rich(RichOutput),
}

/// The output of a message, if it has any.
pub(super) fn render(kind: &str, content: &[u8]) -> Result<Option<Rendered>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Display<'a> {
        #[serde(borrow)]
        data: Forms<'a>,
    }
    #[derive(Deserialize)]
    struct Failure<'a> {
        #[serde(borrow)]
        traceback: &'a RawValue,
    }
    Ok(match kind {
        "stream" => {
            let StreamContent { name, text } = serde_json::from_slice(content)?;
            Some(Rendered::Text(stream(&name), text))
        }
        "error" => {
            let Failure { traceback } = serde_json::from_slice(content)?;
            let lines = text(traceback, "\n").ok_or_else(|| serde_json::Error::custom("the traceback is no text"))?;
            Some(Rendered::Text(Stream::Stderr, lines))
        }
        "execute_result" | "display_data" => {
            let Display { data } = serde_json::from_slice(content)?;
            data.richest_first().into_iter().find_map(|(mime, value)| Some(form(mime, text(value?, "")?)))
        }
        _ => None,
    })
}

fn stream(name: &Stdio) -> Stream {
    match name {
        Stdio::Stdout => Stream::Stdout,
        Stdio::Stderr => Stream::Stderr,
    }
}

/// The drawings of our Python modules (`runtime/python/drawing`).
const DRAWING: &str = "application/x-sorna-drawing";

/// The supported representations in a message. Others, such as the JSON of a plot, may be large and are skipped.
#[derive(Deserialize)]
struct Forms<'a> {
    #[serde(borrow, rename = "application/x-sorna-drawing")]
    drawing: Option<&'a RawValue>,
    #[serde(borrow, rename = "text/html")]
    html: Option<&'a RawValue>,
    #[serde(borrow, rename = "image/svg+xml")]
    svg: Option<&'a RawValue>,
    #[serde(borrow, rename = "image/png")]
    png: Option<&'a RawValue>,
    #[serde(borrow, rename = "image/jpeg")]
    jpeg: Option<&'a RawValue>,
    #[serde(borrow, rename = "text/plain")]
    plain: Option<&'a RawValue>,
}

impl<'a> Forms<'a> {
    fn richest_first(&self) -> [(&'static str, Option<&'a RawValue>); 6] {
        [
            (DRAWING, self.drawing),
            ("text/html", self.html),
            ("image/svg+xml", self.svg),
            ("image/png", self.png),
            ("image/jpeg", self.jpeg),
            ("text/plain", self.plain),
        ]
    }
}

fn form(mime: &str, text: String) -> Rendered {
    match mime {
        "text/plain" => Rendered::Text(Stream::Stdout, text),
        "text/html" => Rendered::Rich(RichOutput::Html(text)),
        "image/svg+xml" | DRAWING => Rendered::Rich(RichOutput::Media { mime: mime.to_owned(), data: text.into() }),
        _ => {
            // Some kernels break base64 into lines, as MIME does.
            let mut url = format!("data:{mime};base64,");
            url.extend(text.split_ascii_whitespace());
            Rendered::Rich(RichOutput::Media { mime: mime.to_owned(), data: url.into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn shown(kind: &str, content: &Value) -> Vec<Rendered> {
        render(kind, content.to_string().as_bytes()).unwrap().into_iter().collect()
    }

    fn said(stream: Stream, text: &str) -> Rendered {
        Rendered::Text(stream, text.to_owned())
    }

    fn media(mime: &str, data: &str) -> Rendered {
        Rendered::Rich(RichOutput::Media { mime: mime.to_owned(), data: data.into() })
    }

    #[test]
    fn text_and_tracebacks() {
        assert_eq!(shown("stream", &json!({"name": "stdout", "text": "a"})), [said(Stream::Stdout, "a")]);
        assert_eq!(shown("stream", &json!({"name": "stderr", "text": "b"})), [said(Stream::Stderr, "b")]);
        let error = json!({"ename": "E", "evalue": "v", "traceback": ["\u{1b}[31m---", "E: v"]});
        assert_eq!(shown("error", &error), [said(Stream::Stderr, "\u{1b}[31m---\nE: v")]);
    }

    #[test]
    fn the_richest_form_is_shown() {
        let display = |data: Value| shown("display_data", &json!({"data": data, "metadata": {}, "transient": {}}));
        assert_eq!(display(json!({"text/plain": "1"})), [said(Stream::Stdout, "1")]);
        let html = [Rendered::Rich(RichOutput::Html("<b>1</b>".into()))];
        assert_eq!(display(json!({"text/plain": "1", "text/html": ["<b>1", "</b>"]})), html);
        let png = display(json!({"text/plain": "<Figure>", "image/png": "iVBO\nRw==\n"}));
        assert_eq!(png, [media("image/png", "data:image/png;base64,iVBORw==")]);
        assert_eq!(display(json!({"image/jpeg": "/9j/"})), [media("image/jpeg", "data:image/jpeg;base64,/9j/")]);
        assert_eq!(display(json!({"image/png": "x", "image/svg+xml": "<svg/>"})), [media("image/svg+xml", "<svg/>")]);
        let latex = json!({"text/latex": "$1$", "application/x-own": {"a": 1}, "text/plain": "1"});
        assert_eq!(display(latex), [said(Stream::Stdout, "1")], "better than nothing");
        assert_eq!(display(json!({"text/html": 1, "text/plain": "1"})), [said(Stream::Stdout, "1")]);
        assert_eq!(display(json!({"application/json": {"a": 1}})), []);
        assert_eq!(display(json!({})), []);
    }

    #[test]
    fn a_result_is_shown_as_a_display_is() {
        let result = json!({"execution_count": 1, "data": {"text/plain": "2"}, "metadata": {}});
        assert_eq!(shown("execute_result", &result), [said(Stream::Stdout, "2")]);
    }

    #[test]
    fn what_is_for_notebooks_is_ignored_and_what_is_malformed_told() {
        for kind in ["status", "execute_input", "clear_output", "comm_open", "update_display_data", "iopub_welcome"] {
            assert_eq!(render(kind, b"no JSON").unwrap(), None);
        }
        assert!(render("stream", b"{}").is_err());
        assert!(render("display_data", b"{\"data\":1}").is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(kind in "stream|error|display_data", content in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = render(&kind, &content);
        }
    }
}
