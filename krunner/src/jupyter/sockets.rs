//! Reads and writes a kernel's five sockets until one fails.
//!
//! Published output is delivered in order, and read no faster than it is delivered. A kernel that keeps publishing would lose
//! messages: its queue holds a thousand and drops the rest. So when unread output piles up, the kernel is paused until it is
//! read, like a program that writes to a full pipe.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::channel::{Arrival, ChannelReader};
use super::client::{KernelClient, KernelPrompt, Outgoing, ReaderState};
use super::connection::RequestSockets;
use super::frames::{FrameReader, FrameWriter, SocketError};
use super::heartbeat::Heartbeat;
use super::long_text::LongText;
use super::message::KernelMessage;
use super::render::{Rendered, render};
use crate::process::{Control, OutputSink, Stream};

/// Largest chunk that is delivered.
const CHUNK_BYTES: usize = 64 * 1024;

/// Unread output at which the kernel is paused: a hundred of the smallest messages.
const PILED_UP_BYTES: usize = 64 * 1024;

/// Polling interval of the unread output while the sink is full. No kernel publishes a thousand messages in this time.
const POLL_PERIOD: Duration = Duration::from_millis(5);

/// Interval of heartbeats.
const HEARTBEAT_PERIOD: Duration = Duration::from_secs(3);

/// Serves the sockets of one kernel.
pub(super) struct SocketLoop<'a> {
    pub(super) client: &'a KernelClient,
    pub(super) sink: &'a dyn OutputSink,
    pub(super) process: &'a Control,
}

