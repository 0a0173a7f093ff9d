//! The certificates that are shown now.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use skerry_model::Secret;
use thiserror::Error;

use super::{ACME_TLS, provider};

/// Why a certificate cannot be shown. Says nothing of the key.
#[derive(Debug, Error)]
pub enum BadCertificate {
    /// There is none in the text, or something else that looks like one.
    #[error("no PEM certificate: {0}")]
    Chain(rustls::pki_types::pem::Error),
    /// There is no key in the text.
    #[error("no PEM private key of a kind that is known (PKCS #8, SEC 1, PKCS #1)")]
    Key,
    /// The key is of no use, or not the certificate's.
    #[error("certificate and private key: {0}")]
    Pair(rustls::Error),
}

/// A certificate with its chain and key.
#[derive(Clone)]
pub struct ServerCertificate(Arc<CertifiedKey>);

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCertificate").finish_non_exhaustive()
    }
}

impl ServerCertificate {
    /// From PEM: the chain with the server's own certificate first, and its key.
    ///
    /// # Errors
    /// [`BadCertificate`]; also when the key is not the certificate's.
    pub fn from_pem(chain: &str, key: &Secret) -> Result<Self, BadCertificate> {
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(BadCertificate::Chain)?;
        if chain.is_empty() {
            return Err(BadCertificate::Chain(rustls::pki_types::pem::Error::NoItemsFound));
        }
        // The words of a parser may repeat what they could not read.
        let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes())
            .map_err(|_| BadCertificate::Key)?;
        let pair = CertifiedKey::from_der(chain, key, &provider());
        Ok(Self(Arc::new(pair.map_err(BadCertificate::Pair)?)))
    }
}

impl ServerCertificate {
    /// One that was just made with its key, and need not be what servers usually show.
    pub(crate) fn made(
        certificate: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, BadCertificate> {
        let key = provider().key_provider.load_private_key(key).map_err(BadCertificate::Pair)?;
        Ok(Self(Arc::new(CertifiedKey::new(vec![certificate], key))))
    }
}

/// What is shown, by name. Shared by the listener, which reads, and those who get certificates.
#[derive(Default)]
pub struct Certificates {
    shown: RwLock<Shown>,
}

#[derive(Default)]
struct Shown {
    /// For every name that has none of its own, and for visitors who name none.
    default: Option<ServerCertificate>,
    /// By name, lower case.
    by_name: HashMap<String, ServerCertificate>,
    /// By name, lower case: for ACME servers that look, and nobody else.
    challenges: HashMap<String, ServerCertificate>,
}

/// A challenge that is shown as long as this exists.
pub struct Challenging {
    certificates: Arc<Certificates>,
    name: String,
}

impl Drop for Challenging {
    fn drop(&mut self) {
        self.certificates.change(|shown| shown.challenges.remove(&self.name));
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

impl Certificates {
    /// Shows `certificate` from the next handshake on, to whoever asks for a name without its own.
    pub fn set_default(&self, certificate: ServerCertificate) {
        self.change(|shown| shown.default = Some(certificate));
    }

    /// Shows `certificate` from the next handshake on, to whoever asks for `name`.
    pub fn set(&self, name: &str, certificate: ServerCertificate) {
        self.change(|shown| shown.by_name.insert(name.to_ascii_lowercase(), certificate));
    }

    /// Shows those of these names alone, beside the default.
    pub fn retain(&self, keeps: impl Fn(&str) -> bool) {
        self.change(|shown| shown.by_name.retain(|name, _| keeps(name)));
    }

    /// Shows `certificate` to ACME servers that want to see one for `name`, until what is returned is
    /// dropped.
    pub(crate) fn challenging(
        self: &Arc<Self>,
        name: &str,
        certificate: ServerCertificate,
    ) -> Challenging {
        let name = name.to_ascii_lowercase();
        self.change(|shown| shown.challenges.insert(name.clone(), certificate));
        Challenging { certificates: Arc::clone(self), name }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Shown) -> T) -> T {
        change(&mut self.shown.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn find(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
        // Names of a ClientHello are lower case: rustls makes them so.
        let own = name.and_then(|name| shown.by_name.get(name));
        own.or(shown.default.as_ref()).map(|certificate| Arc::clone(&certificate.0))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut offers = hello.alpn().into_iter().flatten();
        if offers.next() == Some(ACME_TLS) && offers.next().is_none() {
            let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
            let challenge = shown.challenges.get(hello.server_name()?)?;
            return Some(Arc::clone(&challenge.0));
        }
        self.find(hello.server_name())
    }
}
