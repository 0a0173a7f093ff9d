//! Custom domains: names that people have brought, proven to be theirs and served with certificates.

use jiff::{SignedDuration, Timestamp};

use crate::{AccountId, DnsProviderKind, DomainId, HostName, Invalid, PublishedPortId, Secret};

/// Put before a name to ask for its proof.
const CHALLENGE_LABEL: &str = "_skerry-challenge";
/// What the proof's text begins with: a name may have many such texts.
const PROOF_PREFIX: &str = "skerry-domain-verification=";
/// What is kept of an error.
const ERROR_MAX_CHARS: usize = 500;
/// The pause after the first failed attempt; doubled with each further one. With the longest below,
/// Let's Encrypt's five failed validations for one name in one hour are not reached.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_mins(4);
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_hours(12);
/// The least pause before an attempt that somebody asked for.
const ASKED_PAUSE: SignedDuration = SignedDuration::from_mins(1);

/// Where a custom domain is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainState {
    /// Claimed; nobody is served by it.
    Pending,
    /// Proven and served; there is no certificate of its own yet, or none is got here.
    Verified,
    /// Served with a certificate of its own that is good.
    Issued,
    /// Proven and served; the last attempt to get a certificate failed and there is none that is good.
    Failed,
}

impl DomainState {
    /// The word every dialect uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Verified => "verified",
            Self::Issued => "issued",
            Self::Failed => "failed",
        }
    }
}

/// Whether certificates are got for domains here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuance {
    /// By ACME.
    Automatic,
    /// They are not.
    None,
}

/// A name somebody has brought for a published port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomDomain {
    /// Its identity.
    pub id: DomainId,
    /// A number of its own within the installation, given by the store; 0 before that.
    pub number: u64,
    /// Whose it is.
    pub account_id: AccountId,
    /// Where it leads. It goes with the port.
    pub port_id: PublishedPortId,
    /// The name.
    pub name: HostName,
    /// What tells this account's proof from those of others. The owner publishes it: it is no secret.
    pub proof: String,
    /// By whose interface the name is shown to its issuer to be ours; `None`: in the way of the
    /// installation. What that asks for is kept apart.
    pub dns_provider: Option<DnsProviderKind>,
    /// When the proof was seen.
    pub proven_at: Option<Timestamp>,
    /// Until when its certificate is good.
    pub certificate_not_after: Option<Timestamp>,
    /// Attempts to get a certificate that failed, in a row.
    pub failures: u32,
    /// What went wrong last, if nothing has gone well since; fit for the owner.
    pub last_error: Option<String>,
    /// When a certificate is to be got.
    pub next_attempt_at: Option<Timestamp>,
    /// When it was claimed.
    pub created_at: Timestamp,
    /// Counts writes.
    pub revision: u64,
}

/// A certificate with its key, and when it is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyedCertificate {
    /// PEM: the name's own certificate first.
    pub chain: String,
    /// PEM.
    pub key: Secret,
    /// From when it is good.
    pub not_before: Timestamp,
    /// Until when it is good.
    pub not_after: Timestamp,
}

