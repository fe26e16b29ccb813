//! Jupyter messages as frames, signed (jupyter-client.readthedocs.io/en/stable/messaging.html, "The wire protocol").

use std::fmt::Write as _;

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jupyter_protocol::{JupyterMessage, JupyterMessageContent};
use serde::Deserialize;
use sha2::Sha256;

/// Ends the routing frames.
pub(super) const DELIMITER: &[u8] = b"<IDS|MSG>";

/// Header, parent header, metadata, content: what is signed.
pub(super) type Parts = [Bytes; 4];

/// A message of the kernel.
#[derive(Debug, Clone)]
pub(super) struct KernelMessage {
    pub(super) head: MessageHead,
    /// The JSON of the content.
    pub(super) content: Bytes,
}

/// The part of a message before its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MessageHead {
    pub(super) kind: String,
    /// Id of the request that the message belongs to; empty for none.
    pub(super) parent: String,
}

impl MessageHead {
    /// From the frames of header and parent header.
    pub(super) fn parse(header: &[u8], parent: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Header {
            msg_type: String,
        }
        #[derive(Default, Deserialize)]
        struct Parent {
            #[serde(default)]
            msg_id: String,
        }
        let header: Header = serde_json::from_slice(header)?;
        // Some kernels send null or other values; the message then belongs to no request.
        let parent: Parent = serde_json::from_slice(parent).unwrap_or_default();
        Ok(Self { kind: header.msg_type, parent: parent.msg_id })
    }
}

/// Signs messages and checks signatures.
#[derive(Clone)]
pub(super) struct Signer {
    key: Option<Hmac<Sha256>>,
    session: String,
}

impl Signer {
    /// A signer for one session of this name. An empty key means that nothing is signed.
    pub(super) fn new(key: &str, session: &str) -> Self {
        let key = (!key.is_empty()).then(|| Hmac::new_from_slice(key.as_bytes()).ok()).flatten();
        Self { key, session: session.to_owned() }
    }

    /// A request as frames, and its id.
    pub(super) fn request(&self, content: impl Into<JupyterMessageContent>) -> (String, Vec<Bytes>) {
        let message = JupyterMessage::new(content, None).with_session(&self.session);
        let json = |value: serde_json::Result<Vec<u8>>| Bytes::from(value.expect("a request has a JSON form"));
        let parts = [
            json(serde_json::to_vec(&message.header)),
            Bytes::from_static(b"{}"),
            Bytes::from_static(b"{}"),
            json(serde_json::to_vec(&message.content)),
        ];
        (message.header.msg_id, self.frames(parts))
    }

    fn frames(&self, parts: Parts) -> Vec<Bytes> {
        let signature = self.signature(&parts);
        [Bytes::from_static(DELIMITER), signature.into()].into_iter().chain(parts).collect()
    }

    /// Whether this is the signature of these parts.
    pub(super) fn is_signed(&self, signature: &[u8], parts: &Parts) -> bool {
        let Some(key) = &self.key else { return true };
        bytes_of(signature).is_some_and(|signature| mac(key, parts).verify_slice(&signature).is_ok())
    }

    fn signature(&self, parts: &Parts) -> String {
        let Some(key) = &self.key else { return String::new() };
        hex(&mac(key, parts).finalize().into_bytes())
    }
}

fn mac(key: &Hmac<Sha256>, parts: &Parts) -> Hmac<Sha256> {
    let mut mac = key.clone();
    for part in parts {
        mac.update(part);
    }
    mac
}

/// The bytes in lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let written = write!(text, "{byte:02x}");
        debug_assert!(written.is_ok(), "a String takes everything");
        text
    })
}

/// Bytes of a text in hex.
fn bytes_of(hex: &[u8]) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    hex.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jupyter_protocol::KernelInfoRequest;
    use proptest::prelude::*;

    #[test]
    fn a_request_carries_its_own_signature() {
        let signer = Signer::new("key", "session");
        let (id, frames) = signer.request(KernelInfoRequest {});
        assert_eq!(frames.len(), 6);
        assert_eq!(&frames[0][..], DELIMITER);
        let parts: Parts = frames[2..].to_vec().try_into().unwrap();
        assert!(signer.is_signed(&frames[1], &parts));
        assert!(!Signer::new("other", "session").is_signed(&frames[1], &parts));
        assert!(!signer.is_signed(b"", &parts) && !signer.is_signed(b"xyz", &parts));
        let header: serde_json::Value = serde_json::from_slice(&parts[0]).unwrap();
        assert_eq!((header["msg_id"].as_str(), header["session"].as_str()), (Some(id.as_str()), Some("session")));
        assert_eq!(header["msg_type"], "kernel_info_request");
    }

    #[test]
    fn the_signature_is_the_one_of_other_clients() {
        // hmac.new(b"key", b"{}{}{}{}", "sha256").hexdigest() in Python.
        let empty = [(); 4].map(|()| Bytes::from_static(b"{}"));
        let expected = "ca767b02c5bc061ed184a9a029e7f93a7f2f7ed4e8fe74120fc1212f0b008fa3";
        assert_eq!(Signer::new("key", "").signature(&empty), expected);
        assert!(Signer::new("", "").is_signed(b"", &empty), "without a key nothing is signed");
    }

    #[test]
    fn heads_of_odd_kernels_are_read() {
        let head =
            |parent: &str| MessageHead::parse(br#"{"msg_type":"stream","x":1}"#, parent.as_bytes()).unwrap().parent;
        assert_eq!(head(r#"{"msg_id":"a","more":[]}"#), "a");
        assert_eq!([head("{}"), head("null"), head("[]"), head("")], [""; 4]);
        assert!(MessageHead::parse(b"{}", b"{}").is_err());
    }

    proptest! {
        #[test]
        fn hex_has_an_inverse(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(bytes_of(hex(&bytes).as_bytes()), Some(bytes));
        }
    }
}
