//! Custom domains.

use http::Method;
use serde_json::json;

use crate::{
    args::{AddDomainArgs, DomainArg, DomainCommand},
    client::{Client, read},
    error::Error,
    output::{Output, fields, table},
    wire,
};

pub(crate) async fn domain(
    client: &Client,
    command: DomainCommand,
    output: Output,
) -> Result<(), Error> {
    match command {
        DomainCommand::Add(AddDomainArgs { domain, workspace, port }) => {
            let body = json!({ "domain": domain, "workspace": workspace, "port": port });
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

fn shown(domain: &wire::Domain) -> String {
    let mut lines = vec![
        ("domain", domain.domain.clone()),
        ("state", domain.state.clone()),
        ("url", domain.url.clone()),
    ];
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
