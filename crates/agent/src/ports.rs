//! Listening TCP ports and who holds them.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use skerry_agent_protocol::{
    limits::PORTS_MAX,
    message::{Port, Ports},
};

use crate::AgentError;

/// State 0A of `/proc/net/tcp`.
const LISTEN: &str = "0A";

#[derive(Debug, PartialEq, Eq)]
struct Listener {
    address: IpAddr,
    port: u16,
    inode: u64,
}

/// Reads both tables and finds the owners. Blocks.
pub(crate) fn read() -> Result<Ports, AgentError> {
    let mut listeners = Vec::new();
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // A kernel without IPv6 has no second table.
        listeners.extend(fs::read_to_string(path).unwrap_or_default().lines().filter_map(parse));
    }
    listeners.sort_by_key(|listener| (listener.port, listener.address));
    listeners.truncate(PORTS_MAX);
    let mut owners = HashMap::new();
    if !listeners.is_empty() {
        owners = socket_owners();
    }
    let ports = listeners
        .into_iter()
        .map(|listener| {
            let pid = owners.get(&listener.inode).copied();
            Port {
                port: listener.port,
                address: listener.address.to_string(),
                pid,
                process: pid.and_then(process_name),
            }
        })
        .collect();
    Ok(Ports { ports })
}

fn parse(line: &str) -> Option<Listener> {
    let mut fields = line.split_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    if fields.nth(1)? != LISTEN {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    Some(Listener {
        address: parse_address(address)?,
        port: u16::from_str_radix(port, 16).ok()?,
        inode,
    })
}

/// Groups of 32 bits, each in the machine's byte order (little-endian).
fn parse_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok().map(u32::to_le_bytes);
    match hex.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?)))
        }
        _ => None,
    }
}

/// Which process holds which socket; the first found wins.
fn socket_owners() -> HashMap<u64, u32> {
    let mut owners = HashMap::new();
    let Ok(processes) = fs::read_dir("/proc") else { return owners };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // Gone meanwhile, or not ours to look into.
        let Ok(fds) = fs::read_dir(process.path().join("fd")) else { continue };
        for fd in fds.flatten() {
            let Ok(target) = fs::read_link(fd.path()) else { continue };
            let inode = target
                .to_str()
                .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                owners.entry(inode).or_insert(pid);
            }
        }
    }
    owners
}

fn process_name(pid: u32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|name| name.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_is_read_from_either_table() {
        let v4 = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 x";
        let v6 = "   1: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 77 1 x";
        assert_eq!(
            parse(v4),
            Some(Listener { address: Ipv4Addr::LOCALHOST.into(), port: 8080, inode: 4242 })
        );
        assert_eq!(
            parse(v6),
            Some(Listener { address: Ipv6Addr::LOCALHOST.into(), port: 22, inode: 77 })
        );
    }

    #[test]
    fn other_lines_are_not_listeners() {
        let connected = "   0: 0100007F:1F90 00000000:0000 01 00000000:00000000 00:00000000 00000000     0        0 4242 1 x";
        for line in [connected, "  sl  local_address rem_address   st", "", "a b:c"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
