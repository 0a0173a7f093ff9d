//! Remembering where the server is.

use std::io::{self, IsTerminal};

use serde_json::json;

use crate::{
    args::{Key, LoginArgs, Options},
    client::Client,
    error::Error,
    login::{Connection, Environment, connection, forget, parse_url, remember},
    output::Output,
    terminal::ask_secret,
};

/// The longest key read from standard input.
const MAX_KEY_BYTES: u64 = 4096;

pub(crate) async fn login(
    options: &Options,
    environment: &Environment,
    args: LoginArgs,
    output: Output,
) -> Result<(), Error> {
    let file = environment
        .login_file()
        .ok_or_else(|| Error::Usage("neither HOME nor XDG_CONFIG_HOME is set".to_owned()))?;
    let url = match args.server.as_deref() {
        Some(server) => parse_url(server)?,
        None => connection(options, environment)?.url,
    };
    let key = match args.secret.or_else(|| options.key.clone()) {
        Some(key) => key,
        None => read_key()?,
    };
    if key.expose().is_empty() {
        return Err(Error::Usage("the key is empty".to_owned()));
    }
    let connection = Connection { url, key: Some(key) };
    let client = Client::new(connection)?;
    // Whatever needs a key says whether it is good.
    client.get(&["quota"], &[]).await?;
    remember(&file, client.connection())?;
    let url = client.connection().url.to_string();
    let path = file.display().to_string();
    output.answer(&json!({ "url": url, "file": path }), || {
        Ok(format!("logged in to {url}; remembered in {path}\n"))
    })
}

fn read_key() -> Result<Key, Error> {
    match read_secret("API key")?.parse() {
        Ok(key) => Ok(key),
        Err(never) => match never {},
    }
}

/// A secret that is asked for at a terminal, or all of standard input less the end of its line.
pub(crate) fn read_secret(what: &str) -> Result<String, Error> {
    let failed = |cause| Error::local("standard input", cause);
    if io::stdin().is_terminal() {
        return ask_secret(what).map_err(failed);
    }
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(io::stdin(), MAX_KEY_BYTES), &mut text)
        .map_err(failed)?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Ok(text)
}

pub(crate) fn logout(environment: &Environment, output: Output) -> Result<(), Error> {
    let forgotten = match environment.login_file() {
        Some(file) => forget(&file)?,
        None => false,
    };
    output.answer(&json!({ "forgotten": forgotten }), || {
        let text = if forgotten { "logged out\n" } else { "was not logged in\n" };
        Ok(text.to_owned())
    })
}
