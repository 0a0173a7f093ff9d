//! Puts the parts together: node on hypervisor, control on node and store, the HTTP front on control.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use axum::Router;
use skerry_api::{ApiConfig, ApiState, PortCarrier, SshEndpoint};
use skerry_control::{
    Control, ControlConfig, Environment, Rng,
    internal_api::NodeApi,
    store::{KeyRing, Store},
};
use skerry_gateway::{
    domains::{Acme, Edge, ServedNames, Texts},
    http::{Limits, PreviewHosts, Previews, Scheme},
    ssh::HostKeys,
    tls::Certificates,
};
use skerry_model::{Plan, Secret, spec::ImageRef};
use skerry_node::{Node, NodeConfig, NodeEnvironment, Seal, SealError, TemplatePreset, UidRange};
use skerry_vmm::Vmm;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{self, Config, TemplateSettings},
    encrypted::Encrypted,
};

/// The running parts.
pub struct Assembled {
    /// The control plane; its `run` reconciles.
    pub control: Control,
    /// This machine's VMs; `shutdown` lets them run on and ends its own tasks.
    pub node: Node,
    /// The HTTP front, and beside it the visits of published ports.
    pub router: Router,
    /// What carries those.
    pub previews: Previews,
    /// What calls have begun that goes on without them.
    pub api: ApiState,
    /// The SSH gateway, if the configuration has one.
    pub ssh: Option<Ssh>,
    /// The listener for TLS, if the configuration has one.
    pub encrypted: Option<Encrypted>,
}

/// What the SSH gateway is made of.
pub struct Ssh {
    /// Where it listens.
    pub listener: TcpListener,
    /// What it is known by.
    pub keys: HostKeys,
}

/// Opens every part. The VMs of an earlier life are found again here, before any request is served.
///
/// # Errors
/// A part that cannot be opened: another server on the same directory, a damaged database, no rights.
pub async fn assemble(
    config: &Config,
    public_url: &str,
    vmm: Arc<dyn Vmm>,
    environment: Environment,
    shutdown: CancellationToken,
) -> Result<Assembled> {
    let ssh_listener = match config.ssh_listen {
        // A port in use is told before anything else is opened.
        Some(address) => Some(bind_ssh(address).await?),
        None => None,
    };
    let certificates = Arc::new(Certificates::default());
    let encrypted = match &config.tls {
        Some(tls) => Some(Encrypted::open(tls, &certificates).await?),
        None => None,
    };
    let key_file = config.data_dir.join("secret.key");
    let node = Node::open(node_config(config), vmm, node_environment(&environment, &key_file))
        .await
        .context("opening the node")?;
    let plan = match &config.plan {
        Some(plan) => plan.clone(),
        None => host_plan(&node).await,
    };
    let keys = KeyRing::open(&key_file, environment.rng.clone())
        .context("opening the keys of stored secrets")?;
    let database = config.data_dir.join("skerry.db");
    let store = Store::open(&database, keys).await.context("opening the database")?;
    let node_api: Arc<dyn NodeApi> = Arc::new(node.clone());
    let rng = environment.rng.clone();
    let control = Control::open(control_config(config, plan), environment, store, node_api)
        .await
        .context("opening the control plane")?;
    let brought = Arc::new(ServedNames::default());
    let edge = edge(config, &brought, &certificates)?;
    let ours = own_domains(config, public_url);
    control.attach_edge(Arc::new(edge), ours).await.context("opening the custom domains")?;
    let api = ApiConfig {
        public_url: public_url.to_owned(),
        base_domain: config.base_domain.clone(),
        preview_domain: config.preview_domain.clone(),
        version: env!("CARGO_PKG_VERSION"),
    };
    let previews = Previews::new(
        control.routes(skerry_api::ids::parse_workspace_ref),
        preview_hosts(config, public_url, brought),
        Limits::default(),
        Arc::new({
            let rng = rng.clone();
            move |bytes: &mut [u8]| rng.fill(bytes)
        }),
        shutdown.clone(),
    );
    let carrier = previews.clone();
    let ports: PortCarrier = Arc::new(move |open, request| {
        let carrier = carrier.clone();
        Box::pin(async move { carrier.carry(open, request).await })
    });
    let mut state = ApiState::new(control.clone(), api, shutdown).with_ports(ports);
    let ssh = match ssh_listener {
        Some(listener) => {
            let keys = HostKeys::open(&config.data_dir, |seed| rng.fill(seed))
                .context("opening the SSH host key")?;
            state = state.with_ssh(ssh_endpoint(&listener, &keys, public_url)?);
            Some(Ssh { listener, keys })
        }
        None => None,
    };
    let router = previews.beside(skerry_api::router(state.clone()));
    Ok(Assembled { control, node, router, previews, api: state, ssh, encrypted })
}

/// Where published ports are visited: below the preview domain, and below the hosts that clients of
/// Aether derive from the address of the API.
fn preview_hosts(config: &Config, public_url: &str, brought: Arc<ServedNames>) -> PreviewHosts {
    let base = &config.base_domain;
    let domains =
        [config.preview_domain.clone(), format!("preview.{base}"), format!("aether.{base}")];
    let scheme = if public_url.starts_with("https://") { Scheme::Https } else { Scheme::Http };
    PreviewHosts {
        domains: domains.map(|domain| domain.to_ascii_lowercase()).into(),
        own: vec![host_of(public_url).to_ascii_lowercase()],
        brought,
        scheme,
    }
}

