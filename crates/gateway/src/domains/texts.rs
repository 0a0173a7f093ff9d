//! What the DNS says: TXT records, and where name servers are.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    ResolverBuilder, TokioResolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RData, RecordType},
};
use skerry_internal_api::EdgeError;
use skerry_model::HostName;
use tokio::sync::Semaphore;

/// Of one question, with one repetition.
const TIMEOUT: Duration = Duration::from_secs(4);
/// Questions at the same time.
const AT_A_TIME: usize = 16;

/// Asks name servers, each time anew: an owner who has just put a record in place is not told what was
/// there before.
pub struct Texts {
    resolver: TokioResolver,
    places: Semaphore,
}

impl Texts {
    /// Asks this name server, or those of /etc/resolv.conf.
    ///
    /// # Errors
    /// Only what the operating system refuses.
    pub fn new(server: Option<SocketAddr>) -> Result<Self, NetError> {
        let mut builder = match server {
            Some(server) => of_servers(vec![at(server)]),
            None => TokioResolver::builder_tokio().unwrap_or_else(|error| {
                tracing::warn!(%error, "/etc/resolv.conf: no custom domain can be verified");
                of_servers(Vec::new())
            }),
        };
        let options = builder.options_mut();
        options.timeout = TIMEOUT;
        options.attempts = 2;
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        options.case_randomization = true;
        Ok(Self { resolver: builder.build()?, places: Semaphore::new(AT_A_TIME) })
    }

    pub(super) async fn of(&self, name: &HostName) -> Result<Vec<String>, EdgeError> {
        // Never closed.
        let _place = self.places.acquire().await;
        let rooted = rooted(name)?;
        let found = match self.resolver.lookup(rooted, RecordType::TXT).await {
            Ok(found) => found,
            Err(error) if error.is_no_records_found() || error.is_nx_domain() => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(failed(name, &error)),
        };
        let texts = found.answers().iter().filter_map(|record| match &record.data {
            RData::TXT(text) => {
                let whole = text.txt_data.concat();
                Some(String::from_utf8_lossy(&whole).into_owned())
            }
            _ => None,
        });
        Ok(texts.collect())
    }

    /// The addresses of a host; none when there is no such name.
    pub(super) async fn addresses(&self, name: &HostName) -> Result<Vec<IpAddr>, EdgeError> {
        // Never closed.
        let _place = self.places.acquire().await;
        match self.resolver.lookup_ip(rooted(name)?).await {
            Ok(found) => Ok(found.iter().collect()),
            Err(error) if error.is_no_records_found() || error.is_nx_domain() => Ok(Vec::new()),
            Err(error) => Err(failed(name, &error)),
        }
    }
}

fn rooted(name: &HostName) -> Result<Name, EdgeError> {
    let mut rooted =
        Name::from_ascii(name.as_str()).map_err(|error| failed(name, &error.into()))?;
    rooted.set_fqdn(true);
    Ok(rooted)
}

fn of_servers(servers: Vec<NameServerConfig>) -> ResolverBuilder<TokioRuntimeProvider> {
    let config = ResolverConfig::from_parts(None, Vec::new(), servers);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
}

fn at(server: SocketAddr) -> NameServerConfig {
    let mut config = NameServerConfig::udp_and_tcp(server.ip());
    for connection in &mut config.connections {
        connection.port = server.port();
    }
    config
}

fn failed(name: &HostName, error: &NetError) -> EdgeError {
    tracing::debug!(%name, %error, "TXT records could not be asked for");
    EdgeError(format!("the name servers could not be asked for {name}"))
}
