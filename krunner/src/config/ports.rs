//! The ports that the agent may change: `intrinsic-ports.json`.

use std::io;
use std::path::Path;

use serde_json::{Map, Value};

use super::{ConfigWarning, read_regular};

/// The maximum number of ports that dropbear listens on.
pub(super) const MAX_SSHD_PORTS: usize = 10;

/// TCP ports of the runner and of the services that come with every session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ports {
    /// The PULL port for ops.
    pub replin: u16,
    /// The PUSH port for replies.
    pub replout: u16,
    /// The SUB port for terminal input. Only tests change it, not the agent.
    pub termin: u16,
    /// The PUB port for terminal output; the same applies.
    pub termout: u16,
    /// The ports of sshd, usually one.
    pub sshd: Vec<u16>,
    /// The port of ttyd, the terminal in the browser.
    pub ttyd: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { replin: 2000, replout: 2001, termin: 2002, termout: 2003, sshd: vec![2200], ttyd: 7681 }
    }
}

impl Ports {
    /// Reads the file. Missing or invalid values keep their defaults.
    #[must_use]
    pub(crate) fn load(file: &Path) -> (Self, Vec<ConfigWarning>) {
        match read_regular(file) {
            Ok(text) => Self::parse(file, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Self::default(), Vec::new()),
            Err(error) => {
                (Self::default(), vec![ConfigWarning::new(file, None, format!("{error}; using default ports"))])
            }
        }
    }

    pub(super) fn parse(file: &Path, text: &[u8]) -> (Self, Vec<ConfigWarning>) {
        let mut ports = Self::default();
        let mut warnings = Vec::new();
        match serde_json::from_slice::<Map<String, Value>>(text) {
            Err(error) => {
                let problem = format!("expected a JSON object of ports ({error}); using default ports");
                warnings.push(ConfigWarning::new(file, Some(error.line()), problem));
            }
            Ok(object) => {
                let slots = [
                    ("replin", &mut ports.replin),
                    ("replout", &mut ports.replout),
                    ("termin", &mut ports.termin),
                    ("termout", &mut ports.termout),
                    ("ttyd", &mut ports.ttyd),
                ];
                for (name, slot) in slots {
                    match object.get(name).map(port) {
                        None => {}
                        Some(Some(port)) => *slot = port,
                        Some(None) => {
                            let problem = format!("`{name}` is {}, not a port; using {slot}", object[name]);
                            warnings.push(ConfigWarning::new(file, line_of(text, name), problem));
                        }
                    }
                }
                match object.get("sshd").map(several) {
                    None => {}
                    Some(Some(several)) => ports.sshd = several,
                    Some(None) => {
                        let problem = format!(
                            "`sshd` is {}, expected a port or a list of at most {MAX_SSHD_PORTS} ports; using {}",
                            object["sshd"], ports.sshd[0]
                        );
                        warnings.push(ConfigWarning::new(file, line_of(text, "sshd"), problem));
                    }
                }
            }
        }
        (ports, warnings)
    }
}

/// Parses a number, or a number in a string, from 1 to 65535.
fn port(value: &Value) -> Option<u16> {
    let number = match value {
        Value::Number(number) => u16::try_from(number.as_u64()?).ok()?,
        Value::String(text) => text.parse().ok()?,
        _ => return None,
    };
    (number != 0).then_some(number)
}

/// Parses one port or a list of ports.
fn several(value: &Value) -> Option<Vec<u16>> {
    match value {
        Value::Array(list) if (1..=MAX_SSHD_PORTS).contains(&list.len()) => list.iter().map(port).collect(),
        Value::Array(_) => None,
        single => port(single).map(|port| vec![port]),
    }
}

fn line_of(text: &[u8], key: &str) -> Option<usize> {
    let quoted = format!("\"{key}\"");
    let at = text.windows(quoted.len()).position(|window| window == quoted.as_bytes())?;
    Some(1 + text[..at].iter().filter(|byte| **byte == b'\n').count())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (Ports, Vec<String>) {
        let (ports, warnings) = Ports::parse(Path::new("/p.json"), text.as_bytes());
        (ports, warnings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn numbers_and_strings_are_ports() {
        let (ports, warnings) = parse(r#"{"replin": 12000, "replout": "12001", "sshd": 12002, "ttyd": "12003"}"#);
        let expected = Ports { replin: 12000, replout: 12001, sshd: vec![12002], ttyd: 12003, ..Ports::default() };
        assert_eq!((ports, warnings), (expected, vec![]));
    }

    #[test]
    fn sshd_may_have_several_ports() {
        assert_eq!(parse(r#"{"sshd": [2200, "2201"]}"#).0.sshd, [2200, 2201]);
        for text in [r#"{"sshd": []}"#, r#"{"sshd": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]}"#, r#"{"sshd": [2200, 0]}"#] {
            let (ports, warnings) = parse(text);
            assert_eq!((ports, warnings.len()), (Ports::default(), 1), "{text}");
            assert!(warnings[0].ends_with("expected a port or a list of at most 10 ports; using 2200"), "{warnings:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let (ports, warnings) = parse("{\"replin\": 12000,\n \"replout\": 70000}");
        assert_eq!(ports, Ports { replin: 12000, ..Ports::default() });
        assert_eq!(warnings, ["/p.json:2: `replout` is 70000, not a port; using 2001"]);
        let (ports, warnings) = parse("{\n\"replin\": }");
        assert_eq!(ports, Ports::default());
        assert!(warnings[0].starts_with("/p.json:2: expected a JSON object of ports ("), "{warnings:?}");
    }
}
