//! Who certifies names to guests.
//!
//! What a guest trusts is one authority of its account: made when it is first needed, its key sealed in
//! the database, and used for nothing but certifying an authority of each workspace. That one's key is
//! in memory alone, here and at the node, and is made anew with every start of the server. Whoever
//! trusts the account's trusts it too, so nothing has to reach a guest again: not after a restart of the
//! server, and not in a fork, a clone or a workspace from a snapshot, where processes that run have read
//! their certificates long ago.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use skerry_internal_api::CertificateIssuer;
use skerry_model::{AccountId, Secret, WorkspaceId};

use crate::{Error, control::Inner, store::VaultAuthority};

/// How long an authority lasts, in years.
const YEARS: i32 = 30;

/// The authorities of workspaces.
#[derive(Default)]
pub(crate) struct Issuers(Mutex<HashMap<WorkspaceId, Arc<CertificateIssuer>>>);

impl Issuers {
    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<WorkspaceId, Arc<CertificateIssuer>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn forget(&self, id: WorkspaceId) {
        self.held().remove(&id);
    }
}

fn params(name: &str, (first, last): (i32, i32), below: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.not_before = date_time_ymd(first, 1, 1);
    params.not_after = date_time_ymd(last, 12, 31);
    params
}

fn name_of_account(account: AccountId) -> String {
    format!("Skerry vaults {account}")
}

impl Inner {
    fn year(&self) -> i32 {
        i32::from(self.now().to_zoned(jiff::tz::TimeZone::UTC).year())
    }

    /// The account's, made if it has none.
    pub(super) async fn account_authority(
        &self,
        account: AccountId,
    ) -> Result<VaultAuthority, Error> {
        if let Some(kept) = self.store.vault_authority(account).await? {
            return Ok(kept);
        }
        let key = KeyPair::generate().map_err(Error::internal)?;
        // A guest's clock may be behind.
        let years = (self.year() - 1, self.year() + YEARS);
        let certificate = params(&name_of_account(account), years, 1).self_signed(&key);
        let made = VaultAuthority {
            certificate: certificate.map_err(Error::internal)?.pem(),
            key: Secret::new(key.serialize_pem()),
        };
        self.store.keep_vault_authority(account, &made).await
    }

    /// The workspace's.
    pub(super) async fn issuer_of(
        &self,
        account: AccountId,
        workspace: WorkspaceId,
    ) -> Result<CertificateIssuer, Error> {
        if let Some(known) = self.issuers.held().get(&workspace) {
            return Ok((**known).clone());
        }
        let authority = self.account_authority(account).await?;
        let years = (self.year() - 1, self.year() + YEARS);
        // The account's as it is named in its certificate; its key identifier follows from its key.
        let signing = KeyPair::from_pem(authority.key.expose()).map_err(Error::internal)?;
        let of_account = Issuer::new(params(&name_of_account(account), years, 1), signing);
        let key = KeyPair::generate().map_err(Error::internal)?;
        let name = format!("Skerry vaults of workspace {workspace}");
        let certificate = params(&name, years, 0).signed_by(&key, &of_account);
        let made = CertificateIssuer {
            name,
            certificate: certificate.map_err(Error::internal)?.der().to_vec(),
            key: Secret::new(key.serialize_pem()),
            years,
        };
        // Of two that were made at the same time, one.
        let mut held = self.issuers.held();
        Ok((**held.entry(workspace).or_insert_with(|| Arc::new(made))).clone())
    }
}
