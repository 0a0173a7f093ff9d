//! What control is told at start, and the ambient things it is handed instead of reaching for them.

use std::{sync::Arc, time::Duration};

use skerry_model::{OutboundProxy, Plan, ProxyName, Secret, Timestamp};

/// Random bytes.
pub trait Rng: Send + Sync {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// Clock and randomness, passed in so that tests own them.
#[derive(Clone)]
pub struct Environment {
    /// The time now.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Random bytes from a cryptographic source.
    pub rng: Arc<dyn Rng>,
}

/// A proxy of the server's that workspaces may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerProxy {
    /// The proxy, with what it is told.
    pub proxy: OutboundProxy,
    /// Under which address the world sees who goes through it, as far as that is known.
    pub exit_address: Option<std::net::Ipv4Addr>,
}

/// Configuration of the control plane.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// A key that works from the first moment, for the account `admin`.
    pub bootstrap_key: Secret,
    /// The limits of every account (plans per account come later).
    pub plan: Plan,
    /// The image used when a request names none.
    pub default_image: String,
    /// Other names for images, from configuration: alias to catalogue name.
    pub image_aliases: std::collections::BTreeMap<String, String>,
    /// The apps that workspaces can have.
    pub apps: crate::AppCatalogue,
    /// Proxies of the server's, by which the world is reached through who asks for one by its name.
    pub outbound_proxies: std::collections::BTreeMap<ProxyName, ServerProxy>,
    /// How long a guest may take to power off before it is killed.
    pub stop_grace: Duration,
    /// How many suspensions and snapshots may be written at the same time; further ones wait their
    /// turn. At least 1.
    pub save_concurrency: usize,
    /// The longest a use of the inside of a sleeping workspace waits for it to wake.
    pub wake_timeout: Duration,
    /// The longest a single call to the node may take before control gives it up. A backstop above
    /// the node's own bounds (its boot watchdog, the guest's grace), not a boot timeout.
    pub node_call_timeout: Duration,
    /// How often every workspace is compared with its node when nothing happens.
    pub reconcile_interval: Duration,
}

impl ControlConfig {
    /// The usual configuration with this key and plan: image `base`, no aliases, no proxies, 10 s for a
    /// guest to power off, 2 saves at a time, 2 minutes to wake, 10 minutes for a call to the node, a comparison
    /// every 30 s.
    #[must_use]
    pub fn new(bootstrap_key: Secret, plan: Plan) -> Self {
        Self {
            bootstrap_key,
            plan,
            default_image: "base".to_owned(),
            image_aliases: std::collections::BTreeMap::new(),
            apps: crate::AppCatalogue::built_in(),
            outbound_proxies: std::collections::BTreeMap::new(),
            stop_grace: Duration::from_secs(10),
            save_concurrency: 2,
            wake_timeout: Duration::from_secs(120),
            node_call_timeout: Duration::from_secs(600),
            reconcile_interval: Duration::from_secs(30),
        }
    }
}
