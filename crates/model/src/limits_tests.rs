#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::test_ground::shape;

fn plan() -> Plan {
    let owned = Pool { vcpu_count: 4, memory_mib: 4096, disk_mib: 8192 };
    let running = Pool { vcpu_count: 2, memory_mib: 2048, disk_mib: 8192 };
    Plan::self_hosted(3, owned, running)
}

fn ask(vcpu_count: Option<u64>, memory_mib: Option<u64>, disk_mib: Option<u64>) -> RequestedShape {
    RequestedShape { vcpu_count, memory_mib, disk_mib, cpu_kind: CpuKind::Shared }
}

fn limit_of(outcome: Result<(), ErrorKind>) -> Option<(Limit, &'static str)> {
    match outcome {
        Err(ErrorKind::Quota { limit, what, .. }) => Some((limit, what)),
        Ok(()) => None,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_silent_request_gets_the_plans_defaults() {
    assert_eq!(check_shape(&plan(), &ask(None, None, None)), Ok(shape(1, 512, 1024)));
}

#[test]
fn a_value_below_the_range_is_invalid_and_names_the_range() {
    let outcome = check_shape(&plan(), &ask(None, Some(127), None));
    let Err(ErrorKind::Invalid(invalid)) = outcome else { panic!("{outcome:?}") };
    assert_eq!(invalid.field, "memory_mib");
    assert_eq!(invalid.allowed, "128 to 65536 MiB");
    assert!(matches!(check_shape(&plan(), &ask(Some(0), None, None)), Err(ErrorKind::Invalid(_))));
}

#[test]
fn a_value_above_the_range_is_a_limit_on_one_workspace() {
    let above = check_shape(&plan(), &ask(Some(u64::MAX), None, None));
    assert_eq!(limit_of(above.map(drop)), Some((Limit::PerWorkspace, "vcpu_count")));
}

#[test]
fn what_is_invalid_is_said_before_what_is_too_much() {
    let both = check_shape(&plan(), &ask(Some(33), None, Some(0)));
    assert!(matches!(both, Err(ErrorKind::Invalid(_))), "{both:?}");
}

#[test]
fn the_count_is_checked_before_the_owned_pool_and_that_before_the_running_pool() {
    let full = Pool { vcpu_count: 4, memory_mib: 4096, disk_mib: 8192 };
    let usage =
        |workspaces, owned, running| Usage { workspaces, owned, running, ..Usage::default() };
    let size = shape(1, 512, 1024);
    let demand = Demand::CreateAndStart;
    let check = |usage: Usage| limit_of(admit(&plan(), &usage, &size, demand)).map(|l| l.0);
    assert_eq!(check(usage(3, full, full)), Some(Limit::WorkspaceCount));
    assert_eq!(check(usage(2, full, full)), Some(Limit::OwnedPool));
    assert_eq!(check(usage(2, Pool::default(), full)), Some(Limit::RunningPool));
    assert_eq!(check(usage(2, Pool::default(), Pool::default())), None);
}

#[test]
fn each_resource_of_a_pool_is_filled_to_the_brim_and_not_beyond() {
    for (size, what) in [
        (shape(3, 128, 64), "vcpu_count"),
        (shape(1, 3585, 64), "memory_mib"),
        (shape(1, 128, 7169), "disk_mib"),
    ] {
        let used = Usage { workspaces: 1, owned: pool(2, 512, 1024), ..Usage::default() };
        let outcome = limit_of(admit_create(&plan(), &used, &size));
        assert_eq!(outcome, Some((Limit::OwnedPool, what)));
    }
    let used = Usage { workspaces: 1, owned: pool(3, 3968, 8128), ..Usage::default() };
    assert_eq!(limit_of(admit_create(&plan(), &used, &shape(1, 128, 64))), None);
}

fn pool(vcpu_count: u64, memory_mib: u64, disk_mib: u64) -> Pool {
    Pool { vcpu_count, memory_mib, disk_mib }
}

#[test]
fn giving_something_back_is_always_admitted() {
    let over = Usage { workspaces: 9, owned: pool(99, 99_999, 99_999), ..Usage::default() };
    let from = shape(2, 512, 1024);
    let demand = Demand::Resize { from };
    assert_eq!(limit_of(admit(&plan(), &over, &shape(1, 512, 1024), demand)), None);
    let grown = limit_of(admit(&plan(), &over, &shape(2, 1024, 1024), demand));
    assert_eq!(grown, Some((Limit::OwnedPool, "vcpu_count")));
}

#[test]
fn a_plan_that_contradicts_itself_is_refused() {
    let mut bad = plan();
    bad.memory_mib.default = 100;
    assert!(bad.check().unwrap_err().contains("memory_mib"));
    assert_eq!(plan().check(), Ok(()));
}
