//! One channel of a kernel, receiving: whole messages up to a size, the rest in pieces.
//!
//! A message that is malformed, badly signed or of too many frames costs nothing but itself. What breaks the
//! framing breaks the connection.

use bytes::Bytes;

use super::frames::{Broken, Frame, Reader};
use super::message::{DELIMITER, Head, Message, Parts, Signer};

/// Routing frames before the delimiter; there is one, mostly.
const MAX_ROUTING_FRAMES: usize = 16;

/// Routing frames, signature, headers and metadata, each.
const MAX_HEAD_FRAME_BYTES: u64 = 1024 * 1024;

/// The text of streams is passed on in pieces from here on.
const MAX_WHOLE_TEXT_BYTES: u64 = 64 * 1024;

/// All other contents: the largest picture that the agent passes on, with other forms of it beside.
const MAX_WHOLE_BYTES: u64 = 16 * 1024 * 1024;

/// What arrives.
#[derive(Debug)]
pub(super) enum Arrival {
    Message(Message),
    /// A content too large to be held, of so many bytes: it has to be read in [pieces](Inlet::piece).
    ///
    /// Its signature is not checked, since what it covers is not complete before its end. That opens no door:
    /// whoever could pose as the kernel at its port runs as the same user.
    Long(Head, u64),
    /// Something that is no message of ours, and why.
    Rejected(&'static str),
}

/// The receiving end of a channel.
pub(super) struct Inlet {
    reader: Reader,
    signer: Signer,
    /// The body of a long content that is being read.
    left: u64,
    /// Whether that was not the last frame.
    more: bool,
}

/// Why the frames read so far make no message.
enum Reject {
    /// With whether more frames of it follow.
    Message(&'static str, bool),
    Broken(Broken),
}

impl From<Broken> for Reject {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl Inlet {
    pub(super) fn new(reader: Reader, signer: Signer) -> Self {
        Self { reader, signer, left: 0, more: false }
    }

    /// The next message. A long one before it has to be read to its end.
    pub(super) async fn next(&mut self) -> Result<Arrival, Broken> {
        match self.message().await {
            Ok(arrival) => Ok(arrival),
            Err(Reject::Message(why, more)) => {
                self.skip_frames(more).await?;
                Ok(Arrival::Rejected(why))
            }
            Err(Reject::Broken(broken)) => Err(broken),
        }
    }

    /// The next piece of a long content, 64 KiB at most; `None` after the last.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, Broken> {
        if self.left == 0 {
            let more = std::mem::take(&mut self.more);
            self.skip_frames(more).await?;
            return Ok(None);
        }
        let piece = self.reader.piece(self.left).await?;
        self.left -= piece.len() as u64;
        Ok(Some(piece))
    }

    /// Passes over a long content.
    pub(super) async fn skip(&mut self) -> Result<(), Broken> {
        while self.piece().await?.is_some() {}
        Ok(())
    }

    /// How much has arrived and was not read.
    pub(super) fn unread_bytes(&self) -> usize {
        self.reader.unread_bytes()
    }

    async fn message(&mut self) -> Result<Arrival, Reject> {
        let mut routing_frames = 0;
        while self.head_frame().await? != DELIMITER {
            routing_frames += 1;
            if routing_frames > MAX_ROUTING_FRAMES {
                return Err(Reject::Message("it has too many frames before its delimiter", self.more));
            }
        }
        let signature = self.head_frame().await?;
        let (header, parent, metadata) = (self.head_frame().await?, self.head_frame().await?, self.head_frame().await?);
        let head = Head::parse(&header, &parent).map_err(|_| Reject::Message("its header is malformed", self.more))?;
        let Frame { bytes, more } = self.content_frame().await?;
        let whole = if head.kind == "stream" { MAX_WHOLE_TEXT_BYTES } else { MAX_WHOLE_BYTES };
        if bytes > whole {
            (self.left, self.more) = (bytes, more);
            return Ok(Arrival::Long(head, bytes));
        }
        let content = self.reader.whole(usize::try_from(bytes).unwrap_or(usize::MAX)).await?;
        let parts: Parts = [header, parent, metadata, content];
        // Buffers come last, and mean something to widgets only.
        self.skip_frames(more).await?;
        if !self.signer.is_signed(&signature, &parts) {
            return Err(Reject::Message("its signature is wrong", false));
        }
        let [.., content] = parts;
        Ok(Arrival::Message(Message { head, content }))
    }

    /// A frame that is not the last and not large.
    async fn head_frame(&mut self) -> Result<Bytes, Reject> {
        let Frame { bytes, more } = self.reader.frame().await?;
        if bytes > MAX_HEAD_FRAME_BYTES {
            self.reader.skip(bytes).await?;
            return Err(Reject::Message("a frame before its content is too long", more));
        }
        let body = self.reader.whole(usize::try_from(bytes).unwrap_or(usize::MAX)).await?;
        self.more = more;
        if more { Ok(body) } else { Err(Reject::Message("it has too few frames", false)) }
    }

    async fn content_frame(&mut self) -> Result<Frame, Reject> {
        Ok(self.reader.frame().await?)
    }

    async fn skip_frames(&mut self, mut more: bool) -> Result<(), Broken> {
        while more {
            let frame = self.reader.frame().await?;
            self.reader.skip(frame.bytes).await?;
            more = frame.more;
        }
        Ok(())
    }
}
