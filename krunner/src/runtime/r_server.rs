//! `r_server_ms`: R code runs in a session on a Microsoft R Server (Machine Learning Server).
//!
//! ```text
//!            login                 session                 code
//! logged out ──────▶ logged in ──────────▶ in a session ◀─────────▶ running
//!    ▲   401            │  ▲ token about to expire, or 401: refreshed    │ 404: the session is lost,
//!    └──────────────────┘  └────────────────────────────────────────────┘ the next one starts empty
//! ```
//!
//! The first request is sent with the first `code`. At the end the session is deleted on the server and the refresh token is
//! revoked.

mod error;

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

use self::error::{InvalidEndpoint, RServerError};
use super::engine::{Engine, EngineContext};
use super::plan::Plan;
use super::remote::{FAILED, LazyHttpClient, quote, unless_interrupted, variable, write};
use super::traits::Runtime;
use crate::config::ChildEnv;
use crate::error::chain;
use crate::http_client::{HttpResponse, ResponseLimits};
use crate::process::{Control, Launcher, Stream};

/// The server's default address.
const DEFAULT_ENDPOINT: &str = "http://localhost:12800";

/// For all requests except the user's code, which has no limit.
const DEADLINE: Duration = Duration::from_secs(30);

/// For the cancel request after an interrupt.
const CANCEL_DEADLINE: Duration = Duration::from_secs(5);

/// For all requests when the runner stops.
const LOGOUT_DEADLINE: Duration = Duration::from_millis(2500);

/// Limit of a step's output.
const MAX_OUTPUT_BYTES: usize = 16 * 1024 * 1024;

/// How long before its expiry a token is refreshed.
const EXPIRY_MARGIN: Duration = Duration::from_secs(30);

const NO_BATCH: &str =
    "this runtime runs R code on a server, in query mode only; `build` and `exec` take a command line";

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

    fn engine(&self, context: EngineContext) -> Option<Arc<dyn Engine>> {
        let EngineContext { launcher, env, .. } = context;
        let server = Server {
            account: RServerAccount::of(&env),
            client: LazyHttpClient::default(),
            state: ServerState::default(),
        };
        Some(Arc::new(RemoteR { launcher, server: Mutex::new(server) }))
    }
}

/// Credentials and endpoint.
struct RServerAccount {
    /// Without a trailing slash.
    endpoint: String,
    username: String,
    password: String,
}

impl RServerAccount {
    fn of(env: &ChildEnv) -> Result<Self, InvalidEndpoint> {
        let endpoint = variable(env, "MRS_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let endpoint = if endpoint.contains("://") { endpoint } else { format!("http://{endpoint}") };
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let usable = endpoint.parse::<Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
        });
        if !usable {
            return Err(InvalidEndpoint(endpoint));
        }
        let or_else = |name, default: &str| variable(env, name).unwrap_or_else(|| default.to_owned());
        let (username, password) = (or_else("MRS_USERNAME", "anonymous"), or_else("MRS_PASSWORD", "unknown"));
        Ok(Self { endpoint, username, password })
    }
}

/// Tokens and session from the server.
#[derive(Default)]
struct ServerState {
    tokens: Option<AuthTokens>,
    session: Option<String>,
}

struct AuthTokens {
    access: String,
    refresh: String,
    /// When the access token should be refreshed.
    due: Instant,
}

/// The server's JSON for [`AuthTokens`].
#[derive(Deserialize)]
struct Login {
    access_token: String,
    refresh_token: String,
    /// Seconds; a number or a string of one.
    expires_in: Value,
}

impl From<Login> for AuthTokens {
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

/// The result of running code.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ExecuteResponse {
    success: Option<bool>,
    console_output: Option<String>,
    error_message: Option<String>,
}

/// The client of one server.
struct Server {
    account: Result<RServerAccount, InvalidEndpoint>,
    client: LazyHttpClient,
    state: ServerState,
}

/// Authentication of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Auth {
    Anonymous,
    User,
}

