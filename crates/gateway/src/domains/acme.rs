//! Certificates by ACME (RFC 8555): the name is shown to be ours by HTTP-01 on the listener in the
//! clear, by TLS-ALPN-01 (RFC 8737) on the encrypted one, or by DNS-01 where its owner lets us put a
//! record in place.

use std::{path::PathBuf, sync::Arc, time::Duration};

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Error, Identifier,
    KeyAuthorization, NewAccount, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use skerry_internal_api::EdgeError;
use skerry_model::{DnsProvider, HostName, Ipv4Network, KeyedCertificate, Secret, Timestamp};
use tokio::time::timeout;

use super::{
    dns::{ChallengeRecord, Records},
    names::{Answering, ServedNames},
    requests::{Requests, Shared},
    texts::Texts,
};
use crate::tls::{Certificates, Challenging, ServerCertificate};

/// How long the server may take to look, and to issue.
const POLL: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(250))
    .backoff(1.5)
    .timeout(Duration::from_secs(180));

/// Of a whole order, so that what was put in place for it is taken away in time.
const ORDER_WITHIN: Duration = Duration::from_secs(540);

/// How a name is shown to be ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// By a file below `/.well-known/acme-challenge/`: the server asks on port 80.
    #[default]
    Http01,
    /// By a certificate in a handshake: the server asks on port 443.
    TlsAlpn01,
}

/// From whom certificates are got, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeSettings {
    /// The URL of the server's directory.
    pub directory: String,
    /// An e-mail address it may write to.
    pub contact: Option<String>,
    /// A PEM file with one more authority to be trusted for the server itself.
    pub root: Option<PathBuf>,
    /// How names are shown to be ours whose owners do not let us put records in place.
    pub challenge: AcmeChallenge,
    /// Where name servers of owners may be, beside the internet.
    pub update_networks: Vec<Ipv4Network>,
}

/// An ACME client.
pub struct Acme {
    settings: AcmeSettings,
    requests: Shared,
    names: Arc<ServedNames>,
    certificates: Arc<Certificates>,
    records: Records,
}

/// What is shown to the server until this is dropped.
enum Shown<'a> {
    Answer {
        _until: Answering,
    },
    Handshake {
        _until: Challenging,
    },
    /// To be taken away, not dropped.
    Record(ChallengeRecord<'a>),
}

/// How a name is shown to be ours.
#[derive(Clone, Copy)]
enum Way<'a> {
    Here(AcmeChallenge),
    Record(&'a DnsProvider),
}

impl Way<'_> {
    const fn challenge(self) -> ChallengeType {
        match self {
            Self::Here(AcmeChallenge::Http01) => ChallengeType::Http01,
            Self::Here(AcmeChallenge::TlsAlpn01) => ChallengeType::TlsAlpn01,
            Self::Record(_) => ChallengeType::Dns01,
        }
    }
}

impl Acme {
    /// A client that shows what the server asks for through `names` or `certificates`, or in zones
    /// whose servers `texts` finds.
    ///
    /// # Errors
    /// The file with the authority is of no use.
    pub fn new(
        settings: AcmeSettings,
        names: Arc<ServedNames>,
        certificates: Arc<Certificates>,
        texts: Arc<Texts>,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let requests = Shared(Arc::new(Requests::new(settings.root.as_deref())?));
        let records = Records::new(texts, settings.update_networks.clone())?;
        Ok(Self { settings, requests, names, certificates, records })
    }

    pub(super) fn directory(&self) -> &str {
        &self.settings.directory
    }

    /// Makes an account; answers its credentials as JSON.
    pub(super) async fn register(&self) -> Result<Secret, EdgeError> {
        let contact = self.settings.contact.as_ref().map(|address| format!("mailto:{address}"));
        let contact: Vec<&str> = contact.as_deref().into_iter().collect();
        let account = NewAccount {
            contact: &contact,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let builder = Account::builder_with_http(Box::new(self.requests.clone()));
        let made = builder.create(&account, self.settings.directory.clone(), None).await;
        let (_, credentials) = made.map_err(|error| told(&error))?;
        let text = serde_json::to_string(&credentials).map_err(|_| unusable())?;
        Ok(Secret::new(text))
    }

    /// Gets a certificate for one name, with a key of its own.
    pub(super) async fn obtain(
        &self,
        account: &Secret,
        name: &HostName,
        dns: Option<&DnsProvider>,
    ) -> Result<KeyedCertificate, EdgeError> {
        // The words of a parser may repeat what they could not read.
        let credentials: AccountCredentials =
            serde_json::from_str(account.expose()).map_err(|_| unusable())?;
        let way = dns.map_or(Way::Here(self.settings.challenge), Way::Record);
        let mut shown = Vec::new();
        let ordered = timeout(ORDER_WITHIN, self.ordered(credentials, name, way, &mut shown)).await;
        for shown in shown {
            match shown {
                Shown::Record(record) => record.remove().await,
                Shown::Answer { .. } | Shown::Handshake { .. } => {}
            }
        }
        let late = |_| Err(Failure::Told("the certificate was not there in time".to_owned()));
        ordered.unwrap_or_else(late).map_err(|error| match error {
            Failure::Acme(error) => told(&error),
            Failure::Told(why) => EdgeError(why),
        })
    }

    async fn ordered<'a>(
        &'a self,
        credentials: AccountCredentials,
        name: &HostName,
        way: Way<'a>,
        shown: &mut Vec<Shown<'a>>,
    ) -> Result<KeyedCertificate, Failure> {
        let builder = Account::builder_with_http(Box::new(self.requests.clone()));
        let account = builder.from_credentials(credentials).await?;
        let identifiers = [Identifier::Dns(name.as_str().to_owned())];
        let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
        self.show_all(&mut order, name, way, shown).await?;
        match order.poll_ready(&POLL).await? {
            OrderStatus::Ready | OrderStatus::Valid => {}
            OrderStatus::Invalid | OrderStatus::Pending | OrderStatus::Processing => {
                return Err(why_refused(&mut order).await);
            }
        }
        let key = Secret::new(order.finalize().await?);
        let chain = order.poll_certificate(&POLL).await?;
        let (not_before, not_after) = validity(&chain)
            .ok_or_else(|| Failure::Told("the issuer's certificate cannot be read".to_owned()))?;
        Ok(KeyedCertificate { chain, key, not_before, not_after })
    }

