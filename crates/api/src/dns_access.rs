//! A provider of DNS and its credentials, as every dialect that has them is told of them.

use std::collections::BTreeMap;

use skerry_model::{DnsAccess, DnsProviderKind, Invalid, Secret};

/// Reads them. An error repeats none of the credentials.
pub(crate) fn read(
    provider: Option<&str>,
    credentials: Option<BTreeMap<String, String>>,
) -> Result<Option<DnsAccess>, Invalid> {
    let credentials = credentials.unwrap_or_default().into_iter();
    let credentials: BTreeMap<String, Secret> =
        credentials.map(|(key, value)| (key, Secret::new(value))).collect();
    match provider {
        Some(provider) => DnsAccess::new(DnsProviderKind::parse(provider)?, credentials).map(Some),
        None if credentials.is_empty() => Ok(None),
        None => Err(Invalid {
            field: "dns_credentials",
            problem: "are of no use without dns_provider".to_owned(),
            allowed: "none".to_owned(),
        }),
    }
}
