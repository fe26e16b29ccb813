//! Fuzz targets of what a kernel sends and of kernelspecs.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, ReadBuf};

use super::channel::{Arrival, ChannelReader};
use super::frames::{FrameReader, SocketError};
use super::kernelspec::Kernelspec;
use super::long_text::{LongText, Malformed};
use super::message::Signer;
use super::render::render;
use crate::config::ChildEnv;
use crate::process::Stream;

/// A stream whose reads end where the pieces do.
struct PieceReader<'a>(VecDeque<&'a [u8]>);

impl AsyncRead for PieceReader<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(piece) = self.0.pop_front() {
            let (read, rest) = piece.split_at(piece.len().min(buffer.remaining()));
            buffer.put_slice(read);
            if !rest.is_empty() {
                self.0.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The messages of a kernel do not depend on where the stream is cut. It always ends, with an error.
pub(crate) fn channel(pieces: &[&[u8]]) {
    let stream = pieces.concat();
    for key in ["", "key"] {
        let whole = arrivals(&[&stream], key);
        assert_eq!(arrivals(pieces, key), whole);
        let content_bytes: usize = whole.iter().map(|(_, content)| content.len()).sum();
        assert!(content_bytes <= stream.len(), "{content_bytes} bytes from {}", stream.len());
    }
}

/// What arrives, with the content of each message.
fn arrivals(pieces: &[&[u8]], key: &str) -> Vec<(String, Vec<u8>)> {
    let pieces = pieces.iter().copied().filter(|piece| !piece.is_empty()).collect();
    let mut arrived = Vec::new();
    let reading = async {
        let mut reader = FrameReader::new(PieceReader(pieces));
        reader.handshake().await?;
        let mut channel = ChannelReader::new(reader, Signer::new(key, "session"));
        loop {
            match channel.next().await? {
                Arrival::Message(message) => {
                    // Malformed content is rejected; a panic is not.
                    let _ = render(&message.head.kind, &message.content);
                    arrived.push((format!("{:?}", message.head), message.content.to_vec()));
                }
                Arrival::Long(head, bytes) => {
                    arrived.push((format!("{head:?}, {bytes} bytes"), Vec::new()));
                    while let Some(piece) = channel.piece().await? {
                        arrived.last_mut().expect("it was pushed").1.extend_from_slice(&piece);
                    }
                }
                Arrival::Rejected(why) => arrived.push((why.to_owned(), Vec::new())),
            }
        }
        #[expect(unreachable_code, reason = "gives the block its type")]
        Ok::<(), SocketError>(())
    };
    let ended = reading.now_or_never().expect("a stream that is complete is never waited for");
    arrived.push((ended.expect_err("the stream ends").to_string(), Vec::new()));
    arrived
}

/// The text is the one that a complete JSON parser finds, wherever the message is cut.
pub(crate) fn long_text(pieces: &[&[u8]]) {
    let json = pieces.concat();
    let whole = decoded(&[&json]);
    assert_eq!(decoded(pieces), whole);
    if let Ok((_, text)) = &whole {
        assert!(text.len() <= json.len(), "{} bytes from {}", text.len(), json.len());
    }
    if let Some((name, text)) = stream_content(&json) {
        let (stream, ours) = whole.expect("a JSON object is read");
        assert_eq!(String::from_utf8(ours).as_deref(), Ok(text.as_str()));
        // An escape in a name of a stream is not decoded.
        if !json.contains(&b'\\') {
            assert_eq!(stream, if name == "stderr" { Stream::Stderr } else { Stream::Stdout });
        }
    }
}

fn decoded(pieces: &[&[u8]]) -> Result<(Stream, Vec<u8>), Malformed> {
    let (mut decoder, mut text) = (LongText::new(), Vec::new());
    pieces.iter().try_for_each(|piece| decoder.feed(piece, &mut text))?;
    Ok((decoder.stream(), text))
}

/// Name and text of an object that has each once and no escape in a key.
fn stream_content(json: &[u8]) -> Option<(String, String)> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(default)]
        name: Value,
        text: String,
    }
    serde_json::from_slice::<HashMap<&str, Value>>(json).ok()?;
    let Content { name, text } = serde_json::from_slice(json).ok()?;
    Some((name.as_str().unwrap_or_default().to_owned(), text))
}

/// A kernelspec gives a command with the words it has and variables that a process can have.
pub(crate) fn kernelspec(text: &[u8]) {
    let Ok(spec) = Kernelspec::of_text(Path::new("/nowhere"), "fuzz", text) else { return };
    let command = spec.command(Path::new("/connection.json"), None);
    let argv = command.words();
    assert_eq!(argv.len(), spec.argv().len());
    for (filled, word) in argv.iter().zip(spec.argv()) {
        assert!(word.contains('{') || filled == OsStr::new(word), "{word:?} became {}", filled.display());
    }
    let _ = spec.interrupts_by_message();
    let before = ChildEnv::from([("HOME".into(), "/home/work".into())]);
    let mut env = before.clone();
    spec.add_variables(&mut env);
    for (name, value) in &env {
        assert!(!name.is_empty() && !name.as_bytes().contains(&b'=') && !name.as_bytes().contains(&0));
        assert!(!value.as_bytes().contains(&0));
    }
    assert!(before.keys().all(|name| env.contains_key(name)));
}
