//! Vaults: credentials that guests use without having them. What is kept here; what follows from it for
//! VMs is `follow`'s.

mod authority;
mod follow;
mod install;

use std::sync::Arc;

use skerry_model::{
    CatalogueEntry, ErrorKind, NamePattern, Secret, ServiceAuth, Vault, VaultCredential,
    VaultCredentialId, VaultId, VaultRequest, VaultService, VaultServiceId, Workspace,
    vault::{
        MAX_VAULT_CREDENTIALS, MAX_VAULT_REQUESTS, MAX_VAULT_SERVICES, MAX_VAULTS,
        MAX_VAULTS_OF_A_WORKSPACE, check_credential, check_credential_value, check_description,
        check_vault_name,
    },
};

use crate::{Caller, Control, Error, WorkspaceRef, control::Inner, store::VaultInsertion};

pub(crate) use authority::Issuers;
pub(crate) use follow::{note_requests, permit};

/// What a credential is when nobody says.
const USUAL_KIND: &str = "api_key";

/// A credential to be kept. No value is printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCredential {
    /// Unique in its vault.
    pub name: String,
    /// The value.
    pub value: Secret,
    /// What it is; `None`: `api_key`.
    pub kind: Option<String>,
    /// More about it.
    pub description: Option<String>,
}

/// A service to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewService {
    /// The hosts.
    pub host: String,
    /// What requests to them are given.
    pub auth: ServiceAuth,
    /// Whether it is used.
    pub is_enabled: bool,
    /// More about it.
    pub description: Option<String>,
}

/// What to change of a vault; `None` leaves as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpdateVault {
    /// New name.
    pub name: Option<String>,
    /// New description.
    pub description: Option<String>,
}

impl Control {
    /// Makes a vault.
    ///
    /// # Errors
    /// `Invalid` (`name`, `description`); `Conflict` when the account has as many as it may.
    pub async fn create_vault(
        &self,
        caller: &Caller,
        name: &str,
        description: Option<String>,
    ) -> Result<Vault, Error> {
        check_vault_name(name)?;
        description.as_deref().map_or(Ok(()), check_description)?;
        let vault = Vault {
            id: VaultId::from_random(self.inner.random()),
            account_id: caller.account_id,
            name: name.to_owned(),
            description,
            created_at: self.now(),
        };
        match self.inner.store.insert_vault(&vault, MAX_VAULTS).await? {
            VaultInsertion::Done => Ok(vault),
            VaultInsertion::TooMany => Err(conflict(format!("{MAX_VAULTS} vaults exist already"))),
            VaultInsertion::Taken | VaultInsertion::NoVault => {
                Err(Error::internal("a vault was refused"))
            }
        }
    }

    /// The caller's vaults, oldest first.
    ///
    /// # Errors
    /// Only faults of the store.
    pub async fn list_vaults(&self, caller: &Caller) -> Result<Vec<Vault>, Error> {
        self.inner.store.list_vaults(caller.account_id).await
    }

    /// One vault.
    ///
    /// # Errors
    /// `NotFound` (`vault`).
    pub async fn vault(&self, caller: &Caller, id: VaultId) -> Result<Vault, Error> {
        self.inner.find_vault(caller, id).await
    }

    /// Changes a vault.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` as for creation.
    pub async fn update_vault(
        &self,
        caller: &Caller,
        id: VaultId,
        update: UpdateVault,
    ) -> Result<Vault, Error> {
        update.name.as_deref().map_or(Ok(()), check_vault_name)?;
        update.description.as_deref().map_or(Ok(()), check_description)?;
        let before = self.inner.find_vault(caller, id).await?;
        let changed = Vault {
            name: update.name.unwrap_or(before.name),
            description: update.description.or(before.description),
            ..before
        };
        match self.inner.store.update_vault(&changed).await? {
            true => Ok(changed),
            false => Err(Error::not_found("vault")),
        }
    }

