//! `/workspace/:id/network`, and the network fields of a create request.

use std::collections::BTreeSet;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};
use skerry_control::{Caller, Control, Error, NetworkView};
use skerry_model::{
    Destination, EgressRule, EgressWish, InternetScope, Ipv4Network, NetworkWish, OpenPorts,
    Outbound, OutboundProxy, PortRange, Transport, WorkspaceId,
};

use super::{
    Oblien,
    convert::is_nothing,
    error_body::{Problem, Refusal},
    wire,
};
use crate::{
    ApiState,
    auth::Authenticated,
    dialects::network_text::{block, destination, outbound_proxy},
    extract::{JsonBody, PathOf},
    ids,
    object::Object,
};

/// The most entries of each list, by the reference.
const MOST: usize = 50;

/// What a request asks of the network; `None` leaves as it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    allow_internet: Option<bool>,
    egress: Option<BTreeSet<EgressRule>>,
    ingress: Option<BTreeSet<Ipv4Network>>,
    ingress_ports: Option<BTreeSet<OpenPorts>>,
    private_links: Option<Vec<String>>,
    outbound: Option<Outbound>,
    /// `outbound_mode: custom`: a proxy of its own is there already, or comes with it.
    wants_own_proxy: bool,
    /// The first field that asks for anything at all, and the first that asks for the world.
    needs_network: Option<String>,
    needs_uplink: Option<String>,
}

/// How a field of a body is named and refused.
struct Field<'a> {
    code: &'static str,
    prefix: &'a str,
    name: &'a str,
}

impl Field<'_> {
    fn path(&self) -> String {
        format!("{}{}", self.prefix, self.name)
    }

    fn refusal(&self, problem: impl Into<String>, allowed: &str) -> Refusal {
        Refusal {
            code: self.code,
            field: self.path(),
            problem: problem.into(),
            allowed: allowed.to_owned(),
        }
    }

    fn no_assignment(&self) -> Refusal {
        self.refusal("is no proxy of this server", "the name of one that it has, or null")
    }

    /// `custom_proxy`.
    fn proxy(&self, value: &Value) -> Result<OutboundProxy, Refusal> {
        let of = |name: &str, problem: &str, allowed: &str| Refusal {
            code: self.code,
            field: format!("{}.{name}", self.path()),
            problem: problem.to_owned(),
            allowed: allowed.to_owned(),
        };
        let fields =
            value.as_object().ok_or_else(|| self.refusal("is not an object", "an object"))?;
        let known = ["host", "port", "protocol", "username", "password"];
        if let Some(other) = fields.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(of(other, "is not a field of a proxy", &known.join(", ")));
        }
        let text = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(of(name, "is no text", "a text")),
        };
        let host =
            text("host")?.ok_or_else(|| of("host", "is missing", "a public IPv4 address"))?;
        let port = fields.get("port").and_then(Value::as_u64);
        let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        let port = port.ok_or_else(|| of("port", "is no port", "1 to 65535"))?;
        let (username, password) = (text("username")?, text("password")?);
        outbound_proxy(&host, port, text("protocol")?.as_deref(), username, password)
            .map_err(|invalid| self.refusal(invalid.problem, &invalid.allowed))
    }

    fn flag(&self, value: &Value) -> Result<bool, Refusal> {
        value.as_bool().ok_or_else(|| self.refusal("is not a boolean", "true or false"))
    }

    fn list<T: Ord>(
        &self,
        value: &Value,
        entry: impl Fn(&Value) -> Result<T, Refusal>,
    ) -> Result<BTreeSet<T>, Refusal> {
        let entries = value.as_array().ok_or_else(|| self.refusal("is not a list", "a list"))?;
        if entries.len() > MOST {
            let problem = format!("has {} entries", entries.len());
            return Err(self.refusal(problem, "at most 50 entries"));
        }
        entries.iter().map(entry).collect()
    }

    fn text<'v>(&self, value: &'v Value) -> Result<&'v str, Refusal> {
        value.as_str().ok_or_else(|| self.refusal("has an entry that is no text", "texts"))
    }
}

