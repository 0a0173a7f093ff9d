//! Records that show an ACME server that a name is ours (DNS-01; RFC 8555, section 8.4), put in place
//! at whoever serves the name, by the right its owner has given us.

mod cloudflare;
mod updates;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use skerry_internal_api::EdgeError;
use skerry_model::{
    DnsProvider, HostName, Ipv4Network,
    dns_provider::{NameServer, NameServerHost},
    network::reserved,
};
use tokio::time::timeout;

use self::{
    cloudflare::{Cloudflare, CloudflareApi},
    updates::Updates,
};
use super::texts::Texts;

/// How long a record is kept by those who have asked for it.
const TTL_SECONDS: u32 = 60;
/// Of taking one record away.
const REMOVE_WITHIN: Duration = Duration::from_secs(30);

/// Whoever serves a name. Other texts of the same name stay as they are.
#[async_trait]
trait TextRecords: Send + Sync {
    /// Adds a text to a name; that it is there already is a success.
    async fn put(&self, name: &HostName, text: &str) -> Result<(), EdgeError>;

    /// Takes it away; that it is not there is a success.
    async fn remove(&self, name: &HostName, text: &str) -> Result<(), EdgeError>;
}

/// How records are put in place from here.
pub(super) struct Records {
    reach: Reach,
    cloudflare: CloudflareApi,
}

impl Records {
    /// Name servers are those of the internet, and those in `networks`.
    pub(super) fn new(
        names: Arc<Texts>,
        networks: Vec<Ipv4Network>,
    ) -> Result<Self, reqwest::Error> {
        Ok(Self { reach: Reach { names, networks }, cloudflare: CloudflareApi::new()? })
    }

    /// What has `text` shown to who looks for the challenge of `name`.
    pub(super) fn of<'a>(
        &'a self,
        provider: &'a DnsProvider,
        name: &HostName,
        text: String,
    ) -> Result<ChallengeRecord<'a>, EdgeError> {
        let records: Box<dyn TextRecords + 'a> = match provider {
            DnsProvider::Cloudflare(access) => Box::new(Cloudflare::new(&self.cloudflare, access)),
            DnsProvider::Rfc2136(updates) => Box::new(Updates::new(&self.reach, updates)?),
        };
        // The rules for names of domains leave room for it.
        let name = HostName::parse(&format!("_acme-challenge.{name}"));
        let name = name.map_err(|invalid| EdgeError(invalid.to_string()))?;
        Ok(ChallengeRecord { records, name, text, settle: provider.settle() })
    }
}

/// The record of one challenge.
pub(super) struct ChallengeRecord<'a> {
    records: Box<dyn TextRecords + 'a>,
    name: HostName,
    text: String,
    settle: Duration,
}

impl ChallengeRecord<'_> {
    /// Puts it in place, and returns when it can be looked at. Whatever comes of it, it may be there.
    pub(super) async fn put(&self) -> Result<(), EdgeError> {
        self.records.put(&self.name, &self.text).await?;
        tokio::time::sleep(self.settle).await;
        Ok(())
    }

    /// Takes it away. One that stays does no harm: its text is of no use any more.
    pub(super) async fn remove(self) {
        let removing = self.records.remove(&self.name, &self.text);
        let outcome = timeout(REMOVE_WITHIN, removing).await;
        if let Err(EdgeError(error)) = outcome.unwrap_or_else(|_| Err(late())) {
            tracing::warn!(name = %self.name, error, "the record of a challenge is left in the DNS");
        }
    }
}

fn late() -> EdgeError {
    EdgeError("there was no answer in time".to_owned())
}

/// Which name servers may be spoken to: owners of domains say where they are, and must not find out
/// what there is in the server's own network.
struct Reach {
    names: Arc<Texts>,
    networks: Vec<Ipv4Network>,
}

impl Reach {
    async fn address(&self, server: &NameServer) -> Result<SocketAddr, EdgeError> {
        let found = match &server.host {
            NameServerHost::Address(address) => vec![*address],
            NameServerHost::Name(name) => self.names.addresses(name).await?,
        };
        let open = found.into_iter().find(|address| self.permits(*address));
        let closed = || EdgeError(format!("{server} is not a name server of the internet"));
        Ok(SocketAddr::new(open.ok_or_else(closed)?, server.port))
    }

    fn permits(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => {
                reserved::is_internet(address)
                    || self.networks.iter().any(|network| network.contains(address))
            }
            IpAddr::V6(address) => reserved::is_internet_v6(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(networks: &[&str]) -> Reach {
        let names = Arc::new(Texts::new(Some(SocketAddr::from(([127, 0, 0, 1], 1)))).unwrap());
        Reach { names, networks: networks.iter().map(|text| text.parse().unwrap()).collect() }
    }

    #[test]
    fn name_servers_are_those_of_the_internet_and_those_that_the_operator_has_opened() {
        let (closed, opened) = (reach(&[]), reach(&["10.1.0.0/16", "127.0.0.1/32"]));
        for (address, by_itself, when_opened) in [
            ("1.1.1.1", true, true),
            ("2606:4700::1", true, true),
            ("10.1.2.3", false, true),
            ("10.2.2.3", false, false),
            ("127.0.0.1", false, true),
            ("::ffff:127.0.0.1", false, true),
            ("::1", false, false),
            ("fd00::1", false, false),
            ("169.254.169.254", false, false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(closed.permits(address), by_itself, "{address}");
            assert_eq!(opened.permits(address), when_opened, "{address}");
        }
    }
}
