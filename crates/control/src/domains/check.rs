//! What the DNS says of a name before anybody claims it.

use std::net::IpAddr;

use skerry_internal_api::EdgeError;
use skerry_model::{
    HostName, check_domain_name,
    domain::{challenge_name, challenge_value, is_proof},
};
use tokio::time::timeout;

use super::{ASK_WITHIN, Edge, proof_of};
use crate::{Caller, Control, Error};

/// What the DNS says of a name now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainCheck {
    /// The name.
    pub name: HostName,
    /// The name whose TXT record proves that it is the caller's.
    pub challenge_name: String,
    /// What that record has to say.
    pub challenge_value: String,
    /// What the TXT records there say.
    pub texts: Vec<String>,
    /// Whether one of them is the proof.
    pub is_proven: bool,
    /// The name's addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether one of them is an address of the host that names have to lead to.
    pub leads_here: bool,
    /// What could not be found out, and why.
    pub problems: Vec<String>,
}

impl Control {
    /// Asks the DNS for a name, which need not be anybody's. Changes nothing. `target` is the host, or
    /// the address, that names have to lead to.
    ///
    /// # Errors
    /// `Invalid` (`domain`); `Unavailable` where no custom domains are served.
    pub async fn check_domain(
        &self,
        caller: &Caller,
        name: &str,
        target: &str,
    ) -> Result<DomainCheck, Error> {
        let edge = self.inner.edge()?;
        let name = check_domain_name(name, &edge.ours)?;
        let proof = proof_of(caller.account_id, &name);
        let challenge = challenge_name(&name);
        // The rules for names of domains leave room for it.
        let asked = HostName::parse(&challenge)?;
        let (texts, addresses, ours) = tokio::join!(
            bounded(edge.api.texts(&asked)),
            bounded(edge.api.addresses(&name)),
            addresses_of(edge, target),
        );
        let mut problems = Vec::new();
        let texts = texts.unwrap_or_else(|why| told(&mut problems, why));
        let addresses = addresses.unwrap_or_else(|why| told(&mut problems, why));
        let ours = ours.unwrap_or_else(|why| told(&mut problems, why));
        Ok(DomainCheck {
            is_proven: is_proof(&proof, &texts),
            leads_here: addresses.iter().any(|address| ours.contains(address)),
            challenge_name: challenge,
            challenge_value: challenge_value(&proof),
            name,
            texts,
            addresses,
            problems,
        })
    }
}

fn told<T>(problems: &mut Vec<String>, why: String) -> Vec<T> {
    problems.push(why);
    Vec::new()
}

async fn addresses_of(edge: &Edge, host: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    match HostName::parse(host) {
        Ok(name) => bounded(edge.api.addresses(&name)).await,
        Err(invalid) => Err(invalid.to_string()),
    }
}

async fn bounded<T>(asking: impl Future<Output = Result<T, EdgeError>>) -> Result<T, String> {
    match timeout(ASK_WITHIN, asking).await {
        Ok(answered) => answered.map_err(|EdgeError(why)| why),
        Err(_) => Err("the name servers did not answer in time".to_owned()),
    }
}