impl Asked {
    /// What the fields of a create request's `config` ask for.
    pub(super) fn of_config(config: &Map<String, Value>) -> Result<Self, Refusal> {
        let code = "INVALID_CONFIG";
        let mut asked = Self::default();
        if let Some(value) = config.get("allow_internet").filter(|value| !value.is_null()) {
            asked.take(&Field { code, prefix: "config.", name: "allow_internet" }, value)?;
        }
        if config.get("static_network").is_some_and(|value| !is_nothing(value)) {
            // Every workspace keeps its address as long as it exists.
            let field = Field { code, prefix: "config.", name: "static_network" };
            field.flag(config.get("static_network").unwrap_or(&Value::Null))?;
            asked.needs_network.get_or_insert(field.path());
        }
        if let Some(value) = config.get("proxy_assignment_id").filter(|value| !value.is_null()) {
            let field =
                Field { code: "validation_error", prefix: "config.", name: "proxy_assignment_id" };
            let name = value.as_str().and_then(|text| text.parse().ok());
            asked.outbound = Some(Outbound::OfServer(name.ok_or_else(|| field.no_assignment())?));
            asked.needs_uplink.get_or_insert(field.path());
            asked.needs_network.get_or_insert(field.path());
        }
        match config.get("network_config") {
            None | Some(Value::Null) => {}
            Some(Value::Object(fields)) => {
                asked.take_all(code, "config.network_config.", fields)?;
            }
            Some(_) => {
                let field = Field { code, prefix: "config.", name: "network_config" };
                return Err(field.refusal("is not an object", "an object"));
            }
        }
        Ok(asked)
    }

    fn take_all(
        &mut self,
        code: &'static str,
        prefix: &str,
        fields: &Map<String, Value>,
    ) -> Result<(), Refusal> {
        for (name, value) in fields {
            if !value.is_null() {
                self.take(&Field { code, prefix, name }, value)?;
            }
        }
        let managed = fields.get("outbound_mode").is_some_and(|mode| mode == "managed");
        if managed && fields.get("custom_proxy").is_some_and(|proxy| !proxy.is_null()) {
            let field = Field { code, prefix, name: "custom_proxy" };
            return Err(field.refusal("is given although the mode is managed", "null"));
        }
        let listed = self.egress.as_ref().is_some_and(|egress| !egress.is_empty());
        if self.allow_internet == Some(false) && listed {
            let field = Field { code, prefix, name: "egress" };
            return Err(field.refusal("is given although nothing is allowed", "an empty list"));
        }
        Ok(())
    }

    fn take(&mut self, field: &Field<'_>, value: &Value) -> Result<(), Refusal> {
        let asks = !is_nothing(value);
        match field.name {
            "allow_internet" => {
                self.allow_internet = Some(field.flag(value)?);
                self.needs_uplink_if(asks, field);
            }
            "egress" => {
                let entry = |entry: &Value| {
                    destination("egress", field.text(entry)?)
                        .map(EgressRule::all)
                        .map_err(|invalid| field.refusal(invalid.problem, &invalid.allowed))
                };
                self.egress = Some(field.list(value, entry)?);
                self.needs_uplink_if(asks, field);
            }
            "ingress" => {
                let entry = |entry: &Value| match field.text(entry)? {
                    "host" => Err(field.refusal(
                        "cannot have host: nothing but published ports is reachable from outside",
                        "IPv4 addresses and networks",
                    )),
                    text => block("ingress", text)
                        .map_err(|invalid| field.refusal(invalid.problem, &invalid.allowed)),
                };
                self.ingress = Some(field.list(value, entry)?);
            }
            "ingress_ports" => {
                let port = |entry: &Value| {
                    let number = entry.as_u64().and_then(|number| u16::try_from(number).ok());
                    number
                        .and_then(|number| PortRange::one(number).ok())
                        .ok_or_else(|| field.refusal("has an entry that is no port", "1 to 65535"))
                };
                let ports = field.list(value, port)?.into_iter();
                let open = ports.flat_map(|ports| {
                    [Transport::Tcp, Transport::Udp].map(|transport| OpenPorts { transport, ports })
                });
                self.ingress_ports = Some(open.collect());
            }
            "private_link_ids" => {
                let entry = |entry: &Value| field.text(entry).map(str::to_owned);
                self.private_links = Some(field.list(value, entry)?.into_iter().collect());
            }
            "outbound_mode" => match field.text(value)? {
                "managed" => {
                    self.outbound.get_or_insert(Outbound::Direct);
                }
                "custom" => {
                    self.wants_own_proxy = true;
                    self.needs_uplink_if(asks, field);
                }
                _ => return Err(field.refusal("is no mode", "managed or custom")),
            },
            "custom_proxy" => {
                self.outbound = Some(Outbound::Own(field.proxy(value)?));
                self.needs_uplink_if(asks, field);
            }
            "egress_ports" | "public_access" | "public_ingress" => {
                if asks {
                    let problem = "is not available on this server yet";
                    return Err(field.refusal(problem, "leave it out, null or false"));
                }
            }
            _ => {
                let known = "allow_internet, egress, ingress, ingress_ports, private_link_ids, \
                             outbound_mode, custom_proxy";
                return Err(field.refusal("is not a field of a network", known));
            }
        }
        if asks && value != "managed" {
            self.needs_network.get_or_insert(field.path());
        }
        Ok(())
    }

