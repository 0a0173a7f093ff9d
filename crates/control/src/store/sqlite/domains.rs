//! Custom domains, their certificates, and who we are to ACME servers.

use std::collections::BTreeMap;

use async_trait::async_trait;
use skerry_model::{
    AccountId, CustomDomain, DnsAccess, DnsProviderKind, DomainId, HostName, KeyedCertificate,
    PublishedPortId, Secret, Timestamp,
};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use super::{
    Sqlite,
    ports::port_from,
    writer::{Broken, Operation},
};
use crate::{
    Error,
    store::{
        DomainInsertion, DomainStore, KeptCertificate, StoredPort, Write,
        row::{id, nanos, signed, time, unsigned},
        sealing::KeyRing,
    },
};

fn domain_from(row: &SqliteRow) -> Result<CustomDomain, Error> {
    let when = |column: &str| -> Result<Option<Timestamp>, Error> {
        row.try_get::<Option<i64>, _>(column)?.map(time).transpose()
    };
    Ok(CustomDomain {
        id: id(row.try_get("id")?)?,
        number: unsigned(row.try_get("seq")?)?,
        account_id: id(row.try_get("account_id")?)?,
        port_id: id(row.try_get("port_id")?)?,
        name: HostName::parse(row.try_get("name")?).map_err(Error::internal)?,
        proof: row.try_get("proof")?,
        dns_provider: row.try_get::<Option<&str>, _>("dns_provider")?.map(provider).transpose()?,
        proven_at: when("proven_at")?,
        certificate_not_after: when("certificate_not_after")?,
        failures: u32::try_from(row.try_get::<i64, _>("failures")?).map_err(Error::internal)?,
        last_error: row.try_get("last_error")?,
        next_attempt_at: when("next_attempt_at")?,
        created_at: time(row.try_get("created_at")?)?,
        revision: unsigned(row.try_get("revision")?)?,
    })
}

fn provider(word: &str) -> Result<DnsProviderKind, Error> {
    DnsProviderKind::parse(word).map_err(Error::internal)
}

async fn by_id(db: &mut SqliteConnection, id: DomainId) -> Result<Option<CustomDomain>, Broken> {
    let row = sqlx::query("SELECT * FROM custom_domains WHERE id = ?")
        .bind(id.to_string())
        .fetch_optional(db)
        .await?;
    Ok(row.as_ref().map(domain_from).transpose()?)
}

/// Whether another domain of this name is proven.
async fn is_taken(db: &mut SqliteConnection, domain: &CustomDomain) -> Result<bool, Broken> {
    let taken = sqlx::query(
        "SELECT 1 FROM custom_domains WHERE name = ? AND id <> ? AND proven_at IS NOT NULL",
    )
    .bind(domain.name.as_str())
    .bind(domain.id.to_string())
    .fetch_optional(db)
    .await?;
    Ok(taken.is_some())
}

struct InsertDomain {
    domain: CustomDomain,
    /// What its provider of DNS asks for, sealed.
    dns: Option<Vec<u8>>,
    max: u32,
}

