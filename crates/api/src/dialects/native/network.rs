//! The network of a workspace.

use axum::{Json, extract::State};
use skerry_control::{self as control, Control};
use skerry_model::{
    self as model, Destination, EgressRule, EgressWish, Invalid, Outbound, PortRange, WorkspaceId,
};

use super::{
    Body, Login, Params, convert,
    error_body::{NativeError, NativeResult},
    wire,
};
use crate::{
    ApiState,
    dialects::network_text::{block, destination, outbound_proxy},
    ids::parse_workspace_ref,
};

/// Shows a workspace's network.
#[utoipa::path(
    operation_id = "get_network",
    get, path = "/skerry/v1/workspaces/{workspace}/network", tag = "network",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    responses(
        (status = 200, body = wire::Network),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
    ),
)]
pub(super) async fn show(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<Json<wire::Network>> {
    let which = parse_workspace_ref(&path.value);
    Ok(Json(shown(&state.control.network_of(&login.caller, &which).await?)))
}

/// Shows what a workspace wanted of the network and was refused. All is nothing without a VM.
#[utoipa::path(
    operation_id = "get_network_refusals",
    get, path = "/skerry/v1/workspaces/{workspace}/network/refusals", tag = "network",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    responses(
        (status = 200, body = wire::NetworkRefusals),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
    ),
)]
pub(super) async fn refusals(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<Json<wire::NetworkRefusals>> {
    let which = parse_workspace_ref(&path.value);
    let refusals = state.control.network_refusals(&login.caller, &which).await?;
    let shown = |one: &control::NetworkRefusal| {
        let (what, port) = match one.what {
            control::RefusedEgress::Resolution => (wire::Refused::Resolution, None),
            control::RefusedEgress::PrivateAnswer => (wire::Refused::PrivateAnswer, None),
            control::RefusedEgress::Connection(port) => (wire::Refused::Connection, Some(port)),
        };
        wire::NetworkRefusal {
            what,
            name: one.name.as_ref().map(ToString::to_string),
            port,
            times: one.times,
            last_at: convert::time(one.last_at),
        }
    };
    Ok(Json(wire::NetworkRefusals {
        total: refusals.total,
        last: refusals.last.iter().map(shown).collect(),
        refused_packets: refusals.refused_packets,
        dropped_frames: refusals.dropped_frames,
    }))
}

/// Lists the server's own proxies.
#[utoipa::path(
    operation_id = "list_server_proxies",
    get, path = "/skerry/v1/network/proxies", tag = "network",
    responses(
        (status = 200, body = wire::ServerProxies),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
    ),
)]
pub(super) async fn proxies(State(state): State<ApiState>, _: Login) -> Json<wire::ServerProxies> {
    let shown = state.control.server_proxies().map(|(name, exit)| wire::ServerProxy {
        name: name.to_string(),
        exit_address: exit.map(|address| address.to_string()),
    });
    Json(wire::ServerProxies { proxies: shown.collect() })
}

/// Replaces what a workspace asks of the network. In force when the answer comes, also for connections
/// that exist.
#[utoipa::path(
    operation_id = "set_network",
    put, path = "/skerry/v1/workspaces/{workspace}/network", tag = "network",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    request_body = wire::NetworkWish,
    responses(
        (status = 200, body = wire::Network),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable, or this server cannot give it"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace, or no such caller"),
        (status = 409, body = wire::ErrorBody, description = "It is being deleted"),
        (status = 503, body = wire::ErrorBody, description = "Recorded; the VM could not be told yet"),
    ),
)]
pub(super) async fn replace(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    body: Body<wire::NetworkWish>,
) -> NativeResult<Json<wire::Network>> {
    let which = parse_workspace_ref(&path.value);
    let wish = wish(&state.control, &login.caller, body.value).await?;
    let replace = move |own: &mut model::NetworkWish| {
        let outbound = wish.outbound.clone().keeping_credentials_of(&own.outbound);
        *own = model::NetworkWish { outbound, ..wish.clone() };
        Ok(())
    };
    Ok(Json(shown(&state.control.change_network(&login.caller, &which, replace).await?)))
}

/// What is asked for; callers are looked up.
pub(super) async fn wish(
    control: &Control,
    caller: &control::Caller,
    asked: wire::NetworkWish,
) -> Result<model::NetworkWish, NativeError> {
    let egress = match asked.egress {
        Some(egress) => egress_wish(egress)?,
        None => control.default_network().egress,
    };
    if asked.callers.len() > model::network_wish::MAX_CALLERS {
        let problem = format!("{} entries", asked.callers.len());
        let allowed = format!("at most {}", model::network_wish::MAX_CALLERS);
        return Err(Invalid { field: "callers", problem, allowed }.into());
    }
    let mut callers = std::collections::BTreeSet::<WorkspaceId>::new();
    for named in &asked.callers {
        callers.insert(control.get_workspace(caller, &parse_workspace_ref(named)).await?.id);
    }
    let networks = asked.caller_networks.iter().map(|text| block("caller_networks", text));
    let open_ports = asked.open_ports.iter().map(|open| {
        let transport = open.transport.map_or(model::Transport::Tcp, transport);
        Ok(model::OpenPorts { transport, ports: ports("open_ports", &open.ports)? })
    });
    Ok(model::NetworkWish {
        callers,
        caller_networks: networks.collect::<Result<_, Invalid>>()?,
        open_ports: open_ports.collect::<Result<_, Invalid>>()?,
        egress,
        outbound: outbound_wish(asked.outbound.unwrap_or_default())?,
    })
}

