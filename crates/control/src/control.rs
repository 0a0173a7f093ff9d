//! The control plane's handle.

use std::sync::Arc;

use skerry_internal_api::NodeApi;
use skerry_model::Plan;

use crate::{Caller, ControlConfig, Credential, Environment, Error, store::Store};

/// The control plane. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

struct Inner {
    config: ControlConfig,
}

impl Control {
    /// Opens the control plane on a store and a node: brings the store's schema up to date, makes
    /// the `admin` account and its bootstrap key. Reconciling begins with [`Control::run`].
    ///
    /// # Errors
    /// Faults of the store.
    pub async fn open(
        config: ControlConfig,
        environment: Environment,
        store: Store,
        node: Arc<dyn NodeApi>,
    ) -> Result<Self, Error> {
        let _ = (environment, store, node);
        Ok(Self { inner: Arc::new(Inner { config }) })
    }

    /// Who presents this credential.
    ///
    /// # Errors
    /// `Unauthenticated`.
    pub async fn authenticate(&self, credential: &Credential) -> Result<Caller, Error> {
        unimplemented!("{credential:?}")
    }

    /// The plan in force.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.inner.config.plan
    }

    /// The time now, by the clock control was opened with.
    #[must_use]
    pub fn now(&self) -> skerry_model::Timestamp {
        unimplemented!()
    }
}
