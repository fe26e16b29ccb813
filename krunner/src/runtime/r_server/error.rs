//! Errors of a session on an R Server; their texts are the output of the step.

use http::StatusCode;

use super::DEFAULT_ENDPOINT;
use crate::http_client::HttpError;

/// `MRS_ENDPOINT` is not the address of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("MRS_ENDPOINT is {0:?}; expected an address such as {DEFAULT_ENDPOINT}")]
pub(super) struct InvalidEndpoint(pub(super) String);

/// Why the server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum RServerError {
    /// No request can be sent.
    #[error(transparent)]
    Endpoint(#[from] InvalidEndpoint),
    /// Endpoint and path make no address.
    #[error("invalid address {address}")]
    Address {
        /// The address that was built.
        address: String,
        /// What is invalid about it.
        #[source]
        source: http::Error,
    },
    /// No complete response arrived.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The server does not know the user or the password.
    #[error(
        "The R Server rejected the login of {username:?} ({status}); check MRS_USERNAME and MRS_PASSWORD. {reason}"
    )]
    Rejected {
        /// The name that was sent.
        username: String,
        /// Status of the response.
        status: StatusCode,
        /// The start of the response.
        reason: String,
    },
    /// Any other request failed.
    #[error("The R Server returned {status} when asked {what}: {reason}")]
    Refused {
        /// Status of the response.
        status: StatusCode,
        /// The purpose of the request, such as `to log in`.
        what: &'static str,
        /// The start of the response.
        reason: String,
    },
    /// The response is not the expected JSON, as if another server listens there.
    #[error("Unexpected response from the R Server ({0}); check MRS_ENDPOINT")]
    Unexpected(serde_json::Error),
    /// The session's id cannot be a part of an address.
    #[error("The R Server returned an invalid session id {0:?}")]
    SessionId(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;
    use std::time::Duration;

    #[test]
    fn error_texts_are_stable() {
        let source = http::Request::builder().uri("http://a b").body(()).unwrap_err();
        let unexpected = serde_json::from_str::<u8>("x").unwrap_err();
        let timeout = HttpError::Timeout { server: "http://s".to_owned(), deadline: Duration::from_secs(30) };
        let errors: [RServerError; 7] = [
            InvalidEndpoint("ftp://x".to_owned()).into(),
            RServerError::Address { address: "http://a b".to_owned(), source },
            timeout.into(),
            RServerError::Rejected {
                username: "me".to_owned(),
                status: StatusCode::UNAUTHORIZED,
                reason: "no reason given".to_owned(),
            },
            RServerError::Refused {
                status: StatusCode::BAD_GATEWAY,
                what: "to run the code",
                reason: "no reason given".to_owned(),
            },
            RServerError::Unexpected(unexpected),
            RServerError::SessionId("../x".to_owned()),
        ];
        insta::assert_snapshot!(errors.iter().map(|error| chain(error)).collect::<Vec<_>>().join("\n"), @r#"
        MRS_ENDPOINT is "ftp://x"; expected an address such as http://localhost:12800
        invalid address http://a b: invalid uri character
        http://s did not respond within 30s
        The R Server rejected the login of "me" (401 Unauthorized); check MRS_USERNAME and MRS_PASSWORD. no reason given
        The R Server returned 502 Bad Gateway when asked to run the code: no reason given
        Unexpected response from the R Server (expected value at line 1 column 1); check MRS_ENDPOINT
        The R Server returned an invalid session id "../x"
        "#);
    }
}
