//! Certificates of custom domains: got when a domain is verified, and again well before they end.
//! When is in the records alone; a restart neither forgets nor doubles it.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use skerry_internal_api::EdgeError;
use skerry_model::{CustomDomain, DomainId, KeyedCertificate, Secret, Timestamp};
use tokio::time::timeout;

use super::{Edge, MAX_REDOS};
use crate::{Error, control::Inner, store::Write};

/// Certificates that are got at the same time.
const AT_A_TIME: usize = 4;
/// How many domains that are due are looked at at a time.
const BATCH: u32 = 64;
/// A backstop above the edge's own bound of getting a certificate.
const OBTAIN_WITHIN: Duration = Duration::from_secs(600);
/// How long to wait when the store could not be asked.
const RETRY: Duration = Duration::from_secs(1);

/// Gets certificates when they are due, until control ends.
pub(crate) async fn attend(inner: Arc<Inner>) {
    let ending = inner.ending.clone();
    let attending = async {
        loop {
            if let Err(error) = inner.get_due_certificates().await {
                tracing::warn!(%error, "domains that are due could not be attended to; will try again");
                tokio::time::sleep(RETRY).await;
            }
            inner.until_domains_are_due().await;
        }
    };
    ending.run_until_cancelled(attending).await;
}

impl Inner {
    /// Shows every certificate that is kept.
    pub(super) async fn show_certificates(&self) -> Result<(), Error> {
        let edge = self.edge()?;
        for kept in self.store.certificates().await? {
            let whole = KeyedCertificate {
                chain: kept.chain,
                key: kept.key,
                not_before: Timestamp::MIN,
                not_after: Timestamp::MAX,
            };
            if let Err(EdgeError(error)) = edge.api.show(&kept.name, &whole) {
                tracing::error!(domain = %kept.name, error, "a kept certificate cannot be shown");
            }
        }
        Ok(())
    }

    /// Returns when a domain may be due; never sleeps longer than the interval of the periodic
    /// comparison, so that a clock that was set is noticed.
    async fn until_domains_are_due(&self) {
        let changed = self.domains_changed.notified();
        let longest = self.config.reconcile_interval;
        let pause = match self.next_domain().await {
            Ok(None) => longest,
            Ok(Some(due)) => {
                let left = due.duration_since(self.now());
                Duration::try_from(left).unwrap_or_default().min(longest)
            }
            Err(error) => {
                tracing::warn!(%error, "the domains' timers could not be read; will try again");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = changed => {}
        }
    }

    async fn get_due_certificates(&self) -> Result<(), Error> {
        // Names that went with their workspaces are told here.
        self.tell_edge().await?;
        let Some(edge) = self.edge.get().filter(|edge| edge.api.issuer().is_some()) else {
            return Ok(());
        };
        let due = self.store.due_domains(self.now(), BATCH).await?;
        let outcomes: Vec<Result<(), Error>> = stream::iter(due)
            .map(|id| self.get_certificate(edge, id))
            .buffer_unordered(AT_A_TIME)
            .collect()
            .await;
        outcomes.into_iter().collect()
    }

    /// Gets one and records what came of it: the write that does also moves the timer.
    async fn get_certificate(&self, edge: &Edge, id: DomainId) -> Result<(), Error> {
        let due = |domain: &CustomDomain| domain.is_due(self.now());
        let Some(domain) = self.store.domain(id).await?.filter(due) else { return Ok(()) };
        let dns = match domain.dns_provider {
            Some(_) => self.store.dns_access(id).await?,
            None => None,
        };
        let dns = dns.map(|access| access.provider()).transpose()?;
        let outcome = match self.acme_account(edge).await? {
            Ok(account) => {
                let obtaining = edge.api.obtain(&account, &domain.name, dns.as_ref());
                timeout(OBTAIN_WITHIN, obtaining).await.unwrap_or_else(|_| {
                    Err(EdgeError("the certificate was not there in time".to_owned()))
                })
            }
            Err(error) => Err(error),
        };
        // Shown before it is recorded: whoever reads that it was issued is shown it. One of no use is as
        // good as none.
        let outcome = outcome.and_then(|certificate| {
            edge.api.show(&domain.name, &certificate)?;
            Ok(certificate)
        });
        let mut before = domain;
        for _ in 0..MAX_REDOS {
            let (mut changed, now) = (before.clone(), self.now());
            match &outcome {
                Ok(certificate) => changed.issue(certificate, now),
                Err(EdgeError(why)) => changed.fail_issue(why, now),
            }
            match self.store.update_domain(&changed, outcome.as_ref().ok()).await? {
                Write::Done(written) => {
                    announce(&written, &outcome);
                    return Ok(());
                }
                Write::Stale | Write::Taken => match self.store.domain(id).await? {
                    Some(now) => before = now,
                    None => return Ok(()),
                },
            }
        }
        Err(Error::internal("a domain changes too often for its certificate to be recorded"))
    }

    /// Who we are to the issuer; made the first time.
    async fn acme_account(&self, edge: &Edge) -> Result<Result<Secret, EdgeError>, Error> {
        let directory = edge.api.issuer().unwrap_or_default();
        if let Some(kept) = self.store.acme_account(directory).await? {
            return Ok(Ok(kept));
        }
        match timeout(OBTAIN_WITHIN, edge.api.register()).await {
            Ok(Ok(made)) => self.store.keep_acme_account(directory, &made).await.map(Ok),
            Ok(Err(error)) => Ok(Err(error)),
            Err(_) => Ok(Err(EdgeError("the issuer did not answer in time".to_owned()))),
        }
    }
}

fn announce(domain: &CustomDomain, outcome: &Result<KeyedCertificate, EdgeError>) {
    match outcome {
        Ok(_) => tracing::info!(domain = %domain.name, "a certificate was issued"),
        Err(EdgeError(error)) => {
            let (domain, failures) = (&domain.name, domain.failures);
            tracing::warn!(%domain, failures, error, "no certificate could be got");
        }
    }
}
