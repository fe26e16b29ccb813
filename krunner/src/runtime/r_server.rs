//! `r_server_ms`: R code runs in a session on a Microsoft R Server (Machine Learning Server).
//!
//! ```text
//!            login                 session                 code
//! nobody ──────────▶ logged in ──────────▶ in a session ◀─────────▶ running
//!    ▲   401            │  ▲ token about to expire, or 401: refreshed    │ 404: the session is gone,
//!    └──────────────────┘  └────────────────────────────────────────────┘ the next has nothing of it
//! ```
//!
//! Nothing is asked of the server before the first `code`. At the end the session is deleted there and the
//! refresh token revoked.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::engine::{Engine, Surroundings};
use super::plan::Plan;
use super::remote::{Client, FAILED, quote, unless_asked, variable, write};
use super::traits::Runtime;
use crate::config::ChildEnv;
use crate::http_client::{Answer, Limits};
use crate::process::{Control, Launcher, Stream};

/// Where the server listens unless it is told otherwise.
const DEFAULT_ENDPOINT: &str = "http://localhost:12800";

/// For everything but the user's code, which may take as long as it likes.
const DEADLINE: Duration = Duration::from_secs(30);

/// After an interrupt, for the server to give up what it runs.
const CANCEL_DEADLINE: Duration = Duration::from_secs(5);

/// When the runner stops, for all that is left to say.
const FAREWELL_DEADLINE: Duration = Duration::from_millis(2500);

/// Output of one step.
const MAX_OUTPUT_BYTES: usize = 16 * 1024 * 1024;

/// A token is refreshed so long before it expires.
const EXPIRY_MARGIN: Duration = Duration::from_secs(30);

const NO_BATCH: &str =
    "this runtime has R run code on a server, in query mode only; `build` and `exec` take a command line";

pub(super) struct RServer;

impl Runtime for RServer {
    fn build(&self, _: &Path) -> Plan {
        Plan::missing(NO_BATCH)
    }

    fn execute(&self, _: &Path) -> Plan {
        Plan::missing(NO_BATCH)
    }

    fn code_goes_to(&self) -> Option<String> {
        Some("a session on Microsoft R Server".to_owned())
    }

    fn engine(&self, surroundings: Surroundings) -> Option<Arc<dyn Engine>> {
        let Surroundings { launcher, env, .. } = surroundings;
        let server = Server { account: Account::of(&env), client: Client::default(), state: State::default() };
        Some(Arc::new(RemoteR { launcher, server: Mutex::new(server) }))
    }
}

/// Who asks, and where.
struct Account {
    /// Without a slash at its end.
    endpoint: String,
    username: String,
    password: String,
}

impl Account {
    fn of(env: &ChildEnv) -> Result<Self, String> {
        let endpoint = variable(env, "MRS_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let endpoint = if endpoint.contains("://") { endpoint } else { format!("http://{endpoint}") };
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let usable = endpoint.parse::<Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
        });
        if !usable {
            return Err(format!("MRS_ENDPOINT is {endpoint:?}, not an address like {DEFAULT_ENDPOINT}"));
        }
        let or_else = |name, default: &str| variable(env, name).unwrap_or_else(|| default.to_owned());
        let (username, password) = (or_else("MRS_USERNAME", "anonymous"), or_else("MRS_PASSWORD", "unknown"));
        Ok(Self { endpoint, username, password })
    }
}

/// What the server has given us.
#[derive(Default)]
struct State {
    tokens: Option<Tokens>,
    session: Option<String>,
}

struct Tokens {
    access: String,
    refresh: String,
    /// When the access token should be refreshed.
    due: Instant,
}

/// The server's words for [`Tokens`].
#[derive(Deserialize)]
struct Login {
    access_token: String,
    refresh_token: String,
    /// Seconds; a number or a string of one.
    expires_in: Value,
}

impl From<Login> for Tokens {
    fn from(login: Login) -> Self {
        let seconds = match &login.expires_in {
            Value::String(text) => text.parse().unwrap_or(0),
            value => value.as_u64().unwrap_or(0),
        };
        let life = Duration::from_secs(seconds.min(u64::from(u32::MAX)));
        let margin = EXPIRY_MARGIN.min(life / 2);
        Self { access: login.access_token, refresh: login.refresh_token, due: Instant::now() + life - margin }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewSession {
    session_id: String,
}

/// What running code comes to.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Execution {
    success: Option<bool>,
    console_output: Option<String>,
    error_message: Option<String>,
}

/// A conversation with the server.
struct Server {
    account: Result<Account, String>,
    client: Client,
    state: State,
}

/// Whom a request comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum As {
    Nobody,
    User,
}

