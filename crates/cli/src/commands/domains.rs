//! Custom domains.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _},
    path::Path,
};

use http::Method;
use serde_json::json;

use crate::{
    args::{AddDomainArgs, DomainArg, DomainCommand},
    client::{Client, read},
    error::Error,
    output::{Output, fields, table},
    wire,
};

/// More than any provider asks for.
const CREDENTIALS_MAX_BYTES: u64 = 16 * 1024;

pub(crate) async fn domain(
    client: &Client,
    command: DomainCommand,
    output: Output,
) -> Result<(), Error> {
    match command {
        DomainCommand::Add(args) => {
            let AddDomainArgs { domain, workspace, port, dns_provider, dns_credentials } = args;
            let mut body = json!({ "domain": domain, "workspace": workspace, "port": port });
            if let (Some(provider), Some(file)) = (dns_provider, dns_credentials) {
                body["dns_provider"] = json!(provider);
                body["dns_credentials"] = json!(credentials(&file)?);
            }
            let answer = client.call(Method::POST, &["domains"], &[], Some(&body), 0).await?;
            output.answer(&answer, || Ok(shown(&read(&answer)?)))
        }
        DomainCommand::Verify(DomainArg { domain }) => {
            let path = ["domains", &domain, "verify"];
            let answer = client.call(Method::POST, &path, &[], None, 0).await?;
            output.answer(&answer, || Ok(shown(&read(&answer)?)))
        }
        DomainCommand::Ls => {
            let answer = client.get(&["domains"], &[]).await?;
            output.answer(&answer, || Ok(listed(&read(&answer)?)))
        }
        DomainCommand::Rm(DomainArg { domain }) => {
            client.call(Method::DELETE, &["domains", &domain], &[], None, 0).await?;
            output.answer(&json!({ "removed": domain }), || Ok(format!("{domain}\n")))
        }
    }
}

/// They are read from a file: arguments are seen by everybody on the machine.
fn credentials(file: &Path) -> Result<BTreeMap<String, String>, Error> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        io::stdin().take(CREDENTIALS_MAX_BYTES).read_to_string(&mut text)
    } else {
        fs::File::open(file)
            .and_then(|file| file.take(CREDENTIALS_MAX_BYTES).read_to_string(&mut text))
    };
    read.map_err(|error| Error::local(file.display().to_string(), error))?;
    // The words of a parser may repeat what it could not read.
    serde_json::from_str(&text).map_err(|_| {
        Error::Usage(format!("{}: not a JSON object whose values are texts", file.display()))
    })
}

fn shown(domain: &wire::Domain) -> String {
    let mut lines = vec![
        ("domain", domain.domain.clone()),
        ("state", domain.state.clone()),
        ("url", domain.url.clone()),
    ];
    if let Some(provider) = &domain.dns_provider {
        lines.push(("certificates by", provider.clone()));
    }
    if let Some(error) = &domain.last_error {
        lines.push(("problem", error.clone()));
    }
    if domain.state == "pending" {
        lines.push(("TXT record", domain.txt_record.name.clone()));
        lines.push(("with the text", domain.txt_record.value.clone()));
        lines.push(("leads to", domain.target.clone()));
    }
    fields(&lines)
}

fn listed(list: &wire::DomainList) -> String {
    let row = |domain: &wire::Domain| {
        [
            domain.domain.clone(),
            domain.state.clone(),
            domain.port.to_string(),
            domain.certificate_expires_at.clone().unwrap_or_default(),
            domain.last_error.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = list.domains.iter().map(row).collect();
    table(["DOMAIN", "STATE", "PORT", "CERTIFICATE UNTIL", "PROBLEM"], &rows)
}
