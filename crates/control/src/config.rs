//! What control is told at start, and the ambient things it is handed instead of reaching for them.

use std::{sync::Arc, time::Duration};

use skerry_model::{Plan, Secret, Timestamp};

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
    /// How long a guest may take to power off before it is killed.
    pub stop_grace: Duration,
    /// How many VMs may be brought up at the same time; further starts wait their turn. At least 1;
    /// the number of CPUs is a good value.
    pub boot_concurrency: usize,
    /// The longest a single call to the node may take before control gives it up. A backstop above
    /// the node's own bounds (its boot watchdog, the guest's grace), not a boot timeout.
    pub node_call_timeout: Duration,
    /// How often every workspace is compared with its node when nothing happens.
    pub reconcile_interval: Duration,
}
