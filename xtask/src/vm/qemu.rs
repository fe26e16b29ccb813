//! A running QEMU: the lines of its second serial port, and the end of its console for failure messages.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::musl::Arch;

/// Console lines in a failure message.
const TAIL_LINES: usize = 25;

/// How the processors of a machine are emulated.
#[derive(Debug, Clone, Copy)]
pub(super) enum Processors {
    /// One runs at a time. The victims of a group kill then free nothing while the kernel reads how much is in use.
    InTurns(usize),
    /// All run at the same time, if QEMU can do that.
    Parallel(usize),
}

/// A virtual machine. Dropping it ends it.
pub(super) struct Qemu {
    child: Child,
    lines: Receiver<String>,
    console: PathBuf,
}

impl Qemu {
    /// Starts a machine without network and display, with emulated processors, and with these further arguments.
    pub(super) fn start(
        arch: Arch,
        processors: Processors,
        memory_mib: u32,
        console: &Path,
        further: &[String],
    ) -> Result<Self> {
        let program = format!("qemu-system-{arch}");
        let mut command = Command::new(&program);
        command.args(["-accel", processors.accelerator(&program)]).args(hardware(arch));
        command.args(["-smp", &processors.count().to_string(), "-m", &memory_mib.to_string()]);
        command.args(["-no-reboot", "-nic", "none", "-display", "none", "-monitor", "none"]);
        command.args(["-serial", &format!("file:{}", console.display())]).args(further);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
        let stdout = BufReader::new(child.stdout.take().context("no output")?);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Self { child, lines, console: console.to_owned() })
    }

    /// The next line, if one arrives in time.
    pub(super) fn line(&self, patience: Duration) -> Result<String, RecvTimeoutError> {
        self.lines.recv_timeout(patience)
    }

    /// The end of its console.
    pub(super) fn tail(&self) -> String {
        let bytes = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n    ");
        format!("  the end of the console ({}):\n    {tail}", self.console.display())
    }
}

/// The kernel's name of the console.
pub(super) fn console(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "ttyS0",
        Arch::Aarch64 => "ttyAMA0",
    }
}

impl Processors {
    fn count(self) -> usize {
        match self {
            Self::InTurns(count) | Self::Parallel(count) => count,
        }
    }

    /// The cache of translated code has its default size, 1 GiB: with a quarter of that, a node translates its engines again and again.
    ///
    /// QEMU 7.2 with a thread for each processor sometimes executes an instruction from its middle while Linux modifies it on another
    /// processor, as it does to attach to a tracepoint: a kernel panic.
    fn accelerator(self, program: &str) -> &'static str {
        match self {
            Self::Parallel(_) if is_parallel_safe(program) => "tcg,thread=multi",
            _ => "tcg,thread=single",
        }
    }
}

fn is_parallel_safe(program: &str) -> bool {
    let version = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let text = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    major_version(&text).is_some_and(|major| major >= 10)
}

/// Reads `QEMU emulator version 10.0.2 (Debian ...)`.
fn major_version(text: &str) -> Option<u32> {
    let (_, version) = text.split_once(" version ")?;
    version.split('.').next()?.parse().ok()
}

/// The processor, and the serial port for events.
///
/// In QEMU 7.2, emulated cmpxchg16b sometimes corrupts the flags, and Linux 6.12 allocates memory with it. `rep movsb` and `rep stosb`
/// are emulated a byte at a time; without `erms` and `fsrm`, Linux and glibc copy and clear memory with other instructions. Pages of
/// 16 KiB need a processor that has them.
fn hardware(arch: Arch) -> &'static [&'static str] {
    match arch {
        Arch::X86_64 => &[
            "-cpu",
            "max,-cx16,-erms,-fsrm",
            "-chardev",
            "stdio,id=events",
            "-device",
            "isa-serial,chardev=events,index=1",
        ],
        Arch::Aarch64 => &[
            "-machine",
            "virt",
            "-cpu",
            "neoverse-n1",
            "-chardev",
            "stdio,id=events",
            // The machine has one port of its own.
            "-device",
            "pci-serial,chardev=events",
        ],
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // All results have arrived, so a clean power-off does not matter.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::major_version;

    #[test]
    fn version_is_read_as_qemu_prints_it() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright (c) 2003-2025\n";
        assert_eq!(major_version(text), Some(10));
        assert_eq!(major_version("QEMU emulator version 7.2.22 (Debian)\n"), Some(7));
        assert_eq!(major_version(""), None);
    }
}
