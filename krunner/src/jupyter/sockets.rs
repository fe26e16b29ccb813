//! Reading and writing a kernel's five sockets, for as long as they last.
//!
//! What is published is delivered in the order of its arrival, and read no faster than it is delivered. A kernel
//! that goes on publishing would lose it: its own queue holds a thousand messages and drops the rest. So when
//! output piles up, the kernel is paused until that is read, as a program is that writes to a full pipe.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::channel::{Arrival, Inlet};
use super::client::{Client, Outgoing, Question};
use super::connection::Served;
use super::frames::{Broken, Reader, Writer};
use super::long_text::LongText;
use super::message::Message;
use super::pulse::Pulse;
use super::render::{Shown, render};
use crate::process::{Control, OutputSink, Stream};

/// What is delivered at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Output that has piled up unread before the kernel is paused: a hundred of its smallest messages.
const PILED_UP_BYTES: usize = 64 * 1024;

/// Between two looks at the pile while the sink has no room. No kernel publishes a thousand messages meanwhile.
const LOOK: Duration = Duration::from_millis(5);

/// Between two heartbeats.
const BEAT: Duration = Duration::from_secs(3);

/// What is done with the sockets of one kernel.
pub(super) struct Traffic<'a> {
    pub(super) client: &'a Client,
    pub(super) sink: &'a dyn OutputSink,
    pub(super) process: &'a Control,
}

