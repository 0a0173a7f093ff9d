//! Configuration of `skerry serve`: flags, then `SKERRY_*` in the environment, then a TOML file.

mod tables;
mod tls;
mod values;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use skerry_control::{AppCatalogue, CatalogApp, ServerProxy};
use skerry_gateway::domains::AcmeSettings;
use skerry_model::{
    Plan, ProxyName, Secret,
    limits::{Pool, Range},
};
use skerry_node::{
    AddressPrefix, Faults, NetworkChoice, ProxyTarget, UplinkChoice, UplinkSettings,
    images::{KernelChoice, PullPolicy},
};

use self::values::{absolute, check_domain, check_url, private_network, seconds_within};
pub use self::{
    tables::{ImagePullSettings, OutboundProxySettings, TemplateSettings},
    tls::{AcmeChallengeSetting, CertificatePaths, TlsConfig},
    values::{KeyText, check_key},
};

/// What happens to running workspaces when the server is told to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnShutdown {
    /// They keep running; the next start of the server takes them over.
    #[default]
    Keep,
    /// They are stopped; their disks are kept.
    Stop,
}

/// Which accelerator to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AcceleratorChoice {
    /// KVM if a guest really runs under it, else software emulation.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// Which kernel guests boot with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KernelSetting {
    /// The small one if `skerry kernel build` has made it, else the distribution's.
    #[default]
    Auto,
    /// The distribution's.
    Distribution,
    /// The small one or none.
    Small,
}

impl From<KernelSetting> for KernelChoice {
    fn from(setting: KernelSetting) -> Self {
        match setting {
            KernelSetting::Auto => Self::Auto,
            KernelSetting::Distribution => Self::Distribution,
            KernelSetting::Small => Self::Small,
        }
    }
}

/// Whether workspaces have a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum NetworkSetting {
    /// They reach nobody.
    #[default]
    Off,
    /// Each has a private address; the policy says what passes.
    On,
}

impl From<NetworkSetting> for NetworkChoice {
    fn from(setting: NetworkSetting) -> Self {
        match setting {
            NetworkSetting::Off => Self::Off,
            NetworkSetting::On => Self::On,
        }
    }
}