    /// Removes a vault with everything in it. Guests that use it are given nothing by it from then on.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_vault(&self, caller: &Caller, id: VaultId) -> Result<Vault, Error> {
        let vault = self.inner.find_vault(caller, id).await?;
        let inner = Arc::clone(&self.inner);
        let removal = async move {
            let concerned = inner.store.workspaces_with_vault(id).await?;
            if !inner.store.remove_vault(id).await? {
                return Err(Error::not_found("vault"));
            }
            concerned.into_iter().for_each(|workspace| inner.wake_policy(workspace));
            Ok(())
        };
        self.inner.to_the_end(removal).await?;
        Ok(vault)
    }

    /// Keeps a credential.
    ///
    /// # Errors
    /// `NotFound` (`vault`); `Invalid` (`name`, `value`, `credential_type`, `description`); `Conflict`
    /// when the name is taken, or the vault has as many as it may.
    pub async fn add_vault_credential(
        &self,
        caller: &Caller,
        vault: VaultId,
        new: NewCredential,
    ) -> Result<VaultCredential, Error> {
        let NewCredential { name, value, kind, description } = new;
        let kind = kind.unwrap_or_else(|| USUAL_KIND.to_owned());
        check_credential(&name, &kind)?;
        check_credential_value(&value)?;
        description.as_deref().map_or(Ok(()), check_description)?;
        self.inner.find_vault(caller, vault).await?;
        let credential = VaultCredential {
            id: VaultCredentialId::from_random(self.inner.random()),
            vault_id: vault,
            name,
            kind,
            description,
            created_at: self.now(),
            rotated_at: None,
        };
        let (inner, kept) = (Arc::clone(&self.inner), credential.clone());
        let outcome = async move {
            let outcome =
                inner.store.insert_vault_credential(&kept, &value, MAX_VAULT_CREDENTIALS).await?;
            inner.look_at_users_of(vault).await?;
            Ok(outcome)
        };
        match self.inner.to_the_end(outcome).await? {
            VaultInsertion::Done => Ok(credential),
            VaultInsertion::Taken => {
                Err(conflict(format!("the vault has a credential {} already", credential.name)))
            }
            VaultInsertion::TooMany => {
                Err(conflict(format!("the vault has {MAX_VAULT_CREDENTIALS} credentials already")))
            }
            VaultInsertion::NoVault => Err(Error::not_found("vault")),
        }
    }

    /// The vault's credentials, oldest first.
    ///
    /// # Errors
    /// `NotFound` (`vault`).
    pub async fn list_vault_credentials(
        &self,
        caller: &Caller,
        vault: VaultId,
    ) -> Result<Vec<VaultCredential>, Error> {
        self.inner.find_vault(caller, vault).await?;
        self.inner.store.vault_credentials(vault).await
    }

    /// Gives a credential another value. Requests that begin after that are given it.
    ///
    /// # Errors
    /// `NotFound` (`vault`, `credential`); `Invalid` (`value`).
    pub async fn rotate_vault_credential(
        &self,
        caller: &Caller,
        vault: VaultId,
        id: VaultCredentialId,
        value: Secret,
    ) -> Result<VaultCredential, Error> {
        check_credential_value(&value)?;
        self.inner.find_vault(caller, vault).await?;
        let inner = Arc::clone(&self.inner);
        let rotation = async move {
            let rotated =
                inner.store.rotate_vault_credential(vault, id, &value, inner.now()).await?;
            if !rotated {
                return Err(Error::not_found("credential"));
            }
            inner.look_at_users_of(vault).await?;
            let found = inner.store.vault_credentials(vault).await?;
            let found = found.into_iter().find(|one| one.id == id);
            found.ok_or_else(|| Error::not_found("credential"))
        };
        self.inner.to_the_end(rotation).await
    }

    /// Forgets a credential. Requests that would be given it go nowhere.
    ///
    /// # Errors
    /// `NotFound` (`vault`, `credential`).
    pub async fn remove_vault_credential(
        &self,
        caller: &Caller,
        vault: VaultId,
        id: VaultCredentialId,
    ) -> Result<(), Error> {
        self.inner.find_vault(caller, vault).await?;
        let inner = Arc::clone(&self.inner);
        let removal = async move {
            if !inner.store.remove_vault_credential(vault, id).await? {
                return Err(Error::not_found("credential"));
            }
            inner.look_at_users_of(vault).await
        };
        self.inner.to_the_end(removal).await
    }

    /// Keeps services, all or none.
    ///
    /// # Errors
    /// `NotFound` (`vault`); `Invalid` (`host`, `auth_config`, `description`); `Conflict` when the vault
    /// has as many as it may.
    pub async fn add_vault_services(
        &self,
        caller: &Caller,
        vault: VaultId,
        new: Vec<NewService>,
    ) -> Result<Vec<VaultService>, Error> {
        self.inner.find_vault(caller, vault).await?;
        let service = |new: NewService| {
            new.auth.check()?;
            new.description.as_deref().map_or(Ok(()), check_description)?;
            let host = NamePattern::parse(&new.host)
                .map_err(|wrong| Error::invalid("host", wrong.problem, wrong.allowed))?;
            Ok(VaultService {
                id: VaultServiceId::from_random(self.inner.random()),
                vault_id: vault,
                host,
                auth: new.auth,
                is_enabled: new.is_enabled,
                description: new.description,
                created_at: self.now(),
            })
        };
        let services = new.into_iter().map(service).collect::<Result<Vec<_>, Error>>()?;
        let (inner, kept) = (Arc::clone(&self.inner), services.clone());
        let outcome = async move {
            let outcome =
                inner.store.insert_vault_services(vault, &kept, MAX_VAULT_SERVICES).await?;
            inner.look_at_users_of(vault).await?;
            Ok(outcome)
        };
        match self.inner.to_the_end(outcome).await? {
            VaultInsertion::Done => Ok(services),
            VaultInsertion::TooMany => {
                Err(conflict(format!("a vault has at most {MAX_VAULT_SERVICES} services")))
            }
            VaultInsertion::NoVault => Err(Error::not_found("vault")),
            VaultInsertion::Taken => Err(Error::internal("a service was refused")),
        }
    }

    /// Keeps services of the catalogue.
    ///
    /// # Errors
    /// As [`Control::add_vault_services`]; `Invalid` (`template_ids`) for what the catalogue has not.
    pub async fn add_vault_services_from(
        &self,
        caller: &Caller,
        vault: VaultId,
        ids: &[String],
    ) -> Result<Vec<VaultService>, Error> {
        let service = |id: &String| {
            let entry = CatalogueEntry::find(id).ok_or_else(|| {
                let problem = "names a service that is not in the catalogue";
                Error::invalid("template_ids", problem, "ids of GET /v1/vaults/catalog")
            })?;
            Ok(NewService {
                host: entry.host.to_owned(),
                auth: entry.auth(),
                is_enabled: true,
                description: Some(entry.name.to_owned()),
            })
        };
        let new = ids.iter().map(service).collect::<Result<Vec<_>, Error>>()?;
        self.add_vault_services(caller, vault, new).await
    }

    /// The vault's services, oldest first.
    ///
    /// # Errors
    /// `NotFound` (`vault`).
    pub async fn list_vault_services(
        &self,
        caller: &Caller,
        vault: VaultId,
    ) -> Result<Vec<VaultService>, Error> {
        self.inner.find_vault(caller, vault).await?;
        self.inner.store.vault_services(vault).await
    }

    /// Forgets a service: its hosts are hosts like any other from then on.
    ///
    /// # Errors
    /// `NotFound` (`vault`, `service`).
    pub async fn remove_vault_service(
        &self,
        caller: &Caller,
        vault: VaultId,
        id: VaultServiceId,
    ) -> Result<(), Error> {
        self.inner.find_vault(caller, vault).await?;
        let inner = Arc::clone(&self.inner);
        let removal = async move {
            if !inner.store.remove_vault_service(vault, id).await? {
                return Err(Error::not_found("service"));
            }
            inner.look_at_users_of(vault).await
        };
        self.inner.to_the_end(removal).await
    }

    /// The last requests that went out by the vault, the newest first; at most 1000.
    ///
    /// # Errors
    /// `NotFound` (`vault`).
    pub async fn vault_requests(
        &self,
        caller: &Caller,
        vault: VaultId,
        limit: u32,
    ) -> Result<Vec<VaultRequest>, Error> {
        self.inner.find_vault(caller, vault).await?;
        self.inner.store.vault_requests(vault, limit.min(MAX_VAULT_REQUESTS)).await
    }

    /// Has a workspace use these vaults and no others. A VM that runs uses them when the call returns.
    ///
    /// # Errors
    /// `NotFound` (`workspace`, `vault`); `Invalid` (`vault_ids`); `RefusedByState` while it is deleted;
    /// `Unavailable` or `Timeout` when the node could not be told: it is recorded then, and goes on being
    /// tried.
    pub async fn set_vaults(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        vaults: &[VaultId],
    ) -> Result<Workspace, Error> {
        let vaults = self.inner.vaults_of_new(caller, vaults).await?;
        self.inner.change_vaults(caller, which, move |_| vaults.clone()).await
    }

    /// Has a workspace use these vaults beside those that it uses.
    ///
    /// # Errors
    /// As [`Control::set_vaults`].
    pub async fn add_vaults(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        vaults: &[VaultId],
    ) -> Result<Workspace, Error> {
        let more = self.inner.vaults_of_new(caller, vaults).await?;
        let change = move |there: &[VaultId]| {
            let new = more.iter().filter(|vault| !there.contains(vault));
            there.iter().chain(new).copied().collect()
        };
        self.inner.change_vaults(caller, which, change).await
    }
}

