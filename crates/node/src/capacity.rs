//! What the host has, and what of it is promised to guests.

use std::{fs, path::Path, sync::Arc};

use nix::sys::statvfs::statvfs;
use skerry_model::MemMib;
use tokio::sync::watch;

use crate::{Error, NodeConfig};

const MIB: u64 = 1024 * 1024;

/// The books of guest memory.
#[derive(Clone, Debug)]
pub(crate) struct MemoryBooks {
    limit_mib: u64,
    booked: Arc<watch::Sender<Booked>>,
}

/// What is spoken for, by class.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Booked {
    /// Whole memories of guests that run or start.
    guests_mib: u64,
    /// What VMs that wait in the pool really take: their guests' whole memory is promised only when
    /// they are claimed.
    waiting_mib: u64,
}

impl Booked {
    fn free_mib(self, limit_mib: u64) -> u64 {
        limit_mib.saturating_sub(self.guests_mib + self.waiting_mib)
    }

    fn of(&mut self, class: Class) -> &mut u64 {
        match class {
            Class::Guest => &mut self.guests_mib,
            Class::Waiting => &mut self.waiting_mib,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Guest,
    Waiting,
}

/// A promise of memory; given back when dropped.
#[derive(Debug)]
pub(crate) struct MemoryPromise {
    mib: u64,
    class: Class,
    booked: Arc<watch::Sender<Booked>>,
}

impl MemoryBooks {
    pub fn new(limit_mib: u64) -> Self {
        Self { limit_mib, booked: Arc::new(watch::Sender::default()) }
    }

    pub fn limit_mib(&self) -> u64 {
        self.limit_mib
    }

    /// What guests that run or start have.
    pub fn promised_mib(&self) -> u64 {
        self.booked.borrow().guests_mib
    }

    /// What VMs that wait in the pool have.
    pub fn waiting_mib(&self) -> u64 {
        self.booked.borrow().waiting_mib
    }

    /// What nobody has.
    pub fn free_mib(&self) -> u64 {
        self.booked.borrow().free_mib(self.limit_mib)
    }

    /// Told whenever something is booked or given back.
    pub fn subscribe(&self) -> watch::Receiver<Booked> {
        self.booked.subscribe()
    }

    /// Promises `memory` to a guest, if everything together fits.
    pub fn promise(&self, memory: MemMib) -> Result<MemoryPromise, Error> {
        self.book(Class::Guest, u64::from(memory.get()))
    }

    /// Sets `mib` aside for a VM that will wait in the pool, if everything together fits.
    pub fn set_aside(&self, mib: u64) -> Result<MemoryPromise, Error> {
        self.book(Class::Waiting, mib)
    }

    /// Writes down what a guest already has, whether or not it still fits.
    pub fn acknowledge(&self, memory: MemMib) -> MemoryPromise {
        let mib = u64::from(memory.get());
        self.booked.send_modify(|booked| booked.guests_mib += mib);
        MemoryPromise { mib, class: Class::Guest, booked: Arc::clone(&self.booked) }
    }

    fn book(&self, class: Class, mib: u64) -> Result<MemoryPromise, Error> {
        let mut free_mib = 0;
        let fits = self.booked.send_if_modified(|booked| {
            free_mib = booked.free_mib(self.limit_mib);
            if mib > free_mib {
                return false;
            }
            *booked.of(class) += mib;
            true
        });
        if !fits {
            return Err(Error::NoCapacity(format!(
                "{mib} MiB of memory are needed, {free_mib} MiB are free"
            )));
        }
        Ok(MemoryPromise { mib, class, booked: Arc::clone(&self.booked) })
    }
}

impl Drop for MemoryPromise {
    fn drop(&mut self) {
        self.booked.send_modify(|booked| *booked.of(self.class) -= self.mib);
    }
}

/// Memory of the host in MiB, or of the container this server runs in; 0 when it cannot be read.
pub(crate) fn host_memory_mib() -> u64 {
    let total = fs::read_to_string("/proc/meminfo").map_or(0, |text| meminfo_total_bytes(&text));
    let smallest = crate::cgroups::own_memory_limit_bytes().map_or(total, |limit| limit.min(total));
    smallest / MIB
}

/// proc(5): the first line of `/proc/meminfo` is `MemTotal:  N kB`, where kB means 1024 bytes.
fn meminfo_total_bytes(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// How much guests may be promised: what is configured, else the host's memory less a tenth (at
/// least 512 MiB) for the host itself, and never more than the file system of the memory files has.
pub(crate) fn guest_memory_limit_mib(config: &NodeConfig, memory_dir: &Path) -> u64 {
    let host = host_memory_mib();
    let limit =
        config.guest_memory_mib.unwrap_or_else(|| host.saturating_sub((host / 10).max(512)));
    let room = statvfs(memory_dir)
        .map_or(u64::MAX, |fs| fs.blocks().saturating_mul(fs.fragment_size()) / MIB);
    limit.min(room)
}

/// Free space in MiB for ordinary users on the file system of `path`; 0 when it cannot be read.
pub(crate) fn disk_free_mib(path: &Path) -> u64 {
    statvfs(path).map_or(0, |fs| fs.blocks_available().saturating_mul(fs.fragment_size()) / MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_never_exceed_the_limit_and_are_given_back() {
        let books = MemoryBooks::new(1000);
        let first = books.promise(MemMib(600)).unwrap();
        assert!(matches!(books.promise(MemMib(401)), Err(Error::NoCapacity(_))));
        let second = books.promise(MemMib(400)).unwrap();
        drop(first);
        assert_eq!(books.promised_mib(), 400);
        let over = books.acknowledge(MemMib(900));
        assert_eq!(books.promised_mib(), 1300);
        drop((second, over));
        assert_eq!(books.promised_mib(), 0);
    }

    #[test]
    fn what_waits_in_the_pool_takes_room_but_is_not_promised_to_a_guest() {
        let books = MemoryBooks::new(1000);
        let waiting = books.set_aside(100).unwrap();
        assert_eq!((books.promised_mib(), books.waiting_mib()), (0, 100));
        assert!(matches!(books.promise(MemMib(901)), Err(Error::NoCapacity(_))));
        let guest = books.promise(MemMib(900)).unwrap();
        assert!(matches!(books.set_aside(1), Err(Error::NoCapacity(_))));
        drop(waiting);
        drop(books.set_aside(100).unwrap());
        drop(guest);
        assert_eq!((books.promised_mib(), books.waiting_mib()), (0, 0));
    }

    #[test]
    fn the_total_of_meminfo_is_in_units_of_1024_bytes() {
        assert_eq!(meminfo_total_bytes("MemTotal:       16384 kB\nMemFree: 1 kB\n"), 16 * MIB);
        assert_eq!(meminfo_total_bytes(""), 0);
    }
}