/// One source of settings: the command line with the environment, or the file. Absent means "ask the
/// next source".
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where everything is kept: database, disks, logs [default: ./var]
    #[arg(long, env = "SKERRY_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where images are kept [default: <data-dir>/images]
    #[arg(long, env = "SKERRY_IMAGE_DIR", value_name = "DIR")]
    pub image_dir: Option<PathBuf>,
    /// Address and port to listen on; port 0 picks a free one [default: 127.0.0.1:7070]
    #[arg(long, env = "SKERRY_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Address and port to speak SSH on, such as 127.0.0.1:2222; port 0 picks a free one [default: none]
    #[arg(long, env = "SKERRY_SSH_LISTEN", value_name = "ADDRESS:PORT")]
    pub ssh_listen: Option<String>,
    /// Address and port to speak TLS on, such as 0.0.0.0:443; port 0 picks a free one [default: none]
    #[arg(long, env = "SKERRY_TLS_LISTEN", value_name = "ADDRESS:PORT")]
    pub tls_listen: Option<String>,
    /// A PEM file: the certificate for names without one of their own, and its chain
    #[arg(long, env = "SKERRY_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// A PEM file: that certificate's private key
    #[arg(long, env = "SKERRY_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// The directory of an ACME server that certificates for custom domains are got from; its terms of
    /// service are agreed to [default: none are got]
    #[arg(long, env = "SKERRY_ACME_DIRECTORY", value_name = "URL")]
    pub acme_directory: Option<String>,
    /// An e-mail address that it may write to
    #[arg(long, env = "SKERRY_ACME_CONTACT", value_name = "ADDRESS")]
    pub acme_contact: Option<String>,
    /// A PEM file: an authority that the ACME server's own certificate may come from, beside the usual
    #[arg(long, env = "SKERRY_ACME_ROOT", value_name = "FILE")]
    pub acme_root: Option<PathBuf>,
    /// How names are shown to lead here: by port 80 or by port 443 [default: http-01]
    #[arg(long, env = "SKERRY_ACME_CHALLENGE", value_name = "HOW")]
    pub acme_challenge: Option<AcmeChallengeSetting>,
    /// Networks, such as 192.168.7.0/24, where the name servers of domains may be whose owners have their
    /// certificates got by dynamic updates, beside those of the internet
    #[arg(
        long,
        env = "SKERRY_DNS_UPDATE_NETWORKS",
        value_name = "NETWORK,...",
        value_delimiter = ','
    )]
    pub dns_update_networks: Option<Vec<String>>,
    /// Which name server is asked for the proofs of custom domains [default: those of
    /// /etc/resolv.conf]
    #[arg(long, env = "SKERRY_DOMAIN_NAME_SERVER", value_name = "ADDRESS:PORT")]
    pub domain_name_server: Option<SocketAddr>,
    /// A key that works at once for the account `admin`; made and kept in <data-dir>/bootstrap-key
    /// when not given
    #[arg(long, env = "SKERRY_BOOTSTRAP_KEY", value_name = "KEY", hide_env_values = true)]
    pub bootstrap_key: Option<KeyText>,
    /// The URL under which clients reach this server [default: http://<listen address>]
    #[arg(long, env = "SKERRY_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// The domain whose labels select a dialect or a workspace [default: localhost]
    #[arg(long, env = "SKERRY_BASE_DOMAIN", value_name = "DOMAIN")]
    pub base_domain: Option<String>,
    /// The domain below which published ports are visited; best one that nothing else uses [default:
    /// the base domain]
    #[arg(long, env = "SKERRY_PREVIEW_DOMAIN", value_name = "DOMAIN")]
    pub preview_domain: Option<String>,
    /// The image of workspaces whose request names none [default: base]
    #[arg(long, env = "SKERRY_DEFAULT_IMAGE", value_name = "IMAGE")]
    pub default_image: Option<String>,
    /// What happens to running workspaces at SIGTERM [default: keep]
    #[arg(long, env = "SKERRY_ON_SHUTDOWN", value_name = "WHAT")]
    pub on_shutdown: Option<OnShutdown>,
    /// How guest instructions are run [default: auto]
    #[arg(long, env = "SKERRY_ACCELERATOR", value_name = "HOW")]
    pub accelerator: Option<AcceleratorChoice>,
    /// Which kernel guests boot with: the small one if it was built, or always the same [default:
    /// auto]
    #[arg(long, env = "SKERRY_KERNEL", value_name = "WHICH")]
    pub kernel: Option<KernelSetting>,
    /// Where guest memory is kept: a tmpfs if possible [default: below /dev/shm when it is large]
    #[arg(long, env = "SKERRY_MEMORY_DIR", value_name = "DIR")]
    pub memory_dir: Option<PathBuf>,
    /// First uid of the range from which every VM gets its own [default: 200000]
    #[arg(long, env = "SKERRY_UID_BASE", value_name = "UID")]
    pub uid_base: Option<u32>,
    /// How many uids the range has [default: 10000]
    #[arg(long, env = "SKERRY_UID_COUNT", value_name = "N")]
    pub uid_count: Option<u32>,
    /// Seconds a guest may take to come up [default: 30 with KVM, 180 without]
    #[arg(long, env = "SKERRY_BOOT_TIMEOUT_SECONDS", value_name = "SECONDS")]
    pub boot_timeout_seconds: Option<u64>,
    /// Seconds a guest may take to power off before it is killed [default: 10]
    #[arg(long, env = "SKERRY_STOP_GRACE_SECONDS", value_name = "SECONDS")]
    pub stop_grace_seconds: Option<u64>,
    /// MiB of disk for templates, saved machines from which workspaces start without a boot; 0 makes
    /// every start a boot [default: 4096]
    #[arg(long, env = "SKERRY_TEMPLATE_BUDGET_MIB", value_name = "MIB")]
    pub template_budget_mib: Option<u64>,
    /// The most VMs that wait, restored and paused, for a workspace to claim them; 0 keeps none
    /// [default: 8]
    #[arg(long, env = "SKERRY_POOL_MAX_WARM", value_name = "N")]
    pub pool_max_warm: Option<u32>,
    /// The most MiB of memory that waiting VMs take [default: a tenth of what guests may have]
    #[arg(long, env = "SKERRY_POOL_MEMORY_MIB", value_name = "MIB")]
    pub pool_memory_mib: Option<u64>,
    /// Whether workspaces have a network card that is plugged in, and a private address; needs root
    /// [default: off]
    #[arg(long, env = "SKERRY_NETWORK", value_name = "off|on")]
    pub network: Option<NetworkSetting>,
    /// From where workspaces get their private addresses [default: 10.201.0.0/16]
    #[arg(long, env = "SKERRY_NETWORK_PREFIX", value_name = "PREFIX")]
    pub network_prefix: Option<String>,
    /// Through what workspaces reach the world as far as their egress rules permit: the interface of
    /// the default route, an interface, a network namespace, nothing [default: none]
    #[arg(long, env = "SKERRY_UPLINK", value_name = "none|auto|INTERFACE|netns:NAME")]
    pub uplink: Option<String>,
    /// Private networks behind the uplink, such as 192.168.7.0/24, that egress rules may name
    /// [default: none]
    #[arg(
        long,
        env = "SKERRY_PRIVATE_NETWORKS",
        value_name = "NETWORK,...",
        value_delimiter = ','
    )]
    pub private_networks: Option<Vec<String>>,
    /// Addresses of the name servers that workspaces' names are asked of [default: those of the
    /// uplink's resolv.conf]
    #[arg(long, env = "SKERRY_NAME_SERVERS", value_name = "ADDRESS,...", value_delimiter = ',')]
    pub name_servers: Option<Vec<String>>,
    /// To where a proxy that somebody names is asked for a connection, before it is used [default:
    /// example.com:443]
    #[arg(long, env = "SKERRY_PROXY_CHECK_TARGET", value_name = "NAME:PORT")]
    pub proxy_check_target: Option<String>,
    /// A PEM file with certificates of authorities that hosts of vaults may be certified by, beside those
    /// whom the system trusts [default: none]
    #[arg(long, env = "SKERRY_TRUSTED_CERTIFICATES", value_name = "FILE")]
    pub trusted_certificates: Option<PathBuf>,
    /// Templates to make ahead of time; others are made when a workspace of their image and shape has
    /// booted
    #[arg(skip)]
    #[serde(default)]
    pub templates: Vec<TemplateSettings>,
    /// Other names for images: alias to image name
    #[arg(skip)]
    #[serde(default)]
    pub image_aliases: BTreeMap<String, String>,
    /// Apps of the catalogue beside those that are built in
    #[arg(skip)]
    #[serde(default)]
    pub apps: Vec<CatalogApp>,
    /// Proxies through which workspaces reach the world that ask for one by its name
    #[arg(skip)]
    #[serde(default)]
    pub outbound_proxies: Vec<OutboundProxySettings>,
    /// From which registries images are pulled, and how
    #[arg(skip)]
    pub image_pull: Option<ImagePullSettings>,
    /// The limits of every account [default: what the host has]
    #[arg(skip)]
    pub plan: Option<Plan>,
}