#[async_trait]
impl Operation for InsertDomain {
    type Answer = DomainInsertion;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<DomainInsertion, Error>, Broken> {
        let domain = &self.domain;
        let found = sqlx::query(
            "SELECT (SELECT count(*) FROM published_ports WHERE id = ?1), count(*), \
             coalesce(sum(name = ?2), 0) FROM custom_domains WHERE account_id = ?3",
        )
        .bind(domain.port_id.to_string())
        .bind(domain.name.as_str())
        .bind(domain.account_id.to_string())
        .fetch_one(&mut *db)
        .await?;
        let [ports, claimed, same] = [0, 1, 2].map(|column| found.try_get::<u32, _>(column));
        let refusal = if ports? == 0 {
            DomainInsertion::NoPort
        } else if same? > 0 {
            DomainInsertion::Claimed
        } else if claimed? >= self.max {
            DomainInsertion::TooMany
        } else if is_taken(db, domain).await? {
            DomainInsertion::Taken
        } else {
            let number = sqlx::query_scalar(
                "INSERT INTO custom_domains (id, account_id, port_id, name, proof, dns_provider, \
                 failures, created_at, revision) VALUES (?, ?, ?, ?, ?, ?, 0, ?, 1) RETURNING seq",
            )
            .bind(domain.id.to_string())
            .bind(domain.account_id.to_string())
            .bind(domain.port_id.to_string())
            .bind(domain.name.as_str())
            .bind(&domain.proof)
            .bind(domain.dns_provider.map(DnsProviderKind::as_str))
            .bind(nanos(domain.created_at))
            .fetch_one(&mut *db)
            .await?;
            if let Some(sealed) = &self.dns {
                sqlx::query("INSERT INTO domain_dns_access (domain_id, sealed) VALUES (?, ?)")
                    .bind(domain.id.to_string())
                    .bind(sealed)
                    .execute(db)
                    .await?;
            }
            let written = CustomDomain { number: unsigned(number)?, revision: 1, ..domain.clone() };
            DomainInsertion::Done(Box::new(written))
        };
        Ok(Ok(refusal))
    }
}

struct UpdateDomain {
    domain: CustomDomain,
    /// Its chain, and its key sealed.
    certificate: Option<(String, Vec<u8>)>,
}

#[async_trait]
impl Operation for UpdateDomain {
    type Answer = Write<CustomDomain>;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Write<CustomDomain>, Error>, Broken> {
        let domain = &self.domain;
        let before = by_id(&mut *db, domain.id).await?;
        if before.is_none_or(|before| before.revision != domain.revision) {
            return Ok(Ok(Write::Stale));
        }
        if domain.proven_at.is_some() && is_taken(&mut *db, domain).await? {
            return Ok(Ok(Write::Taken));
        }
        let written = CustomDomain { revision: domain.revision + 1, ..domain.clone() };
        sqlx::query(
            "UPDATE custom_domains SET proven_at = ?, certificate_not_after = ?, failures = ?, \
             last_error = ?, next_attempt_at = ?, revision = ? WHERE id = ?",
        )
        .bind(written.proven_at.map(nanos))
        .bind(written.certificate_not_after.map(nanos))
        .bind(i64::from(written.failures))
        .bind(&written.last_error)
        .bind(written.next_attempt_at.map(nanos))
        .bind(signed(written.revision))
        .bind(written.id.to_string())
        .execute(&mut *db)
        .await?;
        if let Some((chain, sealed)) = &self.certificate {
            sqlx::query(
                "INSERT INTO domain_certificates (domain_id, chain, sealed) VALUES (?, ?, ?) \
                 ON CONFLICT (domain_id) DO UPDATE SET chain = excluded.chain, \
                 sealed = excluded.sealed",
            )
            .bind(written.id.to_string())
            .bind(chain)
            .bind(sealed)
            .execute(db)
            .await?;
        }
        Ok(Ok(Write::Done(written)))
    }
}

struct RemoveDomain {
    account_id: AccountId,
    id: DomainId,
}

#[async_trait]
impl Operation for RemoveDomain {
    type Answer = bool;

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<bool, Error>, Broken> {
        let done = sqlx::query("DELETE FROM custom_domains WHERE account_id = ? AND id = ?")
            .bind(self.account_id.to_string())
            .bind(self.id.to_string())
            .execute(db)
            .await?;
        Ok(Ok(done.rows_affected() == 1))
    }
}

struct KeepAcmeAccount {
    directory: String,
    sealed: Vec<u8>,
}

#[async_trait]
impl Operation for KeepAcmeAccount {
    type Answer = ();

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<(), Error>, Broken> {
        sqlx::query(
            "INSERT INTO acme_accounts (directory, sealed) VALUES (?, ?) \
             ON CONFLICT (directory) DO NOTHING",
        )
        .bind(&self.directory)
        .bind(&self.sealed)
        .execute(db)
        .await?;
        Ok(Ok(()))
    }
}

fn key_owner(domain: &str) -> String {
    format!("certificate of {domain}")
}

