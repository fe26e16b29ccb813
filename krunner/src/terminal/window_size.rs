//! The size of a terminal. A plain value.

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowSize {
    /// Number of lines.
    pub rows: u16,
    /// Characters in a transport.
    pub columns: u16,
}

impl Default for WindowSize {
    /// The size of a VT100.
    fn default() -> Self {
        Self { rows: 24, columns: 80 }
    }
}