    fn needs_uplink_if(&mut self, asks: bool, field: &Field<'_>) {
        if asks {
            self.needs_uplink.get_or_insert(field.path());
        }
    }

    /// Whether this server can give it at all.
    fn check(&self, control: &Control, code: &'static str) -> Result<(), Refusal> {
        let (field, problem) = match (control.network(), &self.needs_network, &self.needs_uplink) {
            (None, Some(field), _) => (field, "workspaces have no network"),
            (Some(network), _, Some(field)) if !network.has_uplink => {
                (field, "it has no way to the internet")
            }
            (None | Some(_), _, _) => return Ok(()),
        };
        Err(Refusal {
            code,
            field: field.clone(),
            problem: format!("is not available on this server: {problem}"),
            allowed: "leave it out, null, false or empty".to_owned(),
        })
    }

    /// What a new workspace asks for; `None` when the request says nothing of a network.
    pub(super) async fn wish_of_new(
        self,
        control: &Control,
        caller: &Caller,
    ) -> Result<Option<NetworkWish>, Problem> {
        if self == Self::default() {
            return Ok(None);
        }
        self.check(control, "INVALID_CONFIG")?;
        if let Some(Outbound::OfServer(asked)) = &self.outbound
            && !control.server_proxies().any(|(name, _)| name == asked)
        {
            let code = "validation_error";
            return Err(Field { code, prefix: "config.", name: "proxy_assignment_id" }
                .no_assignment()
                .into());
        }
        let callers = self.callers(control, caller).await?;
        let mut wish = control.default_network();
        self.apply(callers.as_ref(), &mut wish)?;
        Ok(Some(wish))
    }

    async fn callers(
        &self,
        control: &Control,
        caller: &Caller,
    ) -> Result<Option<BTreeSet<WorkspaceId>>, Problem> {
        let Some(names) = &self.private_links else { return Ok(None) };
        let mut found = BTreeSet::new();
        for name in names {
            let which = ids::parse_workspace_ref(name);
            found.insert(control.get_workspace(caller, &which).await?.id);
        }
        Ok(Some(found))
    }

    fn apply(
        &self,
        callers: Option<&BTreeSet<WorkspaceId>>,
        wish: &mut NetworkWish,
    ) -> Result<(), Error> {
        match self.allow_internet {
            Some(true) => wish.egress.internet = InternetScope::Everything,
            Some(false) => wish.egress = EgressWish::default(),
            None => {}
        }
        if let Some(egress) = &self.egress {
            if !egress.is_empty() && !wish.egress.asks_for_something() {
                let problem = "is given although nothing is allowed";
                let allowed = "an empty list, or allow_internet: true with it";
                return Err(Error::invalid("egress", problem, allowed));
            }
            wish.egress.allowed.clone_from(egress);
            wish.egress.package_managers = false;
        }
        if let Some(outbound) = &self.outbound {
            wish.outbound = outbound.clone().keeping_credentials_of(&wish.outbound);
        }
        if self.wants_own_proxy && !matches!(wish.outbound, Outbound::Own(_)) {
            let problem = "is custom, and there is no proxy";
            return Err(Error::invalid("outbound_mode", problem, "custom_proxy with it"));
        }
        if let Some(ingress) = &self.ingress {
            wish.caller_networks.clone_from(ingress);
        }
        if let Some(ports) = &self.ingress_ports {
            wish.open_ports.clone_from(ports);
        }
        if let Some(callers) = callers {
            wish.callers.clone_from(callers);
        }
        Ok(())
    }
}

pub(super) async fn get(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    Ok(answer(&state.control, &state.control.network_of(&caller, &which).await?))
}

/// Changes what is named and leaves the rest.
pub(super) async fn change(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
    JsonBody { value: body, .. }: JsonBody<Option<Object<Map<String, Value>>>, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    // First of all, whether it is the caller's.
    state.control.get_workspace(&caller, &which).await?;
    let code = "validation_error";
    let mut asked = Asked::default();
    asked.take_all(code, "", &body.map(|Object(fields)| fields).unwrap_or_default())?;
    asked.check(&state.control, code)?;
    let callers = asked.callers(&state.control, &caller).await?;
    let change = move |wish: &mut NetworkWish| asked.apply(callers.as_ref(), wish);
    let view = state.control.change_network(&caller, &which, change).await?;
    Ok(answer(&state.control, &view))
}