impl Server {
    fn account(&self) -> Result<&RServerAccount, InvalidEndpoint> {
        self.account.as_ref().map_err(Clone::clone)
    }

    async fn ask(
        &self,
        auth: Auth,
        method: Method,
        path: &str,
        body: &Value,
        deadline: Option<Duration>,
    ) -> Result<HttpResponse, RServerError> {
        let address = format!("{}{path}", self.account()?.endpoint);
        let mut request = Request::builder().method(method).uri(&address);
        if let (Auth::User, Some(tokens)) = (auth, &self.state.tokens) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", tokens.access));
        }
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(body).map_err(|source| RServerError::Address { address, source })?;
        Ok(self.client.send(request, ResponseLimits { deadline, body_bytes: MAX_OUTPUT_BYTES }).await?)
    }

    /// Ensures a token that is not about to expire.
    async fn log_in(&mut self) -> Result<(), RServerError> {
        if let Some(tokens) = self.state.tokens.take_if(|tokens| tokens.due <= Instant::now()) {
            let body = json!({ "refreshToken": tokens.refresh });
            self.state.tokens = Some(tokens);
            let answer = self.ask(Auth::User, Method::POST, "/login/refreshToken", &body, Some(DEADLINE)).await?;
            // The refresh token may have expired too; then the password is used.
            self.state.tokens = if answer.status.is_success() { Some(login(&answer)?) } else { None };
        }
        if self.state.tokens.is_none() {
            let account = self.account()?;
            let body = json!({ "username": account.username, "password": account.password });
            let answer = self.ask(Auth::Anonymous, Method::POST, "/login", &body, Some(DEADLINE)).await?;
            if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                let (username, reason) = (account.username.clone(), quote(&answer.body));
                return Err(RServerError::Rejected { username, status: answer.status, reason });
            }
            self.state.tokens = Some(login(&checked(answer, "to log in")?)?);
        }
        Ok(())
    }

    /// Sends a request as the user; a rejected token is refreshed, once.
    async fn ask_as_user(
        &mut self,
        method: Method,
        path: &str,
        body: &Value,
        deadline: Option<Duration>,
    ) -> Result<HttpResponse, RServerError> {
        self.log_in().await?;
        let answer = self.ask(Auth::User, method.clone(), path, body, deadline).await?;
        if answer.status != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        if let Some(tokens) = &mut self.state.tokens {
            tokens.due = Instant::now();
        }
        self.log_in().await?;
        self.ask(Auth::User, method, path, body, deadline).await
    }

    /// The session's path; creates the session if there is none.
    async fn session(&mut self) -> Result<String, RServerError> {
        if self.state.session.is_none() {
            let answer = self.ask_as_user(Method::POST, "/sessions", &json!({}), Some(DEADLINE)).await?;
            let made: NewSession = parsed(&checked(answer, "to make a session")?)?;
            // The id becomes part of a URL.
            if made.session_id.is_empty()
                || !made.session_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            {
                return Err(RServerError::SessionId(made.session_id));
            }
            self.state.session = Some(made.session_id);
        }
        Ok(format!("/sessions/{}", self.state.session.as_deref().unwrap_or_default()))
    }

    /// Runs code in the session; the second value is true if the session is a new one.
    async fn execute(&mut self, code: &str) -> Result<(ExecuteResponse, bool), RServerError> {
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

    /// Cancels what the session runs.
    async fn cancel(&mut self) {
        let Some(session) = &self.state.session else { return };
        let path = format!("/sessions/{session}/cancel");
        match self.ask_as_user(Method::POST, &path, &json!({}), Some(CANCEL_DEADLINE)).await {
            Ok(answer) if answer.status.is_success() => {}
            Ok(answer) => {
                tracing::warn!("the R Server may still be running the interrupted code: it returned {}", answer.status);
            }
            Err(error) => {
                tracing::warn!("the R Server may still be running the interrupted code: {}", chain(&error));
            }
        }
    }

    /// Deletes the session and revokes the token.
    async fn log_out(&mut self) -> Result<(), RServerError> {
        if let Some(session) = self.state.session.take() {
            let path = format!("/sessions/{session}");
            let answer = self.ask_as_user(Method::DELETE, &path, &Value::Null, Some(LOGOUT_DEADLINE)).await?;
            checked(answer, "to delete the session")?;
        }
        if let Some(tokens) = &self.state.tokens {
            let path = format!("/login/refreshToken?refreshToken={}", escaped(&tokens.refresh));
            let answer = self.ask(Auth::User, Method::DELETE, &path, &Value::Null, Some(LOGOUT_DEADLINE)).await?;
            checked(answer, "to revoke the token")?;
            self.state.tokens = None;
        }
        Ok(())
    }
}

