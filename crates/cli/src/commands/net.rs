//! The network of a workspace. The API replaces what is asked for as a whole: what is to change is read
//! first.

use http::Method;
use serde_json::{Value, json};

use super::login::read_secret;
use crate::{
    args::{DestinationArgs, LinkArgs, NetCommand, NetProxyArgs, NetSetArgs},
    client::{Client, read},
    error::Error,
    output::{Output, fields, table, time},
    wire,
};

pub(crate) async fn net(client: &Client, command: NetCommand, output: Output) -> Result<(), Error> {
    let answer = match command {
        NetCommand::Show { workspace } => {
            client.get(&["workspaces", &workspace, "network"], &[]).await?
        }
        NetCommand::Refusals { workspace } => {
            let answer =
                client.get(&["workspaces", &workspace, "network", "refusals"], &[]).await?;
            return output.answer(&answer, || Ok(refused(&read(&answer)?)));
        }
        NetCommand::Set(args) => set(client, args).await?,
        NetCommand::Allow(args) => {
            let entries = entries(&args);
            change(client, &args.workspace, |network| {
                for entry in &entries {
                    if !network.egress.allow.contains(entry) {
                        network.egress.allow.push(entry.clone());
                    }
                }
                Ok(())
            })
            .await?
        }
        NetCommand::Disallow(args) => {
            let entries = entries(&args);
            change(client, &args.workspace, |network| {
                for entry in &entries {
                    let before = network.egress.allow.len();
                    network.egress.allow.retain(|allowed| allowed != entry);
                    if network.egress.allow.len() == before {
                        let what = format!("{} is not allowed as it is written here", entry.to);
                        return Err(Error::Usage(what));
                    }
                }
                Ok(())
            })
            .await?
        }
        NetCommand::Proxy(args) => proxy(client, args).await?,
        NetCommand::Proxies => {
            let answer = client.get(&["network", "proxies"], &[]).await?;
            return output.answer(&answer, || Ok(proxies(&read(&answer)?)));
        }
        NetCommand::Link(args) => link(client, args).await?,
        NetCommand::Unlink { caller, workspace } => {
            let caller: wire::Workspace = read(&client.get(&["workspaces", &caller], &[]).await?)?;
            change(client, &workspace, |network| {
                let before = network.callers.len();
                network.callers.retain(|peer| peer.id != caller.id);
                if network.callers.len() == before {
                    let what = format!("{} is no caller of {workspace}", caller.slug);
                    return Err(Error::Usage(what));
                }
                Ok(())
            })
            .await?
        }
        NetCommand::Close { workspace, ports } => {
            let closed: Vec<wire::OpenPorts> = ports.iter().map(|text| open_ports(text)).collect();
            change(client, &workspace, |network| {
                for (closed, text) in closed.iter().zip(&ports) {
                    let before = network.open_ports.len();
                    network.open_ports.retain(|open| open != closed);
                    if network.open_ports.len() == before {
                        return Err(Error::Usage(format!(
                            "{text} is not open as it is written here"
                        )));
                    }
                }
                Ok(())
            })
            .await?
        }
    };
    output.answer(&answer, || Ok(shown(&read(&answer)?)))
}

async fn set(client: &Client, args: NetSetArgs) -> Result<Value, Error> {
    change(client, &args.workspace, |network| {
        if let Some(internet) = args.internet {
            internet.word().clone_into(&mut network.egress.internet);
        }
        if let Some(open) = args.package_managers {
            network.egress.package_managers = open;
        }
        if args.clear {
            network.egress.allow.clear();
        }
        Ok(())
    })
    .await
}

async fn proxy(client: &Client, args: NetProxyArgs) -> Result<Value, Error> {
    let outbound = match (&args.address, &args.server) {
        (Some(text), _) => {
            let (protocol, place) = text.split_once("://").unwrap_or(("http", text));
            let parts = place.rsplit_once(':');
            let (address, port) = parts
                .and_then(|(address, port)| Some((address, port.parse::<u16>().ok()?)))
                .ok_or_else(|| Error::Usage(format!("{place} is no address and port")))?;
            let mut proxy = json!({ "address": address, "port": port, "protocol": protocol });
            if let (Some(user), Some(fields)) = (&args.user, proxy.as_object_mut()) {
                let password = read_secret("password of the proxy")?;
                fields.insert("username".to_owned(), json!(user));
                fields.insert("password".to_owned(), json!(password));
            }
            json!({ "proxy": proxy })
        }
        (None, Some(name)) => json!({ "server_proxy": name }),
        (None, None) => json!({}),
    };
    let path = ["workspaces", args.workspace.as_str(), "network"];
    let network: wire::Network = read(&client.get(&path, &[]).await?)?;
    let mut body = wish(&network);
    if let Some(fields) = body.as_object_mut() {
        fields.insert("outbound".to_owned(), outbound);
    }
    client.call(Method::PUT, &path, &[], Some(&body), 0).await
}

fn proxies(list: &wire::ServerProxies) -> String {
    let row = |one: &wire::ServerProxy| {
        [one.name.clone(), one.exit_address.clone().unwrap_or_else(|| "-".to_owned())]
    };
    table(["NAME", "SEEN AS"], &list.proxies.iter().map(row).collect::<Vec<_>>())
}

async fn link(client: &Client, args: LinkArgs) -> Result<Value, Error> {
    let caller: wire::Workspace = read(&client.get(&["workspaces", &args.caller], &[]).await?)?;
    change(client, &args.workspace, |network| {
        if !network.callers.iter().any(|peer| peer.id == caller.id) {
            network.callers.push(wire::Peer {
                id: caller.id.clone(),
                slug: caller.slug.clone(),
                private_address: None,
            });
        }
        for open in args.ports.iter().map(|text| open_ports(text)) {
            if !network.open_ports.contains(&open) {
                network.open_ports.push(open);
            }
        }
        if network.open_ports.is_empty() {
            let what = "no port is open; name those to connect to with --port";
            return Err(Error::Usage(what.to_owned()));
        }
        Ok(())
    })
    .await
}

