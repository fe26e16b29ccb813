//! User input for code that does not use the input socket.

use async_trait::async_trait;

/// Prompts the user for input.
#[async_trait]
pub(crate) trait InputSource: Send + Sync {
    /// Waits for its turn, prompts the user, and returns the input; `None` if input is not available. Output written
    /// before this call is shown first. Dropping the future withdraws the prompt.
    async fn ask(&self, is_password: bool) -> Option<String>;
}