fn dns_owner(domain: &str) -> String {
    format!("dns access of {domain}")
}

fn account_owner(directory: &str) -> String {
    format!("acme account at {directory}")
}

fn seal_access(keys: &KeyRing, domain: DomainId, access: &DnsAccess) -> Result<Vec<u8>, Error> {
    let said = access.credentials().iter().map(|(key, value)| (key.as_str(), value.expose()));
    let said: BTreeMap<&str, &str> = said.collect();
    let text = serde_json::to_vec(&said).map_err(Error::internal)?;
    keys.seal(&dns_owner(&domain.to_string()), &text)
}

fn open_text(keys: &KeyRing, owner: &str, sealed: &[u8]) -> Result<Secret, Error> {
    let plain = keys.open_sealed(owner, sealed)?;
    let text = String::from_utf8(plain);
    // The error would hold the bytes.
    text.map(Secret::new).map_err(|_| Error::internal("a sealed text is none"))
}

/// Seals with the current key what was sealed with another; answers how many rows that were.
pub(super) async fn seal_anew(db: &mut SqliteConnection, keys: &KeyRing) -> Result<u64, Error> {
    let current = keys.newest_header();
    let mut sealed_anew = 0;
    for (table, column, owner) in [
        ("domain_certificates", "domain_id", key_owner as fn(&str) -> String),
        ("domain_dns_access", "domain_id", dns_owner),
        ("acme_accounts", "directory", account_owner),
    ] {
        let text = format!("SELECT {column}, sealed FROM {table} WHERE substr(sealed, 1, 9) <> ?");
        let rows = sqlx::query(&text).bind(current.as_slice()).fetch_all(&mut *db).await?;
        for row in &rows {
            let (name, sealed): (&str, &[u8]) = (row.try_get(0)?, row.try_get(1)?);
            let plain = keys.open_sealed(&owner(name), sealed)?;
            sqlx::query(&format!("UPDATE {table} SET sealed = ? WHERE {column} = ?"))
                .bind(keys.seal(&owner(name), &plain)?)
                .bind(name)
                .execute(&mut *db)
                .await?;
        }
        sealed_anew += rows.len() as u64;
    }
    Ok(sealed_anew)
}

#[async_trait]
impl DomainStore for Sqlite {
    async fn insert_domain(
        &self,
        domain: &CustomDomain,
        dns: Option<&DnsAccess>,
        max: u32,
    ) -> Result<DomainInsertion, Error> {
        let dns = match dns {
            Some(access) => Some(seal_access(&self.keys, domain.id, access)?),
            None => None,
        };
        self.writer.run(InsertDomain { domain: domain.clone(), dns, max }).await
    }

    async fn update_domain(
        &self,
        domain: &CustomDomain,
        certificate: Option<&KeyedCertificate>,
    ) -> Result<Write<CustomDomain>, Error> {
        let certificate = match certificate {
            Some(KeyedCertificate { chain, key, .. }) => {
                let owner = key_owner(&domain.id.to_string());
                Some((chain.clone(), self.keys.seal(&owner, key.expose().as_bytes())?))
            }
            None => None,
        };
        self.writer.run(UpdateDomain { domain: domain.clone(), certificate }).await
    }

    async fn remove_domain(&self, account_id: AccountId, id: DomainId) -> Result<bool, Error> {
        self.writer.run(RemoveDomain { account_id, id }).await
    }