/// A dedicated address outside: that of a proxy of the server's, which everything then goes through.
pub(super) async fn assign_ip(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
    JsonBody { value: body, .. }: JsonBody<Option<Object<Map<String, Value>>>, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    state.control.get_workspace(&caller, &which).await?;
    let field = Field { code: "validation_error", prefix: "", name: "ip" };
    let fields = body.map(|Object(fields)| fields).unwrap_or_default();
    if let Some(other) = fields.keys().find(|name| *name != "ip") {
        let other = Field { name: other, ..field };
        return Err(other.refusal("is not a field of an address", "ip").into());
    }
    let ip = fields.get("ip").and_then(Value::as_str).and_then(|text| text.parse().ok());
    let ip: std::net::Ipv4Addr =
        ip.ok_or_else(|| field.refusal("is no IPv4 address", "an address of the server's pool"))?;
    let mut known = state.control.server_proxies();
    let Some((name, _)) = known.find(|(_, exit)| *exit == Some(ip)) else {
        let problem = format!("{ip} is not an address of this server's pool");
        return Err(field.refusal(problem, "the exit address of a proxy that it has").into());
    };
    let outbound = Outbound::OfServer(name.clone());
    drop(known);
    let change = move |wish: &mut NetworkWish| {
        wish.outbound = outbound.clone();
        Ok(())
    };
    let view = state.control.change_network(&caller, &which, change).await?;
    Ok(answer(&state.control, &view))
}

fn answer(control: &Control, view: &NetworkView) -> Response {
    let (mode, proxy, exit) = match &view.workspace.spec.network.outbound {
        Outbound::Direct => ("managed", Value::Null, None),
        Outbound::Own(proxy) => {
            let shown = json!({
                "host": proxy.address.to_string(),
                "port": proxy.port,
                "protocol": proxy.protocol.word(),
                "has_credentials": proxy.credentials.is_some(),
            });
            ("custom", shown, None)
        }
        Outbound::OfServer(used) => {
            let known = control.server_proxies().find(|(name, _)| *name == used);
            ("managed", Value::Null, known.and_then(|(_, exit)| exit))
        }
    };
    let network = shown(&view.workspace.spec.network);
    let address = |address: skerry_model::PrivateAddress| address.to_string();
    let ip = view.workspace.private_address.filter(|_| view.node.is_some());
    let callers = view.callers.iter();
    let ingress = callers.clone().filter_map(|peer| peer.address).map(address);
    let ingress: Vec<String> = ingress.chain(network.ingress.iter().cloned()).collect();
    let links: Vec<Value> = callers
        .map(|peer| {
            json!({
                "id": ids::oblien_workspace_id(peer.id),
                "name": peer.name,
                "slug": peer.slug,
                "ip": peer.address.map(address),
            })
        })
        .collect();
    Json(json!({
        "success": true,
        "ip": ip.map(address).unwrap_or_default(),
        "gateway": view.node.map(|node| node.gateway.to_string()).unwrap_or_default(),
        "public_access": network.public_access,
        "allow_internet": network.allow_internet,
        "ingress": ingress,
        "ingress_ports": network.ingress_ports,
        "egress": network.egress,
        "egress_ports": network.egress_ports,
        "outbound_ip": exit.map(|address| address.to_string()),
        "outbound_mode": mode,
        "outbound_proxy": proxy,
        "private_links": links,
    }))
    .into_response()
}

/// The part of a workspace object.
pub(super) fn shown(wish: &NetworkWish) -> wire::Network {
    let ports: BTreeSet<u16> =
        wish.open_ports.iter().flat_map(|open| open.ports.first()..=open.ports.last()).collect();
    let names = wish.egress.allowed.iter().map(|rule| match &rule.to {
        Destination::Anywhere => "*".to_owned(),
        Destination::Network(network) => network.to_string(),
        Destination::Name(name) => name.to_string(),
    });
    // Only what is open without a list can be limited by ports here.
    let limited: &[u16] = match (wish.egress.internet, wish.egress.allowed.is_empty()) {
        (InternetScope::Http, true) => &[80],
        (InternetScope::Https, true) => &[443],
        (InternetScope::Web, true) => &[80, 443],
        (InternetScope::Nothing | InternetScope::Everything, true) | (_, false) => &[],
    };
    wire::Network {
        allow_internet: wish.egress.asks_for_something(),
        ingress_ports: ports.into_iter().collect(),
        egress_ports: limited.to_vec(),
        egress: names.collect::<BTreeSet<_>>().into_iter().collect(),
        public_access: false,
        ingress: wish.caller_networks.iter().map(ToString::to_string).collect(),
    }
}
