//! Tables that only the configuration file has.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use skerry_control::ServerProxy;
use skerry_model::{
    DiskMib, MemMib, OutboundProxy, Plan, ProxyCredentials, ProxyName, ProxyProtocol, Shape,
    VcpuCount, spec::CpuKind,
};
use skerry_node::images::{PullLimits, PullPolicy};

use super::{DEFAULT_DISK_MIB, DEFAULT_MEMORY_MIB, DEFAULT_VCPU_COUNT, KeyText, absolute};

/// From which registries images are pulled. Without it, from none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagePullSettings {
    /// The registries, as `host` or `host:port`; `docker.io` is Docker Hub.
    pub registries: Vec<String>,
    /// Those of the registries and mirrors that are spoken to without TLS, besides loopback addresses.
    #[serde(default)]
    pub insecure_registries: Vec<String>,
    /// Registry to the hosts that are asked before it.
    #[serde(default)]
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Credentials in the form of Docker's `config.json`.
    pub auth_file: Option<PathBuf>,
    /// How large an image may be as it is transferred, in MiB.
    pub max_transfer_mib: Option<u32>,
    /// How large its layers may be unpacked, in MiB.
    pub max_unpacked_mib: Option<u32>,
    /// How many files its layers may have in all.
    pub max_files: Option<u32>,
}

impl ImagePullSettings {
    pub(super) fn policy(self) -> Result<PullPolicy> {
        let default = PullLimits::default();
        let bytes = |mib: Option<u32>, otherwise| mib.map_or(otherwise, |mib| u64::from(mib) << 20);
        let hosts = self.registries.iter().chain(&self.insecure_registries);
        for host in hosts.chain(self.mirrors.values().flatten()) {
            let good =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-:[]".contains(c);
            if host.is_empty() || !host.chars().all(good) {
                bail!("image_pull: {host:?} is not a host or host:port");
            }
        }
        Ok(PullPolicy {
            registries: self.registries,
            insecure: self.insecure_registries,
            mirrors: self.mirrors,
            auth_file: self.auth_file.map(absolute).transpose()?,
            limits: PullLimits {
                transfer_bytes: bytes(self.max_transfer_mib, default.transfer_bytes),
                unpacked_bytes: bytes(self.max_unpacked_mib, default.unpacked_bytes),
                entries: self.max_files.map_or(default.entries, u64::from),
            },
        })
    }
}

/// A template to make ahead of time. What is not given is the plan's default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateSettings {
    /// The image's name in the catalogue.
    pub image: String,
    /// Virtual CPUs.
    pub vcpu_count: Option<u32>,
    /// Guest memory in MiB.
    pub memory_mib: Option<u32>,
    /// Writable disk in MiB.
    pub disk_mib: Option<u32>,
    /// The share class of its virtual CPUs.
    #[serde(default)]
    pub cpu_kind: CpuKind,
}

impl TemplateSettings {
    /// The shape of its workspaces under `plan`.
    #[must_use]
    pub fn shape(&self, plan: Option<&Plan>) -> Shape {
        let or = |given: Option<u32>, of_plan: Option<u32>, default| {
            given.or(of_plan).unwrap_or(default)
        };
        let vcpu_count = plan.map(|plan| plan.vcpu_count.default);
        let memory_mib = plan.map(|plan| plan.memory_mib.default);
        let disk_mib = plan.map(|plan| plan.disk_mib.default);
        Shape {
            vcpu_count: VcpuCount(or(self.vcpu_count, vcpu_count, DEFAULT_VCPU_COUNT)),
            memory_mib: MemMib(or(self.memory_mib, memory_mib, DEFAULT_MEMORY_MIB)),
            disk_mib: DiskMib(or(self.disk_mib, disk_mib, DEFAULT_DISK_MIB)),
            cpu_kind: self.cpu_kind,
        }
    }
}

/// A proxy of the server's, through which workspaces reach the world that ask for it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutboundProxySettings {
    /// What workspaces ask for.
    pub name: String,
    /// Where it is.
    pub address: Ipv4Addr,
    /// At which port of TCP.
    pub port: u16,
    /// How it is asked: `http` (CONNECT) or `socks5`.
    pub protocol: Option<String>,
    /// Who it is told to be asked by.
    pub username: Option<String>,
    /// What proves that.
    pub password: Option<KeyText>,
    /// Under which address the world sees who goes through it.
    pub exit_address: Option<Ipv4Addr>,
}

impl OutboundProxySettings {
    /// All of them, by their names.
    pub(super) fn resolve(list: Vec<Self>) -> Result<BTreeMap<ProxyName, ServerProxy>> {
        let mut known = BTreeMap::new();
        for one in list {
            let said = || format!("outbound_proxies: {:?}", one.name);
            let name: ProxyName = one.name.parse().with_context(said)?;
            let protocol = one.protocol.as_deref().map_or(Ok(ProxyProtocol::Http), str::parse);
            let credentials = match (one.username, one.password) {
                (Some(username), password) => Some(ProxyCredentials {
                    username,
                    password: password.map_or_else(|| skerry_model::Secret::new(""), |key| key.0),
                }),
                (None, None) => None,
                (None, Some(_)) => bail!("outbound_proxies: {name}: a password without a username"),
            };
            let said = || format!("outbound_proxies: {name}");
            let (address, port) = (one.address, one.port);
            let protocol = protocol.with_context(said)?;
            let proxy = OutboundProxy { address, port, protocol, credentials };
            proxy.check().with_context(said)?;
            let server = ServerProxy { proxy, exit_address: one.exit_address };
            if known.insert(name.clone(), server).is_some() {
                bail!("outbound_proxies: {name} is there twice");
            }
        }
        Ok(known)
    }
}
