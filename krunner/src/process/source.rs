//! Where input comes from when no program's own socket asks for it.

use async_trait::async_trait;

/// Asks the user.
#[async_trait]
pub trait InputSource: Send + Sync {
    /// Waits for its turn, has the user asked, and returns what was typed; `None` when nobody can be asked.
    /// What was written before this call is shown first. Dropping the future withdraws the question.
    async fn ask(&self, is_password: bool) -> Option<String>;
}