/// What is served by names that people bring.
fn edge(
    config: &Config,
    names: &Arc<ServedNames>,
    certificates: &Arc<Certificates>,
) -> Result<Edge> {
    let texts =
        Texts::new(config.domain_name_server).context("opening the resolver for custom domains")?;
    let texts = Arc::new(texts);
    let acme = config.acme.clone().map(|settings| {
        Acme::new(settings, Arc::clone(names), Arc::clone(certificates), Arc::clone(&texts))
            .map_err(|error| anyhow!("the client for --acme-directory: {error}"))
    });
    Ok(Edge::new(Arc::clone(names), Arc::clone(certificates), texts, acme.transpose()?))
}

/// Names that nobody can bring, with all below them.
fn own_domains(config: &Config, public_url: &str) -> Vec<String> {
    let own = [config.base_domain.as_str(), &config.preview_domain, host_of(public_url)];
    own.map(str::to_ascii_lowercase).into()
}

/// The host of a URL, without port and brackets.
fn host_of(url: &str) -> &str {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let end = authority.find(']').map_or_else(|| authority.find(':'), |bracket| Some(bracket + 1));
    let host = authority.get(..end.unwrap_or(authority.len())).unwrap_or_default();
    host.trim_matches(['[', ']'])
}

async fn bind_ssh(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen for SSH on {address}; choose another with --ssh-listen")
    })
}

/// Where clients reach the SSH gateway: its own address, or, if it listens on all, the host of the
/// public URL.
fn ssh_endpoint(listener: &TcpListener, keys: &HostKeys, public_url: &str) -> Result<SshEndpoint> {
    let address = listener.local_addr().context("asking for the SSH listener's address")?;
    let host = if address.ip().is_unspecified() {
        host_of(public_url).to_owned()
    } else {
        address.ip().to_string()
    };
    Ok(SshEndpoint { host, port: address.port(), host_key: keys.gateway_public() })
}

/// The node's part of the configuration.
#[must_use]
pub fn node_config(config: &Config) -> NodeConfig {
    let mut node = NodeConfig::new(config.data_dir.clone(), config.image_dir.clone());
    node.kernel = config.kernel;
    node.memory_dir.clone_from(&config.memory_dir);
    node.runtime_dir.clone_from(&config.runtime_dir);
    node.uids = UidRange { first: config.uid_base, count: config.uid_count };
    node.boot_timeout = config.boot_timeout;
    node.replace_grace = config.stop_grace;
    node.template_budget_mib = config.template_budget_mib;
    node.pool_max_warm = config.pool_max_warm;
    node.pool_memory_mib = config.pool_memory_mib;
    node.network = config.network;
    node.network_prefix = config.network_prefix;
    node.pull.clone_from(&config.image_pull);
    node.uplink = config.uplink.clone();
    let preset = |template: &TemplateSettings| TemplatePreset {
        image: ImageRef(template.image.clone()),
        shape: template.shape(config.plan.as_ref()),
    };
    node.template_presets = config.templates.iter().map(preset).collect();
    node.faults = config.faults.clone();
    node
}

/// The node's clock, randomness and keys.
pub fn node_environment(environment: &Environment, key_file: &Path) -> NodeEnvironment {
    let rng = environment.rng.clone();
    NodeEnvironment {
        now: environment.now.clone(),
        fill_random: Arc::new(move |bytes| rng.fill(bytes)),
        seal: Arc::new(NodeSeal {
            key_file: key_file.to_owned(),
            rng: environment.rng.clone(),
            keys: Mutex::default(),
        }),
    }
}

/// The keys of the database seal the node's secrets too. They are read at their first use, not before:
/// until the node has locked the directory another server may be making them.
struct NodeSeal {
    key_file: PathBuf,
    rng: Arc<dyn Rng>,
    keys: Mutex<Option<KeyRing>>,
}

impl NodeSeal {
    fn keys(&self) -> Result<KeyRing, SealError> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = &*keys {
            return Ok(keys.clone());
        }
        let opened = KeyRing::open(&self.key_file, self.rng.clone());
        let opened = opened.map_err(|error| SealError::NoSuchKey(in_full(&error)))?;
        Ok(keys.insert(opened).clone())
    }
}

impl Seal for NodeSeal {
    fn seal(&self, owner: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        self.keys()?.seal(owner, plain).map_err(|error| SealError::Failed(in_full(&error)))
    }

    fn open(&self, owner: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let keys = self.keys()?;
        keys.check(sealed).map_err(|error| SealError::NoSuchKey(in_full(&error)))?;
        keys.open_sealed(owner, sealed).map_err(|_| SealError::Damaged)
    }

    fn is_current(&self, sealed: &[u8]) -> bool {
        self.keys().is_ok_and(|keys| keys.is_newest(sealed))
    }
}

fn in_full(error: &skerry_control::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => cause.to_string(),
        None => error.to_string(),
    }
}

async fn host_plan(node: &Node) -> Plan {
    let capacity = node.capacity().await;
    config::default_plan(u64::from(capacity.cpus), capacity.memory_mib, capacity.disk_free_mib)
}

fn control_config(config: &Config, plan: Plan) -> ControlConfig {
    // Without a key control refuses to open.
    let key = config.bootstrap_key.clone().unwrap_or_else(|| Secret::new(""));
    ControlConfig {
        bootstrap_key: key,
        plan,
        default_image: config.default_image.clone(),
        image_aliases: config.image_aliases.clone(),
        apps: config.apps.clone(),
        outbound_proxies: config.outbound_proxies.clone(),
        stop_grace: config.stop_grace,
        // Writing memory out keeps the disk busy, which two at a time do.
        save_concurrency: 2,
        wake_timeout: Duration::from_secs(120),
        // The node's own bound for a start under emulation is three minutes.
        node_call_timeout: Duration::from_secs(600),
        reconcile_interval: Duration::from_secs(15),
    }
}
