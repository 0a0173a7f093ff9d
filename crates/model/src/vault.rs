//! Vaults: credentials that work inside a guest without ever being in it. A credential has a name, by
//! which everybody speaks of it, and a value that is written and never read again; a service says at
//! which hosts, and how, requests of guests are given credentials on their way out.

mod catalogue;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    AccountId, Invalid, NamePattern, Secret, Timestamp, VaultCredentialId, VaultId, VaultServiceId,
};

pub use catalogue::{CATALOGUE, CatalogueAuth, CatalogueEntry};

/// Vaults of one account.
pub const MAX_VAULTS: u32 = 100;
/// Credentials of one vault.
pub const MAX_VAULT_CREDENTIALS: u32 = 64;
/// Services of one vault.
pub const MAX_VAULT_SERVICES: u32 = 64;
/// Vaults of one workspace.
pub const MAX_VAULTS_OF_A_WORKSPACE: usize = 8;
/// Services of all vaults of one workspace that are used; those after them are not.
pub const MAX_SERVICES_OF_A_WORKSPACE: usize = 128;
/// Requests that are remembered for one vault.
pub const MAX_VAULT_REQUESTS: u32 = 1000;

const NAME_MAX_CHARS: usize = 128;
const DESCRIPTION_MAX_CHARS: usize = 1024;
const VALUE_MAX_BYTES: usize = 16 * 1024;
const HEADERS_MAX: usize = 16;
const HEADER_NAME_MAX_BYTES: usize = 128;
const HEADER_VALUE_MAX_BYTES: usize = 4096;
const PLACEHOLDER_BYTES: std::ops::RangeInclusive<usize> = 4..=256;

/// A vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vault {
    /// Which.
    pub id: VaultId,
    /// Whose.
    pub account_id: AccountId,
    /// What people call it; need not be unique.
    pub name: String,
    /// More about it.
    pub description: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A credential, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultCredential {
    /// Which.
    pub id: VaultCredentialId,
    /// In which vault.
    pub vault_id: VaultId,
    /// Unique in the vault. Guests have it in the value's place.
    pub name: String,
    /// What it is, in its owner's words; `api_key` if nothing is said.
    pub kind: String,
    /// More about it.
    pub description: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it got its present value, if that is not the first.
    pub rotated_at: Option<Timestamp>,
}

/// Hosts whose requests are given credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultService {
    /// Which.
    pub id: VaultServiceId,
    /// In which vault.
    pub vault_id: VaultId,
    /// The hosts, at port 443 of TCP.
    pub host: NamePattern,
    /// What requests are given.
    pub auth: ServiceAuth,
    /// Whether it is used.
    pub is_enabled: bool,
    /// More about it.
    pub description: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What requests to a service are given. Everything that is a credential is its name here. What a
/// guest has put in the same place is overwritten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ServiceAuth {
    /// `Authorization: Bearer` (RFC 6750).
    Bearer {
        /// The token.
        token: String,
    },
    /// A header.
    ApiKey {
        /// Its name.
        header: String,
        /// Its value.
        key: String,
        /// Before the value, as it is.
        #[serde(default)]
        prefix: String,
    },
    /// `Authorization: Basic` (RFC 7617).
    Basic {
        /// Who.
        username: String,
        /// With which password.
        password: String,
    },
    /// Several headers, with credentials as `{{ NAME }}` in their values.
    Custom {
        /// Names and values.
        headers: Vec<(String, String)>,
    },
    /// In the request's path, in place of a text there.
    UrlPath {
        /// The credential.
        token: String,
        /// The text.
        placeholder: String,
    },
    /// Nothing: requests are let through and noted.
    Passthrough,
}

/// A request that went out by a service of a vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultRequest {
    /// By which vault.
    pub vault_id: VaultId,
    /// From which workspace.
    pub workspace_id: crate::WorkspaceId,
    /// When it was answered.
    pub at: Timestamp,
    /// To which host.
    pub host: String,
    /// With which method.
    pub method: String,
    /// The status of the answer; 502 where there was none.
    pub status: u16,
    /// The names of the credentials that it was given.
    pub credentials: Vec<String>,
}

impl ServiceAuth {
    /// The names of the credentials that are needed, each once.
    #[must_use]
    pub fn credentials(&self) -> BTreeSet<&str> {
        match self {
            Self::Bearer { token } | Self::UrlPath { token, .. } => [token.as_str()].into(),
            Self::ApiKey { key, .. } => [key.as_str()].into(),
            Self::Basic { username, password } => [username.as_str(), password.as_str()].into(),
            Self::Custom { headers } => headers
                .iter()
                .flat_map(|(_, value)| parts(value))
                .filter_map(|part| match part {
                    TemplatePart::Credential(name) => Some(name),
                    TemplatePart::Text(_) => None,
                })
                .collect(),
            Self::Passthrough => BTreeSet::new(),
        }
    }

