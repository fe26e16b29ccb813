//! `app`: a container that only offers services.

use std::path::Path;

use super::plan::{Plan, Severity};
use super::traits::Runtime;

pub(super) struct App;

const UNSUPPORTED: &str = "batch-mode execution is not supported";

impl Runtime for App {
    fn build(&self, _: &Path) -> Plan {
        Plan::skip(Severity::Warning, UNSUPPORTED)
    }

    fn execute(&self, _: &Path) -> Plan {
        Plan::skip(Severity::Warning, UNSUPPORTED)
    }
}