fn outbound_wish(asked: wire::OutboundWish) -> Result<Outbound, Invalid> {
    let invalid = |problem: &str, allowed: &str| Invalid {
        field: "proxy",
        problem: problem.to_owned(),
        allowed: allowed.to_owned(),
    };
    match (asked.proxy, asked.server_proxy) {
        (None, None) => Ok(Outbound::Direct),
        (None, Some(name)) => Ok(Outbound::OfServer(name.parse()?)),
        (Some(proxy), None) => outbound_proxy(
            &proxy.address,
            proxy.port,
            proxy.protocol.as_deref(),
            proxy.username,
            proxy.password.map(|text| text.0),
        )
        .map(Outbound::Own),
        (Some(_), Some(_)) => {
            Err(invalid("is one of its own and one of the server's at once", "one of the two"))
        }
    }
}

fn egress_wish(egress: wire::Egress) -> Result<EgressWish, Invalid> {
    let allowed = egress.allow.iter().map(|entry| {
        Ok(EgressRule {
            to: destination("egress", &entry.to)?,
            transport: entry.transport.map(transport),
            ports: match &entry.ports {
                Some(text) => ports("egress", text)?,
                None => PortRange::ALL,
            },
        })
    });
    Ok(EgressWish {
        internet: match egress.internet {
            wire::InternetScope::Nothing => model::InternetScope::Nothing,
            wire::InternetScope::Http => model::InternetScope::Http,
            wire::InternetScope::Https => model::InternetScope::Https,
            wire::InternetScope::Web => model::InternetScope::Web,
            wire::InternetScope::Everything => model::InternetScope::Everything,
        },
        package_managers: egress.package_managers,
        allowed: allowed.collect::<Result<_, Invalid>>()?,
    })
}

const fn transport(transport: wire::Transport) -> model::Transport {
    match transport {
        wire::Transport::Tcp => model::Transport::Tcp,
        wire::Transport::Udp => model::Transport::Udp,
    }
}

const fn transport_shown(transport: model::Transport) -> wire::Transport {
    match transport {
        model::Transport::Tcp => wire::Transport::Tcp,
        model::Transport::Udp => wire::Transport::Udp,
    }
}

/// `80` or `8000-8010`.
fn ports(field: &'static str, text: &str) -> Result<PortRange, Invalid> {
    let invalid = || Invalid {
        field,
        problem: format!("{:?} are no ports", text.chars().take(20).collect::<String>()),
        allowed: "a port such as 443, or two such as 8000-8010, from 1 to 65535".to_owned(),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| digits).ok_or_else(invalid)
    };
    PortRange::new(number(first)?, number(last)?).map_err(|_| invalid())
}

fn ports_shown(ports: PortRange) -> String {
    if ports.first() == ports.last() {
        ports.first().to_string()
    } else {
        format!("{}-{}", ports.first(), ports.last())
    }
}

fn shown(view: &control::NetworkView) -> wire::Network {
    let wish = &view.workspace.spec.network;
    let address = view.workspace.private_address.filter(|_| view.node.is_some());
    wire::Network {
        available: view.node.is_some(),
        uplink: view.node.is_some_and(|node| node.has_uplink),
        private_address: address.map(|address| address.to_string()),
        gateway: view.node.map(|node| node.gateway.to_string()),
        egress: egress_shown(&wish.egress),
        outbound: outbound_shown(&wish.outbound),
        callers: view.callers.iter().map(peer).collect(),
        caller_networks: wish.caller_networks.iter().map(ToString::to_string).collect(),
        open_ports: wish
            .open_ports
            .iter()
            .map(|open| wire::OpenPorts {
                transport: Some(transport_shown(open.transport)),
                ports: ports_shown(open.ports),
            })
            .collect(),
        links: view.links.iter().map(peer).collect(),
    }
}

fn egress_shown(wish: &EgressWish) -> wire::Egress {
    wire::Egress {
        internet: match wish.internet {
            model::InternetScope::Nothing => wire::InternetScope::Nothing,
            model::InternetScope::Http => wire::InternetScope::Http,
            model::InternetScope::Https => wire::InternetScope::Https,
            model::InternetScope::Web => wire::InternetScope::Web,
            model::InternetScope::Everything => wire::InternetScope::Everything,
        },
        package_managers: wish.package_managers,
        allow: wish.allowed.iter().map(entry_shown).collect(),
    }
}

fn outbound_shown(outbound: &Outbound) -> wire::Outbound {
    let (proxy, server_proxy) = match outbound {
        Outbound::Direct => (None, None),
        Outbound::Own(proxy) => {
            let shown = wire::Proxy {
                address: proxy.address.to_string(),
                port: proxy.port,
                protocol: proxy.protocol.word().to_owned(),
                has_credentials: proxy.credentials.is_some(),
            };
            (Some(shown), None)
        }
        Outbound::OfServer(name) => (None, Some(name.to_string())),
    };
    wire::Outbound { proxy, server_proxy }
}

fn entry_shown(rule: &EgressRule) -> wire::EgressEntry {
    wire::EgressEntry {
        to: match &rule.to {
            Destination::Anywhere => "anywhere".to_owned(),
            Destination::Network(network) => network.to_string(),
            Destination::Name(name) => name.to_string(),
        },
        transport: rule.transport.map(transport_shown),
        ports: (rule.ports != PortRange::ALL).then(|| ports_shown(rule.ports)),
    }
}

fn peer(peer: &control::Peer) -> wire::Peer {
    wire::Peer {
        id: peer.id.to_string(),
        name: peer.name.clone(),
        slug: peer.slug.clone(),
        private_address: peer.address.map(|address| address.to_string()),
    }
}