async fn change(
    client: &Client,
    workspace: &str,
    change: impl FnOnce(&mut wire::Network) -> Result<(), Error>,
) -> Result<Value, Error> {
    let path = ["workspaces", workspace, "network"];
    let mut network: wire::Network = read(&client.get(&path, &[]).await?)?;
    change(&mut network)?;
    client.call(Method::PUT, &path, &[], Some(&wish(&network)), 0).await
}

/// What is asked for by who changes nothing. A proxy that is named without what it is told keeps that.
fn wish(network: &wire::Network) -> Value {
    let callers: Vec<&str> = network.callers.iter().map(|peer| peer.id.as_str()).collect();
    json!({
        "egress": network.egress,
        "outbound": network.outbound,
        "callers": callers,
        "caller_networks": network.caller_networks,
        "open_ports": network.open_ports,
    })
}

/// `53/udp` is ports and a protocol.
fn ports_and_transport(text: &str) -> (String, Option<String>) {
    match text.rsplit_once('/') {
        Some((ports, transport)) => (ports.to_owned(), Some(transport.to_owned())),
        None => (text.to_owned(), None),
    }
}

fn open_ports(text: &str) -> wire::OpenPorts {
    let (ports, transport) = ports_and_transport(text);
    wire::OpenPorts { transport: transport.unwrap_or_else(|| "tcp".to_owned()), ports }
}

fn entries(args: &DestinationArgs) -> Vec<wire::EgressEntry> {
    let (ports, transport) = match args.ports.as_deref().map(ports_and_transport) {
        Some((ports, transport)) => (Some(ports), transport.or_else(|| Some("tcp".to_owned()))),
        None => (None, None),
    };
    let entry = |to: &String| wire::EgressEntry {
        to: to.clone(),
        transport: transport.clone(),
        ports: ports.clone(),
    };
    args.destinations.iter().map(entry).collect()
}

fn refused(refusals: &wire::NetworkRefusals) -> String {
    let counted = fields(&[
        ("names refused", refusals.total.to_string()),
        ("packets refused", refusals.refused_packets.to_string()),
        ("frames dropped", refusals.dropped_frames.to_string()),
    ]);
    let what = |one: &wire::NetworkRefusal| match (one.what.as_str(), one.port) {
        ("connection", Some(port)) => format!("connection to port {port}"),
        ("private_answer", _) => "private address".to_owned(),
        (other, _) => other.to_owned(),
    };
    let rows: Vec<[String; 4]> = refusals
        .last
        .iter()
        .map(|one| {
            let name = one.name.clone().unwrap_or_else(|| "-".to_owned());
            [name, what(one), one.times.to_string(), time(&one.last_at)]
        })
        .collect();
    match rows.is_empty() {
        true => counted,
        false => format!("{counted}\n{}", table(["NAME", "REFUSED", "TIMES", "LAST"], &rows)),
    }
}

fn way(outbound: &wire::Outbound) -> String {
    match (&outbound.proxy, &outbound.server_proxy) {
        (Some(proxy), _) => {
            let known = if proxy.has_credentials { " with credentials" } else { "" };
            format!("{}://{}:{}{known}", proxy.protocol, proxy.address, proxy.port)
        }
        (None, Some(name)) => format!("the server's proxy {name}"),
        (None, None) => "the server".to_owned(),
    }
}

fn shown(network: &wire::Network) -> String {
    let none = || "none".to_owned();
    let joined = |texts: Vec<String>| {
        if texts.is_empty() { none() } else { texts.join(", ") }
    };
    let peers = |peers: &[wire::Peer]| {
        let peer = |peer: &wire::Peer| match &peer.private_address {
            Some(address) => format!("{} ({address})", peer.slug),
            None => peer.slug.clone(),
        };
        joined(peers.iter().map(peer).collect())
    };
    let ports = |ports: &str, transport: &str| match transport {
        "tcp" => ports.to_owned(),
        other => format!("{ports}/{other}"),
    };
    let open = network.open_ports.iter().map(|open| ports(&open.ports, &open.transport));
    let allow = network.egress.allow.iter().map(|entry| match (&entry.ports, &entry.transport) {
        (None, None) => entry.to.clone(),
        (of, transport) => {
            let of = of.as_deref().unwrap_or("all ports");
            format!("{} {}", entry.to, ports(of, transport.as_deref().unwrap_or("tcp and udp")))
        }
    });
    let available = match (network.available, network.uplink) {
        (false, _) => "none on this server",
        (true, false) => "among workspaces only",
        (true, true) => "with a way to the internet",
    };
    let internet = if network.egress.allow.is_empty() {
        network.egress.internet.clone()
    } else {
        "what is allowed".to_owned()
    };
    let package_managers = if network.egress.package_managers { "open" } else { "not asked for" };
    let callers = network.caller_networks.iter().cloned();
    fields(&[
        ("network", available.to_owned()),
        ("address", network.private_address.clone().unwrap_or_else(none)),
        ("internet", internet),
        ("allowed", joined(allow.collect())),
        ("by way of", way(&network.outbound)),
        ("package managers", package_managers.to_owned()),
        ("open ports", joined(open.collect())),
        ("callers", peers(&network.callers)),
        ("networks of callers", joined(callers.collect())),
        ("may call", peers(&network.links)),
    ])
}
