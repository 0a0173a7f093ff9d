//! Cloudflare's API, version 4: zones and records of type TXT.

use std::{error::Error as _, time::Duration};

use async_trait::async_trait;
use http::Method;
use reqwest::{Client, StatusCode, redirect::Policy};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use skerry_internal_api::EdgeError;
use skerry_model::{HostName, dns_provider::CloudflareAccess};

use super::{TTL_SECONDS, TextRecords};

const API: &str = "https://api.cloudflare.com/client/v4";
/// Of one request.
const WITHIN: Duration = Duration::from_secs(20);
/// Of one answer.
const ANSWER_MAX_BYTES: usize = 256 * 1024;
/// What is repeated of an error.
const ERROR_MAX_CHARS: usize = 200;
/// Their code for a record that is there already.
const THERE_ALREADY: u64 = 81_058;

/// Where the API is, and what it is reached by.
pub(super) struct CloudflareApi {
    client: Client,
    base: String,
}

impl CloudflareApi {
    pub(super) fn new() -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .use_rustls_tls()
            .https_only(true)
            .redirect(Policy::none())
            .timeout(WITHIN)
            .build()?;
        Ok(Self { client, base: API.to_owned() })
    }
}

/// The API, with one owner's token.
pub(super) struct Cloudflare<'a> {
    api: &'a CloudflareApi,
    access: &'a CloudflareAccess,
}

/// What every answer is in.
#[derive(Deserialize)]
struct Envelope<T> {
    success: bool,
    #[serde(default)]
    errors: Vec<Complaint>,
    result: Option<T>,
}

#[derive(Deserialize)]
struct Complaint {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Found {
    id: String,
}

enum Refusal {
    Complaints(Vec<Complaint>),
    Other(EdgeError),
}

impl From<Refusal> for EdgeError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Other(error) => error,
            Refusal::Complaints(complaints) => {
                let said = complaints.iter().map(|one| format!("{} ({})", one.message, one.code));
                let said = said.collect::<Vec<_>>().join(", ");
                let said = said.chars().filter(|c| !c.is_control()).take(ERROR_MAX_CHARS);
                Self(format!("Cloudflare refuses: {}", said.collect::<String>()))
            }
        }
    }
}

impl<'a> Cloudflare<'a> {
    pub(super) fn new(api: &'a CloudflareApi, access: &'a CloudflareAccess) -> Self {
        Self { api, access }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<Option<T>, Refusal> {
        let request = self
            .api
            .client
            .request(method, format!("{}{path}", self.api.base))
            .bearer_auth(self.access.token.expose())
            .query(query);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let mut answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        let mut text = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(unreachable)? {
            text.extend_from_slice(&piece);
            if text.len() > ANSWER_MAX_BYTES {
                return Err(not_understood(status));
            }
        }
        let answer: Envelope<T> =
            serde_json::from_slice(&text).map_err(|_| not_understood(status))?;
        match answer.success {
            true => Ok(answer.result),
            false => Err(Refusal::Complaints(answer.errors)),
        }
    }

    /// The zone that the name is in: the longest that the token may see.
    async fn zone(&self, name: &HostName) -> Result<String, EdgeError> {
        let mut rest = name.as_str();
        while let Some((_, parent)) = rest.split_once('.').filter(|(_, rest)| rest.contains('.')) {
            let found: Option<Vec<Found>> =
                self.call(Method::GET, "/zones", &[("name", parent)], None).await?;
            if let Some(zone) = found.unwrap_or_default().into_iter().find(is_plain) {
                return Ok(zone.id);
            }
            rest = parent;
        }
        Err(EdgeError(format!("Cloudflare shows this token no zone of {name}")))
    }
}

/// It becomes part of a path.
fn is_plain(found: &Found) -> bool {
    !found.id.is_empty() && found.id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[async_trait]
impl TextRecords for Cloudflare<'_> {
    async fn put(&self, name: &HostName, text: &str) -> Result<(), EdgeError> {
        let zone = self.zone(name).await?;
        let record = json!({
            "type": "TXT", "name": name.as_str(), "content": quoted(text), "ttl": TTL_SECONDS,
        });
        let path = format!("/zones/{zone}/dns_records");
        match self.call::<Found>(Method::POST, &path, &[], Some(record)).await {
            Ok(_) => Ok(()),
            Err(Refusal::Complaints(said)) if said.iter().any(|one| one.code == THERE_ALREADY) => {
                Ok(())
            }
            Err(refusal) => Err(refusal.into()),
        }
    }

    async fn remove(&self, name: &HostName, text: &str) -> Result<(), EdgeError> {
        let zone = self.zone(name).await?;
        let path = format!("/zones/{zone}/dns_records");
        let content = quoted(text);
        let query = [("type", "TXT"), ("name", name.as_str()), ("content", content.as_str())];
        let found: Option<Vec<Found>> = self.call(Method::GET, &path, &query, None).await?;
        for record in found.unwrap_or_default().iter().filter(|found| is_plain(found)) {
            let path = format!("{path}/{}", record.id);
            self.call::<Value>(Method::DELETE, &path, &[], None).await?;
        }
        Ok(())
    }
}

/// As texts are written in zones (RFC 1035, 5.1); a challenge's has nothing to escape.
fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

fn unreachable(error: reqwest::Error) -> Refusal {
    // Its words name the query at most, never the token.
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    tracing::debug!(%error, cause, "Cloudflare was not reached");
    Refusal::Other(EdgeError("Cloudflare cannot be reached".to_owned()))
}

fn not_understood(status: StatusCode) -> Refusal {
    Refusal::Other(EdgeError(format!("Cloudflare answers {status} in an unknown form")))
}

#[cfg(test)]
#[path = "cloudflare_tests.rs"]
mod tests;
