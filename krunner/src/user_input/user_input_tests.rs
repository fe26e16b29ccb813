//! Who is asked for input, and who gets the text.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

const PROGRAM: InputWanted = InputWanted { is_password: None };

struct World {
    _folder: tempfile::TempDir,
    path: std::path::PathBuf,
    input: UserInput,
    wanted: mpsc::Receiver<InputWanted>,
}

fn world(supported: bool) -> World {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    fs::write(&path, "left over").unwrap();
    let (tell, wanted) = mpsc::channel(1);
    let input = serve(&path, supported, tell, Box::new(|_| true), &TaskGroup::new());
    World { _folder: folder, path, input, wanted }
}

async fn read_all(mut stream: UnixStream) -> String {
    let mut text = String::new();
    timeout(Duration::from_secs(10), stream.read_to_string(&mut text)).await.unwrap().unwrap();
    text
}

#[tokio::test]
async fn each_asks_in_turn_and_gets_its_own_text() {
    let mut world = world(true);
    let first = UnixStream::connect(&world.path).await.unwrap();
    assert_eq!(world.wanted.recv().await, Some(PROGRAM));
    let second = UnixStream::connect(&world.path).await.unwrap();
    let long = "ü".repeat(1_000_000);
    world.input.answer(long.clone());
    assert_eq!(read_all(first).await, long);
    assert_eq!(world.wanted.recv().await, Some(PROGRAM));
    world.input.answer("b".into());
    assert_eq!(read_all(second).await, "b");
}

#[tokio::test]
async fn text_typed_ahead_waits_and_a_program_that_left_takes_none() {
    let mut world = world(true);
    let left = UnixStream::connect(&world.path).await.unwrap();
    assert_eq!(world.wanted.recv().await, Some(PROGRAM));
    drop(left);
    let next = UnixStream::connect(&world.path).await.unwrap();
    assert_eq!(world.wanted.recv().await, Some(PROGRAM));
    world.input.answer("kept".into());
    assert_eq!(read_all(next).await, "kept");
    world.input.answer("ahead".into());
    assert_eq!(read_all(UnixStream::connect(&world.path).await.unwrap()).await, "ahead");
}

#[tokio::test]
async fn texts_are_bounded_while_the_session_is_busy() {
    const TEXT_BYTES: usize = 1024 * 1024;
    let mut world = world(true);
    let mut asking = Vec::new();
    for _ in 0..2 {
        asking.push(UnixStream::connect(&world.path).await.unwrap());
    }
    world.input.answer("for the first".into());
    assert_eq!(read_all(asking.remove(0)).await, "for the first");
    // The session has not taken the first request yet, so the second cannot be announced.
    for _ in 0..64 {
        world.input.answer("x".repeat(TEXT_BYTES));
        tokio::task::yield_now().await;
    }
    let mut kept = 0;
    loop {
        world.wanted.recv().await.unwrap();
        let stream = asking.pop().unwrap();
        match timeout(Duration::from_millis(200), read_all(stream)).await {
            Ok(text) if text.len() == TEXT_BYTES => kept += 1,
            Ok(text) => assert_eq!(text, "", "the first request, which was answered"),
            Err(_) => break,
        }
        asking.push(UnixStream::connect(&world.path).await.unwrap());
    }
    assert_eq!(kept, MAX_TYPED_AHEAD_BYTES / (TEXT_BYTES + TEXT_OVERHEAD_BYTES));
}

#[tokio::test]
async fn a_program_that_only_listens_still_gets_its_text() {
    let mut world = world(true);
    let mut stream = UnixStream::connect(&world.path).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(world.wanted.recv().await, Some(PROGRAM));
    sleep(3 * HANG_UP_POLL).await;
    world.input.answer("text".into());
    assert_eq!(read_all(stream).await, "text");
}

#[tokio::test]
async fn an_engine_may_give_up_and_its_text_is_kept() {
    let mut world = world(true);
    let source = world.input.source();
    assert!(timeout(Duration::from_millis(20), source.ask(true)).await.is_err(), "withdrawn");
    assert_eq!(world.wanted.recv().await, Some(InputWanted { is_password: Some(true) }));
    world.input.answer("kept".into());
    assert_eq!(source.ask(false).await.as_deref(), Some("kept"));
}

#[tokio::test]
async fn without_a_socket_engines_can_ask() {
    let (tell, mut wanted) = mpsc::channel(1);
    let input = serve(Path::new("/nonexistent/socket"), true, tell, Box::new(|_| true), &TaskGroup::new());
    let source = input.source();
    let (typed, ()) = tokio::join!(source.ask(false), async {
        assert_eq!(wanted.recv().await, Some(InputWanted { is_password: Some(false) }));
        input.answer("text".into());
    });
    assert_eq!(typed.as_deref(), Some("text"));
}

#[tokio::test]
async fn only_an_unusual_path_is_named_to_programs() {
    let mut world = world(true);
    let mut env = ChildEnv::from([(INPUT_SOCKET_VARIABLE.into(), "/of/an/outer/runner".into())]);
    world.input.add_variable(&mut env);
    assert_eq!(env, ChildEnv::new());
    world.input.elsewhere = Some("/elsewhere".into());
    world.input.add_variable(&mut env);
    assert_eq!(env[OsStr::new(INPUT_SOCKET_VARIABLE)], "/elsewhere");
}

#[tokio::test]
async fn without_support_the_program_is_told() {
    let world = world(false);
    let stream = UnixStream::connect(&world.path).await.unwrap();
    assert_eq!(read_all(stream).await, UNSUPPORTED);
    assert_eq!(fs::metadata(&world.path).unwrap().permissions().mode() & 0o777, 0o600);
}