impl Traffic<'_> {
    /// Serves all sockets but the published output's, until one breaks or the kernel no longer answers.
    pub(super) async fn serve(&self, sockets: Served, outgoing: Outgoing) -> Broken {
        let Served {
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
            self.questions(&mut stdin),
            send(shell_out, outgoing.shell),
            send(control_out, outgoing.control),
            send(stdin_out, outgoing.stdin),
            self.heartbeat(heartbeat, heartbeat_out),
        );
        match broken {
            Err(broken) => broken,
            Ok(_) => Broken::Closed,
        }
    }

    /// Delivers what is published, until the socket breaks.
    pub(super) async fn deliver(&self, mut iopub: Inlet) -> Broken {
        loop {
            if let Err(broken) = self.deliver_next(&mut iopub).await {
                return broken;
            }
        }
    }

    async fn deliver_next(&self, iopub: &mut Inlet) -> Result<(), Broken> {
        self.resume_if_read_up(iopub);
        self.client.flow.set_dry(true);
        let arrival = iopub.next().await?;
        self.client.flow.set_dry(false);
        match arrival {
            Arrival::Message(message) if message.head.kind == "status" => self.client.status(&message),
            Arrival::Message(message) => {
                self.show(iopub, message).await;
                self.pause_if_piled_up(iopub);
            }
            Arrival::Long(head, _) if head.kind == "stream" => self.long_text(iopub).await?,
            Arrival::Long(head, bytes) => {
                iopub.skip().await?;
                tracing::error!("a message of type {} is not shown: its {bytes} bytes are too many", head.kind);
            }
            Arrival::Rejected(why) => tracing::warn!("a message of the kernel is ignored: {why}"),
        }
        Ok(())
    }

    async fn show(&self, iopub: &Inlet, message: Message) {
        match render(&message.head.kind, &message.content) {
            Ok(None) => {}
            Ok(Some(Shown::Text(stream, text))) => {
                drop(message);
                self.text(iopub, stream, text.into()).await;
            }
            Ok(Some(Shown::Rich(rich))) => {
                drop(message);
                self.held_up(iopub, self.sink.show(rich)).await;
            }
            Err(error) => tracing::warn!("a malformed {} of the kernel is ignored: {error}", message.head.kind),
        }
    }

    async fn long_text(&self, iopub: &mut Inlet) -> Result<(), Broken> {
        let mut decoder = LongText::new();
        while let Some(piece) = iopub.piece().await? {
            let mut text = Vec::with_capacity(piece.len());
            if let Err(malformed) = decoder.feed(&piece, &mut text) {
                tracing::warn!("{malformed}; the rest of it is ignored");
                return iopub.skip().await;
            }
            drop(piece);
            self.text(iopub, decoder.stream(), text.into()).await;
            self.resume_if_read_up(iopub);
        }
        Ok(())
    }

    async fn text(&self, iopub: &Inlet, stream: Stream, mut text: Bytes) {
        while !text.is_empty() {
            let chunk = text.split_to(text.len().min(CHUNK_BYTES));
            self.held_up(iopub, self.sink.deliver(stream, chunk)).await;
        }
    }

    /// Waits for a delivery; pauses the kernel when it goes on publishing meanwhile.
    async fn held_up(&self, iopub: &Inlet, delivery: impl Future<Output = ()>) {
        tokio::pin!(delivery);
        loop {
            tokio::select! {
                biased;
                () = &mut delivery => return,
                () = sleep(LOOK) => {}
            }
            self.pause_if_piled_up(iopub);
        }
    }

    fn pause_if_piled_up(&self, iopub: &Inlet) {
        if !self.process.is_paused() && iopub.unread_bytes() >= PILED_UP_BYTES {
            self.process.pause(true);
        }
    }

    fn resume_if_read_up(&self, iopub: &Inlet) {
        if self.process.is_paused() && iopub.unread_bytes() == 0 {
            self.process.pause(false);
        }
    }

    async fn answers(&self, inlet: &mut Inlet) -> Result<(), Broken> {
        loop {
            match inlet.next().await? {
                Arrival::Message(message) => self.client.replied(message),
                Arrival::Long(head, bytes) => {
                    inlet.skip().await?;
                    tracing::warn!("the answer {} takes {bytes} bytes; it is counted as a failure", head.kind);
                    // An answer without a status is none of success.
                    self.client.replied(Message { head, content: Bytes::from_static(b"{}") });
                }
                Arrival::Rejected(why) => tracing::warn!("an answer of the kernel is ignored: {why}"),
            }
        }
    }

    async fn questions(&self, inlet: &mut Inlet) -> Result<(), Broken> {
        loop {
            match inlet.next().await? {
                Arrival::Message(message) if message.head.kind == "input_request" => {
                    match serde_json::from_slice(&message.content) {
                        Ok(request) => self.client.asked(Question { parent: message.head.parent, request }),
                        Err(error) => tracing::warn!("a malformed request for input is ignored: {error}"),
                    }
                }
                Arrival::Message(_) => {}
                Arrival::Long(..) => {
                    inlet.skip().await?;
                    tracing::warn!("a request for input is ignored: its prompt is too long");
                }
                Arrival::Rejected(why) => tracing::warn!("a request for input is ignored: {why}"),
            }
        }
    }

    /// Beats until the kernel is taken for hung.
    async fn heartbeat(&self, mut inlet: Reader, mut outlet: Writer) -> Result<(), Broken> {
        let mut pulse = Pulse::default();
        loop {
            sleep(BEAT).await;
            let was_busy = self.client.is_busy();
            // A REQ's message has an empty frame in front.
            outlet.send(&[Bytes::new(), Bytes::from_static(b"ping")]).await?;
            let sent_at = Instant::now();
            let echo = echo(&mut inlet);
            tokio::pin!(echo);
            loop {
                match timeout(BEAT, &mut echo).await {
                    Ok(echo) => break echo?,
                    Err(_) if self.process.is_paused() => {}
                    Err(_) if pulse.has_stopped(sent_at.elapsed(), self.client.is_busy()) => {
                        return Err(Broken::Silent);
                    }
                    Err(_) => {}
                }
            }
            pulse.beaten(was_busy && self.client.is_busy());
        }
    }
}

async fn echo(inlet: &mut Reader) -> Result<(), Broken> {
    loop {
        let frame = inlet.frame().await?;
        inlet.skip(frame.bytes).await?;
        if !frame.more {
            return Ok(());
        }
    }
}

async fn send(mut outlet: Writer, mut messages: mpsc::Receiver<Vec<Bytes>>) -> Result<(), Broken> {
    while let Some(frames) = messages.recv().await {
        outlet.send(&frames).await?;
    }
    Ok(())
}
