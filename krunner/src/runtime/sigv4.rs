//! Signature Version 4 of AWS, for a request without a query. Pure.
//!
//! From "Create a signed AWS API request" in AWS's documentation, and tested with the vectors of its signing test suite.
//! The SDK's crate would bring twenty others for this one file.

use std::fmt::Write as _;
use std::time::SystemTime;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::header::{AUTHORIZATION, HOST, InvalidHeaderValue};
use http::{HeaderName, HeaderValue, Request, Uri};
use sha2::{Digest as _, Sha256};

use crate::jupyter::hex;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// What a signature is made with, besides the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestSigner<'a> {
    pub(super) key_id: &'a str,
    pub(super) key: &'a str,
    pub(super) session_token: Option<&'a str>,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
}

impl RequestSigner<'_> {
    /// Adds the headers `host`, `x-amz-date`, `x-amz-security-token` and `authorization`. All headers are signed.
    ///
    /// # Errors
    /// If a key or the token has characters that no header can have.
    pub(super) fn sign(&self, request: &mut Request<Bytes>, at: SystemTime) -> Result<(), InvalidHeaderValue> {
        let time = DateTime::<Utc>::from(at).format("%Y%m%dT%H%M%SZ").to_string();
        let host = HeaderValue::try_from(host(request.uri()))?;
        let headers = request.headers_mut();
        headers.insert(HOST, host);
        headers.insert(DATE, HeaderValue::try_from(time.as_str())?);
        if let Some(token) = self.session_token {
            headers.insert(TOKEN, HeaderValue::try_from(token)?);
        }
        let (canonical, names) = canonical_request(request);
        let day = &time[..8];
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let text = format!("{ALGORITHM}\n{time}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
        let signature = hex(&mac(&self.signing_key(day), &text));
        let credential = format!("{}/{scope}", self.key_id);
        let value = format!("{ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={signature}");
        request.headers_mut().insert(AUTHORIZATION, HeaderValue::try_from(value)?);
        Ok(())
    }

    fn signing_key(&self, day: &str) -> Vec<u8> {
        let secret = format!("AWS4{}", self.key).into_bytes();
        [day, self.region, self.service, "aws4_request"].iter().fold(secret, |key, part| mac(&key, part))
    }
}

/// The canonical request, and the names of the signed headers.
fn canonical_request(request: &Request<Bytes>) -> (String, String) {
    let mut headers: Vec<_> = request.headers().iter().collect();
    headers.sort_by_key(|(name, _)| name.as_str());
    let names = headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";");
    let mut text = format!("{}\n{}\n\n", request.method(), encoded(request.uri().path()));
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "{name}:{}", value.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    let _ = write!(text, "\n{names}\n{}", hex(&Sha256::digest(request.body())));
    (text, names)
}

/// The host as HTTP clients send it: without the scheme's own port.
fn host(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default();
    match (uri.port_u16(), uri.scheme_str()) {
        (None, _) | (Some(443), Some("https")) | (Some(80), Some("http")) => host.to_owned(),
        (Some(port), _) => format!("{host}:{port}"),
    }
}

/// Encodes a path that is encoded already once more, as all services but S3 require.
fn encoded(path: &str) -> String {
    let mut text = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    // HMAC takes a key of any length.
    Hmac::<Sha256>::new_from_slice(key)
        .map_or_else(|_| Vec::new(), |mac| mac.chain_update(text).finalize().into_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// 2015-08-30T12:36:00Z, the time of the test suite.
    const AT: Duration = Duration::from_mins(24_015_636);

    /// Signs as the test suite does; its credentials are published examples.
    fn authorization(method: &str, headers: &[(&str, &str)], body: &'static str, token: Option<&str>) -> String {
        let signer = RequestSigner {
            key_id: "AKIDEXAMPLE",
            key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            session_token: token,
            region: "us-east-1",
            service: "service",
        };
        let mut request = Request::builder().method(method).uri("https://example.amazonaws.com/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Bytes::from(body)).unwrap();
        signer.sign(&mut request, SystemTime::UNIX_EPOCH + AT).unwrap();
        request.headers()[AUTHORIZATION].to_str().unwrap().to_owned()
    }

    #[track_caller]
    fn assert_signed(authorization: &str, names: &str, signature: &str) {
        let credential = "AKIDEXAMPLE/20150830/us-east-1/service/aws4_request";
        let expected = format!("{ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={signature}");
        assert_eq!(authorization, expected);
    }

    #[test]
    fn signatures_are_those_of_the_test_suite() {
        assert_signed(
            &authorization("POST", &[], "", None),
            "host;x-amz-date",
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
        );
        assert_signed(
            &authorization("POST", &[("My-Header1", "value1")], "", None),
            "host;my-header1;x-amz-date",
            "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
        );
        let form = [
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Content-Length", "13"),
            ("x-amz-content-sha256", "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e"),
        ];
        assert_signed(
            &authorization("POST", &form, "Param1=value1", None),
            "content-length;content-type;host;x-amz-content-sha256;x-amz-date",
            "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b",
        );
        let token = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267";
        assert_signed(
            &authorization("GET", &[], "", Some(token)),
            "host;x-amz-date;x-amz-security-token",
            "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8",
        );
    }

    #[test]
    fn paths_and_hosts_are_those_that_are_sent() {
        assert_eq!(encoded("/a%20b/~c"), "/a%2520b/~c");
        let host = |address: &str| host(&address.parse().unwrap());
        assert_eq!(host("https://a.example:443/x"), "a.example");
        assert_eq!(host("http://127.0.0.1:5000/x"), "127.0.0.1:5000");
    }
}
