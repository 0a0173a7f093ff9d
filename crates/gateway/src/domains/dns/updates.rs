//! Dynamic updates (RFC 2136) over TCP, signed with a key that both sides know (RFC 8945).

use std::{future::Future, net::SocketAddr, time::Duration};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hickory_resolver::{
    net::{
        DnsMultiplexer, NetError,
        client::{Client, ClientHandle as _},
        runtime::TokioRuntimeProvider,
        tcp::TcpClientStream,
    },
    proto::{
        op::{DnsResponse, ResponseCode},
        rr::{
            DNSClass, Name, RData, Record, RecordType, TSigner,
            rdata::{TXT, tsig},
        },
    },
};
use skerry_internal_api::EdgeError;
use skerry_model::{
    HostName,
    dns_provider::{DynamicUpdates, TsigAlgorithm},
};

use super::{Reach, TTL_SECONDS, TextRecords, late};

/// Of a connection, and of each question.
const WITHIN: Duration = Duration::from_secs(10);
/// By how much the clocks may differ (RFC 8945, section 10).
const FUDGE_SECONDS: u16 = 300;

type Asking = Client<TokioRuntimeProvider>;

pub(super) struct Updates<'a> {
    reach: &'a Reach,
    settings: &'a DynamicUpdates,
    signer: TSigner,
}

impl<'a> Updates<'a> {
    pub(super) fn new(reach: &'a Reach, settings: &'a DynamicUpdates) -> Result<Self, EdgeError> {
        let algorithm = match settings.algorithm {
            TsigAlgorithm::HmacSha256 => tsig::TsigAlgorithm::HmacSha256,
            TsigAlgorithm::HmacSha384 => tsig::TsigAlgorithm::HmacSha384,
            TsigAlgorithm::HmacSha512 => tsig::TsigAlgorithm::HmacSha512,
        };
        let unusable = || EdgeError("the key for dynamic updates is of no use".to_owned());
        // What is wrong with it would be told of a secret.
        let key = STANDARD.decode(settings.key.expose()).map_err(|_| unusable())?;
        let signer = TSigner::new(key, algorithm, rooted(&settings.key_name)?, FUDGE_SECONDS);
        Ok(Self { reach, settings, signer: signer.map_err(|_| unusable())? })
    }

    /// Speaks with the server over a connection of its own.
    async fn ask<F>(&self, work: impl FnOnce(Asking) -> F) -> Result<(), EdgeError>
    where
        F: Future<Output = Result<(), EdgeError>>,
    {
        let address = self.reach.address(&self.settings.server).await?;
        let provider = TokioRuntimeProvider::default();
        let (connecting, handle) = TcpClientStream::new(address, None, Some(WITHIN), provider);
        let connected = connecting.await.map_err(|error| unreachable(address, &error))?;
        let sender = DnsMultiplexer::new(connected, handle)
            .with_timeout(WITHIN)
            .with_signer(self.signer.clone());
        let (client, connection) = Asking::from_sender(sender);
        tokio::select! {
            biased;
            done = work(client) => done,
            _ = connection => Err(EdgeError(format!("{} hung up", self.settings.server))),
        }
    }

    async fn zone(&self, client: &mut Asking, name: &Name) -> Result<Name, EdgeError> {
        if let Some(zone) = &self.settings.zone {
            return rooted(zone);
        }
        let asked = client.query(name.clone(), DNSClass::IN, RecordType::SOA).await;
        let answer = asked.map_err(|error| self.failed(&error))?;
        let zone = of_zone(&answer, name);
        let none = || EdgeError(format!("{} does not say which zone {name} is in", self.server()));
        zone.ok_or_else(none)
    }

    fn server(&self) -> String {
        self.settings.server.to_string()
    }

    fn check(&self, answer: Result<DnsResponse, NetError>) -> Result<(), EdgeError> {
        let code = answer.map_err(|error| self.failed(&error))?.metadata.response_code;
        match code {
            ResponseCode::NoError => Ok(()),
            code => Err(EdgeError(format!("{} refuses the update: {code}", self.server()))),
        }
    }

    fn failed(&self, error: &NetError) -> EdgeError {
        tracing::debug!(server = %self.settings.server, %error, "a dynamic update failed");
        match error {
            NetError::Timeout => late(),
            // Who does not know the key, or thinks that it is another, does not sign.
            NetError::Proto(_) => EdgeError(format!(
                "{} does not answer with the signature of {}: its name, algorithm or key differ \
                 there, or the clocks do",
                self.server(),
                self.settings.key_name
            )),
            _ => EdgeError(format!("{} does not answer as a name server does", self.server())),
        }
    }
}

#[async_trait]
impl TextRecords for Updates<'_> {
    async fn put(&self, name: &HostName, text: &str) -> Result<(), EdgeError> {
        let (name, record) = record(name, text)?;
        let put = async |mut client: Asking| {
            let zone = self.zone(&mut client, &name).await?;
            self.check(client.append(record, zone, false).await)
        };
        self.ask(put).await
    }

    async fn remove(&self, name: &HostName, text: &str) -> Result<(), EdgeError> {
        let (name, record) = record(name, text)?;
        let remove = async |mut client: Asking| {
            let zone = self.zone(&mut client, &name).await?;
            self.check(client.delete_by_rdata(record, zone).await)
        };
        self.ask(remove).await
    }
}

fn record(name: &HostName, text: &str) -> Result<(Name, Record), EdgeError> {
    let name = rooted(name)?;
    let data = RData::TXT(TXT::new(vec![text.to_owned()]));
    Ok((name.clone(), Record::from_rdata(name, TTL_SECONDS, data)))
}

/// The zone whose start the answer names, whether the name itself exists or not (RFC 2308).
fn of_zone(answer: &DnsResponse, name: &Name) -> Option<Name> {
    let mut said = answer.answers.iter().chain(&answer.authorities);
    let start = said.find(|one| one.record_type() == RecordType::SOA && one.name.zone_of(name))?;
    Some(start.name.clone())
}

fn rooted(name: &HostName) -> Result<Name, EdgeError> {
    let mut rooted =
        Name::from_ascii(name.as_str()).map_err(|error| EdgeError(format!("{name}: {error}")))?;
    rooted.set_fqdn(true);
    Ok(rooted)
}

fn unreachable(address: SocketAddr, error: &NetError) -> EdgeError {
    tracing::debug!(%address, %error, "a name server for dynamic updates was not reached");
    EdgeError(format!("the name server {address} cannot be reached"))
}