/// Settings with every question answered.
#[derive(Clone, Debug)]
pub struct Config {
    /// See [`Settings::data_dir`]; absolute.
    pub data_dir: PathBuf,
    /// See [`Settings::image_dir`]; absolute.
    pub image_dir: PathBuf,
    /// See [`Settings::listen`].
    pub listen: SocketAddr,
    /// See [`Settings::ssh_listen`]; `None` when SSH is not spoken.
    pub ssh_listen: Option<SocketAddr>,
    /// See [`Settings::tls_listen`]; `None` when TLS is not spoken.
    pub tls: Option<TlsConfig>,
    /// See [`Settings::acme_directory`]; `None` when no certificates are got.
    pub acme: Option<AcmeSettings>,
    /// See [`Settings::domain_name_server`].
    pub domain_name_server: Option<SocketAddr>,
    /// See [`Settings::bootstrap_key`]; `None` until one is made.
    pub bootstrap_key: Option<Secret>,
    /// See [`Settings::public_url`].
    pub public_url: Option<String>,
    /// See [`Settings::base_domain`].
    pub base_domain: String,
    /// See [`Settings::preview_domain`].
    pub preview_domain: String,
    /// See [`Settings::default_image`].
    pub default_image: String,
    /// See [`Settings::on_shutdown`].
    pub on_shutdown: OnShutdown,
    /// See [`Settings::accelerator`].
    pub accelerator: AcceleratorChoice,
    /// See [`Settings::kernel`].
    pub kernel: KernelChoice,
    /// See [`Settings::memory_dir`].
    pub memory_dir: Option<PathBuf>,
    /// See [`Settings::uid_base`].
    pub uid_base: u32,
    /// See [`Settings::uid_count`].
    pub uid_count: u32,
    /// See [`Settings::boot_timeout_seconds`].
    pub boot_timeout: Option<Duration>,
    /// See [`Settings::stop_grace_seconds`].
    pub stop_grace: Duration,
    /// See [`Settings::template_budget_mib`].
    pub template_budget_mib: u64,
    /// See [`Settings::pool_max_warm`].
    pub pool_max_warm: u32,
    /// See [`Settings::pool_memory_mib`].
    pub pool_memory_mib: Option<u64>,
    /// See [`Settings::network`].
    pub network: NetworkChoice,
    /// See [`Settings::network_prefix`].
    pub network_prefix: AddressPrefix,
    /// See [`Settings::uplink`], [`Settings::private_networks`], [`Settings::name_servers`] and
    /// [`Settings::proxy_check_target`].
    pub uplink: UplinkSettings,
    /// See [`Settings::outbound_proxies`].
    pub outbound_proxies: BTreeMap<ProxyName, ServerProxy>,
    /// See [`Settings::apps`].
    pub apps: AppCatalogue,
    /// See [`Settings::templates`].
    pub templates: Vec<TemplateSettings>,
    /// See [`Settings::image_aliases`].
    pub image_aliases: BTreeMap<String, String>,
    /// See [`Settings::image_pull`].
    pub image_pull: PullPolicy,
    /// See [`Settings::plan`].
    pub plan: Option<Plan>,
    /// The user's private directory for sockets (`$XDG_RUNTIME_DIR`).
    pub runtime_dir: Option<PathBuf>,
    /// Planned failures, for tests of crash safety; empty in production.
    pub faults: Faults,
}

