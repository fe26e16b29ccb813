//! Log lines of rare events, in the object for `--debug` only.

#[cfg(feature = "log")]
pub(super) mod lines;

/// Calls a function of `log/lines.rs`. Nothing at all in the object without log lines, whose programs are to be the same
/// bytes as if this were not there.
macro_rules! log_line {
    ($function:ident($($argument:expr),*)) => {
        #[cfg(feature = "log")]
        $crate::object::log::lines::$function($($argument),*);
    };
}

pub(super) use log_line;
