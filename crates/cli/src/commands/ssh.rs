//! SSH: keys, and the system's own client pointed at the server's gateway.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Read as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::Command,
};

use http::Method;
use serde_json::json;

use super::login::read_secret;
use crate::{
    args::{SshAccessCommand, SshArgs, SshKeyCommand},
    client::{Client, read},
    error::Error,
    output::{self, Output, fields, table, write_out},
    wire,
};

/// A `.pub` file is one line.
const PUBLIC_KEY_MAX_BYTES: u64 = 16 * 1024;
/// Workspaces in the written configuration.
const LISTED: &str = "1000";

pub(crate) async fn key(
    client: &Client,
    command: SshKeyCommand,
    output: Output,
) -> Result<(), Error> {
    match command {
        SshKeyCommand::Add { file, name } => {
            let body = json!({ "name": name, "public_key": public_key(&file)? });
            let answer = client.call(Method::POST, &["ssh-keys"], &[], Some(&body), 0).await?;
            output.answer(&answer, || {
                let key: wire::SshKey = read(&answer)?;
                Ok(fields(&[("name", key.name), ("id", key.id), ("fingerprint", key.fingerprint)]))
            })
        }
        SshKeyCommand::Ls => {
            let answer = client.get(&["ssh-keys"], &[]).await?;
            output.answer(&answer, || Ok(keys(&read(&answer)?)))
        }
        SshKeyCommand::Rm { id } => {
            client.call(Method::DELETE, &["ssh-keys", &id], &[], None, 0).await?;
            output.answer(&json!({ "deleted": id }), || Ok(format!("{id}\n")))
        }
    }
}

pub(crate) async fn access(
    client: &Client,
    command: SshAccessCommand,
    output: Output,
) -> Result<(), Error> {
    match command {
        SshAccessCommand::Show { workspace } => {
            let answer = client.get(&["workspaces", &workspace, "ssh"], &[]).await?;
            output.answer(&answer, || {
                let access: wire::SshAccess = read(&answer)?;
                let password = match (access.has_password, access.password_chosen) {
                    (false, _) => "none",
                    (true, false) => "made",
                    (true, true) => "chosen",
                };
                let open = if access.open { "open" } else { "closed" };
                Ok(fields(&[("ssh", open.to_owned()), ("password", password.to_owned())]))
            })
        }
        SshAccessCommand::Open { workspace } => {
            let path = ["workspaces", &workspace, "ssh", "open"];
            let answer = client.call(Method::POST, &path, &[], None, 0).await?;
            output.answer(&answer, || {
                let opened: wire::SshOpened = read(&answer)?;
                Ok(match opened.password {
                    Some(password) => fields(&[
                        ("password", password),
                        ("", "for root; it is not shown again".to_owned()),
                    ]),
                    None => format!("{workspace} is open\n"),
                })
            })
        }
        SshAccessCommand::Close { workspace } => {
            let path = ["workspaces", &workspace, "ssh", "close"];
            client.call(Method::POST, &path, &[], None, 0).await?;
            output
                .answer(&json!({ "closed": workspace }), || Ok(format!("{workspace} is closed\n")))
        }
        SshAccessCommand::Password { workspace, user } => {
            let body = json!({ "user": user, "password": read_secret("password")? });
            let path = ["workspaces", &workspace, "ssh", "password"];
            client.call(Method::PUT, &path, &[], Some(&body), 0).await?;
            let set = json!({ "workspace": workspace, "user": user });
            output.answer(&set, || Ok(format!("{user} of {workspace} has a password\n")))
        }
    }
}

fn public_key(file: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        io::stdin().take(PUBLIC_KEY_MAX_BYTES).read_to_string(&mut text)
    } else {
        fs::File::open(file)
            .and_then(|file| file.take(PUBLIC_KEY_MAX_BYTES).read_to_string(&mut text))
    };
    read.map_err(|error| Error::local(file.display().to_string(), error))?;
    if text.contains("PRIVATE KEY") {
        // It must not even be sent.
        let why = format!("{}: a private key; name the .pub file beside it", file.display());
        return Err(Error::Usage(why));
    }
    Ok(text)
}

fn keys(list: &wire::SshKeyList) -> String {
    let row = |key: &wire::SshKey| {
        [
            key.name.clone(),
            key.id.clone(),
            key.algorithm.clone(),
            key.fingerprint.clone(),
            output::time(&key.created_at),
        ]
    };
    let rows: Vec<_> = list.ssh_keys.iter().map(row).collect();
    table(["NAME", "ID", "ALGORITHM", "FINGERPRINT", "ADDED"], &rows)
}

async fn endpoint(client: &Client) -> Result<wire::SshEndpoint, Error> {
    let ssh: wire::Ssh = read(&client.get(&["ssh"], &[]).await?)?;
    ssh.endpoint.ok_or_else(|| {
        Error::Usage("this server speaks no SSH; it is started with --ssh-listen".to_owned())
    })
}

/// The option that makes `ssh` know the gateway by the key the server has told, and by no other.
fn known_by(endpoint: &wire::SshEndpoint) -> String {
    format!("/bin/echo %H {}", endpoint.host_key)
}

/// Runs `ssh`; returns only when that cannot be done.
pub(crate) async fn ssh(client: &Client, args: SshArgs) -> Result<(), Error> {
    let endpoint = endpoint(client).await?;
    let workspace: wire::Workspace =
        read(&client.get(&["workspaces", &args.workspace], &[]).await?)?;
    let error = Command::new("ssh")
        .arg("-p")
        .arg(endpoint.port.to_string())
        .arg("-o")
        .arg(format!("KnownHostsCommand={}", known_by(&endpoint)))
        .args(["-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile=/dev/null"])
        .arg("-l")
        .arg(&workspace.slug)
        .arg(&endpoint.host)
        .args(&args.args)
        .exec();
    Err(Error::local("ssh", error))
}

/// Prints what `~/.ssh/config` needs.
pub(crate) async fn config(client: &Client) -> Result<(), Error> {
    let endpoint = endpoint(client).await?;
    let query = [("limit", LISTED.to_owned())];
    let list: wire::WorkspaceList = read(&client.get(&["workspaces"], &query).await?)?;
    let slugs = list.workspaces.iter().filter_map(|workspace| workspace.get("slug")?.as_str());
    write_out(written(&endpoint, slugs).as_bytes())
}

fn written<'a>(endpoint: &wire::SshEndpoint, slugs: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for slug in slugs {
        // Writing to a string does not fail.
        let _ = writeln!(text, "Host {slug}.skerry\n    User {slug}");
    }
    let wire::SshEndpoint { host, port, .. } = endpoint;
    let _ = writeln!(text, "Host *.skerry\n    HostName {host}\n    Port {port}");
    let _ = writeln!(text, "    HostKeyAlias skerry-{host}-{port}");
    let _ = writeln!(text, "    KnownHostsCommand {}", known_by(endpoint));
    let _ = writeln!(text, "    StrictHostKeyChecking yes\n    UserKnownHostsFile /dev/null");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_every_workspace_and_pins_the_gateways_key() {
        let endpoint = wire::SshEndpoint {
            host: "127.0.0.1".to_owned(),
            port: 2222,
            host_key: "ssh-ed25519 AAAA".to_owned(),
        };
        insta::assert_snapshot!(written(&endpoint, ["blue", "green"].into_iter()));
    }

    #[test]
    fn a_private_key_is_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("id_ed25519");
        fs::write(&file, "-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n").unwrap();
        let error = public_key(&file).unwrap_err().to_string();
        assert!(error.contains(".pub") && !error.contains("secret"), "{error}");
    }
}