impl Settings {
    /// Reads a TOML file. A name it does not know is an error, not a surprise later.
    ///
    /// # Errors
    /// The file cannot be read or does not parse; the message names it and the line, and shows
    /// nothing of the file's text, which may hold a key.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading the configuration {}", path.display()))?;
        toml::from_str(&text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = 1 + before.matches('\n').count();
            anyhow!("in {}, line {line}: {}", path.display(), error.message())
        })
    }

    /// What the environment (and, by `SKERRY_CONFIG`, the file) says, for commands without these flags.
    ///
    /// # Errors
    /// A value that does not parse; the message names it.
    pub fn from_environment() -> Result<Self> {
        #[derive(clap::Parser)]
        struct Bare {
            #[command(flatten)]
            settings: Settings,
        }
        let bare = <Bare as clap::Parser>::try_parse_from(["skerry"])
            .context("in the environment's SKERRY_* variables")?;
        match std::env::var_os("SKERRY_CONFIG") {
            Some(path) => Ok(bare.settings.or(Self::from_file(Path::new(&path))?)),
            None => Ok(bare.settings),
        }
    }

    /// `self` where it answers, else `weaker`.
    #[must_use]
    pub fn or(self, weaker: Self) -> Self {
        Self {
            data_dir: self.data_dir.or(weaker.data_dir),
            image_dir: self.image_dir.or(weaker.image_dir),
            listen: self.listen.or(weaker.listen),
            ssh_listen: self.ssh_listen.or(weaker.ssh_listen),
            tls_listen: self.tls_listen.or(weaker.tls_listen),
            tls_cert: self.tls_cert.or(weaker.tls_cert),
            tls_key: self.tls_key.or(weaker.tls_key),
            acme_directory: self.acme_directory.or(weaker.acme_directory),
            acme_contact: self.acme_contact.or(weaker.acme_contact),
            acme_root: self.acme_root.or(weaker.acme_root),
            acme_challenge: self.acme_challenge.or(weaker.acme_challenge),
            dns_update_networks: self.dns_update_networks.or(weaker.dns_update_networks),
            domain_name_server: self.domain_name_server.or(weaker.domain_name_server),
            bootstrap_key: self.bootstrap_key.or(weaker.bootstrap_key),
            public_url: self.public_url.or(weaker.public_url),
            base_domain: self.base_domain.or(weaker.base_domain),
            preview_domain: self.preview_domain.or(weaker.preview_domain),
            default_image: self.default_image.or(weaker.default_image),
            on_shutdown: self.on_shutdown.or(weaker.on_shutdown),
            accelerator: self.accelerator.or(weaker.accelerator),
            kernel: self.kernel.or(weaker.kernel),
            memory_dir: self.memory_dir.or(weaker.memory_dir),
            uid_base: self.uid_base.or(weaker.uid_base),
            uid_count: self.uid_count.or(weaker.uid_count),
            boot_timeout_seconds: self.boot_timeout_seconds.or(weaker.boot_timeout_seconds),
            stop_grace_seconds: self.stop_grace_seconds.or(weaker.stop_grace_seconds),
            template_budget_mib: self.template_budget_mib.or(weaker.template_budget_mib),
            pool_max_warm: self.pool_max_warm.or(weaker.pool_max_warm),
            pool_memory_mib: self.pool_memory_mib.or(weaker.pool_memory_mib),
            network: self.network.or(weaker.network),
            network_prefix: self.network_prefix.or(weaker.network_prefix),
            uplink: self.uplink.or(weaker.uplink),
            private_networks: self.private_networks.or(weaker.private_networks),
            name_servers: self.name_servers.or(weaker.name_servers),
            trusted_certificates: self.trusted_certificates.or(weaker.trusted_certificates),
            proxy_check_target: self.proxy_check_target.or(weaker.proxy_check_target),
            outbound_proxies: if self.outbound_proxies.is_empty() {
                weaker.outbound_proxies
            } else {
                self.outbound_proxies
            },
            apps: if self.apps.is_empty() { weaker.apps } else { self.apps },
            templates: if self.templates.is_empty() { weaker.templates } else { self.templates },
            image_aliases: if self.image_aliases.is_empty() {
                weaker.image_aliases
            } else {
                self.image_aliases
            },
            image_pull: self.image_pull.or(weaker.image_pull),
            plan: self.plan.or(weaker.plan),
        }
    }

    /// Answers what is still open with the defaults and checks the rest.
    ///
    /// # Errors
    /// A value that cannot work; the message names the setting and what is allowed.
    pub fn resolve(self) -> Result<Config> {
        let data_dir = absolute(self.data_dir.unwrap_or_else(|| PathBuf::from("var")))?;
        let image_dir = match self.image_dir {
            Some(dir) => absolute(dir)?,
            None => data_dir.join("images"),
        };
        if let Some(KeyText(key)) = &self.bootstrap_key {
            check_key(key)?;
        }
        let uid_base = self.uid_base.unwrap_or(200_000);
        let uid_count = self.uid_count.unwrap_or(10_000);
        if uid_base < 1000 || uid_count == 0 || uid_base.checked_add(uid_count).is_none() {
            bail!("uid_base must be at least 1000, uid_count at least 1, and their sum below 2^32");
        }
        let base_domain = self.base_domain.unwrap_or_else(|| "localhost".to_owned());
        check_domain("base_domain", &base_domain)?;
        let preview_domain = self.preview_domain.unwrap_or_else(|| base_domain.clone());
        check_domain("preview_domain", &preview_domain)?;
        if let Some(url) = &self.public_url {
            check_url(url)?;
        }
        if let Some(plan) = &self.plan {
            plan.check().map_err(|problem| anyhow!("plan: {problem}"))?;
        }
        let stop_grace_seconds = self.stop_grace_seconds.unwrap_or(10);
        let ssh_listen = match self.ssh_listen.as_deref().unwrap_or_default() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                anyhow!("ssh_listen must be an address and a port such as 127.0.0.1:2222, or empty")
            })?),
        };
        let tls = tls::Said {
            listen: self.tls_listen,
            certificate: self.tls_cert,
            key: self.tls_key,
            acme_directory: self.acme_directory,
            acme_contact: self.acme_contact,
            acme_root: self.acme_root,
            acme_challenge: self.acme_challenge,
            dns_update_networks: self.dns_update_networks,
        };
        let (tls, acme) = tls.resolve()?;
        let network_prefix = match self.network_prefix.as_deref() {
            Some(text) => text
                .parse::<AddressPrefix>()
                .map_err(|problem| anyhow!("network_prefix: {problem}"))?,
            None => AddressPrefix::DEFAULT,
        };
        let uplink = UplinkSettings {
            trusted_certificates: self.trusted_certificates.map(absolute).transpose()?,
            choice: self
                .uplink
                .map_or(Ok(UplinkChoice::None), |text| text.parse())
                .map_err(|problem| anyhow!("uplink: {problem}"))?,
            private_networks: self
                .private_networks
                .unwrap_or_default()
                .iter()
                .map(|text| private_network(text))
                .collect::<Result<_>>()?,
            name_servers: self
                .name_servers
                .unwrap_or_default()
                .iter()
                .map(|text| text.parse().with_context(|| format!("name_servers: {text}")))
                .collect::<Result<_>>()?,
            proxy_check_target: self
                .proxy_check_target
                .map_or_else(|| Ok(ProxyTarget::default()), |text| text.parse())
                .map_err(|problem| anyhow!("proxy_check_target: {problem}"))?,
        };
        Ok(Config {
            data_dir,
            image_dir,
            listen: self.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 7070))),
            ssh_listen,
            tls,
            acme,
            domain_name_server: self.domain_name_server,
            bootstrap_key: self.bootstrap_key.map(|key| key.0),
            public_url: self.public_url.map(|url| url.trim_end_matches('/').to_owned()),
            base_domain,
            preview_domain,
            default_image: self.default_image.unwrap_or_else(|| "base".to_owned()),
            on_shutdown: self.on_shutdown.unwrap_or_default(),
            accelerator: self.accelerator.unwrap_or_default(),
            kernel: self.kernel.unwrap_or_default().into(),
            memory_dir: self.memory_dir.map(absolute).transpose()?,
            uid_base,
            uid_count,
            boot_timeout: self
                .boot_timeout_seconds
                .map(|seconds| seconds_within("boot_timeout_seconds", seconds, 1))
                .transpose()?,
            stop_grace: seconds_within("stop_grace_seconds", stop_grace_seconds, 0)?,
            template_budget_mib: self.template_budget_mib.unwrap_or(4096),
            pool_max_warm: self.pool_max_warm.unwrap_or(8),
            pool_memory_mib: self.pool_memory_mib,
            network: self.network.unwrap_or_default().into(),
            network_prefix,
            uplink,
            outbound_proxies: OutboundProxySettings::resolve(self.outbound_proxies)?,
            apps: AppCatalogue::built_in()
                .with(self.apps)
                .map_err(|problem| anyhow!("apps: {problem}"))?,
            templates: self.templates,
            image_aliases: self.image_aliases,
            image_pull: self.image_pull.unwrap_or_default().policy()?,
            plan: self.plan,
            runtime_dir: std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
            faults: Faults::default(),
        })
    }
}

