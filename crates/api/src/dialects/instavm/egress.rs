//! `/v1/egress/vm/{vm}` and `/v1/egress/session/{session}`, and `egress_policy` in the creation of a
//! VM or session.

use std::collections::BTreeSet;

use axum::{Json, extract::State};
use serde::Serialize;
use skerry_control::{Caller, Control, NetworkView, WorkspaceRef};
use skerry_model::{
    Destination, EgressRule, EgressWish, InternetScope, Ipv4Network, NamePattern, NetworkWish,
};

use super::{
    Instavm, error_body::Problem, request::AuthenticatedBody, sessions::session_ref,
    validation::Fields, vms::no_such_session,
};
use crate::{ApiState, auth::Authenticated, extract::PathOf, ids};

/// The words of a policy; what is not said is as the server gives it to who does not ask.
#[derive(Debug)]
pub(super) struct Policy {
    package_managers: Option<bool>,
    http: Option<bool>,
    https: Option<bool>,
    allowed: BTreeSet<EgressRule>,
}

#[derive(Debug, Serialize)]
pub(super) struct PolicyRecord {
    status: &'static str,
    allow_package_managers: bool,
    /// The same: some callers read this name.
    allow_public_repos: bool,
    allow_http: bool,
    allow_https: bool,
    allowed_domains: Vec<String>,
    allowed_cidrs: Vec<String>,
}

/// `egress_policy` of `POST /v1/vms` and of `POST /v1/sessions/session`.
pub(super) fn asked(fields: &mut Fields) -> Option<Policy> {
    let mut inner = Fields::new(fields.object("egress_policy")?);
    let policy = Policy::read(&mut inner);
    if inner.finish().is_err() {
        let allowed = "Input should be {\"allow_package_managers\", \"allow_http\", \
             \"allow_https\": booleans, \"allowed_domains\": host names, \"allowed_cidrs\": IPv4 \
             networks}";
        fields.refuse("egress_policy", allowed);
        return None;
    }
    Some(policy)
}

impl Policy {
    fn read(fields: &mut Fields) -> Self {
        let package_managers = fields.boolean("allow_package_managers");
        let public_repos = fields.boolean("allow_public_repos");
        let (http, https) = (fields.boolean("allow_http"), fields.boolean("allow_https"));
        let mut allowed = BTreeSet::new();
        for (field, problem, read) in [
            ("allowed_domains", "Input should be a list of host names", domain as ReadEntry),
            ("allowed_cidrs", "Input should be a list of IPv4 networks", cidr as ReadEntry),
        ] {
            let entries = fields.list(field).unwrap_or_default();
            let read: Option<Vec<EgressRule>> =
                entries.iter().map(|entry| read(entry.as_str()?).map(EgressRule::all)).collect();
            match read {
                Some(rules) => allowed.extend(rules),
                None => fields.refuse(field, problem),
            }
        }
        Self { package_managers: package_managers.or(public_repos), http, https, allowed }
    }

    /// What is asked for, if this server can give it.
    pub(super) fn wish(self, control: &Control) -> Result<EgressWish, Problem> {
        let has_uplink = control.network().is_some_and(|network| network.has_uplink);
        let said = |flag: Option<bool>| flag.unwrap_or(has_uplink);
        let (http, https) = (said(self.http), said(self.https));
        let package_managers = said(self.package_managers);
        let internet = if http && https && package_managers {
            InternetScope::Everything
        } else {
            InternetScope::of_ports(http, https)
        };
        let wish = EgressWish { internet, package_managers, allowed: self.allowed };
        if wish.asks_for_something() && !has_uplink {
            let accepted = if control.network().is_none() {
                "null, or a policy that allows nothing: VMs have no network"
            } else {
                "null, or a policy that allows nothing: VMs have no way to the internet"
            };
            return Err(Problem::Unserved { field: "egress_policy", accepted });
        }
        Ok(wish)
    }
}

