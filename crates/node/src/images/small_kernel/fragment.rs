//! Our options for the kernel's configuration, and whether they took: Kconfig drops an option whose
//! dependencies are not met without a word.

use std::collections::BTreeMap;

use crate::images::ImageError;

/// `kernel/guest.config` of the source tree.
pub(super) const FRAGMENT: &str = include_str!("../../../../../kernel/guest.config");
/// Where a reader of a message finds it.
const FRAGMENT_NAME: &str = "kernel/guest.config";

/// What one line of a configuration says; an option that is off has the value `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setting<'a> {
    /// With its `CONFIG_`.
    option: &'a str,
    value: &'a str,
}

impl<'a> Setting<'a> {
    /// `None` for comments and empty lines; `Err` for what Kconfig would not understand either.
    fn parse(line: &'a str) -> Result<Option<Self>, ()> {
        let line = line.trim_end();
        if let Some(comment) = line.strip_prefix('#') {
            let off = comment.strip_prefix(" CONFIG_").and_then(|rest| {
                rest.strip_suffix(" is not set").filter(|name| is_option_name(name))
            });
            // The name with its `CONFIG_`: the line without its ends.
            return Ok(off.map(|name| Self { option: &line[2..][..7 + name.len()], value: "n" }));
        }
        if line.is_empty() {
            return Ok(None);
        }
        let (option, value) = line.split_once('=').ok_or(())?;
        match option.strip_prefix("CONFIG_") {
            Some(name) if is_option_name(name) && !value.is_empty() => {
                Ok(Some(Self { option, value }))
            }
            Some(_) | None => Err(()),
        }
    }
}

fn is_option_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Every setting in a configuration or a part of one, by option.
///
/// # Errors
/// A line is none, or an option is named twice: the message names the line.
pub(super) fn parse(text: &str) -> Result<BTreeMap<&str, &str>, ImageError> {
    let mut settings = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let problem = match Setting::parse(line) {
            Ok(None) => continue,
            Ok(Some(Setting { option, value })) => match settings.insert(option, value) {
                None => continue,
                Some(_) => format!("{option} is named a second time"),
            },
            Err(()) => format!("{line:?} is not an option"),
        };
        return Err(ImageError::Kernel { reason: format!("line {}: {problem}", index + 1) });
    }
    Ok(settings)
}

