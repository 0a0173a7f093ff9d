//! Headers of requests and answers on their way through.

use std::net::IpAddr;

use axum::body::Body;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version, header, uri::PathAndQuery,
};

use super::Scheme;

/// Those of one connection, beside what its `Connection` names (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// Said by whoever is in front of a server; a client's word for it is worth nothing.
const FORWARDED: [HeaderName; 3] = [
    header::FORWARDED,
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("true-client-ip"),
];
const FORWARDED_PREFIX: &str = "x-forwarded-";

/// What the server inside is told of the visitor.
pub(super) struct Forwarded {
    pub(super) peer: Option<IpAddr>,
    pub(super) host: HeaderValue,
    pub(super) scheme: Scheme,
}

/// Makes it a request to `localhost:<port>`.
pub(super) fn rewrite(request: &mut Request<Body>, forwarded: &Forwarded, port: u16) {
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // Of the two only one is true, and it is this one (RFC 9112, section 6.3).
        headers.remove(header::CONTENT_LENGTH);
    }
    remove_hop_by_hop(headers);
    // Answered here: the body is asked for when the server inside takes it.
    headers.remove(header::EXPECT);
    let told: Vec<HeaderName> = headers
        .keys()
        .filter(|name| FORWARDED.contains(name) || name.as_str().starts_with(FORWARDED_PREFIX))
        .cloned()
        .collect();
    for name in told {
        headers.remove(name);
    }
    join_cookies(headers);
    if let Some(peer) = forwarded.peer.and_then(|peer| text(&peer.to_canonical().to_string())) {
        headers.insert("x-forwarded-for", peer);
    }
    let scheme = HeaderValue::from_static(forwarded.scheme.as_str());
    headers.insert("x-forwarded-proto", scheme);
    headers.insert("x-forwarded-host", forwarded.host.clone());
    if let Some(host) = text(&format!("localhost:{port}")) {
        headers.insert(header::HOST, host);
    }
}

fn text(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}

/// HTTP/2 splits cookies (RFC 9113, section 8.2.3); servers of HTTP/1.1 read one line.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let all: Vec<&[u8]> =
        headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Removes what belongs to one connection.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // A length that is not passed on would be another message for the other side.
        .filter(|name| *name != header::CONTENT_LENGTH && *name != header::HOST)
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// What is opened by a token in its address may be read from every page.
pub(super) fn for_any_origin(mut response: Response<Body>) -> Response<Body> {
    let any = HeaderValue::from_static("*");
    response.headers_mut().entry(header::ACCESS_CONTROL_ALLOW_ORIGIN).or_insert(any);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(request: http::request::Builder) -> Vec<String> {
        let mut request = request.body(Body::empty()).unwrap();
        let forwarded = Forwarded {
            peer: Some("::ffff:192.0.2.7".parse().unwrap()),
            host: HeaderValue::from_static("blog.localhost:7070"),
            scheme: Scheme::Https,
        };
        rewrite(&mut request, &forwarded, 3000);
        let mut lines = vec![format!("{} {:?}", request.uri(), request.version())];
        let headers = request.headers().iter();
        lines.extend(headers.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())));
        lines.sort();
        lines
    }

    #[test]
    fn the_server_inside_is_told_who_came_and_believes_no_visitor() {
        let request = Request::builder()
            .uri("http://blog.localhost:7070/a//b?c=%2e")
            .version(Version::HTTP_2)
            .header("host", "blog.localhost:7070")
            .header("forwarded", "for=1.2.3.4")
            .header("x-forwarded-for", "1.2.3.4")
            .header("x-forwarded-port", "1")
            .header("x-real-ip", "1.2.3.4")
            .header("cookie", "a=b")
            .header("cookie", "c=d")
            .header("accept", "*/*");
        assert_eq!(
            rewritten(request),
            [
                "/a//b?c=%2e HTTP/1.1",
                "accept: */*",
                "cookie: a=b; c=d",
                "host: localhost:3000",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: blog.localhost:7070",
                "x-forwarded-proto: https",
            ]
        );
    }

    #[test]
    fn what_belongs_to_one_connection_is_not_passed_on() {
        let request = Request::builder()
            .uri("/")
            .header("connection", "close, X-Mine, content-length, host, te")
            .header("x-mine", "1")
            .header("keep-alive", "5")
            .header("te", "trailers")
            .header("proxy-authorization", "x")
            .header("upgrade", "h2c")
            .header("expect", "100-continue")
            .header("content-length", "5");
        let lines = rewritten(request);
        assert_eq!(
            lines,
            [
                "/ HTTP/1.1",
                "content-length: 5",
                "host: localhost:3000",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: blog.localhost:7070",
                "x-forwarded-proto: https",
            ]
        );
    }

    #[test]
    fn a_length_beside_chunks_is_not_passed_on() {
        let request = Request::builder()
            .uri("/")
            .header("content-length", "5")
            .header("transfer-encoding", "chunked");
        assert!(rewritten(request).iter().all(|line| !line.starts_with("content-length")));
    }
}
