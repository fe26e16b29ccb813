//! `vendor.aws_polly`: text to speech by Amazon Polly.
//!
//! `code` is JSON: `{"text": ..., "voiceId": ..., "textType": "text" or "ssml"}`. The result is audio.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{self, InvalidHeaderValue};
use http::{Request, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::engine::{Engine, EngineContext};
use super::plan::Plan;
use super::remote::{FAILED, LazyHttpClient, quote, unless_interrupted, variable, write};
use super::sigv4::RequestSigner;
use super::traits::Runtime;
use crate::config::ChildEnv;
use crate::error::chain;
use crate::http_client::{HttpError, HttpResponse, ResponseLimits};
use crate::process::{Control, Launcher, RichOutput, Stream};

const DEFAULT_REGION: &str = "ap-northeast-2";

/// The agent takes a reply of 10 MiB, and base64 makes four bytes of three. Half an hour of speech is less.
const MAX_SOUND_BYTES: usize = 7 * 1024 * 1024;

/// For the longest text that Polly takes.
const DEADLINE: Duration = Duration::from_mins(1);

const LIMITS: ResponseLimits = ResponseLimits { deadline: Some(DEADLINE), body_bytes: MAX_SOUND_BYTES };

const NO_BATCH: &str = "this runtime speaks text in query mode only; `build` and `exec` take a command line";

pub(super) struct Polly;

impl Runtime for Polly {
    fn build(&self, _: &Path) -> Plan {
        Plan::missing(NO_BATCH)
    }

    fn execute(&self, _: &Path) -> Plan {
        Plan::missing(NO_BATCH)
    }

    fn code_goes_to(&self) -> Option<String> {
        Some("Amazon Polly, as `{text, voiceId, textType?}`".to_owned())
    }

    fn engine(&self, context: EngineContext) -> Option<Arc<dyn Engine>> {
        let EngineContext { launcher, env, .. } = context;
        Some(Arc::new(Speaker { launcher, account: AwsAccount::of(&env), client: LazyHttpClient::default() }))
    }
}

/// The environment lacks the credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must both be set in the session's environment")]
struct MissingKeys;

/// Why nothing is spoken; its texts are the output of the step.
#[derive(Debug, thiserror::Error)]
enum PollyError {
    /// No request can be signed.
    #[error(transparent)]
    Keys(#[from] MissingKeys),
    /// The code is not the JSON of a request.
    #[error("The code must be JSON like {{\"text\": \"Hello\", \"voiceId\": \"Joanna\"}}")]
    Code(#[source] serde_json::Error),
    /// Endpoint and path make no address.
    #[error("invalid address {address} (from AWS_ENDPOINT_URL or AWS_DEFAULT_REGION)")]
    Address {
        /// The address that was built.
        address: String,
        /// What is invalid about it.
        #[source]
        source: http::Error,
    },
    /// The request cannot be signed.
    #[error("cannot sign the request to {address}")]
    Sign {
        /// The request's address.
        address: String,
        /// What no header can have.
        #[source]
        error: InvalidHeaderValue,
    },
    /// No complete response arrived.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Polly refused the request.
    #[error("Polly returned {status} with {kind}: {message}")]
    Refused {
        /// Status of the response.
        status: StatusCode,
        /// Polly's name of the error.
        kind: String,
        /// Polly's message, or the start of the response.
        message: String,
    },
    /// The response is not a sound, as if another server listens there.
    #[error("Polly returned {0:?}, not audio; check AWS_ENDPOINT_URL")]
    NotAudio(String),
}

/// The request of a step.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Speech {
    text: String,
    voice_id: String,
    #[serde(default)]
    text_type: Option<String>,
}

/// Credentials and endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
struct AwsAccount {
    key_id: String,
    key: String,
    session_token: Option<String>,
    region: String,
    endpoint: String,
}

impl AwsAccount {
    /// From the variables of the AWS tools.
    fn of(env: &ChildEnv) -> Result<Self, MissingKeys> {
        let region = variable(env, "AWS_DEFAULT_REGION").unwrap_or_else(|| DEFAULT_REGION.to_owned());
        let endpoint = ["AWS_ENDPOINT_URL_POLLY", "AWS_ENDPOINT_URL"].iter().find_map(|name| variable(env, name));
        let (Some(key_id), Some(key)) = (variable(env, "AWS_ACCESS_KEY_ID"), variable(env, "AWS_SECRET_ACCESS_KEY"))
        else {
            return Err(MissingKeys);
        };
        let session_token = variable(env, "AWS_SESSION_TOKEN");
        let endpoint = endpoint.unwrap_or_else(|| {
            // The regions in China have their own domain.
            let suffix = if region.starts_with("cn-") { ".cn" } else { "" };
            format!("https://polly.{region}.amazonaws.com{suffix}")
        });
        Ok(Self { key_id, key, session_token, region, endpoint })
    }

    /// Builds and signs the request.
    fn request(&self, speech: &Speech, now: SystemTime) -> Result<Request<Bytes>, PollyError> {
        let body = json!({
            "OutputFormat": "ogg_vorbis",
            "Text": speech.text,
            "TextType": speech.text_type.as_deref().unwrap_or("text"),
            "VoiceId": speech.voice_id,
        });
        let body = Bytes::from(body.to_string());
        let address = format!("{}/v1/speech", self.endpoint.trim_end_matches('/'));
        let built = Request::post(&address).header(header::CONTENT_TYPE, "application/json").body(body);
        let mut request = match built {
            Ok(request) => request,
            Err(source) => return Err(PollyError::Address { address, source }),
        };
        let signer = RequestSigner {
            key_id: &self.key_id,
            key: &self.key,
            session_token: self.session_token.as_deref(),
            region: &self.region,
            service: "polly",
        };
        signer.sign(&mut request, now).map_err(|error| PollyError::Sign { address, error })?;
        Ok(request)
    }
}

struct Speaker {
    launcher: Launcher,
    account: Result<AwsAccount, MissingKeys>,
    client: LazyHttpClient,
}

#[async_trait]
impl Engine for Speaker {
    async fn run(&self, code: &str, control: &Control) -> i32 {
        match unless_interrupted(control, self.speak(code)).await {
            Ok(Ok(sound)) => {
                self.launcher.sink.show(sound).await;
                0
            }
            Ok(Err(error)) => {
                write(&self.launcher, Stream::Stderr, format!("{}\n", chain(&error))).await;
                FAILED
            }
            Err(exit_code) => exit_code,
        }
    }
}

impl Speaker {
    async fn speak(&self, code: &str) -> Result<RichOutput, PollyError> {
        let speech: Speech = serde_json::from_str(code).map_err(PollyError::Code)?;
        let account = self.account.as_ref().map_err(|error| *error)?;
        let request = account.request(&speech, SystemTime::now())?;
        let answer = self.client.send(request, LIMITS).await?;
        sound(&answer)
    }
}

/// The audio of a response, or the server's error.
fn sound(answer: &HttpResponse) -> Result<RichOutput, PollyError> {
    let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !answer.status.is_success() {
        // `InvalidSsmlException:http://internal.amazon.com/...`
        let kind = header("x-amzn-errortype").split(':').next().unwrap_or_default();
        let said: Failure = serde_json::from_slice(&answer.body).unwrap_or_default();
        let kind = if kind.is_empty() { said.kind.as_deref().unwrap_or("an error") } else { kind };
        let message = said.message.unwrap_or_else(|| quote(&answer.body));
        return Err(PollyError::Refused { status: answer.status, kind: kind.to_owned(), message });
    }
    let mime = header("content-type").split(';').next().unwrap_or_default().trim();
    if !mime.starts_with("audio/") {
        return Err(PollyError::NotAudio(mime.to_owned()));
    }
    let data = format!("data:{mime};base64,{}", BASE64.encode(&answer.body));
    Ok(RichOutput::Media { mime: mime.to_owned(), data: data.into() })
}

/// The JSON of an error.
#[derive(Debug, Default, Deserialize)]
struct Failure {
    #[serde(alias = "Message")]
    message: Option<String>,
    #[serde(rename = "__type")]
    kind: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue};

    fn env(variables: &[(&str, &str)]) -> ChildEnv {
        variables.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "secret")];

    fn endpoint(more: &[(&str, &str)]) -> String {
        AwsAccount::of(&env(&[&KEYS[..], more].concat())).unwrap().endpoint
    }

    #[test]
    fn the_endpoint_follows_the_region_unless_it_is_given() {
        assert_eq!(endpoint(&[]), "https://polly.ap-northeast-2.amazonaws.com");
        assert_eq!(
            endpoint(&[("AWS_DEFAULT_REGION", "cn-northwest-1")]),
            "https://polly.cn-northwest-1.amazonaws.com.cn"
        );
        let both = [("AWS_ENDPOINT_URL", "http://all"), ("AWS_ENDPOINT_URL_POLLY", "http://polly")];
        assert_eq!(endpoint(&both), "http://polly");
        assert_eq!(endpoint(&both[..1]), "http://all");
        assert_eq!(AwsAccount::of(&env(&KEYS[..1])), Err(MissingKeys));
    }

    #[test]
    fn requests_are_signed_for_polly_in_the_region() {
        let token = [("AWS_SESSION_TOKEN", "token"), ("AWS_DEFAULT_REGION", "eu-west-1")];
        let account = AwsAccount::of(&env(&[&KEYS[..], &token].concat())).unwrap();
        let speech: Speech = serde_json::from_str(r#"{"text": "안녕", "voiceId": "Seoyeon"}"#).unwrap();
        let request = account.request(&speech, SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(request.uri(), "https://polly.eu-west-1.amazonaws.com/v1/speech");
        let header = |name: &str| request.headers()[name].to_str().unwrap();
        assert_eq!((header("x-amz-date"), header("x-amz-security-token")), ("19700101T000000Z", "token"));
        let authorization = header("authorization");
        let scope = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/19700101/eu-west-1/polly/aws4_request, ";
        assert!(authorization.starts_with(scope), "{authorization}");
        assert!(
            authorization.contains("SignedHeaders=content-type;host;x-amz-date;x-amz-security-token"),
            "{authorization}"
        );
        let body: serde_json::Value = serde_json::from_slice(request.body()).unwrap();
        let expected = json!({"OutputFormat": "ogg_vorbis", "Text": "안녕", "TextType": "text", "VoiceId": "Seoyeon"});
        assert_eq!(body, expected);
    }

    fn answer(status: u16, headers: &[(&'static str, &str)], body: &'static str) -> HttpResponse {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        HttpResponse { status: StatusCode::from_u16(status).unwrap(), headers, body: body.into() }
    }

    #[test]
    fn answers_are_sounds_or_reasons() {
        let ogg = answer(200, &[("content-type", "audio/ogg")], "OggS");
        let data = "data:audio/ogg;base64,T2dnUw==".into();
        assert_eq!(sound(&ogg).unwrap(), RichOutput::Media { mime: "audio/ogg".into(), data });
        let error = |answer: &HttpResponse| chain(&sound(answer).unwrap_err());
        let page = answer(200, &[("content-type", "text/html; charset=utf-8")], "<html>");
        assert_eq!(error(&page), "Polly returned \"text/html\", not audio; check AWS_ENDPOINT_URL");
        let refused =
            answer(400, &[("x-amzn-errortype", "InvalidSsmlException:http://x")], r#"{"message": "Bad SSML"}"#);
        assert_eq!(error(&refused), "Polly returned 400 Bad Request with InvalidSsmlException: Bad SSML");
        let typed = answer(403, &[], r#"{"__type": "UnrecognizedClientException", "Message": "no"}"#);
        assert!(error(&typed).ends_with("with UnrecognizedClientException: no"));
        let empty = answer(503, &[], "");
        assert!(error(&empty).ends_with("with an error: no reason given"));
    }

    #[test]
    fn errors_before_the_request_have_stable_texts() {
        let account = AwsAccount::of(&env(&[&KEYS[..], &[("AWS_ENDPOINT_URL", "http://a b")]].concat())).unwrap();
        let speech: Speech = serde_json::from_str(r#"{"text": "x", "voiceId": "y"}"#).unwrap();
        let errors = [
            MissingKeys.into(),
            PollyError::Code(serde_json::from_str::<Speech>("{}").unwrap_err()),
            account.request(&speech, SystemTime::UNIX_EPOCH).unwrap_err(),
            PollyError::Sign { address: "http://x".to_owned(), error: HeaderValue::from_str("\n").unwrap_err() },
        ];
        insta::assert_snapshot!(errors.iter().map(|error| chain(error)).collect::<Vec<_>>().join("\n"), @r#"
        AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must both be set in the session's environment
        The code must be JSON like {"text": "Hello", "voiceId": "Joanna"}: missing field `text` at line 1 column 2
        invalid address http://a b/v1/speech (from AWS_ENDPOINT_URL or AWS_DEFAULT_REGION): invalid uri character
        cannot sign the request to http://x: failed to parse header value
        "#);
    }
}