fn login(answer: &HttpResponse) -> Result<AuthTokens, RServerError> {
    parsed::<Login>(answer).map(AuthTokens::from)
}

fn checked(answer: HttpResponse, what: &'static str) -> Result<HttpResponse, RServerError> {
    if answer.status.is_success() {
        return Ok(answer);
    }
    Err(RServerError::Refused { status: answer.status, what, reason: quote(&answer.body) })
}

fn parsed<T: DeserializeOwned>(answer: &HttpResponse) -> Result<T, RServerError> {
    serde_json::from_slice(&answer.body).map_err(RServerError::Unexpected)
}

/// Auth a value in the query of an address (RFC 3986, unreserved characters).
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

/// The engine. An interrupted request is dropped; a session that the server was just creating is left to its timeout.
struct RemoteR {
    launcher: Launcher,
    server: Mutex<Server>,
}

#[async_trait]
impl Engine for RemoteR {
    async fn run(&self, code: &str, control: &Control) -> i32 {
        let mut server = self.server.lock().await;
        let (execution, is_new) = match unless_interrupted(control, server.execute(code)).await {
            Ok(Ok(executed)) => executed,
            Ok(Err(error)) => {
                write(&self.launcher, Stream::Stderr, format!("{}\n", chain(&error))).await;
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
            let told = "The session on the R Server was lost; the code ran in a new session without your variables.\n";
            write(&self.launcher, Stream::Stderr, told).await;
        }
        write(&self.launcher, Stream::Stdout, execution.console_output.unwrap_or_default()).await;
        if execution.success == Some(false) {
            let told = execution.error_message.unwrap_or_else(|| "R failed without an error message.".to_owned());
            write(&self.launcher, Stream::Stderr, format!("{}\n", told.trim_end())).await;
            return FAILED;
        }
        0
    }

    async fn stop(&self) {
        let logout = async { self.server.lock().await.log_out().await };
        match timeout(LOGOUT_DEADLINE, logout).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("cannot clean up on the R Server: {}", chain(&error)),
            Err(_) => tracing::warn!("cannot clean up on the R Server: no response in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(variables: &[(&str, &str)]) -> Result<RServerAccount, InvalidEndpoint> {
        RServerAccount::of(&variables.iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    #[test]
    fn the_endpoint_is_an_address_with_or_without_its_scheme() {
        let endpoint = |value| account(&[("MRS_ENDPOINT", value)]).map(|account| account.endpoint);
        assert_eq!(account(&[]).unwrap().endpoint, DEFAULT_ENDPOINT);
        assert_eq!(endpoint("r.example.org:12800"), Ok("http://r.example.org:12800".into()));
        assert_eq!(endpoint("https://r.example.org/api/"), Ok("https://r.example.org/api".into()));
        for wrong in ["ftp://x", "http://", "http://a b"] {
            assert!(endpoint(wrong).unwrap_err().to_string().starts_with("MRS_ENDPOINT is "), "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_are_refreshed_before_they_expire() {
        let due = |expires_in: Value| {
            let login = Login { access_token: String::new(), refresh_token: String::new(), expires_in };
            AuthTokens::from(login).due - Instant::now()
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