/// The size of a workspace whose request and plan name none.
const DEFAULT_VCPU_COUNT: u32 = 1;
const DEFAULT_MEMORY_MIB: u32 = 512;
const DEFAULT_DISK_MIB: u32 = 1024;

/// The limits used when the configuration names none: one workspace may be as large as the host; all
/// together may own far more than the host has, and run what its memory holds.
#[must_use]
pub fn default_plan(host_cpus: u64, host_memory_mib: u64, host_disk_mib: u64) -> Plan {
    // Also a host with hardly any room left (a disk that is full now) has a plan: what runs on it
    // already is to be taken over.
    let range = |min: u32, default: u32, found: u64, cap: u32| {
        let max = u32::try_from(found).unwrap_or(cap).clamp(min, cap);
        Range { min, max, default: default.min(max) }
    };
    Plan {
        name: "self-hosted".to_owned(),
        label: "Self-hosted".to_owned(),
        // A guest may have more virtual CPUs than the host has: they share.
        vcpu_count: Range { min: 1, max: 32, default: DEFAULT_VCPU_COUNT },
        memory_mib: range(128, DEFAULT_MEMORY_MIB, host_memory_mib, 65_536),
        disk_mib: range(64, DEFAULT_DISK_MIB, host_disk_mib, 204_800),
        max_workspaces: 10_000,
        owned_pool: Pool {
            vcpu_count: host_cpus.saturating_mul(1000),
            memory_mib: host_memory_mib.saturating_mul(1000),
            disk_mib: host_disk_mib.saturating_mul(1000),
        },
        running_pool: Pool {
            vcpu_count: host_cpus.saturating_mul(64).max(32),
            memory_mib: host_memory_mib,
            disk_mib: host_disk_mib.saturating_mul(1000),
        },
        max_snapshots: 10_000,
        max_snapshot_mib: host_disk_mib,
        max_volumes: 10_000,
        // Volumes are sparse, as disks are.
        max_volume_mib: host_disk_mib.saturating_mul(1000),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
