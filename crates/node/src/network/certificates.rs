//! Certificates under which hosts are served to a guest.

use std::{io, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
};
use skerry_internal_api::CertificateIssuer;
use skerry_model::HostName;

use super::upstream::Protocol;

/// The longest common name (RFC 5280, appendix A.1).
const COMMON_NAME_MAX: usize = 64;

/// What TLS is made with.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn named(name: &str) -> DistinguishedName {
    let mut whole = DistinguishedName::new();
    whole.push(DnType::CommonName, name);
    whole
}

/// How this host is served on one connection: under a certificate made for it, by the protocol that was
/// agreed on where the client has offered any.
pub(super) fn server_config(
    issuer: &CertificateIssuer,
    host: &HostName,
    offered: &[Protocol],
    protocol: Protocol,
) -> io::Result<ServerConfig> {
    let made = certificate(issuer, host).map_err(io::Error::other)?;
    let chain = vec![made.0, CertificateDer::from(issuer.certificate.clone())];
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .and_then(|config| {
            let key = PrivatePkcs8KeyDer::from(made.1.serialize_der());
            config.with_no_client_auth().with_single_cert(chain, key.into())
        });
    let mut config = config.map_err(io::Error::other)?;
    if !offered.is_empty() {
        config.alpn_protocols = vec![protocol.alpn().to_vec()];
    }
    // The next connection has a certificate of its own.
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn certificate(
    issuer: &CertificateIssuer,
    host: &HostName,
) -> Result<(CertificateDer<'static>, KeyPair), rcgen::Error> {
    let mut authority = CertificateParams::default();
    authority.distinguished_name = named(&issuer.name);
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = Issuer::new(authority, KeyPair::from_pem(issuer.key.expose())?);

    let mut params = CertificateParams::new(vec![host.to_string()])?;
    params.distinguished_name = match host.as_str().len() <= COMMON_NAME_MAX {
        true => named(host.as_str()),
        false => DistinguishedName::new(),
    };
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = date_time_ymd(issuer.years.0, 1, 1);
    params.not_after = date_time_ymd(issuer.years.1, 12, 31);
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, &authority)?.der().clone(), key))
}
