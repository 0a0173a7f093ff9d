//! Credentials for registries, in the file that Docker, Podman and skopeo write.

use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use skerry_model::Secret;

use super::{super::ImageError, PullError};

/// The file names some registries; larger ones are something else.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Who we are at one registry.
#[derive(Clone, Debug)]
pub(super) struct Login {
    pub user: String,
    pub password: Secret,
}

#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, AuthEntry>,
}

#[derive(Deserialize)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// The login for `host` in the file, if there is one.
pub(super) fn login_for(file: Option<&Path>, host: &str) -> Result<Option<Login>, PullError> {
    let Some(path) = file else { return Ok(None) };
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut text))
        .map_err(ImageError::file("read", path))?;
    login_in(&text, host).map_err(|reason| {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidData, reason);
        PullError::Host(ImageError::file("use the credentials in", path)(source))
    })
}

/// What is wrong is said without any of the content.
fn login_in(text: &[u8], host: &str) -> Result<Option<Login>, &'static str> {
    let file: AuthFile = serde_json::from_slice(text)
        .map_err(|_| "it is not in the form of Docker's config.json")?;
    let entry = file.auths.into_iter().find(|(name, _)| registry_of(name) == host);
    let Some((_, entry)) = entry else { return Ok(None) };
    if let (Some(user), Some(password)) = (entry.username, entry.password) {
        return Ok(Some(Login { user, password: Secret::new(password) }));
    }
    let Some(encoded) = entry.auth else {
        return Err("an entry has neither `auth` nor a user name and password");
    };
    let decoded = STANDARD.decode(encoded).map_err(|_| "an `auth` is not base64")?;
    let decoded = String::from_utf8(decoded).map_err(|_| "an `auth` is not text")?;
    let (user, password) = decoded.split_once(':').ok_or("an `auth` is not user:password")?;
    Ok(Some(Login { user: user.to_owned(), password: Secret::new(password) }))
}

/// Entries are written as hosts, or as the URLs of old APIs.
fn registry_of(name: &str) -> &str {
    let bare = name.trim_start_matches("https://").trim_start_matches("http://");
    match bare.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, host: &str) -> Option<(String, String)> {
        let login = login_in(text.as_bytes(), host).unwrap()?;
        Some((login.user, login.password.expose().to_owned()))
    }

    #[test]
    fn dockers_file_is_read_in_each_of_its_forms() {
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dXNlcjpwYTpzcw=="},
            "ghcr.io": {"username": "me", "password": "secret"},
            "127.0.0.1:5000": {"auth": "YTpi"}}, "credsStore": "x"}"#;
        assert_eq!(found(text, "docker.io"), Some(("user".into(), "pa:ss".into())));
        assert_eq!(found(text, "ghcr.io"), Some(("me".into(), "secret".into())));
        assert_eq!(found(text, "127.0.0.1:5000"), Some(("a".into(), "b".into())));
        assert_eq!(found(text, "quay.io"), None);
    }

    #[test]
    fn a_damaged_file_is_told_without_its_content() {
        for text in
            ["", "\"\"", r#"{"auths":{"a":{"auth":"tops3cret!"}}}"#, r#"{"auths":{"a":{}}}"#]
        {
            let problem = login_in(text.as_bytes(), "a").unwrap_err();
            assert!(!problem.contains("tops3cret"));
        }
    }
}
