//! Leases of uids: each VMM process runs as one of its own, so that one that was taken over by its
//! guest can neither signal nor read another.

use std::{
    collections::BTreeSet,
    fs,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{Error, UidRange};

/// The pool of free uids.
#[derive(Clone, Debug)]
pub(crate) struct UidPool {
    range: UidRange,
    leased: Arc<Mutex<BTreeSet<u32>>>,
}

/// One uid in use; given back when dropped.
#[derive(Debug)]
pub(crate) struct UidLease {
    uid: u32,
    leased: Arc<Mutex<BTreeSet<u32>>>,
}

impl UidPool {
    pub fn new(range: UidRange) -> Self {
        Self { range, leased: Arc::default() }
    }

    /// Whether this process may give processes and files to the uids of `range`; if not, why.
    pub fn available(range: UidRange) -> Result<(), String> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let uid_map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        check(range, &status, &uid_map)
    }

    /// The lowest free uid.
    pub fn lease(&self) -> Result<UidLease, Error> {
        let mut leased = self.leased.lock().unwrap_or_else(PoisonError::into_inner);
        let end = self.range.first.saturating_add(self.range.count);
        let uid = (self.range.first..end)
            .find(|uid| !leased.contains(uid))
            .ok_or_else(|| Error::NoCapacity("every uid of the range is in use".to_owned()))?;
        leased.insert(uid);
        Ok(UidLease { uid, leased: Arc::clone(&self.leased) })
    }

    /// The uid of a process that runs already; `None` when it is leased twice, which only a changed
    /// configuration or a copied directory can cause.
    pub fn claim(&self, uid: u32) -> Option<UidLease> {
        let mut leased = self.leased.lock().unwrap_or_else(PoisonError::into_inner);
        leased.insert(uid).then(|| UidLease { uid, leased: Arc::clone(&self.leased) })
    }
}

impl UidLease {
    pub fn uid(&self) -> u32 {
        self.uid
    }
}

impl Drop for UidLease {
    fn drop(&mut self) {
        self.leased.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.uid);
    }
}

/// capabilities(7): CAP_CHOWN is 0, CAP_SETGID 6, CAP_SETUID 7. A container may have taken them from
/// its root, or may not map the range.
fn check(range: UidRange, status: &str, uid_map: &str) -> Result<(), String> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    for (bit, name) in [(0, "CAP_CHOWN"), (6, "CAP_SETGID"), (7, "CAP_SETUID")] {
        if effective & (1 << bit) == 0 {
            return Err(format!("the server runs without {name}"));
        }
    }
    let (first, last) =
        (u64::from(range.first), u64::from(range.first) + u64::from(range.count) - 1);
    let mapped = uid_map.lines().any(|line| {
        let fields: Vec<u64> = line.split_whitespace().filter_map(|f| f.parse().ok()).collect();
        matches!(fields[..], [inside, _, count] if inside <= first && last < inside.saturating_add(count))
    });
    if mapped { Ok(()) } else { Err(format!("uids {first} to {last} are not mapped here")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: UidRange = UidRange { first: 1000, count: 2 };

    #[test]
    fn two_leases_never_share_a_uid_and_a_dropped_one_is_free_again() {
        let pool = UidPool::new(RANGE);
        let (one, two) = (pool.lease().unwrap(), pool.lease().unwrap());
        assert_eq!((one.uid(), two.uid()), (1000, 1001));
        assert!(matches!(pool.lease(), Err(Error::NoCapacity(_))));
        assert!(pool.claim(1001).is_none());
        drop(one);
        assert_eq!(pool.lease().unwrap().uid(), 1000);
    }

    #[test]
    fn a_root_without_the_capabilities_or_the_mapping_has_no_uids_to_give() {
        let all = "Name:\tx\nCapEff:\t000001ffffffffff\n";
        let whole = "         0          0 4294967295\n";
        assert_eq!(check(RANGE, all, whole), Ok(()));
        assert!(check(RANGE, "CapEff:\t0000000000000001\n", whole).is_err());
        assert!(check(RANGE, all, "0 1000 1\n1 100000 1000\n").is_err());
    }
}