/// Checks a name that somebody wants to bring. `ours` are the domains of the server itself.
///
/// # Errors
/// [`Invalid`] with field `domain`.
pub fn check_domain_name(text: &str, ours: &[String]) -> Result<HostName, Invalid> {
    let invalid = |problem: &str| Invalid {
        field: "domain",
        problem: problem.to_owned(),
        allowed: "a name such as www.example.com that is not this server's own".to_owned(),
    };
    let name = HostName::parse(text).map_err(|error| invalid(&error.problem))?;
    let plain = name.as_str();
    let room = HostName::MAX_CHARS - CHALLENGE_LABEL.len() - 1;
    if !plain.contains('.') || plain.contains('_') || plain.len() > room {
        return Err(invalid("is not the name of a site"));
    }
    let is_ours = |own: &String| {
        plain.strip_suffix(own.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if ours.iter().any(is_ours) {
        return Err(invalid("belongs to this server"));
    }
    Ok(name)
}

/// The name whose TXT records are asked for.
#[must_use]
pub fn challenge_name(name: &HostName) -> String {
    format!("{CHALLENGE_LABEL}.{name}")
}

/// What one of them has to say.
#[must_use]
pub fn challenge_value(proof: &str) -> String {
    format!("{PROOF_PREFIX}{proof}")
}

/// Whether one of these texts says it.
#[must_use]
pub fn is_proof(proof: &str, texts: &[String]) -> bool {
    let wanted = challenge_value(proof);
    texts.iter().any(|text| text.trim() == wanted)
}

impl CustomDomain {
    /// Where it is.
    #[must_use]
    pub fn state(&self, now: Timestamp) -> DomainState {
        if self.proven_at.is_none() {
            DomainState::Pending
        } else if self.certificate_not_after.is_some_and(|end| now < end) {
            DomainState::Issued
        } else if self.failures > 0 {
            DomainState::Failed
        } else {
            DomainState::Verified
        }
    }

    /// The name whose TXT records are asked for.
    #[must_use]
    pub fn challenge_name(&self) -> String {
        challenge_name(&self.name)
    }

    /// What one of them has to say.
    #[must_use]
    pub fn challenge_value(&self) -> String {
        challenge_value(&self.proof)
    }

    /// Whether these texts prove that the name is the account's.
    #[must_use]
    pub fn is_proven_by(&self, texts: &[String]) -> bool {
        is_proof(&self.proof, texts)
    }

    /// The proof was seen.
    pub fn prove(&mut self, now: Timestamp, issuance: Issuance) {
        self.proven_at = Some(now);
        self.last_error = None;
        self.next_attempt_at = match issuance {
            Issuance::Automatic => Some(now),
            Issuance::None => None,
        };
    }

    /// The proof was not seen, or not asked for.
    pub fn miss_proof(&mut self, why: &str) {
        self.last_error = Some(shortened(why));
    }

    /// There is a certificate. The next is got when a third of its time is left.
    pub fn issue(&mut self, certificate: &KeyedCertificate, now: Timestamp) {
        self.certificate_not_after = Some(certificate.not_after);
        self.failures = 0;
        self.last_error = None;
        let lifetime = certificate.not_after.duration_since(certificate.not_before);
        let renewal = certificate.not_after.saturating_sub(lifetime / 3);
        // One that is short-lived, or old already, is not renewed without a pause.
        let soonest = now.saturating_add(ASKED_PAUSE);
        self.next_attempt_at = match (renewal, soonest) {
            (Ok(renewal), Ok(soonest)) => Some(renewal.max(soonest)),
            (Ok(at), Err(_)) | (Err(_), Ok(at)) => Some(at),
            (Err(_), Err(_)) => None,
        };
    }

    /// A certificate could not be got. The one before, if there is one, is shown on.
    pub fn fail_issue(&mut self, why: &str, now: Timestamp) {
        self.last_error = Some(shortened(why));
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.next_attempt_at = now.saturating_add(doubled.min(LONGEST_PAUSE)).ok();
    }

    /// Somebody asks that a certificate is got soon, if one is missing and has failed before: it counts
    /// as not failed until that was tried.
    pub fn hurry(&mut self, now: Timestamp) {
        if self.state(now) == DomainState::Failed
            && let (Some(due), Ok(soon)) = (self.next_attempt_at, now.saturating_add(ASKED_PAUSE))
        {
            self.next_attempt_at = Some(due.min(soon));
            self.failures = 0;
        }
    }

    /// Whether a certificate is to be got now.
    #[must_use]
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.proven_at.is_some() && self.next_attempt_at.is_some_and(|due| due <= now)
    }
}

fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(ERROR_MAX_CHARS).collect()
}

#[cfg(test)]
#[path = "domain_tests.rs"]
mod tests;
