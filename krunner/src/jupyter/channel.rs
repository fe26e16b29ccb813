//! The receiving side of a kernel's channel: whole messages up to a size limit, larger ones in pieces.
//!
//! A message that is malformed, wrongly signed or has too many frames is skipped. An error in the framing closes the
//! connection.

use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::net::tcp::OwnedReadHalf;

use super::frames::{Frame, FrameReader, SocketError};
use super::message::{DELIMITER, KernelMessage, MessageHead, Parts, Signer};

/// Limit of the routing frames before the delimiter; usually there is one.
const MAX_ROUTING_FRAMES: usize = 16;

/// Limit of each routing frame, signature, header and metadata.
const MAX_HEAD_FRAME_BYTES: u64 = 1024 * 1024;

/// Longer `stream` messages are passed on in pieces.
const MAX_WHOLE_TEXT_BYTES: u64 = 64 * 1024;

/// Limit of all other contents: the largest image that the agent passes on, together with its other representations.
const MAX_WHOLE_BYTES: u64 = 16 * 1024 * 1024;

/// The next thing on the channel.
#[derive(Debug)]
pub(super) enum Arrival {
    Message(KernelMessage),
    /// A content of this many bytes, too large to be held; read it in [pieces](ChannelReader::piece).
    ///
    /// Its signature is not checked because the signed data is complete only at its end. This is safe: a process that could
    /// impersonate the kernel at its port already runs as the same user.
    Long(MessageHead, u64),
    /// A rejected message, and why.
    Rejected(&'static str),
}

/// The receiving end of a channel.
pub(super) struct ChannelReader<R = OwnedReadHalf> {
    reader: FrameReader<R>,
    signer: Signer,
    /// Unread bytes of a long content.
    left: u64,
    /// Whether more frames follow the current one.
    more: bool,
}

/// Why the frames read so far are not a message.
enum Reject {
    /// The reason, and whether more frames of the message follow.
    Message(&'static str, bool),
    Broken(SocketError),
}

impl From<SocketError> for Reject {
    fn from(broken: SocketError) -> Self {
        Self::Broken(broken)
    }
}

impl ChannelReader {
    /// Number of bytes received but not read.
    pub(super) fn unread_bytes(&self) -> usize {
        self.reader.unread_bytes()
    }
}

impl<R: AsyncRead + Unpin> ChannelReader<R> {
    pub(super) fn new(reader: FrameReader<R>, signer: Signer) -> Self {
        Self { reader, signer, left: 0, more: false }
    }

    /// The next message. A long content before it must have been read to its end.
    pub(super) async fn next(&mut self) -> Result<Arrival, SocketError> {
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
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, SocketError> {
        if self.left == 0 {
            let more = std::mem::take(&mut self.more);
            self.skip_frames(more).await?;
            return Ok(None);
        }
        let piece = self.reader.piece(self.left).await?;
        self.left -= piece.len() as u64;
        Ok(Some(piece))
    }

    /// Skips a long content.
    pub(super) async fn skip(&mut self) -> Result<(), SocketError> {
        while self.piece().await?.is_some() {}
        Ok(())
    }

    async fn message(&mut self) -> Result<Arrival, Reject> {
        let mut routing_frames = 0;
        while self.head_frame().await? != DELIMITER {
            routing_frames += 1;
            if routing_frames > MAX_ROUTING_FRAMES {
                return Err(Reject::Message("too many frames before the delimiter", self.more));
            }
        }
        let signature = self.head_frame().await?;
        let (header, parent, metadata) = (self.head_frame().await?, self.head_frame().await?, self.head_frame().await?);
        let head = MessageHead::parse(&header, &parent).map_err(|_| Reject::Message("malformed header", self.more))?;
        let Frame { bytes, more } = self.content_frame().await?;
        let whole = if head.kind == "stream" { MAX_WHOLE_TEXT_BYTES } else { MAX_WHOLE_BYTES };
        if bytes > whole {
            (self.left, self.more) = (bytes, more);
            return Ok(Arrival::Long(head, bytes));
        }
        let content = self.reader.whole(usize::try_from(bytes).unwrap_or(usize::MAX)).await?;
        let parts: Parts = [header, parent, metadata, content];
        // Binary buffers follow; only widgets use them.
        self.skip_frames(more).await?;
        if !self.signer.is_signed(&signature, &parts) {
            return Err(Reject::Message("wrong signature", false));
        }
        let [.., content] = parts;
        Ok(Arrival::Message(KernelMessage { head, content }))
    }

    /// A frame that is small and not the last.
    async fn head_frame(&mut self) -> Result<Bytes, Reject> {
        let Frame { bytes, more } = self.reader.frame().await?;
        if bytes > MAX_HEAD_FRAME_BYTES {
            self.reader.skip(bytes).await?;
            return Err(Reject::Message("a frame before the content is too long", more));
        }
        let body = self.reader.whole(usize::try_from(bytes).unwrap_or(usize::MAX)).await?;
        self.more = more;
        if more { Ok(body) } else { Err(Reject::Message("too few frames", false)) }
    }

    async fn content_frame(&mut self) -> Result<Frame, Reject> {
        Ok(self.reader.frame().await?)
    }

    async fn skip_frames(&mut self, mut more: bool) -> Result<(), SocketError> {
        while more {
            let frame = self.reader.frame().await?;
            self.reader.skip(frame.bytes).await?;
            more = frame.more;
        }
        Ok(())
    }
}
