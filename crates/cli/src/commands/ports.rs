//! Published ports.

use http::Method;
use serde_json::{Value, json};

use crate::{
    args::{PortCommand, PublishArgs, Visibility},
    client::{Client, read},
    error::Error,
    output::{Output, fields, table},
    wire,
};

pub(crate) async fn port(
    client: &Client,
    command: PortCommand,
    output: Output,
) -> Result<(), Error> {
    match command {
        PortCommand::Publish(args) => publish(client, args, output).await,
        PortCommand::Ls { workspace } => {
            let answer = client.get(&["workspaces", &workspace, "published-ports"], &[]).await?;
            output.answer(&answer, || Ok(listed(&read(&answer)?)))
        }
        PortCommand::Revoke { workspace, port } => {
            let number = port.to_string();
            let path = ["workspaces", &workspace, "published-ports", &number];
            client.call(Method::DELETE, &path, &[], None, 0).await?;
            output.answer(&json!({ "revoked": port }), || Ok(format!("{port}\n")))
        }
    }
}

async fn publish(client: &Client, args: PublishArgs, output: Output) -> Result<(), Error> {
    let visibility = args.visibility.map(|visibility| match visibility {
        Visibility::Public => "public",
        Visibility::Private => "private",
    });
    let body = json!({
        "port": args.port,
        "slug": args.slug,
        "label": args.label,
        "visibility": visibility,
    });
    let path = ["workspaces", &args.workspace, "published-ports"];
    let answer = client.call(Method::POST, &path, &[], Some(&body), 0).await?;
    output.answer(&answer, || {
        let token = answer.get("token").and_then(Value::as_str);
        Ok(published(&read(&answer)?, token))
    })
}

fn published(port: &wire::PublishedPort, token: Option<&str>) -> String {
    let mut lines = vec![
        ("port", port.port.to_string()),
        ("visibility", port.visibility.clone()),
        ("url", port.url.clone()),
    ];
    if let Some(token) = token {
        lines.push(("token", token.to_owned()));
        lines.push(("open with", format!("{}/?skerry_token={token}", port.url)));
    }
    fields(&lines)
}

fn listed(list: &wire::PublishedPortList) -> String {
    let row = |port: &wire::PublishedPort| {
        [
            port.port.to_string(),
            port.visibility.clone(),
            port.url.clone(),
            port.label.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = list.published_ports.iter().map(row).collect();
    table(["PORT", "VISIBILITY", "URL", "LABEL"], &rows)
}