    async fn domain(&self, id: DomainId) -> Result<Option<CustomDomain>, Error> {
        let row = sqlx::query("SELECT * FROM custom_domains WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(domain_from).transpose()
    }

    async fn dns_access(&self, id: DomainId) -> Result<Option<DnsAccess>, Error> {
        let row = sqlx::query(
            "SELECT dns_provider, sealed FROM domain_dns_access \
             JOIN custom_domains ON custom_domains.id = domain_id WHERE domain_id = ?",
        )
        .bind(id.to_string())
        .fetch_optional(&self.readers)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let owner = dns_owner(&id.to_string());
        let text = open_text(&self.keys, &owner, row.try_get("sealed")?)?;
        // The words of a parser may repeat what they could not read.
        let said: BTreeMap<String, String> = serde_json::from_str(text.expose())
            .map_err(|_| Error::internal("what a provider of DNS asks for cannot be read"))?;
        let said = said.into_iter().map(|(key, value)| (key, Secret::new(value))).collect();
        let access = DnsAccess::new(provider(row.try_get("dns_provider")?)?, said);
        access.map(Some).map_err(Error::internal)
    }

    async fn list_domains(&self, account_id: AccountId) -> Result<Vec<CustomDomain>, Error> {
        let rows = sqlx::query("SELECT * FROM custom_domains WHERE account_id = ? ORDER BY seq")
            .bind(account_id.to_string())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(domain_from).collect()
    }

    async fn port_by_domain(&self, name: &HostName) -> Result<Option<StoredPort>, Error> {
        let row = sqlx::query(
            "SELECT published_ports.* FROM published_ports JOIN custom_domains \
             ON port_id = published_ports.id WHERE name = ? AND proven_at IS NOT NULL",
        )
        .bind(name.as_str())
        .fetch_optional(&self.readers)
        .await?;
        row.as_ref().map(port_from).transpose()
    }

    async fn port(&self, port: PublishedPortId) -> Result<Option<StoredPort>, Error> {
        let row = sqlx::query("SELECT * FROM published_ports WHERE id = ?")
            .bind(port.to_string())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(port_from).transpose()
    }

    async fn proven_names(&self) -> Result<Vec<HostName>, Error> {
        let names: Vec<String> =
            sqlx::query_scalar("SELECT name FROM custom_domains WHERE proven_at IS NOT NULL")
                .fetch_all(&self.readers)
                .await?;
        names.iter().map(|name| HostName::parse(name).map_err(Error::internal)).collect()
    }

    async fn certificates(&self) -> Result<Vec<KeptCertificate>, Error> {
        let rows = sqlx::query(
            "SELECT domain_id, name, chain, sealed FROM domain_certificates \
             JOIN custom_domains ON custom_domains.id = domain_id WHERE proven_at IS NOT NULL",
        )
        .fetch_all(&self.readers)
        .await?;
        let kept = rows.iter().map(|row| {
            Ok(KeptCertificate {
                name: HostName::parse(row.try_get("name")?).map_err(Error::internal)?,
                chain: row.try_get("chain")?,
                key: open_text(
                    &self.keys,
                    &key_owner(row.try_get("domain_id")?),
                    row.try_get("sealed")?,
                )?,
            })
        });
        kept.collect()
    }

    async fn due_domains(&self, now: Timestamp, limit: u32) -> Result<Vec<DomainId>, Error> {
        let ids: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM custom_domains WHERE next_attempt_at <= ? \
             ORDER BY next_attempt_at LIMIT ?",
        )
        .bind(nanos(now))
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        ids.iter().map(|text| id(text)).collect()
    }

    async fn next_due_domain(&self) -> Result<Option<Timestamp>, Error> {
        let next: Option<i64> =
            sqlx::query_scalar("SELECT min(next_attempt_at) FROM custom_domains")
                .fetch_one(&self.readers)
                .await?;
        next.map(time).transpose()
    }

    async fn acme_account(&self, directory: &str) -> Result<Option<Secret>, Error> {
        let sealed: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT sealed FROM acme_accounts WHERE directory = ?")
                .bind(directory)
                .fetch_optional(&self.readers)
                .await?;
        sealed.map(|sealed| open_text(&self.keys, &account_owner(directory), &sealed)).transpose()
    }

    async fn keep_acme_account(&self, directory: &str, account: &Secret) -> Result<Secret, Error> {
        let sealed = self.keys.seal(&account_owner(directory), account.expose().as_bytes())?;
        let directory = directory.to_owned();
        self.writer.run(KeepAcmeAccount { directory: directory.clone(), sealed }).await?;
        let kept = self.acme_account(&directory).await?;
        kept.ok_or_else(|| Error::internal("an ACME account that was kept is gone"))
    }
}
