//! What requests of a guest are given on their way out: credentials that it does not have itself.

use skerry_model::{NamePattern, Secret, VaultId, WorkspaceId};

/// What is done for the guest of one VM. It is held in memory alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Injections {
    /// Who certifies names to the guest; `None` only without services.
    pub issuer: Option<CertificateIssuer>,
    /// For which hosts; the first that means a host is the one that counts.
    pub services: Vec<InjectedService>,
}

impl Injections {
    /// The service that a host is of.
    #[must_use]
    pub fn service_of(&self, host: &skerry_model::HostName) -> Option<&InjectedService> {
        self.services.iter().find(|service| service.host.matches(host))
    }
}

/// A certification authority of one workspace, certified by one that its guest trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateIssuer {
    /// Its common name, which is its whole name.
    pub name: String,
    /// Its certificate, as DER (X.509).
    pub certificate: Vec<u8>,
    /// Its key, as PEM (PKCS #8).
    pub key: Secret,
    /// The first and the last year of what it certifies.
    pub years: (i32, i32),
}

/// Hosts whose requests are given something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InjectedService {
    /// By which vault.
    pub vault_id: VaultId,
    /// The hosts, at port 443 of TCP.
    pub host: NamePattern,
    /// What they are given.
    pub injection: Injection,
    /// The names of the credentials in it.
    pub credentials: Vec<String>,
}

/// What a request is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Injection {
    /// Headers, in place of those that the guest has sent.
    Headers(Vec<(String, Secret)>),
    /// A value in its path, in place of a text there.
    Path {
        /// The text.
        placeholder: String,
        /// The value.
        value: Secret,
    },
    /// Nothing.
    Nothing,
    /// What it is to be given is not there: it goes nowhere.
    Missing {
        /// The credential's name.
        credential: String,
    },
}

/// A request that was given something, or would have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InjectedRequest {
    /// By which vault.
    pub vault_id: VaultId,
    /// From which workspace.
    pub workspace_id: WorkspaceId,
    /// To which host.
    pub host: String,
    /// Its method.
    pub method: String,
    /// The status of the answer, or of what was answered in its place.
    pub status: u16,
    /// The names of the credentials that it was given.
    pub credentials: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_injected_is_not_printed() {
        let injections = Injections {
            issuer: Some(CertificateIssuer {
                name: "x".to_owned(),
                certificate: Vec::new(),
                key: Secret::new("hunter1"),
                years: (2025, 2026),
            }),
            services: vec![InjectedService {
                vault_id: VaultId::from_u128(1),
                host: "a.example".parse().unwrap(),
                injection: Injection::Headers(vec![("a".to_owned(), Secret::new("hunter2"))]),
                credentials: vec!["A".to_owned()],
            }],
        };
        assert!(!format!("{injections:?}").contains("hunter"));
    }

    #[test]
    fn the_first_service_that_means_a_host_counts() {
        let service = |number, host: &str| InjectedService {
            vault_id: VaultId::from_u128(number),
            host: host.parse().unwrap(),
            injection: Injection::Nothing,
            credentials: Vec::new(),
        };
        let services =
            vec![service(1, "a.example"), service(2, "*.example"), service(3, "a.example")];
        let injections = Injections { issuer: None, services };
        let of = |host: &str| injections.service_of(&host.parse().unwrap()).map(|it| it.vault_id);
        assert_eq!(of("a.example"), Some(VaultId::from_u128(1)));
        assert_eq!(of("b.example"), Some(VaultId::from_u128(2)));
        assert_eq!(of("example"), None);
    }
}
