//! Where a kernel listens: ports, key and the file that tells it, and the five sockets connected to it.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use jupyter_protocol::{ConnectionInfo, Transport};
use tempfile::TempPath;
use tokio::time::sleep;
use uuid::Uuid;

use super::channel::Inlet;
use super::frames::{self, Broken, Reader, Writer};
use super::message::Signer;

/// Between two tries to reach a port that the kernel has not opened yet.
const RETRY: Duration = Duration::from_millis(5);

/// A kernel's address, and the file with it. Dropping it removes the file.
pub(super) struct Endpoints {
    info: ConnectionInfo,
    file: TempPath,
    /// Hold the ports until the kernel is about to take them.
    listeners: Vec<TcpListener>,
}

impl Endpoints {
    /// Chooses five free ports and a key, and writes them to a file in `folder` that only we can read.
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
        // Readable by its owner only, as temporary files are.
        let mut file = tempfile::Builder::new().prefix("kernel-").suffix(".json").tempfile_in(folder)?;
        file.write_all(&serde_json::to_vec_pretty(&info)?)?;
        Ok(Self { info, file: file.into_temp_path(), listeners })
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Leaves the ports to the kernel.
    pub(super) fn release_ports(&mut self) {
        self.listeners.clear();
    }

    /// Connects as soon as the kernel listens. Has no deadline of its own.
    pub(super) async fn connect(&self) -> Result<Sockets, Broken> {
        let session = Uuid::new_v4().to_string();
        let signer = Signer::new(&self.info.key, &session);
        let open = |port: u16, socket_type: &'static str| open(port, socket_type, &session);
        // In the order in which ipykernel opens them.
        let (shell, shell_out) = open(self.info.shell_port, "DEALER").await?;
        let (stdin, stdin_out) = open(self.info.stdin_port, "DEALER").await?;
        let (control, control_out) = open(self.info.control_port, "DEALER").await?;
        let (iopub, mut subscriber) = open(self.info.iopub_port, "SUB").await?;
        // To everything.
        subscriber.send(&[bytes::Bytes::from_static(b"\x01")]).await?;
        let (heartbeat, heartbeat_out) = open(self.info.hb_port, "REQ").await?;
        let inlet = |reader| Inlet::new(reader, signer.clone());
        let served = Served {
            shell: inlet(shell),
            shell_out,
            stdin: inlet(stdin),
            stdin_out,
            control: inlet(control),
            control_out,
            heartbeat,
            heartbeat_out,
            _subscriber: subscriber,
        };
        Ok(Sockets { iopub: inlet(iopub), served, signer })
    }
}

/// The five sockets of a kernel's client.
pub(super) struct Sockets {
    /// Where output is published.
    pub(super) iopub: Inlet,
    pub(super) served: Served,
    /// For what is sent to the others.
    pub(super) signer: Signer,
}

/// Those where questions are asked and answered.
pub(super) struct Served {
    pub(super) shell: Inlet,
    pub(super) shell_out: Writer,
    pub(super) stdin: Inlet,
    pub(super) stdin_out: Writer,
    pub(super) control: Inlet,
    pub(super) control_out: Writer,
    pub(super) heartbeat: Reader,
    pub(super) heartbeat_out: Writer,
    /// The sending side of `iopub`, whose end would be the subscription's.
    _subscriber: Writer,
}

/// The sockets share an identity: by it the kernel knows whom to ask for input.
async fn open(port: u16, socket_type: &str, identity: &str) -> Result<(Reader, Writer), Broken> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    loop {
        match frames::connect(address, socket_type, identity).await {
            Err(Broken::Io(error)) if error.kind() == io::ErrorKind::ConnectionRefused => sleep(RETRY).await,
            connected => return connected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

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
