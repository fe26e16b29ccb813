//! `cpp`: as `c`, with another compiler and extension.

use std::path::PathBuf;

use super::native::Native;

pub(super) fn runtime(compiler: PathBuf) -> Native {
    Native { compiler, extension: "cpp", compile_flags: &["-Wall"], link_flags: &["-lrt", "-lm", "-lpthread", "-ldl"] }
}