type ReadEntry = fn(&str) -> Option<Destination>;

fn domain(text: &str) -> Option<Destination> {
    NamePattern::parse(text).ok().map(Destination::Name)
}

fn cidr(text: &str) -> Option<Destination> {
    Ipv4Network::parse(text).ok().map(Destination::Network)
}

/// The network of a new VM.
pub(super) fn wish_of_new(
    control: &Control,
    policy: Option<Policy>,
) -> Result<Option<NetworkWish>, Problem> {
    let Some(policy) = policy else { return Ok(None) };
    let egress = policy.wish(control)?;
    Ok(Some(NetworkWish { egress, ..control.default_network() }))
}

/// Gives a workspace that is there another policy.
pub(super) async fn change(
    control: &Control,
    caller: &Caller,
    which: &WorkspaceRef,
    policy: Policy,
) -> Result<NetworkView, Problem> {
    let egress = policy.wish(control)?;
    let change = move |wish: &mut NetworkWish| {
        wish.egress.clone_from(&egress);
        Ok(())
    };
    Ok(control.change_network(caller, which, change).await?)
}

fn record(view: &NetworkView) -> Json<PolicyRecord> {
    let wish = &view.workspace.spec.network.egress;
    let package_managers = wish.package_managers || wish.is_unrestricted();
    let mut domains = BTreeSet::new();
    let mut cidrs = BTreeSet::new();
    for rule in &wish.allowed {
        match &rule.to {
            Destination::Name(name) => domains.insert(name.to_string()),
            Destination::Network(network) => cidrs.insert(network.to_string()),
            Destination::Anywhere => cidrs.insert(Ipv4Network::ALL.to_string()),
        };
    }
    Json(PolicyRecord {
        status: "ok",
        allow_package_managers: package_managers,
        allow_public_repos: package_managers,
        allow_http: wish.internet.has_http(),
        allow_https: wish.internet.has_https(),
        allowed_domains: domains.into_iter().collect(),
        allowed_cidrs: cidrs.into_iter().collect(),
    })
}

pub(super) async fn of_vm(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: vm, .. }: PathOf<String, Instavm>,
) -> Result<Json<PolicyRecord>, Problem> {
    let which = ids::parse_workspace_ref(&vm);
    Ok(record(&state.control.network_of(&caller, &which).await?))
}

pub(super) async fn set_of_vm(
    State(state): State<ApiState>,
    PathOf { value: vm, .. }: PathOf<String, Instavm>,
    AuthenticatedBody { caller, fields }: AuthenticatedBody,
) -> Result<Json<PolicyRecord>, Problem> {
    set(&state, &caller, &ids::parse_workspace_ref(&vm), fields).await
}

pub(super) async fn of_session(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: session, .. }: PathOf<String, Instavm>,
) -> Result<Json<PolicyRecord>, Problem> {
    let which = session_ref(&session).ok_or(Problem::NoSuchSession)?;
    let view = state.control.network_of(&caller, &which).await.map_err(no_such_session)?;
    Ok(record(&view))
}

pub(super) async fn set_of_session(
    State(state): State<ApiState>,
    PathOf { value: session, .. }: PathOf<String, Instavm>,
    AuthenticatedBody { caller, fields }: AuthenticatedBody,
) -> Result<Json<PolicyRecord>, Problem> {
    let which = session_ref(&session).ok_or(Problem::NoSuchSession)?;
    state.control.get_workspace(&caller, &which).await.map_err(no_such_session)?;
    set(&state, &caller, &which, fields).await
}

async fn set(
    state: &ApiState,
    caller: &Caller,
    which: &WorkspaceRef,
    mut fields: Fields,
) -> Result<Json<PolicyRecord>, Problem> {
    let policy = Policy::read(&mut fields);
    fields.finish()?;
    Ok(record(&change(&state.control, caller, which, policy).await?))
}
