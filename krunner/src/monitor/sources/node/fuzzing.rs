//! Fuzz target of the node's socket: both directions.

use super::frame::{FrameBuffer, encode};
use super::protocol::{FromNode, MAX_FROM_NODE_BYTES, MAX_TO_NODE_BYTES, ToNode};

/// A stream is decoded to its end or refused, in pieces as in one; a decoded message survives its encoding.
pub(crate) fn node_socket(pieces: &[&[u8]]) {
    assert_eq!(to_node(pieces), to_node(&[&pieces.concat()]));
    let from_node = from_node(pieces);
    assert_eq!(from_node, self::from_node(&[&pieces.concat()]));
    for message in from_node {
        let again = self::from_node(&[&encode(&message)]);
        // What a later version says is not kept.
        assert!(message == FromNode::Unknown || again == [message], "{again:?}");
    }
}

fn to_node(pieces: &[&[u8]]) -> Vec<ToNode> {
    decoded(FrameBuffer::new(MAX_TO_NODE_BYTES), pieces)
}

fn from_node(pieces: &[&[u8]]) -> Vec<FromNode> {
    decoded(FrameBuffer::new(MAX_FROM_NODE_BYTES), pieces)
}

fn decoded<T: serde::de::DeserializeOwned>(mut buffer: FrameBuffer, pieces: &[&[u8]]) -> Vec<T> {
    let mut messages = Vec::new();
    for piece in pieces {
        buffer.push(piece);
        loop {
            match buffer.next() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(_) => return messages,
            }
        }
    }
    messages
}
