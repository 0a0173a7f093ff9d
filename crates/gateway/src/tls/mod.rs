//! What the server shows at its encrypted door: certificates, chosen by the name a visitor asks for.

mod certificates;
mod files;

pub use certificates::{BadCertificate, Certificates, Challenging, ServerCertificate};
pub use files::{BadFiles, CertificateFiles};

use std::sync::Arc;

use rustls::{ServerConfig, crypto::CryptoProvider};

/// What an ACME server speaks that wants to see a challenge (RFC 8737): nothing, after the handshake.
pub const ACME_TLS: &[u8] = b"acme-tls/1";
/// What connections are offered, best first.
const PROTOCOLS: [&[u8]; 3] = [b"h2", b"http/1.1", ACME_TLS];

/// The one implementation of cryptography in the server.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// How the encrypted listener speaks: TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1, with these certificates.
///
/// # Errors
/// Never with the versions and algorithms the server is built with.
pub fn server_config(certificates: &Arc<Certificates>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificates.clone());
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    Ok(config)
}
