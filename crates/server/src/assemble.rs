//! Puts the parts together: node on hypervisor, control on node and store, the HTTP front on control.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::Router;
use skerry_api::{ApiConfig, ApiState};
use skerry_control::{
    Control, ControlConfig, Environment,
    internal_api::NodeApi,
    store::{KeyRing, Store},
};
use skerry_model::{Plan, Secret, spec::ImageRef};
use skerry_node::{Node, NodeConfig, NodeEnvironment, TemplatePreset, UidRange};
use skerry_vmm::Vmm;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config, TemplateSettings};

/// The running parts.
pub struct Assembled {
    /// The control plane; its `run` reconciles.
    pub control: Control,
    /// This machine's VMs; `shutdown` lets them run on and ends its own tasks.
    pub node: Node,
    /// The HTTP front.
    pub router: Router,
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
    let node = Node::open(node_config(config), vmm, node_environment(&environment))
        .await
        .context("opening the node")?;
    let plan = match &config.plan {
        Some(plan) => plan.clone(),
        None => host_plan(&node).await,
    };
    let keys = KeyRing::open(&config.data_dir.join("secret.key"), environment.rng.clone())
        .context("opening the keys of the database")?;
    let database = config.data_dir.join("skerry.db");
    let store = Store::open(&database, keys).await.context("opening the database")?;
    let node_api: Arc<dyn NodeApi> = Arc::new(node.clone());
    let control = Control::open(control_config(config, plan), environment, store, node_api)
        .await
        .context("opening the control plane")?;
    let api = ApiConfig {
        public_url: public_url.to_owned(),
        base_domain: config.base_domain.clone(),
        version: env!("CARGO_PKG_VERSION"),
    };
    let router = skerry_api::router(ApiState::new(control.clone(), api, shutdown));
    Ok(Assembled { control, node, router })
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
    let preset = |template: &TemplateSettings| TemplatePreset {
        image: ImageRef(template.image.clone()),
        shape: template.shape(config.plan.as_ref()),
    };
    node.template_presets = config.templates.iter().map(preset).collect();
    node.faults = config.faults.clone();
    node
}

/// The node's clock and randomness.
pub fn node_environment(environment: &Environment) -> NodeEnvironment {
    let rng = environment.rng.clone();
    NodeEnvironment {
        now: environment.now.clone(),
        fill_random: Arc::new(move |bytes| rng.fill(bytes)),
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
        stop_grace: config.stop_grace,
        // Writing memory out keeps the disk busy, which two at a time do.
        save_concurrency: 2,
        wake_timeout: Duration::from_secs(120),
        // The node's own bound for a start under emulation is three minutes.
        node_call_timeout: Duration::from_secs(600),
        reconcile_interval: Duration::from_secs(15),
    }
}