impl Server {
    async fn ask(
        &self,
        who: As,
        method: Method,
        path: &str,
        body: &Value,
        deadline: Option<Duration>,
    ) -> Result<Answer, String> {
        let address = format!("{}{path}", self.account.as_ref()?.endpoint);
        let mut request = Request::builder().method(method).uri(&address);
        if let (As::User, Some(tokens)) = (who, &self.state.tokens) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", tokens.access));
        }
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(body).map_err(|error| format!("{address} cannot be asked: {error}"))?;
        self.client.send(request, Limits { deadline, body_bytes: MAX_OUTPUT_BYTES }).await
    }

    /// Sees to a token that is not about to expire.
    async fn log_in(&mut self) -> Result<(), String> {
        if let Some(tokens) = self.state.tokens.take_if(|tokens| tokens.due <= Instant::now()) {
            let body = json!({ "refreshToken": tokens.refresh });
            self.state.tokens = Some(tokens);
            let answer = self.ask(As::User, Method::POST, "/login/refreshToken", &body, Some(DEADLINE)).await?;
            // A refresh token may be worn out as well; then the password has to do.
            self.state.tokens = if answer.status.is_success() { Some(login(&answer)?) } else { None };
        }
        if self.state.tokens.is_none() {
            let account = self.account.as_ref()?;
            let body = json!({ "username": account.username, "password": account.password });
            let answer = self.ask(As::Nobody, Method::POST, "/login", &body, Some(DEADLINE)).await?;
            if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                let name = &account.username;
                return Err(format!(
                    "The R Server does not let {name:?} in ({}): are MRS_USERNAME and MRS_PASSWORD right? {}",
                    answer.status,
                    quote(&answer.body)
                ));
            }
            self.state.tokens = Some(login(&checked(answer, "to log in")?)?);
        }
        Ok(())
    }

    /// Asks as the user; a token that is not taken is refreshed, once.
    async fn ask_as_user(
        &mut self,
        method: Method,
        path: &str,
        body: &Value,
        deadline: Option<Duration>,
    ) -> Result<Answer, String> {
        self.log_in().await?;
        let answer = self.ask(As::User, method.clone(), path, body, deadline).await?;
        if answer.status != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        if let Some(tokens) = &mut self.state.tokens {
            tokens.due = Instant::now();
        }
        self.log_in().await?;
        self.ask(As::User, method, path, body, deadline).await
    }

    /// The session's path; it is made first if there is none.
    async fn session(&mut self) -> Result<String, String> {
        if self.state.session.is_none() {
            let answer = self.ask_as_user(Method::POST, "/sessions", &json!({}), Some(DEADLINE)).await?;
            let made: NewSession = parsed(&checked(answer, "to make a session")?)?;
            // It becomes part of an address.
            if made.session_id.is_empty()
                || !made.session_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            {
                return Err(format!(
                    "The R Server has named a session {:?}, which no address can hold",
                    made.session_id
                ));
            }
            self.state.session = Some(made.session_id);
        }
        Ok(format!("/sessions/{}", self.state.session.as_deref().unwrap_or_default()))
    }

    /// Runs code in the session; the second value says that it is another session than before.
    async fn execute(&mut self, code: &str) -> Result<(Execution, bool), String> {
        let body = json!({ "code": code });
        let had_one = self.state.session.is_some();
        let path = format!("{}/execute", self.session().await?);
        let mut answer = self.ask_as_user(Method::POST, &path, &body, None).await?;
        let is_gone = had_one && answer.status == StatusCode::NOT_FOUND;
        if is_gone {
            self.state.session = None;
            let path = format!("{}/execute", self.session().await?);
            answer = self.ask_as_user(Method::POST, &path, &body, None).await?;
        }
        Ok((parsed(&checked(answer, "to run the code")?)?, is_gone))
    }

    /// Has the session give up what it runs.
    async fn cancel(&mut self) {
        let Some(session) = &self.state.session else { return };
        let path = format!("/sessions/{session}/cancel");
        match self.ask_as_user(Method::POST, &path, &json!({}), Some(CANCEL_DEADLINE)).await {
            Ok(answer) if answer.status.is_success() => {}
            Ok(answer) => {
                tracing::warn!("the R Server may still run what was interrupted: it answers {}", answer.status);
            }
            Err(problem) => tracing::warn!("the R Server may still run what was interrupted: {problem}"),
        }
    }

    /// Leaves nothing behind on the server.
    async fn leave(&mut self) -> Result<(), String> {
        if let Some(session) = self.state.session.take() {
            let path = format!("/sessions/{session}");
            let answer = self.ask_as_user(Method::DELETE, &path, &Value::Null, Some(FAREWELL_DEADLINE)).await?;
            checked(answer, "to delete the session")?;
        }
        if let Some(tokens) = &self.state.tokens {
            let path = format!("/login/refreshToken?refreshToken={}", escaped(&tokens.refresh));
            let answer = self.ask(As::User, Method::DELETE, &path, &Value::Null, Some(FAREWELL_DEADLINE)).await?;
            checked(answer, "to revoke the token")?;
            self.state.tokens = None;
        }
        Ok(())
    }
}

