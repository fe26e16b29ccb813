//! Environment variables with the values `on` and `off`.

use std::ffi::OsStr;
use std::path::Path;

use super::{ChildEnv, ConfigWarning};

/// Whether the ssh server accepts passwords.
const SSH_PASSWORD: &str = "KRUNNER_SSH_PASSWORD";

/// Whether the ssh server may accept the password created by the agent's entrypoint: yes for `on` or no value.
#[must_use]
pub(crate) fn allows_ssh_password(env: &ChildEnv) -> (bool, Option<ConfigWarning>) {
    switch(env, SSH_PASSWORD, (false, "password login is off"))
}

/// The value of the variable, by default on. `malformed` is the value for any other text, and its description in the
/// warning.
pub(super) fn switch(env: &ChildEnv, name: &str, malformed: (bool, &str)) -> (bool, Option<ConfigWarning>) {
    let value = env.get(OsStr::new(name)).map(|value| value.to_string_lossy());
    match value.as_deref().map(str::trim) {
        None | Some("" | "on") => (true, None),
        Some("off") => (false, None),
        Some(_) => {
            let (is_on, consequence) = malformed;
            (is_on, Some(ConfigWarning::new(Path::new(name), None, format!("expected `on` or `off`; {consequence}"))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_allowed_unless_the_variable_says_otherwise() {
        let allows = |value: &str| {
            let (is_allowed, warning) = allows_ssh_password(&ChildEnv::from([(SSH_PASSWORD.into(), value.into())]));
            (is_allowed, warning.map(|warning| warning.to_string()).unwrap_or_default())
        };
        assert!(matches!(allows_ssh_password(&ChildEnv::new()), (true, None)));
        assert_eq!(allows(" on "), (true, String::new()));
        assert_eq!(allows(""), (true, String::new()));
        assert_eq!(allows("off"), (false, String::new()));
        let warning = "KRUNNER_SSH_PASSWORD: expected `on` or `off`; password login is off".to_owned();
        assert_eq!(allows("false"), (false, warning), "a malformed value must not open anything");
    }
}
