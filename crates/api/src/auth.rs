//! Who is calling. A key's secret is accepted in every dialect's way, on every route:
//!
//! 1. `X-Client-ID` and `X-Client-Secret` (the account and its key),
//! 2. `X-API-Key`,
//! 3. `Authorization: Bearer`,
//! 4. where the route says so, a key in the body or the query (`api_key`).
//!
//! The first one present counts; a wrong one is not made good by a right one further down.

use std::marker::PhantomData;

use axum::{extract::FromRequestParts, response::Response};
use http::{HeaderMap, HeaderName, header, request::Parts};
use skerry_control::{Caller, Credential, Error};
use skerry_model::{ErrorKind, Secret};

use crate::{ApiState, Dialect};

/// Longer secrets are nobody's: they are refused before anything is computed from them.
const MAX_SECRET_CHARS: usize = 512;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_CLIENT_ID: HeaderName = HeaderName::from_static("x-client-id");
const X_CLIENT_SECRET: HeaderName = HeaderName::from_static("x-client-secret");

/// The credential a request presents. `elsewhere` is the key of a body or query field, on routes that
/// accept one.
#[must_use]
pub fn credential(headers: &HeaderMap, elsewhere: Option<&str>) -> Option<Credential> {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or(""));
    let (secret, account) = if let Some(secret) = text(X_CLIENT_SECRET) {
        (secret, text(X_CLIENT_ID))
    } else if let Some(key) = text(X_API_KEY) {
        (key, None)
    } else if let Some(value) = text(header::AUTHORIZATION) {
        (bearer(value).unwrap_or(""), None)
    } else {
        (elsewhere?, None)
    };
    Some(Credential {
        secret: Secret::new(if secret.len() > MAX_SECRET_CHARS { "" } else { secret }),
        account: account.map(str::to_owned),
    })
}

/// The token of `Bearer <token>`; the scheme's case does not matter (RFC 9110, section 11.1).
pub(crate) fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The account that calls, by the headers alone.
///
/// # Errors
/// `Unauthenticated`.
pub async fn caller(state: &ApiState, headers: &HeaderMap) -> Result<Caller, Error> {
    caller_with_key(state, headers, None).await
}

/// The account that calls, by the headers or else by a key found elsewhere in the request.
///
/// # Errors
/// `Unauthenticated`.
pub async fn caller_with_key(
    state: &ApiState,
    headers: &HeaderMap,
    elsewhere: Option<&str>,
) -> Result<Caller, Error> {
    match credential(headers, elsewhere) {
        Some(credential) if !credential.secret.expose().is_empty() => {
            state.control.authenticate(&credential).await
        }
        Some(_) | None => Err(Error::new(ErrorKind::Unauthenticated)),
    }
}

/// Extractor: the account that calls, or the dialect's own answer to a missing or wrong credential.
/// Put it before the body, so that nothing of a stranger's body is read.
#[derive(Debug)]
pub struct Authenticated<D> {
    /// The caller.
    pub caller: Caller,
    dialect: PhantomData<D>,
}

impl<D: Dialect> FromRequestParts<ApiState> for Authenticated<D> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Response> {
        match caller(state, &parts.headers).await {
            Ok(caller) => Ok(Self { caller, dialect: PhantomData }),
            Err(error) => Err(D::error(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("header")))
            .collect()
    }

    fn secret_and_account(
        pairs: &[(&'static str, &str)],
        elsewhere: Option<&str>,
    ) -> Option<(String, Option<String>)> {
        credential(&headers(pairs), elsewhere).map(|c| (c.secret.expose().to_owned(), c.account))
    }

    #[test]
    fn each_dialect_way_of_presenting_a_key_is_understood() {
        let key = |account: Option<&str>| Some(("k".to_owned(), account.map(str::to_owned)));
        assert_eq!(secret_and_account(&[("authorization", "Bearer k")], None), key(None));
        assert_eq!(secret_and_account(&[("authorization", "bEARER  k ")], None), key(None));
        assert_eq!(secret_and_account(&[("x-api-key", "k")], None), key(None));
        assert_eq!(
            secret_and_account(&[("x-client-id", "admin"), ("x-client-secret", "k")], None),
            key(Some("admin")),
        );
        assert_eq!(secret_and_account(&[("x-client-secret", "k")], None), key(None));
        assert_eq!(secret_and_account(&[], Some("k")), key(None));
        assert_eq!(secret_and_account(&[], None), None);
    }

    #[test]
    fn the_first_credential_present_counts_even_if_it_is_unusable() {
        assert_eq!(
            secret_and_account(&[("authorization", "Basic k")], Some("body")),
            Some((String::new(), None)),
        );
        assert_eq!(
            secret_and_account(&[("x-api-key", "a"), ("authorization", "Bearer b")], Some("c")),
            Some(("a".to_owned(), None)),
        );
        let long = "x".repeat(MAX_SECRET_CHARS + 1);
        assert_eq!(secret_and_account(&[("x-api-key", &long)], None), Some((String::new(), None)));
    }

    #[test]
    fn a_client_id_alone_is_no_credential() {
        assert_eq!(secret_and_account(&[("x-client-id", "admin")], None), None);
    }
}
