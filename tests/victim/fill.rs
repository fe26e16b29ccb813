//! Scenarios that first fill memory outside the process (a file in memory, kernel buffers) and then allocate until they
//! are killed, so that most of the limit is filled by memory of a known kind.

use std::ffi::OsString;
use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::pipe;

use super::eat::{announce, eat};
use super::number;

const MIB: usize = 1 << 20;

/// `victim file-then-eat PATH FILE_MIB MIB`: fills a file, for example in a tmpfs, then allocates.
pub(crate) fn file_then_eat(args: &[OsString]) {
    announce("victim");
    fill(&mut File::create(Path::new(&args[0])).expect("the file"), number(args, 1));
    announce("filled");
    drop(black_box(eat(number(args, 2))));
}

/// `victim memfd-then-eat SHARED_MIB MIB`: fills shared memory without a path, then allocates.
pub(crate) fn memfd_then_eat(args: &[OsString]) {
    announce("victim");
    let shared = memfd_create(c"victim", MFdFlags::MFD_CLOEXEC).expect("memfd_create");
    let mut shared = File::from(shared);
    fill(&mut shared, number(args, 0));
    announce("filled");
    drop(black_box((eat(number(args, 1)), shared)));
}

/// `victim pipes-then-eat PIPES_MIB MIB`: fills unread pipes, which use kernel memory, then allocates.
pub(crate) fn pipes_then_eat(args: &[OsString]) {
    announce("victim");
    let pipes: Vec<_> = (0..number(args, 0)).map(|_| full_pipe()).collect();
    announce("filled");
    drop(black_box((eat(number(args, 1)), pipes)));
}

/// A pipe with 1 MiB of data, the maximum (`/proc/sys/fs/pipe-max-size`).
fn full_pipe() -> (OwnedFd, File) {
    let (reader, writer) = pipe().expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(MIB.try_into().expect("small"))).expect("F_SETPIPE_SZ");
    let mut writer = File::from(writer);
    fill(&mut writer, 1);
    (reader, writer)
}

fn fill(file: &mut impl Write, mib: usize) {
    let chunk = vec![1; MIB];
    for _ in 0..mib {
        file.write_all(&chunk).expect("room for it");
    }
}
