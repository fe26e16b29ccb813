//! A kernel's connection file (ports and key), and the five sockets connected to it.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use jupyter_protocol::{ConnectionInfo, Transport};
use tempfile::TempPath;
use tokio::time::sleep;
use uuid::Uuid;

use super::channel::ChannelReader;
use super::frames::{self, FrameReader, FrameWriter, SocketError};
use super::message::Signer;

/// Retry interval of connecting to a port that is not open yet.
const RETRY: Duration = Duration::from_millis(5);

/// A kernel's address, and the connection file. Dropping it removes the file.
pub(super) struct Endpoints {
    info: ConnectionInfo,
    file: TempPath,
    /// Reserve the ports until the kernel starts.
    listeners: Vec<TcpListener>,
}

impl Endpoints {
    /// Chooses five free ports and a key, and writes them to a file in `folder` with mode 0600.
    pub(super) fn choose(folder: &Path, kernel_name: &str) -> io::Result<Self> {
        let listeners: Vec<TcpListener> =
            (0..5).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<io::Result<_>>()?;
        let port = |index: usize| listeners[index].local_addr().map(|address| address.port());
        let info = ConnectionInfo {
            transport: Transport::TCP,
            ip: Ipv4Addr::LOCALHOST.to_string(),
            shell_port: port(0)?,
            iopub_port: port(1)?,
            stdin_port: port(2)?,
            control_port: port(3)?,
            hb_port: port(4)?,
            signature_scheme: "hmac-sha256".into(),
            key: Uuid::new_v4().to_string(),
            kernel_name: Some(kernel_name.to_owned()),
        };
        // Temporary files have mode 0600.
        let mut file = tempfile::Builder::new().prefix("kernel-").suffix(".json").tempfile_in(folder)?;
        file.write_all(&serde_json::to_vec_pretty(&info)?)?;
        Ok(Self { info, file: file.into_temp_path(), listeners })
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Releases the reserved ports for the kernel.
    pub(super) fn release_ports(&mut self) {
        self.listeners.clear();
    }

    /// Connects as soon as the kernel listens. The caller sets the deadline.
    pub(super) async fn connect(&self) -> Result<Sockets, SocketError> {
        let session = Uuid::new_v4().to_string();
        let signer = Signer::new(&self.info.key, &session);
        let open = |port: u16, socket_type: &'static str| open(port, socket_type, &session);
        // ipykernel opens them in this order.
        let (shell, shell_out) = open(self.info.shell_port, "DEALER").await?;
        let (stdin, stdin_out) = open(self.info.stdin_port, "DEALER").await?;
        let (control, control_out) = open(self.info.control_port, "DEALER").await?;
        let (iopub, mut subscriber) = open(self.info.iopub_port, "SUB").await?;
        // An empty prefix subscribes to everything.
        subscriber.send(&[bytes::Bytes::from_static(b"\x01")]).await?;
        let (heartbeat, heartbeat_out) = open(self.info.hb_port, "REQ").await?;
        let reader = |reader| ChannelReader::new(reader, signer.clone());
        let served = RequestSockets {
            shell: reader(shell),
            shell_out,
            stdin: reader(stdin),
            stdin_out,
            control: reader(control),
            control_out,
            heartbeat,
            heartbeat_out,
            _subscriber: subscriber,
        };
        Ok(Sockets { iopub: reader(iopub), served, signer })
    }
}

/// The five sockets of a kernel's client.
pub(super) struct Sockets {
    /// The socket on which the kernel publishes output.
    pub(super) iopub: ChannelReader,
    pub(super) served: RequestSockets,
    /// Signs what is sent to the kernel.
    pub(super) signer: Signer,
}

/// The sockets for requests and replies.
pub(super) struct RequestSockets {
    pub(super) shell: ChannelReader,
    pub(super) shell_out: FrameWriter,
    pub(super) stdin: ChannelReader,
    pub(super) stdin_out: FrameWriter,
    pub(super) control: ChannelReader,
    pub(super) control_out: FrameWriter,
    pub(super) heartbeat: FrameReader,
    pub(super) heartbeat_out: FrameWriter,
    /// The sending side of `iopub`. Dropping it would end the subscription.
    _subscriber: FrameWriter,
}

/// All sockets have the same identity, by which the kernel routes input requests.
async fn open(port: u16, socket_type: &str, identity: &str) -> Result<(FrameReader, FrameWriter), SocketError> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    loop {
        match frames::connect(address, socket_type, identity).await {
            Err(SocketError::Io(error)) if is_not_open_yet(&error) => sleep(RETRY).await,
            connected => return connected,
        }
    }
}

/// The port is refused until the kernel listens. It is reset if a child that was forked at the same time still has the
/// listener that reserved the port, until it executes its program.
fn is_not_open_yet(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[tokio::test]
    async fn a_listener_that_goes_away_is_not_the_kernels() {
        let leaked = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = leaked.local_addr().unwrap().port();
        #[expect(clippy::disallowed_methods, reason = "the test waits for its end")]
        let connecting = tokio::spawn(async move { open(port, "DEALER", "me").await.map(drop) });
        // It is in the listener's queue by then, with its greeting.
        sleep(10 * RETRY).await;
        drop(leaked);
        sleep(10 * RETRY).await;
        assert!(!connecting.is_finished(), "it tries again");
        connecting.abort();
    }

    #[test]
    fn the_file_is_ours_alone_and_goes_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let endpoints = Endpoints::choose(folder.path(), "python3").unwrap();
        let file = endpoints.file().to_path_buf();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let written: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert_eq!((&written["transport"], &written["ip"]), (&"tcp".into(), &"127.0.0.1".into()));
        assert_eq!(written["signature_scheme"], "hmac-sha256");
        assert!(written["key"].as_str().unwrap().len() >= 32);
        let ports: HashSet<u64> = ["shell", "iopub", "stdin", "control", "hb"]
            .map(|channel| written[format!("{channel}_port")].as_u64().unwrap())
            .into();
        assert_eq!(ports.len(), 5);
        drop(endpoints);
        assert!(!file.exists());
    }
}
