//! `c`: every source below the working directory, compiled and linked.

use std::path::PathBuf;

use super::native::Native;

pub(super) fn runtime(compiler: PathBuf) -> Native {
    Native { compiler, extension: "c", compile_flags: &["-Wall"], link_flags: &["-lrt", "-lm", "-lpthread", "-ldl"] }
}
