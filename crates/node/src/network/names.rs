//! The resolver that guests have at their gateway's address: it answers what the workspace's policy
//! permits, and before it names an address, the packet filter knows it.
//!
//! Answers that lead anywhere but to the internet are not passed on (rebinding). IPv6 addresses are
//! not either, for there is no IPv6; nor are records from which a client could learn a key that hides
//! from us whom it asks for (HTTPS, SVCB: RFC 9460, 9849).

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use hickory_resolver::{
    Resolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::Time},
    proto::{
        op::{Edns, Header, HeaderCounts, Metadata, OpCode, ResponseCode},
        rr::{Name, RData, Record, RecordType},
    },
    system_conf::parse_resolv_conf,
};
use hickory_server::{
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use skerry_internal_api::RefusedEgress;
use skerry_model::{HostName, network::reserved};

use super::{
    guards::{Guard, Guards},
    outside::Provider,
    rules::Terrain,
    uplink::{Outer, UplinkChoice, UplinkSettings},
};
use crate::{Error, error::blocking};

/// Names are asked of the uplink's name servers, by all VMs together.
pub(super) struct Names {
    resolver: Resolver<Provider>,
}

/// The longest that a record is said to hold: no longer than an address is pinned.
const LONGEST_TTL_SECONDS: u32 = 3600;

impl Names {
    /// Within a runtime.
    pub fn new(outer: Arc<Outer>, servers: &[IpAddr]) -> Result<Self, Error> {
        let servers = servers.iter().copied().map(NameServerConfig::udp_and_tcp).collect();
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let mut builder = Resolver::builder_with_config(config, Provider::new(outer));
        let options: &mut ResolverOpts = builder.options_mut();
        options.use_hosts_file = ResolveHosts::Never;
        options.timeout = Duration::from_secs(3);
        options.attempts = 2;
        options.cache_size = 4096;
        options.preserve_intermediates = true;
        options.case_randomization = true;
        options.num_concurrent_reqs = 2;
        let failed = |error: NetError| Error::io("the resolver")(io::Error::other(error));
        Ok(Self { resolver: builder.build().map_err(failed)? })
    }

    /// The addresses of a name that are of the internet.
    pub async fn addresses(&self, name: &HostName) -> Result<Vec<Ipv4Addr>, NetError> {
        let records = self.records(rooted(name)?, RecordType::A).await?;
        Ok(records
            .iter()
            .filter_map(address_of)
            .filter(|one| reserved::is_internet(*one))
            .collect())
    }

    async fn records(&self, name: Name, kind: RecordType) -> Result<Vec<Record>, NetError> {
        match self.resolver.lookup(name, kind).await {
            Ok(found) => Ok(found.answers().to_vec()),
            Err(error) if error.is_no_records_found() && !error.is_nx_domain() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

fn rooted(name: &HostName) -> Result<Name, NetError> {
    let mut name = Name::from_ascii(name.as_str())?;
    name.set_fqdn(true);
    Ok(name)
}

fn address_of(record: &Record) -> Option<Ipv4Addr> {
    match &record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    }
}

/// The name servers of an uplink: those that are configured, or those of its `resolv.conf`; a
/// namespace with a name has its own below /etc/netns (ip-netns(8)). Blocks.
pub(super) fn servers_of(uplink: &UplinkSettings) -> Result<Vec<IpAddr>, Error> {
    if !uplink.name_servers.is_empty() {
        return Ok(uplink.name_servers.clone());
    }
    let file = match &uplink.choice {
        UplinkChoice::None => return Ok(Vec::new()),
        UplinkChoice::Auto | UplinkChoice::Interface(_) => PathBuf::from("/etc/resolv.conf"),
        UplinkChoice::Namespace(name) => Path::new("/etc/netns").join(name).join("resolv.conf"),
    };
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::path("reading", &file)(error)),
    };
    let parsed = parse_resolv_conf(text);
    let (config, _) =
        parsed.map_err(|error| Error::path("reading", &file)(io::Error::other(error)))?;
    Ok(config.name_servers().iter().map(|server| server.ip).collect())
}

/// Answers guests.
pub(super) struct Answers {
    pub names: Arc<Names>,
    pub guards: Arc<Guards>,
    pub terrain: Terrain,
}

#[async_trait]
impl RequestHandler for Answers {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut to: R,
    ) -> ResponseInfo {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.recursion_available = true;
        let (code, records) = match self.answer(request).await {
            Ok(records) => (ResponseCode::NoError, records),
            Err(code) => (code, Vec::new()),
        };
        metadata.response_code = code;
        let mut edns = Edns::new();
        edns.set_max_payload(1232).set_version(0);
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if request.edns.is_some() {
            builder.edns(&edns);
        }
        let response = builder.build(metadata, &records, [], [], []);
        match to.send_response(response).await {
            Ok(info) => info,
            // The guest has gone, or asked for more than can be sent.
            Err(_) => Header { metadata, counts: HeaderCounts::default() }.into(),
        }
    }
}