    /// Shows what every authorization of the order asks for, and says so to the server.
    async fn show_all<'a>(
        &'a self,
        order: &mut Order,
        name: &HostName,
        way: Way<'a>,
        shown: &mut Vec<Shown<'a>>,
    ) -> Result<(), Failure> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let mut challenge = authorization
                .challenge(way.challenge())
                .ok_or_else(|| Failure::Told("the issuer does not offer this way".to_owned()))?;
            let answer = challenge.key_authorization();
            shown.push(match way {
                Way::Here(AcmeChallenge::Http01) => Shown::Answer {
                    _until: self.names.answering(name, &challenge.token, answer.as_str()),
                },
                Way::Here(AcmeChallenge::TlsAlpn01) => {
                    let certificate =
                        challenge_certificate(name, &answer).ok_or(Failure::Acme(Error::Crypto))?;
                    Shown::Handshake {
                        _until: self.certificates.challenging(name.as_str(), certificate),
                    }
                }
                Way::Record(provider) => {
                    Shown::Record(self.records.of(provider, name, answer.dns_value())?)
                }
            });
            if let Some(Shown::Record(record)) = shown.last() {
                record.put().await?;
            }
            challenge.set_ready().await?;
        }
        Ok(())
    }
}

/// What the server found when it looked.
async fn why_refused(order: &mut Order) -> Failure {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else { continue };
        if let Some(problem) =
            state.challenges.iter().find_map(|challenge| challenge.error.as_ref())
        {
            return refused(problem);
        }
    }
    Failure::Told(REFUSED.to_owned())
}

const REFUSED: &str = "the issuer could not see that the name leads here";

fn refused(problem: &Problem) -> Failure {
    let detail = problem.detail.as_deref().unwrap_or("it does not say why");
    Failure::Told(format!("{REFUSED}: {detail}"))
}

/// Whether the server complains of what it found when it looked (RFC 8555, section 6.7).
fn is_of_the_look(problem: &Problem) -> bool {
    const FOUND: [&str; 6] =
        ["caa", "connection", "dns", "incorrectResponse", "tls", "unauthorized"];
    let kind = problem.r#type.as_deref().unwrap_or_default();
    kind.strip_prefix("urn:ietf:params:acme:error:").is_some_and(|kind| FOUND.contains(&kind))
}

/// The certificate of RFC 8737, section 3.
fn challenge_certificate(name: &HostName, answer: &KeyAuthorization) -> Option<ServerCertificate> {
    let key = KeyPair::generate().ok()?;
    let mut parameters = CertificateParams::new(vec![name.as_str().to_owned()]).ok()?;
    parameters.custom_extensions =
        vec![CustomExtension::new_acme_identifier(answer.digest().as_ref())];
    let certificate = parameters.self_signed(&key).ok()?;
    ServerCertificate::made(certificate.into(), key.into()).ok()
}

/// From when until when the first certificate is good.
fn validity(chain: &str) -> Option<(Timestamp, Timestamp)> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(chain.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let validity = certificate.validity();
    let time = |at: x509_parser::time::ASN1Time| Timestamp::from_second(at.timestamp()).ok();
    Some((time(validity.not_before)?, time(validity.not_after)?))
}

enum Failure {
    Acme(Error),
    Told(String),
}

impl From<EdgeError> for Failure {
    fn from(EdgeError(why): EdgeError) -> Self {
        Self::Told(why)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            // Of a challenge or of the order: whichever was asked for after it had looked.
            Error::Api(problem) if is_of_the_look(&problem) => refused(&problem),
            error => Self::Acme(error),
        }
    }
}

fn told(error: &Error) -> EdgeError {
    EdgeError(format!("the issuer of certificates: {error}"))
}

fn unusable() -> EdgeError {
    EdgeError("the account at the issuer of certificates cannot be read".to_owned())
}
