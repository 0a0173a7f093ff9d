//! Where the server is and with which key to go there: flags, then the environment, then the login
//! file, then the default address.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::{
    args::{Key, Options},
    error::Error,
};

const DEFAULT_URL: &str = "http://127.0.0.1:7070";

/// What the client takes from the process it runs in, handed in so that tests own it.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// The directory of configuration files: `$XDG_CONFIG_HOME`, else `$HOME/.config`.
    pub config_dir: Option<PathBuf>,
}

impl Environment {
    /// That of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        let directory =
            |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let config_dir = directory("XDG_CONFIG_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| directory("HOME").map(|home| home.join(".config")));
        Self { config_dir }
    }

    /// Where the login is remembered.
    pub(crate) fn login_file(&self) -> Option<PathBuf> {
        self.config_dir.as_ref().map(|directory| directory.join("skerry/login.toml"))
    }
}

/// Where to go and with which key.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) url: Url,
    pub(crate) key: Option<Key>,
}

/// The login file.
#[derive(Serialize, Deserialize)]
struct LoginFile {
    url: String,
    key: String,
}

/// Looks up address and key.
pub(crate) fn connection(
    options: &Options,
    environment: &Environment,
) -> Result<Connection, Error> {
    let given_url = options.url.as_deref().filter(|url| !url.is_empty());
    let given_key = options.key.as_ref().filter(|key| !key.expose().is_empty());
    let file = if given_url.is_some() && given_key.is_some() {
        None
    } else {
        environment.login_file().map(|path| read(&path)).transpose()?.flatten()
    };
    resolve(given_url, given_key, file)
}

fn resolve(
    given_url: Option<&str>,
    given_key: Option<&Key>,
    file: Option<LoginFile>,
) -> Result<Connection, Error> {
    let (file_url, file_key) = match file {
        Some(file) => (Some(parse_url(&file.url)?), file.key.parse().ok()),
        None => (None, None),
    };
    let url = match (given_url, &file_url) {
        (Some(given), _) => parse_url(given)?,
        (None, Some(remembered)) => remembered.clone(),
        (None, None) => parse_url(DEFAULT_URL)?,
    };
    // A remembered key is for the server it was remembered with and for no other.
    let remembered_key = file_key.filter(|_| file_url.as_ref() == Some(&url));
    Ok(Connection { url, key: given_key.cloned().or(remembered_key) })
}

/// An `http` or `https` address. A path in it (behind a proxy) is kept.
pub(crate) fn parse_url(text: &str) -> Result<Url, Error> {
    let wrong = |problem: &str| Error::Usage(format!("{text}: {problem}"));
    let mut url =
        Url::parse(text).map_err(|_| wrong("is not an address such as http://127.0.0.1:7070"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(wrong("is not an http or https address"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("must not contain a user name; the key goes into SKERRY_KEY"));
    }
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

fn read(path: &Path) -> Result<Option<LoginFile>, Error> {
    let name = path.display().to_string();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(Error::local(name, cause)),
    };
    let mode =
        fs::metadata(path).map_err(|cause| Error::local(&*name, cause))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(Error::Usage(format!(
            "{name} holds a key and is readable by others; run: chmod 600 {name}"
        )));
    }
    // The parser's message would show the line, and with it the key.
    toml::from_str(&text)
        .map(Some)
        .map_err(|_| Error::Usage(format!("{name} is damaged; use skerry login again")))
}

/// Remembers an address and a key, in one step and readable by nobody else.
pub(crate) fn remember(path: &Path, connection: &Connection) -> Result<(), Error> {
    let failed = |cause| Error::local(path.display().to_string(), cause);
    let key = connection.key.as_ref().map(Key::expose).unwrap_or_default();
    let file = LoginFile { url: connection.url.to_string(), key: key.to_owned() };
    let text = toml::to_string(&file).map_err(|error| failed(io::Error::other(error)))?;
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    let mut draft = tempfile::Builder::new()
        .prefix(".login.")
        .make_in(directory, |draft| {
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)
        })
        .map_err(failed)?;
    draft.write_all(text.as_bytes()).map_err(failed)?;
    draft.as_file().sync_all().map_err(failed)?;
    draft.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// Forgets; whether there was something to forget.
pub(crate) fn forget(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(Error::local(path.display().to_string(), cause)),
    }
}
