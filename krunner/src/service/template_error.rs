//! Errors of templates.

use std::fmt;

/// A mistake in a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A brace without its counterpart.
    #[error("unbalanced `{brace}` at `{text}`; write `{brace}{brace}` for a literal one")]
    Single {
        /// `{` or `}`.
        brace: char,
        /// The template from the brace on, cut if it is long.
        text: String,
    },
    /// The text between braces is not a valid field.
    #[error("`{{{field}}}`: {problem}")]
    Malformed {
        /// The text between the braces.
        field: String,
        /// What is invalid about it.
        problem: &'static str,
    },
    /// The name is not defined.
    #[error("`{{{field}}}`: unknown name `{name}`; known names: {known}")]
    Unknown {
        /// The text between the braces.
        field: String,
        /// The unknown name.
        name: String,
        /// The defined names.
        known: KnownNames,
    },
    /// The value has no such element.
    #[error("`{{{field}}}`: `{name}` has no element `{index}`")]
    NoPart {
        /// The text between the braces.
        field: String,
        /// The name with the indices before this one.
        name: String,
        /// The missing index or key.
        index: String,
    },
}

/// A longer template is cut in messages.
const SHOWN_CHARS: usize = 40;

impl TemplateError {
    /// The error for the brace at the front of this text.
    pub(super) fn single(brace: char, text: &str) -> Self {
        Self::Single { brace, text: text.chars().take(SHOWN_CHARS).collect() }
    }
}

/// The defined names, for a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownNames(Vec<String>);

impl KnownNames {
    pub(super) fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().collect())
    }
}

impl fmt::Display for KnownNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("none") } else { write!(f, "`{}`", self.0.join("`, `")) }
    }
}