impl Inner {
    async fn find_vault(&self, caller: &Caller, id: VaultId) -> Result<Vault, Error> {
        let vault = self.store.vault(id).await?;
        let own = vault.filter(|vault| vault.account_id == caller.account_id);
        own.ok_or_else(|| Error::not_found("vault"))
    }

    /// The vaults that are asked for, each once.
    pub(crate) async fn vaults_of_new(
        &self,
        caller: &Caller,
        asked: &[VaultId],
    ) -> Result<Vec<VaultId>, Error> {
        let mut vaults: Vec<VaultId> = Vec::new();
        for id in asked {
            if !vaults.contains(id) {
                vaults.push(self.find_vault(caller, *id).await?.id);
            }
            check_count(&vaults)?;
        }
        let has_uplink = self.node.network().is_some_and(|network| network.has_uplink);
        if !vaults.is_empty() && !has_uplink {
            let problem = "cannot be used: workspaces of this server reach nothing of the world";
            return Err(Error::invalid("vault_ids", problem, "none"));
        }
        Ok(vaults)
    }

    async fn change_vaults(
        self: &Arc<Self>,
        caller: &Caller,
        which: &WorkspaceRef,
        change: impl Fn(&[VaultId]) -> Vec<VaultId> + Send + Sync + 'static,
    ) -> Result<Workspace, Error> {
        let (inner, caller, which) = (Arc::clone(self), caller.clone(), which.clone());
        self.to_the_end(async move {
            let written = inner.change(&caller, &which, |workspace, _| {
                if workspace.desired == skerry_model::Desired::Deleted {
                    return Err(crate::workspaces::refused(skerry_model::Refusal::BeingDeleted));
                }
                let vaults = change(&workspace.spec.vaults);
                check_count(&vaults)?;
                workspace.spec.vaults = vaults;
                Ok(None)
            });
            let written = written.await?;
            let applied = inner.apply_policy(written.id).await;
            if applied.is_err() {
                inner.wake_policy(written.id);
            }
            applied?;
            inner.install_trust(&written).await;
            Ok(written)
        })
        .await
    }

    /// Brings what follows from a vault to every VM that it concerns.
    async fn look_at_users_of(self: &Arc<Self>, vault: VaultId) -> Result<(), Error> {
        for workspace in self.store.workspaces_with_vault(vault).await? {
            if let Err(error) = self.apply_policy(workspace).await {
                tracing::info!(workspace.id = %workspace, %error, "a vault's change; once more");
                self.wake_policy(workspace);
            }
        }
        Ok(())
    }
}

fn check_count(vaults: &[VaultId]) -> Result<(), Error> {
    if vaults.len() <= MAX_VAULTS_OF_A_WORKSPACE {
        return Ok(());
    }
    let allowed = format!("at most {MAX_VAULTS_OF_A_WORKSPACE} vaults");
    Err(Error::invalid("vault_ids", "are too many", allowed))
}

fn conflict(text: String) -> Error {
    ErrorKind::Conflict(text).into()
}
