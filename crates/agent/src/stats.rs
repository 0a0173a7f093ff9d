//! Resource use, from `/proc` and the root file system.

use std::{fs, path::Path};

use nix::{
    sys::statvfs::statvfs,
    unistd::{SysconfVar, sysconf},
};
use skerry_agent_protocol::message::Stats;

use crate::{AgentError, files::about};

/// Reads everything once. Blocks.
pub(crate) fn read() -> Result<Stats, AgentError> {
    let cpu = cpu(&text("/proc/stat")?, ticks_per_second());
    let memory = text("/proc/meminfo")?;
    let root = Path::new("/");
    let disk = statvfs(root).map_err(|errno| about(root)(errno.into()))?;
    let block = disk.fragment_size();
    let total = disk.blocks().saturating_mul(block);
    Ok(Stats {
        uptime_ms: uptime_ms(&text("/proc/uptime")?),
        cpu_used_ms: cpu.used_ms,
        cpus_online: cpu.online,
        memory_total_bytes: memory_bytes(&memory, "MemTotal:"),
        memory_available_bytes: memory_bytes(&memory, "MemAvailable:"),
        disk_total_bytes: total,
        disk_used_bytes: total.saturating_sub(disk.blocks_free().saturating_mul(block)),
        processes: processes()?,
    })
}

/// Memory that is in use for anything, caches included. Blocks.
pub(crate) fn memory_used_bytes() -> Result<u64, AgentError> {
    let memory = text("/proc/meminfo")?;
    Ok(memory_bytes(&memory, "MemTotal:").saturating_sub(memory_bytes(&memory, "MemFree:")))
}

fn text(path: &str) -> Result<String, AgentError> {
    fs::read_to_string(path).map_err(about(Path::new(path)))
}

fn ticks_per_second() -> u64 {
    match sysconf(SysconfVar::CLK_TCK) {
        Ok(Some(ticks)) => u64::try_from(ticks).unwrap_or(100).max(1),
        Ok(None) | Err(_) => 100,
    }
}

struct Cpu {
    used_ms: u64,
    online: u32,
}

/// `user nice system idle iowait irq softirq ...` in ticks, a line for all and one for each CPU.
fn cpu(stat: &str, ticks_per_second: u64) -> Cpu {
    let mut used = 0;
    let mut online = 0;
    for line in stat.lines() {
        let mut fields = line.split_whitespace();
        match fields.next() {
            Some("cpu") => {
                let busy = [0, 1, 2, 5, 6];
                used = fields
                    .enumerate()
                    .filter(|(index, _)| busy.contains(index))
                    .filter_map(|(_, field)| field.parse::<u64>().ok())
                    .fold(0, u64::saturating_add);
            }
            Some(name) if name.starts_with("cpu") => online += 1,
            Some(_) | None => {}
        }
    }
    Cpu { used_ms: used.saturating_mul(1000) / ticks_per_second, online }
}

fn uptime_ms(uptime: &str) -> u64 {
    let seconds = uptime.split_whitespace().next().unwrap_or("0");
    let (whole, hundredths) = seconds.split_once('.').unwrap_or((seconds, "0"));
    let whole: u64 = whole.parse().unwrap_or(0);
    let hundredths: u64 = hundredths.parse().unwrap_or(0);
    whole.saturating_mul(1000).saturating_add(hundredths.saturating_mul(10))
}

fn memory_bytes(meminfo: &str, key: &str) -> u64 {
    let kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

fn processes() -> Result<u32, AgentError> {
    let proc = Path::new("/proc");
    let count = fs::read_dir(proc)
        .map_err(about(proc))?
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .count();
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_numbers_become_ours() {
        let stat = "cpu  100 10 50 9000 7 3 2 0 0 0\ncpu0 1 1 1\ncpu1 1 1 1\nintr 5\n";
        let cpu = cpu(stat, 100);
        assert_eq!((cpu.used_ms, cpu.online), (1650, 2));
        assert_eq!(uptime_ms("12.34 20.00\n"), 12_340);
        assert_eq!(memory_bytes("MemTotal:  100 kB\nMemAvailable: 7 kB\n", "MemAvailable:"), 7168);
    }

    #[test]
    fn nonsense_reads_as_zero() {
        assert_eq!(
            (uptime_ms("x"), memory_bytes("", "MemTotal:"), cpu("", 100).used_ms),
            (0, 0, 0)
        );
    }
}