    /// Checks it.
    ///
    /// # Errors
    /// [`Invalid`] with field `auth_config`.
    pub fn check(&self) -> Result<(), Invalid> {
        for name in self.credentials() {
            if !is_credential_name(name) {
                return Err(wrong("auth_config", "names no credential", CREDENTIAL_NAME_RULE));
            }
        }
        match self {
            Self::ApiKey { header, prefix, .. } => {
                check_header(header)?;
                check_header_value(prefix)
            }
            Self::Custom { headers } => {
                if !(1..=HEADERS_MAX).contains(&headers.len()) {
                    return Err(wrong(
                        "auth_config",
                        "has no or too many headers",
                        "1 to 16 headers",
                    ));
                }
                headers.iter().try_for_each(|(name, value)| {
                    check_header(name)?;
                    check_header_value(value)
                })
            }
            Self::UrlPath { placeholder, .. } => {
                // What may stand in a path as it is (RFC 3986, 3.3), but for the slash.
                let is_plain =
                    |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&b);
                if PLACEHOLDER_BYTES.contains(&placeholder.len())
                    && placeholder.bytes().all(is_plain)
                {
                    return Ok(());
                }
                let allowed = "4 to 256 characters that can stand in a path";
                Err(wrong("auth_config", "has a placeholder that is none", allowed))
            }
            Self::Bearer { .. } | Self::Basic { .. } | Self::Passthrough => Ok(()),
        }
    }
}

/// A part of a header's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplatePart<'a> {
    /// As it is.
    Text(&'a str),
    /// The value of the credential of this name.
    Credential(&'a str),
}

/// The parts of a value with credentials as `{{ NAME }}`.
#[must_use]
pub fn parts(value: &str) -> Vec<TemplatePart<'_>> {
    let mut parts = Vec::new();
    let mut rest = value;
    while let Some((before, opened)) = rest.split_once("{{")
        && let Some((name, after)) = opened.split_once("}}")
    {
        if !before.is_empty() {
            parts.push(TemplatePart::Text(before));
        }
        parts.push(TemplatePart::Credential(name.trim()));
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(TemplatePart::Text(rest));
    }
    parts
}

const CREDENTIAL_NAME_RULE: &str = "names of 1 to 128 of A-Z, a-z, 0-9, _, - and .";

fn is_credential_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
    (1..=NAME_MAX_CHARS).contains(&name.len()) && name.bytes().all(inner)
}

fn wrong(field: &'static str, problem: &str, allowed: &str) -> Invalid {
    Invalid { field, problem: problem.to_owned(), allowed: allowed.to_owned() }
}

/// Headers that say how a message is carried, and to whom: they are not ours to change.
const NOT_OURS: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-encoding",
];

fn check_header(name: &str) -> Result<(), Invalid> {
    // RFC 9110, 5.6.2.
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let fits = (1..=HEADER_NAME_MAX_BYTES).contains(&name.len()) && name.bytes().all(is_token);
    if !fits || NOT_OURS.iter().any(|not| name.eq_ignore_ascii_case(not)) {
        let allowed = "the name of a header that does not say how messages are carried";
        return Err(wrong("auth_config", "has a header that cannot be set", allowed));
    }
    Ok(())
}

fn check_header_value(text: &str) -> Result<(), Invalid> {
    if text.len() > HEADER_VALUE_MAX_BYTES || text.chars().any(char::is_control) {
        let allowed = "values of at most 4096 bytes without control characters";
        return Err(wrong("auth_config", "has a value that cannot stand in a header", allowed));
    }
    Ok(())
}

/// Checks what a vault is called.
///
/// # Errors
/// [`Invalid`] with field `name`.
pub fn check_vault_name(name: &str) -> Result<(), Invalid> {
    let chars = name.chars().count();
    if (1..=NAME_MAX_CHARS).contains(&chars) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(wrong(
        "name",
        "is empty or too long",
        "1 to 128 characters, none of them control characters",
    ))
}

/// Checks a description.
///
/// # Errors
/// [`Invalid`] with field `description`.
pub fn check_description(text: &str) -> Result<(), Invalid> {
    if text.chars().count() <= DESCRIPTION_MAX_CHARS {
        return Ok(());
    }
    Err(wrong("description", "is too long", "at most 1024 characters"))
}

/// Checks a credential's name and kind.
///
/// # Errors
/// [`Invalid`] with field `name` or `credential_type`.
pub fn check_credential(name: &str, kind: &str) -> Result<(), Invalid> {
    if !is_credential_name(name) {
        return Err(wrong("name", "is no name of a credential", CREDENTIAL_NAME_RULE));
    }
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
    if !(1..=64).contains(&kind.len()) || !kind.bytes().all(is_word) {
        return Err(wrong("credential_type", "is no word", "1 to 64 of A-Z, a-z, 0-9, _ and -"));
    }
    Ok(())
}

