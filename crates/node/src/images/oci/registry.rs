//! The registry's HTTP API, as far as reading needs it. (OCI distribution specification 1.1,
//! Docker's token authentication.)
//!
//! Whatever a registry sends is bounded: manifests, tokens and errors in memory, blobs on disk by the
//! size their descriptor promised.

use std::time::Duration;

use http::{StatusCode, header};
use oci_spec::distribution::Reference;
use reqwest::{Response, redirect};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use skerry_model::Secret;

use super::{PullError, credentials::Login, policy::Source};

const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// Between two pieces of an answer.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// The specification asks registries to take manifests of 4 MiB.
pub(super) const MAX_MANIFEST_BYTES: u64 = 4 << 20;
const MAX_TOKEN_BYTES: u64 = 64 << 10;
const MAX_REDIRECTS: usize = 5;
/// What we can read, so that a registry with several forms sends the right one.
pub(super) const ACCEPTED_MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// One repository of one registry.
pub(super) struct Repository {
    http: reqwest::Client,
    source: Source,
    name: String,
    login: Option<Login>,
    authorization: Option<Secret>,
}

/// A manifest or index as it came, and what it is by its own word.
pub(super) struct Document {
    pub content: Vec<u8>,
    pub digest: String,
}

impl Repository {
    pub(super) fn new(
        source: Source,
        reference: &Reference,
        login: Option<Login>,
    ) -> Result<Self, PullError> {
        let plain = source.plain;
        let follow = redirect::Policy::custom(move |attempt| {
            let from_tls = attempt.previous().iter().any(|url| url.scheme() == "https");
            if attempt.previous().len() > MAX_REDIRECTS {
                return attempt.error("too many redirects");
            }
            // Content is verified anyway; what must not happen is that a registry sends us to a
            // service that believes everybody on this network.
            match attempt.url().scheme() {
                "https" => attempt.follow(),
                "http" if plain && !from_tls && same_host(&attempt) => attempt.follow(),
                _other => attempt.error("a redirect leaves TLS"),
            }
        });
        let http = reqwest::Client::builder()
            .user_agent(concat!("skerry/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_LIMIT)
            .read_timeout(SILENCE_LIMIT)
            .redirect(follow);
        // A proxy is for the world outside; one that is asked for loopback answers for its own.
        let http = if plain { http.no_proxy() } else { http };
        let http = http.build().map_err(|error| unreachable(&source, &error))?;
        let name = reference.repository().to_owned();
        Ok(Self { http, source, name, login, authorization: None })
    }

    pub(super) fn host(&self) -> &str {
        &self.source.host
    }

    /// The manifest or index of a tag or digest. A digest is verified.
    pub(super) async fn manifest(&mut self, which: &str) -> Result<Document, PullError> {
        let what = format!("the manifest {which} of {}", self.name);
        let url = format!("{}/v2/{}/manifests/{which}", self.source.origin, self.name);
        let accept = ACCEPTED_MANIFESTS.join(", ");
        let answer = self.get(&url, &[(header::ACCEPT, &accept)], &what).await?;
        let content = self.bounded(answer, MAX_MANIFEST_BYTES, &what).await?;
        let digest = format!("sha256:{:x}", Sha256::digest(&content));
        if which.starts_with("sha256:") && which != digest {
            return Err(PullError::BadDigest { what });
        }
        Ok(Document { content, digest })
    }

    /// A blob from byte `from` on. The answer says from where it really starts.
    pub(super) async fn blob(
        &mut self,
        digest: &str,
        from: u64,
    ) -> Result<(u64, Response), PullError> {
        let what = format!("the blob {digest} of {}", self.name);
        let url = format!("{}/v2/{}/blobs/{digest}", self.source.origin, self.name);
        let range = format!("bytes={from}-");
        let headers: &[_] = if from == 0 { &[] } else { &[(header::RANGE, range.as_str())] };
        let answer = self.get(&url, headers, &what).await?;
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            return Ok((0, answer));
        }
        let start = answer.headers().get(header::CONTENT_RANGE).and_then(range_start);
        match start {
            Some(start) if start == from => Ok((from, answer)),
            Some(_) | None => Err(PullError::Unreachable {
                host: self.source.host.clone(),
                problem: "it answered with another part than was asked for".to_owned(),
            }),
        }
    }

    pub(super) fn unreachable(&self, error: &reqwest::Error) -> PullError {
        unreachable(&self.source, error)
    }

    async fn get(
        &mut self,
        url: &str,
        headers: &[(header::HeaderName, &str)],
        what: &str,
    ) -> Result<Response, PullError> {
        let mut answer = self.send(url, headers).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.authorization = Some(self.authorize(&answer).await?);
            answer = self.send(url, headers).await?;
        }
        let host = self.source.host.clone();
        match answer.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(answer),
            StatusCode::NOT_FOUND => Err(PullError::NotFound { what: what.to_owned() }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(PullError::Unauthorized { host })
            }
            status => {
                let problem = format!("it answered {} for {what}", status.as_u16());
                Err(PullError::Unreachable { host, problem })
            }
        }
    }

    async fn send(
        &self,
        url: &str,
        headers: &[(header::HeaderName, &str)],
    ) -> Result<Response, PullError> {
        let mut request = self.http.get(url);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization.expose());
        }
        request.send().await.map_err(|error| unreachable(&self.source, &error))
    }

    /// What to present, from the challenge of an answer of 401.
    async fn authorize(&self, answer: &Response) -> Result<Secret, PullError> {
        let refused = || PullError::Unauthorized { host: self.source.host.clone() };
        let challenges = answer.headers().get_all(header::WWW_AUTHENTICATE);
        for challenge in challenges.iter().filter_map(|value| value.to_str().ok()) {
            let Ok(challenges) = http_auth::parse_challenges(challenge) else { continue };
            for challenge in challenges {
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    let of = |name: &str| {
                        let mut params = challenge.params.iter();
                        let found = params.find(|(key, _)| key.eq_ignore_ascii_case(name));
                        found.map(|(_, value)| value.to_unescaped())
                    };
                    let realm = of("realm").ok_or_else(refused)?;
                    return self.token(&realm, of("service").as_deref()).await;
                }
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    let login = self.login.as_ref().ok_or_else(refused)?;
                    return Ok(basic(login));
                }
            }
        }
        Err(refused())
    }

    async fn token(&self, realm: &str, service: Option<&str>) -> Result<Secret, PullError> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }

        let what = "the registry's token service";
        let refused = || PullError::Unauthorized { host: self.source.host.clone() };
        let unsafe_realm = || PullError::refused("its registry names a token service without TLS");
        let mut url = reqwest::Url::parse(realm).map_err(|_| unsafe_realm())?;
        let origin = reqwest::Url::parse(&self.source.origin).map_err(|_| unsafe_realm())?;
        let own = self.source.plain && url.host_str() == origin.host_str();
        // A password goes nowhere but through TLS, unless the operator said so for this host.
        if url.scheme() != "https" && !(url.scheme() == "http" && own) {
            return Err(unsafe_realm());
        }
        url.query_pairs_mut()
            .extend_pairs(service.map(|service| ("service", service)))
            .append_pair("scope", &format!("repository:{}:pull", self.name));
        let mut request = self.http.get(url);
        if let Some(login) = &self.login {
            request = request.header(header::AUTHORIZATION, basic(login).expose());
        }
        let answer = request.send().await.map_err(|error| unreachable(&self.source, &error))?;
        if !answer.status().is_success() {
            return Err(refused());
        }
        let body = self.bounded(answer, MAX_TOKEN_BYTES, what).await?;
        let token: Token = serde_json::from_slice(&body).map_err(|_| refused())?;
        let token = token.token.or(token.access_token).ok_or_else(refused)?;
        Ok(Secret::new(format!("Bearer {token}")))
    }

    async fn bounded(
        &self,
        mut answer: Response,
        limit: u64,
        what: &str,
    ) -> Result<Vec<u8>, PullError> {
        let mut content = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|error| self.unreachable(&error))? {
            if (content.len() + piece.len()) as u64 > limit {
                let limit = format!("{limit} bytes");
                return Err(PullError::TooLarge { what: what.to_owned(), limit });
            }
            content.extend_from_slice(&piece);
        }
        Ok(content)
    }
}

fn same_host(attempt: &redirect::Attempt<'_>) -> bool {
    let place =
        |url: &reqwest::Url| (url.host_str().map(str::to_owned), url.port_or_known_default());
    attempt.previous().first().is_some_and(|first| place(first) == place(attempt.url()))
}

fn basic(login: &Login) -> Secret {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let pair = format!("{}:{}", login.user, login.password.expose());
    Secret::new(format!("Basic {}", STANDARD.encode(pair)))
}

/// `bytes 100-199/200` starts at 100.
fn range_start(value: &header::HeaderValue) -> Option<u64> {
    value.to_str().ok()?.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// Without the URL, which after a redirect may have a signature in it.
fn unreachable(source: &Source, error: &reqwest::Error) -> PullError {
    let problem = if error.is_timeout() {
        "it did not answer in time".to_owned()
    } else {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        // The outermost error alone has the URL in it.
        if std::error::Error::source(error).is_none() {
            "the request failed".to_owned()
        } else {
            cause.to_string()
        }
    };
    PullError::Unreachable { host: source.host.clone(), problem }
}
