//! One question to the node, for commands that ask and end. Blocks for [`GREETING_PATIENCE`] at each message.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::FrameBuffer;
use super::client::{NodeError, connect};
use super::protocol::{FromNode, GREETING_PATIENCE, MAX_FROM_NODE_BYTES, NodeStatus, VERSION, Wants};

/// The release of the node that would deliver kills to a runner here.
///
/// # Errors
/// With the reason why none would.
pub(crate) fn greet(socket: &Path, is_on_host: bool) -> Result<String, NodeError> {
    Question::ask(socket, is_on_host, Wants::Kills)?.greeting()
}

/// The state of the node.
///
/// # Errors
/// If it cannot be reached or does not tell.
pub(crate) fn status(socket: &Path, is_on_host: bool) -> Result<NodeStatus, NodeError> {
    let mut question = Question::ask(socket, is_on_host, Wants::Status)?;
    question.greeting()?;
    match question.next()? {
        FromNode::Status(status) => Ok(*status),
        _ => Err(NodeError::NoGreeting),
    }
}

struct Question {
    stream: UnixStream,
    frames: FrameBuffer,
}

impl Question {
    fn ask(socket: &Path, is_on_host: bool, wants: Wants) -> Result<Self, NodeError> {
        let stream = connect(socket, wants, is_on_host)?;
        stream.set_nonblocking(false).map_err(NodeError::Connect)?;
        stream.set_read_timeout(Some(GREETING_PATIENCE)).map_err(NodeError::Connect)?;
        Ok(Self { stream, frames: FrameBuffer::new(MAX_FROM_NODE_BYTES) })
    }

    fn greeting(&mut self) -> Result<String, NodeError> {
        match self.next()? {
            FromNode::Hello { protocol: VERSION, version, .. } => Ok(version),
            FromNode::Hello { protocol, .. } => Err(NodeError::Version { theirs: protocol }),
            FromNode::Refused { reason } => Err(NodeError::Refused(reason)),
            _ => Err(NodeError::NoGreeting),
        }
    }

    fn next(&mut self) -> Result<FromNode, NodeError> {
        loop {
            if let Some(message) = self.frames.next()? {
                return Ok(message);
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes).map_err(|error| NodeError::Ended(Some(error)))? {
                0 => return Err(NodeError::Ended(None)),
                length => self.frames.push(&bytes[..length]),
            }
        }
    }
}