/// Checks a credential's value, which is not repeated.
///
/// # Errors
/// [`Invalid`] with field `value`.
pub fn check_credential_value(value: &Secret) -> Result<(), Invalid> {
    let text = value.expose();
    if text.is_empty() || text.len() > VALUE_MAX_BYTES || text.chars().any(char::is_control) {
        let allowed = "1 to 16384 bytes without control characters";
        return Err(wrong("value", "cannot be sent as a credential", allowed));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api_key(header: &str) -> ServiceAuth {
        let (key, prefix) = ("KEY".to_owned(), String::new());
        ServiceAuth::ApiKey { header: header.to_owned(), key, prefix }
    }

    #[test]
    fn a_template_is_its_texts_and_the_credentials_between_them() {
        use TemplatePart::{Credential, Text};
        assert_eq!(
            parts("Token {{ KEY }}:{{OTHER}}"),
            [Text("Token "), Credential("KEY"), Text(":"), Credential("OTHER"),]
        );
        assert_eq!(parts("{{ open"), [Text("{{ open")]);
        assert_eq!(parts(""), []);
        let auth = ServiceAuth::Custom {
            headers: vec![
                ("X-A".to_owned(), "{{ B }}{{ A }}".to_owned()),
                ("X-C".to_owned(), "{{ A }}".to_owned()),
            ],
        };
        assert_eq!(auth.credentials().into_iter().collect::<Vec<_>>(), ["A", "B"]);
        auth.check().unwrap();
    }

    #[test]
    fn headers_that_carry_the_message_are_not_set() {
        for bad in ["Host", "content-length", "Transfer-Encoding", "", "X Y", "X:Y", "X\r\nY"] {
            assert_eq!(api_key(bad).check().unwrap_err().field, "auth_config", "{bad:?}");
        }
        for good in ["X-API-Key", "authorization", "Cookie"] {
            api_key(good).check().unwrap();
        }
        let custom = ServiceAuth::Custom { headers: Vec::new() };
        assert!(custom.check().is_err());
        let newline = vec![("X-A".to_owned(), "a\r\nX-B: {{ A }}".to_owned())];
        assert!(ServiceAuth::Custom { headers: newline }.check().is_err());
    }

    #[test]
    fn credentials_are_named_by_words() {
        for bad in ["", "A B", "{{ A }}", "Ä", &"a".repeat(129)] {
            let auth = ServiceAuth::Bearer { token: bad.to_owned() };
            assert_eq!(auth.check().unwrap_err().field, "auth_config", "{bad:?}");
            assert!(check_credential(bad, "api_key").is_err());
        }
        check_credential("OPENAI_API_KEY", "api_key").unwrap();
        assert_eq!(check_credential("A", "").unwrap_err().field, "credential_type");
    }

    #[test]
    fn a_placeholder_of_a_path_stays_within_its_segment() {
        let auth = |placeholder: &str| ServiceAuth::UrlPath {
            token: "T".to_owned(),
            placeholder: placeholder.to_owned(),
        };
        for bad in ["", "abc", "a/bcd", "a?bcd", "a bcd", "a#bcd"] {
            assert!(auth(bad).check().is_err(), "{bad:?}");
        }
        auth("TELEGRAM_BOT_TOKEN").check().unwrap();
    }

    #[test]
    fn a_value_that_could_end_a_header_is_refused_and_not_repeated() {
        for bad in ["", "a\nb", "a\0b", &"x".repeat(16 * 1024 + 1)] {
            let refused = check_credential_value(&Secret::new(bad)).unwrap_err();
            assert_eq!(refused.field, "value");
            assert!(bad.is_empty() || !refused.to_string().contains(bad));
        }
        check_credential_value(&Secret::new("sk-…")).unwrap();
    }

    #[test]
    fn the_catalogue_holds_services_that_can_be_made_each_under_its_own_id() {
        let ids: BTreeSet<&str> = CATALOGUE.iter().map(|entry| entry.id).collect();
        assert_eq!(ids.len(), CATALOGUE.len());
        for entry in &CATALOGUE {
            entry.auth().check().unwrap();
            entry.host.parse::<NamePattern>().unwrap();
        }
    }

    #[test]
    fn what_a_service_does_is_written_by_its_kind() {
        let shown = |auth: &ServiceAuth| serde_json::to_string(auth).unwrap();
        let bearer = ServiceAuth::Bearer { token: "A".to_owned() };
        assert_eq!(shown(&bearer), r#"{"type":"bearer","token":"A"}"#);
        assert_eq!(shown(&ServiceAuth::Passthrough), r#"{"type":"passthrough"}"#);
        assert_eq!(serde_json::from_str::<ServiceAuth>(&shown(&bearer)).unwrap(), bearer);
    }
}