/// Compares what was wished with the configuration that came out.
///
/// # Errors
/// Wishes that did not take: the message names each, and what it became.
pub(super) fn check(fragment: &str, configuration: &str) -> Result<(), ImageError> {
    let outcome = parse(configuration)?;
    let unmet: Vec<String> = parse(fragment)?
        .into_iter()
        .filter_map(|(option, wished)| {
            let found = outcome.get(option).copied().unwrap_or("n");
            (found != wished).then(|| format!("{option} is {found} instead of {wished}"))
        })
        .collect();
    if unmet.is_empty() {
        return Ok(());
    }
    Err(ImageError::Kernel {
        reason: format!(
            "options of {FRAGMENT_NAME} did not take: {}. Either the source does not know them or \
             something they depend on is off",
            unmet.join(", ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a container engine looks for before it starts, and what fails at the first `docker run`
    /// without it. From the documentation of the features: cgroups(7), namespaces(7), overlayfs, and
    /// the chains and matches that Docker's, Podman's and Kubernetes' rules use.
    const CONTAINERS_NEED: &[&str] = &[
        // Processes apart from each other
        "NAMESPACES",
        "UTS_NS",
        "IPC_NS",
        "PID_NS",
        "NET_NS",
        "USER_NS",
        "CGROUPS",
        "MEMCG",
        "CGROUP_PIDS",
        "CGROUP_CPUACCT",
        "CGROUP_DEVICE",
        "CGROUP_FREEZER",
        "CGROUP_SCHED",
        "CGROUP_HUGETLB",
        "CGROUP_PERF",
        "CGROUP_BPF",
        "CPUSETS",
        "CFS_BANDWIDTH",
        "FAIR_GROUP_SCHED",
        "BLK_CGROUP",
        "BLK_DEV_THROTTLING",
        "CGROUP_NET_PRIO",
        "NET_CLS_CGROUP",
        "SECCOMP",
        "SECCOMP_FILTER",
        "KEYS",
        "POSIX_MQUEUE",
        "BINFMT_MISC",
        // Their root
        "OVERLAY_FS",
        "EXT4_FS_POSIX_ACL",
        "EXT4_FS_SECURITY",
        "TMPFS_XATTR",
        "FUSE_FS",
        "BLK_DEV_LOOP",
        // Their network
        "VETH",
        "BRIDGE",
        "BRIDGE_NETFILTER",
        "BRIDGE_VLAN_FILTERING",
        "DUMMY",
        "MACVLAN",
        "IPVLAN",
        "VXLAN",
        "TUN",
        "NF_NAT",
        "NF_CT_NETLINK",
        // iptables of either kind
        "IP_NF_IPTABLES",
        "IP_NF_FILTER",
        "IP_NF_NAT",
        "IP_NF_MANGLE",
        "IP_NF_RAW",
        "IP_NF_TARGET_MASQUERADE",
        "IP_NF_TARGET_REDIRECT",
        "IP_NF_TARGET_REJECT",
        "IP6_NF_IPTABLES",
        "IP6_NF_FILTER",
        "IP6_NF_NAT",
        "IP6_NF_MANGLE",
        "IP6_NF_RAW",
        "IP6_NF_TARGET_MASQUERADE",
        "NETFILTER_XT_MATCH_ADDRTYPE",
        "NETFILTER_XT_MATCH_BPF",
        "NETFILTER_XT_MATCH_COMMENT",
        "NETFILTER_XT_MATCH_CONNTRACK",
        "NETFILTER_XT_MATCH_IPVS",
        "NETFILTER_XT_MATCH_MULTIPORT",
        "NETFILTER_XT_MARK",
        "NETFILTER_XT_NAT",
        "NETFILTER_XT_TARGET_MASQUERADE",
        "IP_SET",
        "IP_VS",
        "IP_VS_NFCT",
        "IP_VS_PROTO_TCP",
        "IP_VS_PROTO_UDP",
        "IP_VS_RR",
        // nftables
        "NF_TABLES",
        "NF_TABLES_INET",
        "NF_TABLES_IPV4",
        "NF_TABLES_IPV6",
        "NF_TABLES_BRIDGE",
        "NFT_COMPAT",
        "NFT_CT",
        "NFT_NAT",
        "NFT_MASQ",
        "NFT_REDIR",
        "NFT_REJECT",
        "NFT_LOG",
        "NFT_LIMIT",
        "NFT_FIB_INET",
    ];

    /// Without these a guest does not come up at all, or not as a guest.
    const GUESTS_NEED: &[&str] = &[
        "64BIT",
        "SMP",
        "PVH",
        "KVM_GUEST",
        "ACPI",
        "VIRTIO_MMIO",
        "VIRTIO_MMIO_CMDLINE_DEVICES",
        "VIRTIO_BLK",
        "VIRTIO_NET",
        "VIRTIO_CONSOLE",
        "HW_RANDOM_VIRTIO",
        "VIRTIO_BALLOON",
        "VIRTIO_VSOCKETS",
        "VIRTIO_FS",
        "VMGENID",
        "SERIAL_8250_CONSOLE",
        "BLK_DEV_INITRD",
        "DEVTMPFS",
        "EXT4_FS",
        "NO_HZ_IDLE",
        "PSI",
        "STACKPROTECTOR_STRONG",
        "FORTIFY_SOURCE",
    ];

    #[test]
    fn the_fragment_has_what_guests_and_containers_in_them_need() {
        let settings = parse(FRAGMENT).unwrap();
        let missing: Vec<_> = CONTAINERS_NEED
            .iter()
            .chain(GUESTS_NEED)
            .filter(|name| settings.get(format!("CONFIG_{name}").as_str()) != Some(&"y"))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert_eq!(settings["CONFIG_MODULES"], "n");
        assert!(settings.values().all(|value| *value != "m"));
    }

    #[test]
    fn a_wish_that_did_not_take_is_named_with_what_it_became() {
        let fragment = "# why\nCONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_D=100\n";
        let outcome = |text: &str| check(fragment, text).map_err(|error| error.to_string());
        assert_eq!(outcome("CONFIG_A=y\nCONFIG_B=y\nCONFIG_D=100\nCONFIG_E=y\n"), Ok(()));
        let error = outcome("CONFIG_A=m\n# CONFIG_B is not set\nCONFIG_C=y\n").unwrap_err();
        insta::assert_snapshot!(error);
    }

    #[test]
    fn a_line_that_kconfig_would_pass_over_is_an_error() {
        for text in ["CONFIG_A", "A=y", "CONFIG_=y", "CONFIG_A=", "CONFIG_A=y\nCONFIG_A=y"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        let error = parse("# fine\n\nCONFIG_A y\n").unwrap_err().to_string();
        assert!(error.contains("line 3"), "{error}");
    }

    #[test]
    fn what_kconfig_writes_for_an_option_that_is_off_is_understood() {
        let settings = parse("# CONFIG_IS not\n# CONFIG_A is not set\n#CONFIG_B=y\n").unwrap();
        assert_eq!(settings.into_iter().collect::<Vec<_>>(), [("CONFIG_A", "n")]);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(\\PC|\n| |#|=|CONFIG_| is not set){0,40}") {
            let _ = parse(&text);
        }
    }
}