impl SocketLoop<'_> {
    /// Serves all sockets except iopub, until one fails or the kernel hangs.
    pub(super) async fn serve(&self, sockets: RequestSockets, outgoing: Outgoing) -> SocketError {
        let RequestSockets {
            mut shell,
            shell_out,
            mut stdin,
            stdin_out,
            mut control,
            control_out,
            heartbeat,
            heartbeat_out,
            ..
        } = sockets;
        let broken = tokio::try_join!(
            self.answers(&mut shell),
            self.answers(&mut control),
            self.prompts(&mut stdin),
            send(shell_out, outgoing.shell),
            send(control_out, outgoing.control),
            send(stdin_out, outgoing.stdin),
            self.heartbeat(heartbeat, heartbeat_out),
        );
        match broken {
            Err(broken) => broken,
            Ok(_) => SocketError::Closed,
        }
    }

    /// Delivers published output until the socket fails.
    pub(super) async fn deliver(&self, mut iopub: ChannelReader) -> SocketError {
        loop {
            if let Err(broken) = self.deliver_next(&mut iopub).await {
                return broken;
            }
        }
    }

    async fn deliver_next(&self, iopub: &mut ChannelReader) -> Result<(), SocketError> {
        self.resume_if_read_up(iopub);
        match self.read_output(ReaderState::Idle, iopub.next()).await? {
            Arrival::Message(message) if message.head.kind == "status" => self.client.status(&message),
            Arrival::Message(message) if message.head.kind == "execute_input" => {
                self.client.begun(&message.head.parent);
            }
            Arrival::Message(message) => {
                self.show(iopub, message).await;
                self.pause_if_piled_up(iopub);
            }
            Arrival::Long(head, _) if head.kind == "stream" => self.long_text(iopub).await?,
            Arrival::Long(head, _) if head.kind == "execute_input" => {
                self.rest_of_message(iopub.skip()).await?;
                self.client.begun(&head.parent);
            }
            Arrival::Long(head, bytes) => {
                self.rest_of_message(iopub.skip()).await?;
                tracing::error!("dropping a message of type {}: {bytes} bytes are too many", head.kind);
            }
            Arrival::Rejected(why) => tracing::warn!("ignoring a kernel message: {why}"),
        }
        Ok(())
    }

    /// Reads the rest of a message that has begun. A kernel that was killed sends no more of it, and a process that it forked may
    /// keep the socket open.
    async fn rest_of_message<T>(
        &self,
        reading: impl Future<Output = Result<T, SocketError>>,
    ) -> Result<T, SocketError> {
        self.read_output(ReaderState::InMessage, reading).await
    }

    async fn read_output<T>(
        &self,
        meanwhile: fn(std::time::Instant) -> ReaderState,
        reading: impl Future<Output = Result<T, SocketError>>,
    ) -> Result<T, SocketError> {
        self.client.output.begin_wait(meanwhile);
        let read = self.read(reading).await?;
        self.client.output.end_wait();
        Ok(read)
    }

    async fn show(&self, iopub: &ChannelReader, message: KernelMessage) {
        match render(&message.head.kind, &message.content) {
            Ok(None) => {}
            Ok(Some(Rendered::Text(stream, text))) => {
                drop(message);
                self.text(iopub, stream, text.into()).await;
            }
            Ok(Some(Rendered::Rich(rich))) => {
                drop(message);
                self.deliver_or_pause(iopub, self.sink.show(rich)).await;
            }
            Err(error) => tracing::warn!("ignoring a malformed {} message: {error}", message.head.kind),
        }
    }

    async fn long_text(&self, iopub: &mut ChannelReader) -> Result<(), SocketError> {
        let mut decoder = LongText::new();
        while let Some(piece) = self.rest_of_message(iopub.piece()).await? {
            let mut text = Vec::with_capacity(piece.len());
            if let Err(malformed) = decoder.feed(&piece, &mut text) {
                tracing::warn!("{malformed}; ignoring the rest");
                return self.rest_of_message(iopub.skip()).await;
            }
            drop(piece);
            self.text(iopub, decoder.stream(), text.into()).await;
            self.resume_if_read_up(iopub);
        }
        Ok(())
    }

    async fn text(&self, iopub: &ChannelReader, stream: Stream, mut text: Bytes) {
        while !text.is_empty() {
            let chunk = text.split_to(text.len().min(CHUNK_BYTES));
            self.deliver_or_pause(iopub, self.sink.deliver(stream, chunk)).await;
        }
    }

    /// Waits for a delivery; pauses the kernel if output piles up meanwhile.
    async fn deliver_or_pause(&self, iopub: &ChannelReader, delivery: impl Future<Output = ()>) {
        tokio::pin!(delivery);
        loop {
            tokio::select! {
                biased;
                () = &mut delivery => return,
                () = sleep(POLL_PERIOD) => {}
            }
            self.pause_if_piled_up(iopub);
        }
    }

    /// Waits for bytes of the kernel. It may have been paused in the middle of a message, whose rest comes only after it is
    /// resumed.
    async fn read<T>(&self, reading: impl Future<Output = T>) -> T {
        tokio::pin!(reading);
        loop {
            tokio::select! {
                biased;
                done = &mut reading => return done,
                () = sleep(POLL_PERIOD), if self.process.is_paused() => self.process.pause(false),
            }
        }
    }

    fn pause_if_piled_up(&self, iopub: &ChannelReader) {
        if !self.process.is_paused() && iopub.unread_bytes() >= PILED_UP_BYTES {
            self.process.pause(true);
        }
    }

    fn resume_if_read_up(&self, iopub: &ChannelReader) {
        if self.process.is_paused() && iopub.unread_bytes() == 0 {
            self.process.pause(false);
        }
    }

    async fn answers(&self, reader: &mut ChannelReader) -> Result<(), SocketError> {
        loop {
            match reader.next().await? {
                Arrival::Message(message) => self.client.replied(message),
                Arrival::Long(head, bytes) => {
                    reader.skip().await?;
                    tracing::warn!("the reply {} is too large ({bytes} bytes); treating it as a failure", head.kind);
                    // A reply without a status counts as a failure.
                    self.client.replied(KernelMessage { head, content: Bytes::from_static(b"{}") });
                }
                Arrival::Rejected(why) => tracing::warn!("ignoring a kernel reply: {why}"),
            }
        }
    }

    async fn prompts(&self, reader: &mut ChannelReader) -> Result<(), SocketError> {
        loop {
            match reader.next().await? {
                Arrival::Message(message) if message.head.kind == "input_request" => {
                    match serde_json::from_slice(&message.content) {
                        Ok(request) => self.client.asked(KernelPrompt { parent: message.head.parent, request }),
                        Err(error) => tracing::warn!("ignoring a malformed input request: {error}"),
                    }
                }
                Arrival::Message(_) => {}
                Arrival::Long(..) => {
                    reader.skip().await?;
                    tracing::warn!("ignoring an input request: the prompt is too long");
                }
                Arrival::Rejected(why) => tracing::warn!("ignoring an input request: {why}"),
            }
        }
    }

    /// Sends heartbeats until the kernel hangs.
    async fn heartbeat(&self, mut reader: FrameReader, mut writer: FrameWriter) -> Result<(), SocketError> {
        let mut heartbeat = Heartbeat::default();
        loop {
            sleep(HEARTBEAT_PERIOD).await;
            let was_busy = self.client.is_busy();
            // REQ messages begin with an empty frame.
            writer.send(&[Bytes::new(), Bytes::from_static(b"ping")]).await?;
            let mut sent_at = Instant::now();
            let echo = echo(&mut reader);
            tokio::pin!(echo);
            loop {
                match timeout(HEARTBEAT_PERIOD, &mut echo).await {
                    Ok(echo) => break echo?,
                    // The time that it cannot answer for is not its own.
                    Err(_) if self.process.is_paused() => sent_at = Instant::now(),
                    Err(_) if heartbeat.is_dead(sent_at.elapsed(), self.client.is_busy()) => {
                        return Err(SocketError::Silent);
                    }
                    Err(_) => {}
                }
            }
            heartbeat.record_reply(was_busy && self.client.is_busy());
        }
    }
}

async fn echo(reader: &mut FrameReader) -> Result<(), SocketError> {
    loop {
        let frame = reader.frame().await?;
        reader.skip(frame.bytes).await?;
        if !frame.more {
            return Ok(());
        }
    }
}

async fn send(mut writer: FrameWriter, mut messages: mpsc::Receiver<Vec<Bytes>>) -> Result<(), SocketError> {
    while let Some(frames) = messages.recv().await {
        writer.send(&frames).await?;
    }
    Ok(())
}