impl Answers {
    async fn answer(&self, request: &Request) -> Result<Vec<Record>, ResponseCode> {
        let IpAddr::V4(from) = request.src().ip() else { return Err(ResponseCode::Refused) };
        let guard = self.guards.at(from).ok_or(ResponseCode::Refused)?;
        if request.metadata.op_code != OpCode::Query {
            return Err(ResponseCode::NotImp);
        }
        let info = request.request_info().map_err(|_| ResponseCode::FormErr)?;
        let (asked, kind) = (Name::from(info.query.name()), info.query.query_type());
        let policy = Arc::clone(&guard.policy().borrow());
        let name = HostName::parse(&asked.to_ascii()).ok();
        let permitted = match &name {
            Some(name) => policy.resolves(name),
            // The root, addresses' names and the like.
            None => policy.resolves_everything(),
        };
        if !permitted {
            guard.refused(RefusedEgress::Resolution, name);
            return Err(ResponseCode::Refused);
        }
        match kind {
            RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB => return Ok(Vec::new()),
            RecordType::ANY | RecordType::AXFR | RecordType::IXFR => {
                return Err(ResponseCode::NotImp);
            }
            _ => {}
        }
        let found = self.names.records(asked, kind).await.map_err(|error| {
            if error.is_nx_domain() { ResponseCode::NXDomain } else { ResponseCode::ServFail }
        })?;
        self.let_through(guard, name, found).await
    }

    /// What of an answer the guest may see; it is pinned when this returns.
    async fn let_through(
        &self,
        guard: Arc<Guard>,
        name: Option<HostName>,
        mut records: Vec<Record>,
    ) -> Result<Vec<Record>, ResponseCode> {
        let before = records.len();
        records.retain(|record| match &record.data {
            RData::A(address) => reserved::is_internet(address.0),
            RData::AAAA(_) | RData::HTTPS(_) | RData::SVCB(_) => false,
            _ => true,
        });
        if records.len() < before {
            guard.refused(RefusedEgress::PrivateAnswer, name.clone());
        }
        for record in &mut records {
            record.ttl = record.ttl.min(LONGEST_TTL_SECONDS);
        }
        let addresses: Vec<Ipv4Addr> = records.iter().filter_map(address_of).collect();
        if let (Some(name), false) = (name, addresses.is_empty()) {
            let shortest = records.iter().map(|record| record.ttl).min().unwrap_or_default();
            let (terrain, time_to_live) =
                (self.terrain.clone(), Duration::from_secs(u64::from(shortest)));
            let pinned =
                blocking(move || guard.pin(&terrain, &name, &addresses, time_to_live)).await;
            pinned.map_err(|error| {
                tracing::error!(error = crate::error::chain(&error), "an address was not pinned");
                ResponseCode::ServFail
            })?;
        }
        Ok(records)
    }
}
