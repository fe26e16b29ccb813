//! The version of the agent that started the session, read from one of its packages in the container.
//!
//! Agents mount two packages into each session, `kernel` and `helpers`, from their own installation. krunner replaces
//! only `kernel`. An agent requires `helpers` in exactly its own version, so the file `VERSION` there has the agent's
//! version.

use super::{Paths, read_regular};

/// A release of Backend.AI, `YEAR.MONTH.PATCH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AgentVersion {
    year: u32,
    month: u32,
    patch: u32,
}

impl AgentVersion {
    /// Reads the version file; `None` outside of an agent's container.
    #[must_use]
    pub(crate) fn find(paths: &Paths) -> Option<Self> {
        paths.agent_versions().iter().find_map(|path| {
            let text = read_regular(path).ok()?;
            Self::parse(str::from_utf8(&text).ok()?)
        })
    }

    /// Parses `23.03.8`; ignores suffixes as in `26.4.0rc1` and `25.18.0.dev3`.
    #[must_use]
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().splitn(3, '.').map(|part| {
            let digits = part.find(|character: char| !character.is_ascii_digit()).unwrap_or(part.len());
            part[..digits].parse().ok()
        });
        Some(Self { year: parts.next()??, month: parts.next()??, patch: parts.next()?? })
    }

    /// Whether the reply about a model service must wait for the health of the service: only for 23.3.
    #[must_use]
    pub(crate) fn wants_health_in_answer(self) -> bool {
        (self.year, self.month) < (23, 9)
    }

    /// Whether the agent waits 35 s rather than 10 s for the reply to `start-service`: since 26.4.10 in that series,
    /// and after 26.8.1.
    #[must_use]
    pub(crate) fn waits_long_for_services(self) -> bool {
        let Self { year, month, patch } = self;
        ((year, month) == (26, 4) && patch >= 10) || (year, month, patch) > (26, 8, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn version(text: &str) -> AgentVersion {
        AgentVersion::parse(text).expect(text)
    }

    #[test]
    fn releases_are_compared_by_their_numbers() {
        assert_eq!(version("23.03.8\n"), version("23.3.8"));
        assert_eq!(version("26.4.0rc1"), version("26.4.0"));
        assert_eq!(version("25.18.0.dev3"), version("25.18.0"));
        assert!(version("24.09.5") < version("24.9.10") && version("24.9.10") < version("24.12.0"));
        for wrong in ["", "23", "23.3", "main", "23.x.1"] {
            assert_eq!(AgentVersion::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_differs_is_known_by_release() {
        let health = ["23.03.8", "23.09.0", "23.09.10", "24.03.1", "26.8.1"];
        assert_eq!(health.map(|it| version(it).wants_health_in_answer()), [true, false, false, false, false]);
        let long = ["23.03.8", "26.4.9", "26.4.10", "26.5.0", "26.8.1", "26.8.2", "26.9.0", "27.1.0"];
        let expected = [false, false, true, false, false, true, true, true];
        assert_eq!(long.map(|it| version(it).waits_long_for_services()), expected);
    }

    #[test]
    fn the_helpers_say_it() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path());
        assert_eq!(AgentVersion::find(&paths), None);
        let folder = root.path().join("opt/backend.ai/lib/python3.11/site-packages/ai/backend/helpers");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("VERSION"), "24.09.5").unwrap();
        assert_eq!(AgentVersion::find(&paths), Some(version("24.9.5")));
    }
}
