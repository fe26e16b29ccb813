//! Tests of the pump over pipes of this process.

use super::*;
use crate::process::testing::MemorySink;
use crate::tasks::TaskGroup;
use nix::fcntl::{FcntlArg, fcntl};
use tokio::io::AsyncWriteExt as _;

/// What the pipe holds, so that more than one chunk can lie in it.
const PIPE_BYTES: usize = 4 * CHUNK_BYTES;

/// A pump that runs.
struct Pumping {
    program: pipe::Sender,
    sink: Arc<MemorySink>,
    exited: oneshot::Sender<()>,
    done: oneshot::Receiver<()>,
    flush: mpsc::Sender<FlushRequest>,
    /// Resolves when the pump has ended.
    ended: oneshot::Receiver<()>,
}

fn pump(sink: MemorySink) -> Pumping {
    let (program, pipe) = pipe::pipe().unwrap();
    fcntl(&program, FcntlArg::F_SETPIPE_SZ(i32::try_from(PIPE_BYTES).unwrap())).unwrap();
    let sink = Arc::new(sink);
    let sinks = Sinks { console: Writer::discard(), task_log: Writer::discard(), sink: sink.clone() };
    let (pump, flush) = Pump::new(Stream::Stdout, pipe, sinks);
    let (exited, exited_rx) = oneshot::channel();
    let (done_tx, done) = oneshot::channel();
    let (ended_tx, ended) = oneshot::channel();
    TaskGroup::new().spawn("pump", async {
        pump.run(exited_rx, done_tx).await;
        let _ = ended_tx.send(());
    });
    Pumping { program, sink, exited, done, flush, ended }
}

/// Bytes in which a loss or a change of the order shows.
fn pattern(bytes: usize) -> Vec<u8> {
    (0u32..).flat_map(u32::to_be_bytes).take(bytes).collect()
}

#[tokio::test]
async fn every_byte_arrives_in_order() {
    let mut pumping = pump(MemorySink::default());
    let sent = pattern(3 << 20);
    pumping.program.write_all(&sent).await.unwrap();
    drop(pumping.program);
    pumping.ended.await.unwrap();
    assert!(pumping.sink.bytes(Stream::Stdout) == sent);
    assert!(pumping.sink.largest_chunk() <= CHUNK_BYTES);
    assert!(pumping.done.await.is_err(), "signalled by dropping the sender");
}

#[tokio::test(start_paused = true)]
async fn what_the_pipe_holds_at_the_exit_belongs_to_the_step_however_slow_the_sink() {
    let pumping = pump(MemorySink::slow(10 * LEAK_TIMEOUT));
    let sent = pattern(PIPE_BYTES);
    pumping.program.writable().await.unwrap();
    assert_eq!(pumping.program.try_write(&sent).unwrap(), PIPE_BYTES);
    pumping.exited.send(()).unwrap();
    let _ = pumping.done.await;
    assert!(pumping.sink.bytes(Stream::Stdout) == sent, "while the pipe is still open");
}

#[tokio::test(start_paused = true)]
async fn a_grandchild_with_the_pipe_delays_the_step_only_for_a_while_and_is_still_heard() {
    let mut pumping = pump(MemorySink::default());
    pumping.program.write_all(b"early\n").await.unwrap();
    pumping.sink.until_stdout("early\n").await;
    let began = Instant::now();
    pumping.exited.send(()).unwrap();
    let _ = pumping.done.await;
    let took = began.elapsed();
    assert!((LEAK_TIMEOUT..2 * LEAK_TIMEOUT).contains(&took), "{took:?}");
    pumping.program.write_all(b"late\n").await.unwrap();
    pumping.sink.until_stdout("early\nlate\n").await;
    drop(pumping.program);
    pumping.ended.await.unwrap();
}

#[tokio::test]
async fn without_a_grandchild_the_pump_ends_after_the_last_byte() {
    let mut pumping = pump(MemorySink::default());
    pumping.program.write_all(b"last\n").await.unwrap();
    drop(pumping.program);
    pumping.exited.send(()).unwrap();
    let _ = pumping.done.await;
    assert_eq!(pumping.sink.stdout(), "last\n");
    pumping.ended.await.unwrap();
}

#[tokio::test]
async fn a_flush_is_answered_after_what_was_written_before_it() {
    let mut pumping = pump(MemorySink::slow(Duration::from_millis(5)));
    for round in 1..=3 {
        let sent = pattern(round * CHUNK_BYTES);
        pumping.program.write_all(&sent[(round - 1) * CHUNK_BYTES..]).await.unwrap();
        let (done, flushed) = oneshot::channel();
        pumping.flush.send(done).await.unwrap();
        flushed.await.unwrap();
        assert!(pumping.sink.bytes(Stream::Stdout) == sent, "round {round}");
    }
}

#[tokio::test]
async fn a_full_sink_blocks_the_program() {
    let mut pumping = pump(MemorySink::slow(Duration::from_hours(1)));
    let chunk = pattern(CHUNK_BYTES);
    let mut written = 0;
    let write = async {
        loop {
            written += pumping.program.write(&chunk).await.unwrap();
        }
    };
    let ended: Result<(), _> = tokio::time::timeout(LEAK_TIMEOUT, write).await;
    assert!(ended.is_err());
    // The pump holds one chunk and leaves the rest in the pipe.
    assert!((PIPE_BYTES..=PIPE_BYTES + CHUNK_BYTES).contains(&written), "{written}");
    assert_eq!(pumping.sink.largest_chunk(), 0, "nothing is delivered yet");
}