fn login(answer: &Answer) -> Result<Tokens, String> {
    parsed::<Login>(answer).map(Tokens::from)
}

fn checked(answer: Answer, what: &str) -> Result<Answer, String> {
    if answer.status.is_success() {
        return Ok(answer);
    }
    Err(format!("The R Server answers {} when asked {what}: {}", answer.status, quote(&answer.body)))
}

fn parsed<T: DeserializeOwned>(answer: &Answer) -> Result<T, String> {
    serde_json::from_slice(&answer.body)
        .map_err(|error| format!("The R Server's answer has not the form of one ({error}); is MRS_ENDPOINT right?"))
}

/// As a value in the query of an address (RFC 3986, unreserved characters).
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let written = write!(escaped, "%{byte:02X}");
            debug_assert!(written.is_ok(), "a String takes everything");
        }
    }
    escaped
}

/// R for a session. A request that is interrupted is dropped; should the server have been making a session
/// just then, that one is left to the server's own timeout.
struct RemoteR {
    launcher: Launcher,
    server: Mutex<Server>,
}

#[async_trait]
impl Engine for RemoteR {
    async fn run(&self, code: &str, control: &Control) -> i32 {
        let mut server = self.server.lock().await;
        let (execution, is_new) = match unless_asked(control, server.execute(code)).await {
            Ok(Ok(executed)) => executed,
            Ok(Err(problem)) => {
                write(&self.launcher, Stream::Stderr, format!("{problem}\n")).await;
                return FAILED;
            }
            Err(exit_code) => {
                // A stop deletes the session, which ends what runs in it.
                tokio::select! {
                    biased;
                    () = control.terminated() => {}
                    () = server.cancel() => {}
                }
                return exit_code;
            }
        };
        if is_new {
            let told = "The session on the R Server was gone; this ran in a new one, without your variables.\n";
            write(&self.launcher, Stream::Stderr, told).await;
        }
        write(&self.launcher, Stream::Stdout, execution.console_output.unwrap_or_default()).await;
        if execution.success == Some(false) {
            let told = execution.error_message.unwrap_or_else(|| "R has failed and does not say why.".to_owned());
            write(&self.launcher, Stream::Stderr, format!("{}\n", told.trim_end())).await;
            return FAILED;
        }
        0
    }

    async fn stop(&self) {
        let farewell = async { self.server.lock().await.leave().await };
        match timeout(FAREWELL_DEADLINE, farewell).await {
            Ok(Ok(())) => {}
            Ok(Err(problem)) => tracing::warn!("something may be left on the R Server: {problem}"),
            Err(_) => tracing::warn!("something may be left on the R Server: it takes its time to answer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(variables: &[(&str, &str)]) -> Result<Account, String> {
        Account::of(&variables.iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    #[test]
    fn the_endpoint_is_an_address_with_or_without_its_scheme() {
        let endpoint = |value| account(&[("MRS_ENDPOINT", value)]).map(|account| account.endpoint);
        assert_eq!(account(&[]).unwrap().endpoint, DEFAULT_ENDPOINT);
        assert_eq!(endpoint("r.example.org:12800"), Ok("http://r.example.org:12800".into()));
        assert_eq!(endpoint("https://r.example.org/api/"), Ok("https://r.example.org/api".into()));
        for wrong in ["ftp://x", "http://", "http://a b"] {
            assert!(endpoint(wrong).unwrap_err().starts_with("MRS_ENDPOINT is "), "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_are_refreshed_before_they_expire() {
        let due = |expires_in: Value| {
            let login = Login { access_token: String::new(), refresh_token: String::new(), expires_in };
            Tokens::from(login).due - Instant::now()
        };
        assert_eq!(due(json!("3600")), Duration::from_secs(3570));
        assert_eq!(due(json!(3600)), Duration::from_secs(3570));
        assert_eq!(due(json!(10)), Duration::from_secs(5));
        assert_eq!(due(json!("soon")), Duration::ZERO);
        assert_eq!(due(json!(u64::MAX)) + EXPIRY_MARGIN, Duration::from_secs(u64::from(u32::MAX)));
    }

    #[test]
    fn tokens_are_escaped_in_addresses() {
        assert_eq!(escaped("aZ9-._~"), "aZ9-._~");
        assert_eq!(escaped("a+/=&é"), "a%2B%2F%3D%26%C3%A9");
    }
}
