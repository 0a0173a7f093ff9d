//! Connecting to a VM's agent.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use skerry_internal_api::{NodeError, VmSpec};
use skerry_vmm::{Channel, Vm, VmmError};

use crate::{
    NodeEnvironment,
    guest::{Dial, Fresh, GuestHello, GuestLink, Unsaid},
    identity::GuestIdentity,
    images::ImageDefaults,
    vm::owner::Contact,
};

/// Between two tries to reach the agent of a VM that was taken over.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// How long one such try may take.
const TRY_BOUND: Duration = Duration::from_secs(30);

/// What a guest is called that is nobody's.
const UNCLAIMED_HOSTNAME: &str = "unclaimed";

/// Whose a guest is to be.
#[derive(Clone, Copy)]
pub(crate) struct Tenant<'a> {
    pub spec: &'a VmSpec,
    pub identity: &'a GuestIdentity,
    /// What the image says about the programs in it.
    pub defaults: &'a ImageDefaults,
}

/// Connections to one VM's agent.
struct VmDial(Arc<dyn Vm>);

#[async_trait]
impl Dial for VmDial {
    async fn dial(&self) -> Result<Box<dyn Channel>, VmmError> {
        self.0.connect_guest().await
    }
}

/// Connects to the agent of a VM that boots and makes the guest the workspace's. Returns once it is
/// ready.
pub(crate) async fn open(
    vm: &Arc<dyn Vm>,
    tenant: Tenant<'_>,
    environment: &NodeEnvironment,
    bound: Duration,
) -> Result<Arc<GuestLink>, NodeError> {
    let hello = hello(tenant, environment.clone());
    GuestLink::open(Arc::new(VmDial(Arc::clone(vm))), hello, bound).await
}

/// Connects to the agent of a VM that belongs to no workspace yet: it is going to be a template, or
/// waits in the pool. The guest keeps no identity. Returns once it is ready.
pub(crate) async fn open_unclaimed(
    vm: &Arc<dyn Vm>,
    environment: &NodeEnvironment,
    bound: Duration,
) -> Result<Arc<GuestLink>, NodeError> {
    let hello = GuestHello {
        hostname: UNCLAIMED_HOSTNAME.to_owned(),
        machine_id: String::new(),
        env: BTreeMap::new(),
        unsaid: Unsaid::default(),
        incarnation: 0,
        fresh: fresh(environment.clone()),
    };
    GuestLink::open(Arc::new(VmDial(Arc::clone(vm))), hello, bound).await
}

/// Makes the guest at the other end of an open link the workspace's, whoever's it was: in one round
/// trip, and on every later connection.
pub(crate) async fn claim(
    link: &GuestLink,
    tenant: Tenant<'_>,
    environment: &NodeEnvironment,
    bound: Duration,
) -> Result<(), NodeError> {
    link.reconfigure(hello(tenant, environment.clone()), bound).await
}

/// Connects to the agent of a VM that was taken over, trying as long as the VM is there.
pub(crate) async fn reconnect(
    vm: Arc<dyn Vm>,
    Contact { spec, identity, defaults }: Contact,
    environment: NodeEnvironment,
) -> Arc<GuestLink> {
    let tenant = Tenant { spec: &spec, identity: &identity, defaults: &defaults };
    loop {
        match open(&vm, tenant, &environment, TRY_BOUND).await {
            Ok(link) => return link,
            Err(error) => {
                tracing::warn!(workspace.id = %spec.workspace_id, %error, "the guest is not reached yet");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

fn hello(tenant: Tenant<'_>, environment: NodeEnvironment) -> GuestHello {
    let Tenant { spec, identity, defaults } = tenant;
    let of_image = defaults.env.iter().filter_map(|variable| variable.split_once('='));
    let of_image = of_image.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let own = spec.env.iter().map(|var| (var.key.clone(), var.value.clone()));
    GuestHello {
        hostname: spec.hostname.clone(),
        machine_id: identity.machine_id.clone(),
        env: of_image.chain(own).collect(),
        unsaid: Unsaid { working_dir: defaults.working_dir.clone(), user: defaults.user.clone() },
        incarnation: spec.incarnation.0,
        fresh: fresh(environment),
    }
}

fn fresh(environment: NodeEnvironment) -> Arc<dyn Fn() -> Fresh + Send + Sync> {
    Arc::new(move || Fresh { entropy: environment.random::<64>().to_vec(), now: environment.now() })
}
