//! Log lines for rare events, compiled only into the object that `--debug` loads.

#[cfg(feature = "log")]
pub(super) mod lines;

/// Calls a function of `log/lines.rs`. Expands to nothing in the object without log lines, so that its programs are the
/// same bytes as without the macro.
macro_rules! log_line {
    ($function:ident($($argument:expr),*)) => {
        #[cfg(feature = "log")]
        $crate::object::log::lines::$function($($argument),*);
    };
}

pub(super) use log_line;
