//! What visitors show, taken out of the request: the server inside must not get hold of it.
//!
//! | where | what |
//! | --- | --- |
//! | header `X-Skerry-Token` | the port's token |
//! | query `skerry_token` | the same, for the first visit of a browser, which is given a cookie for it |
//! | cookie `skerry_preview` | the same, from then on |
//! | header `X-Skerry-Key` or `X-Rigbox-Key` | an API key of the account |

use axum::body::Body;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header,
    uri::PathAndQuery,
};
use skerry_internal_api::PreviewCredential;
use skerry_model::Secret;

use super::{Scheme, empty};

const TOKEN_HEADER: HeaderName = HeaderName::from_static("x-skerry-token");
const KEY_HEADERS: [HeaderName; 2] =
    [HeaderName::from_static("x-skerry-key"), HeaderName::from_static("x-rigbox-key")];
const QUERY: &str = "skerry_token";
const COOKIE: &str = "skerry_preview";
/// Sent and taken over encrypted connections alone, and set by this very host.
const HOST_COOKIE: &str = "__Host-skerry_preview";
/// More of them are not looked at.
const MOST: usize = 8;

/// What a request had with it.
pub(super) struct Shown {
    pub(super) credentials: Vec<PreviewCredential>,
    /// The one in the query.
    pub(super) in_query: Option<Secret>,
}

impl Shown {
    /// Takes them out.
    pub(super) fn take(request: &mut Request<Body>) -> Self {
        let mut credentials = Vec::new();
        let in_query = take_query(request.uri_mut());
        credentials.extend(in_query.clone().map(PreviewCredential::PortToken));
        let headers = request.headers_mut();
        for value in taken(headers, &TOKEN_HEADER) {
            credentials.push(PreviewCredential::PortToken(value));
        }
        for name in &KEY_HEADERS {
            credentials.extend(taken(headers, name).into_iter().map(PreviewCredential::ApiKey));
        }
        credentials.extend(take_cookies(headers).into_iter().map(PreviewCredential::PortToken));
        credentials.truncate(MOST);
        Self { credentials, in_query }
    }
}

fn taken(headers: &mut HeaderMap, name: &HeaderName) -> Vec<Secret> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let values = values.map(Secret::new).collect();
    headers.remove(name);
    values
}

fn take_query(uri: &mut Uri) -> Option<Secret> {
    let query = uri.query()?;
    let mut token = None;
    let mut kept = Vec::new();
    for pair in query.split('&') {
        match pair.strip_prefix(QUERY).and_then(|rest| rest.strip_prefix('=')) {
            Some(value) => token = Some(Secret::new(value)),
            None => kept.push(pair),
        }
    }
    token.as_ref()?;
    let path = uri.path();
    let shortened =
        if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(shortened).ok()?);
    *uri = Uri::from_parts(parts).ok()?;
    token
}

fn take_cookies(headers: &mut HeaderMap) -> Vec<Secret> {
    let mut tokens = Vec::new();
    let mut kept = Vec::new();
    for value in headers.get_all(header::COOKIE) {
        let mut ours = false;
        let mut others: Vec<&[u8]> = Vec::new();
        for pair in value.as_bytes().split(|byte| *byte == b';') {
            let pair = pair.trim_ascii();
            let token = std::str::from_utf8(pair).ok().and_then(|pair| pair.split_once('='));
            match token {
                Some((COOKIE | HOST_COOKIE, token)) => {
                    ours = true;
                    tokens.push(Secret::new(token));
                }
                Some(_) | None => others.push(pair),
            }
        }
        if !ours {
            kept.push(value.clone());
        } else if !others.is_empty() {
            kept.extend(HeaderValue::from_bytes(&others.join(&b"; "[..])));
        }
    }
    if !tokens.is_empty() {
        headers.remove(header::COOKIE);
        for value in kept {
            headers.append(header::COOKIE, value);
        }
    }
    tokens
}

/// Sends a browser to where it was going, with the token in a cookie instead of the address.
pub(super) fn kept(token: &Secret, to: &Uri, scheme: Scheme) -> Response<Body> {
    let attributes = "; Path=/; HttpOnly; SameSite=Lax";
    let cookie = match scheme {
        Scheme::Http => format!("{COOKIE}={}{attributes}", token.expose()),
        Scheme::Https => format!("{HOST_COOKIE}={}{attributes}; Secure", token.expose()),
    };
    let mut response = empty(StatusCode::SEE_OTHER);
    let headers = response.headers_mut();
    // Without a host: a path that begins with two slashes would be taken for one.
    let path = to.path_and_query().map_or("/", PathAndQuery::as_str);
    let path = format!("/{}", path.trim_start_matches('/'));
    for (name, text) in [(header::LOCATION, path), (header::SET_COOKIE, cookie)] {
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(name, value);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> PreviewCredential {
        PreviewCredential::PortToken(Secret::new(text))
    }

    #[test]
    fn everything_shown_is_found_and_nothing_of_it_is_passed_on() {
        let mut request = Request::builder()
            .uri("/a?x=1&skerry_token=q&y=2")
            .header("x-skerry-token", "h")
            .header("x-skerry-key", "k")
            .header("x-rigbox-key", "r")
            .header("cookie", "a=b; skerry_preview=c; d=e")
            .header("cookie", "__Host-skerry_preview=s")
            .header("cookie", "f=g")
            .body(Body::empty())
            .unwrap();
        let shown = Shown::take(&mut request);
        let key = |text: &str| PreviewCredential::ApiKey(Secret::new(text));
        assert_eq!(
            shown.credentials,
            [token("q"), token("h"), key("k"), key("r"), token("c"), token("s")]
        );
        assert_eq!(shown.in_query, Some(Secret::new("q")));
        assert_eq!(request.uri(), "/a?x=1&y=2");
        let left: Vec<_> = request.headers().iter().map(|(_, value)| value.clone()).collect();
        assert_eq!(left, ["a=b; d=e", "f=g"]);
    }

    #[test]
    fn a_request_without_any_is_left_as_it_is() {
        let mut request = Request::builder()
            .uri("/a?skerry_tokens=1&&x")
            .header("cookie", "a=b;c")
            .body(Body::empty())
            .unwrap();
        let shown = Shown::take(&mut request);
        assert!(shown.credentials.is_empty() && shown.in_query.is_none());
        assert_eq!(request.uri(), "/a?skerry_tokens=1&&x");
        assert_eq!(request.headers()["cookie"], "a=b;c");
    }

    #[test]
    fn a_browser_is_sent_on_to_this_host_alone() {
        let to = |uri: &str, scheme| {
            let response = kept(&Secret::new("t"), &uri.parse().unwrap(), scheme);
            ["location", "set-cookie"].map(|name| response.headers()[name].clone())
        };
        assert_eq!(
            to("//evil.example/x?y", Scheme::Http),
            ["/evil.example/x?y", "skerry_preview=t; Path=/; HttpOnly; SameSite=Lax"]
        );
        let [_, cookie] = to("/", Scheme::Https);
        assert_eq!(cookie, "__Host-skerry_preview=t; Path=/; HttpOnly; SameSite=Lax; Secure");
    }
}
