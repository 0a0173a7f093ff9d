//! Many writes at once: each is decided as if it were alone, in some order.

use std::sync::Arc;

use futures::future::join_all;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use skerry_model::{Demand, Desired, ErrorKind, Incarnation, ProjectId, Slug, Workspace};

use super::{insert, owner, plan, use_by_records, workspace};
use crate::{
    ListWorkspaces,
    store::{Admission, Store, Write},
};

pub(crate) async fn fifty_creates_at_once_never_pass_a_limit(store: &Store) {
    let owner = Arc::new(owner(store, 1).await);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 1..=50 {
        let (store, owner) = (store.clone(), Arc::clone(&owner));
        tasks.spawn(async move {
            let mut plan = plan();
            plan.max_workspaces = 7;
            let admission = Admission { plan: &plan, demand: Demand::Create };
            store.insert_workspace(&workspace(&owner, number), admission).await
        });
    }
    let mut made = 0;
    while let Some(outcome) = tasks.join_next().await {
        match outcome.unwrap() {
            Ok(Write::Done(_)) => made += 1,
            Ok(other) => panic!("{other:?}"),
            Err(error) => assert!(matches!(error.kind(), ErrorKind::Quota { .. }), "{error}"),
        }
    }
    assert_eq!(made, 7);
    assert_eq!(store.usage(owner.account.id).await.unwrap().workspaces, 7);
}

pub(crate) async fn of_two_creates_with_one_slug_one_is_made(store: &Store) {
    let owner = owner(store, 1).await;
    let plan = plan();
    let admission = Admission { plan: &plan, demand: Demand::Create };
    let slug = Slug::parse("wanted").unwrap();
    let rivals: Vec<Workspace> = (1..=20)
        .map(|number| Workspace { slug: slug.clone(), ..workspace(&owner, number) })
        .collect();
    let outcomes = join_all(rivals.iter().map(|one| store.insert_workspace(one, admission))).await;
    let made: Vec<Workspace> = outcomes
        .into_iter()
        .filter_map(|outcome| match outcome.unwrap() {
            Write::Done(made) => Some(made),
            Write::Taken => None,
            Write::Stale => panic!("a create is never stale"),
        })
        .collect();
    assert_eq!(made.len(), 1);
    let page = store.list_workspaces(owner.account.id, &ListWorkspaces::default()).await.unwrap();
    assert_eq!(page.items, made);
}

pub(crate) async fn of_many_changes_to_one_revision_one_is_made(store: &Store) {
    let owner = owner(store, 1).await;
    let read = insert(store, &workspace(&owner, 1)).await;
    let rivals: Vec<Workspace> =
        (1..=20).map(|number| Workspace { failed_starts: number, ..read.clone() }).collect();
    let changes = join_all(rivals.iter().map(|one| store.update_workspace(one, None)));
    let removals = join_all((0..5).map(|_| store.remove_workspace(read.id, read.revision)));
    let (changes, removals) = tokio::join!(changes, removals);
    let changed: Vec<Workspace> = changes
        .into_iter()
        .filter_map(|outcome| match outcome.unwrap() {
            Write::Done(written) => Some(written),
            Write::Stale => None,
            Write::Taken => panic!("the slug is its own"),
        })
        .collect();
    let removed = removals.into_iter().filter(|done| *done.as_ref().unwrap() == Write::Done(()));
    assert_eq!(changed.len() + removed.count(), 1);
    assert_eq!(store.workspace(read.id).await.unwrap().into_iter().collect::<Vec<_>>(), changed);
}

/// The second write does not wait for the answer to the first, which makes it possible.
pub(crate) async fn a_removal_right_behind_a_change_leaves_nothing(store: &Store) {
    let owner = owner(store, 1).await;
    for number in 1..=10 {
        let read = insert(store, &workspace(&owner, number)).await;
        let (changed, removed) = tokio::join!(
            store.update_workspace(&read, None),
            store.remove_workspace(read.id, read.revision + 1)
        );
        let Write::Done(changed) = changed.unwrap() else { panic!("nobody else changed it") };
        let left = store.workspace(read.id).await.unwrap();
        match removed.unwrap() {
            Write::Done(()) => assert_eq!(left, None),
            Write::Stale | Write::Taken => assert_eq!(left, Some(changed)),
        }
    }
    let usage = store.usage(owner.account.id).await.unwrap();
    assert_eq!(usage, use_by_records(store, owner.account.id).await);
}

pub(crate) async fn writes_that_are_refused_do_not_harm_those_beside_them(store: &Store) {
    let owner = owner(store, 1).await;
    let there = insert(store, &workspace(&owner, 1000)).await;
    let (generous, mut strict) = (plan(), plan());
    strict.owned_pool.memory_mib = 1;
    let nobodys = ProjectId::from_u128(0xdead);
    let asked: Vec<(&str, Workspace)> = (1..=60)
        .map(|number| match number % 4 {
            0 => ("made", workspace(&owner, number)),
            1 => ("taken", Workspace { slug: there.slug.clone(), ..workspace(&owner, number) }),
            2 => ("quota", workspace(&owner, number)),
            // No condition of the store's, but the database itself refuses it.
            _ => ("fault", Workspace { project_id: nobodys, ..workspace(&owner, number) }),
        })
        .collect();
    let outcomes = join_all(asked.iter().map(|(expected, one)| {
        let plan = if *expected == "quota" { &strict } else { &generous };
        store.insert_workspace(one, Admission { plan, demand: Demand::Create })
    }))
    .await;
    for ((expected, record), outcome) in asked.iter().zip(outcomes) {
        let came = match &outcome {
            Ok(Write::Done(_)) => "made",
            Ok(Write::Taken) => "taken",
            Ok(Write::Stale) => "stale",
            Err(error) if matches!(error.kind(), ErrorKind::Quota { .. }) => "quota",
            Err(_) => "fault",
        };
        assert_eq!(came, *expected, "{outcome:?}");
        let kept = store.workspace(record.id).await.unwrap();
        assert_eq!(kept.is_some(), came == "made");
    }
    let usage = store.usage(owner.account.id).await.unwrap();
    assert_eq!(usage, use_by_records(store, owner.account.id).await);
}

/// Groups of writes at once, over few workspaces and few slugs so that they get into each other's way:
/// creates, changes of size, of state and of slug, removals, some with a stale revision.
pub(crate) async fn use_is_what_the_records_say_after_any_history(store: &Store) {
    let owners = [owner(store, 1).await, owner(store, 2).await];
    let mut rng = StdRng::seed_from_u64(42);
    let plan = plan();
    for round in 0..40 {
        let mut known = Vec::new();
        for owner in &owners {
            let all = ListWorkspaces::default();
            known.extend(store.list_workspaces(owner.account.id, &all).await.unwrap().items);
        }
        let mut writes = Vec::new();
        for _ in 0..rng.random_range(1..12) {
            let number = rng.random_range(1..15);
            let slug = Slug::parse(&format!("slug-{}", rng.random_range(1..15))).unwrap();
            let owner = &owners[usize::from(rng.random_bool(0.3))];
            let mut record = match known.iter().find(|record| record.id.as_u128() == number) {
                Some(record) => record.clone(),
                None => Workspace { slug: slug.clone(), ..workspace(owner, number) },
            };
            let what = rng.random_range(0..6);
            match what {
                0 => record.slug = slug,
                1 => record.spec.shape.memory_mib = plan_memory(rng.random_range(128..4096)),
                2 => record.desired = Desired::Running,
                3 => record.incarnation = Incarnation(round),
                4 => record.revision = record.revision.saturating_sub(1),
                _ => record.desired = Desired::Stopped,
            }
            writes.push((what, record));
        }
        let plan = &plan;
        join_all(writes.iter().map(|(what, record)| async move {
            let admission = Admission { plan, demand: Demand::Create };
            if record.revision == 0 {
                store.insert_workspace(record, admission).await.map(drop)
            } else if *what == 5 && record.id.as_u128() % 2 == 0 {
                store.remove_workspace(record.id, record.revision).await.map(drop)
            } else {
                store.update_workspace(record, None).await.map(drop)
            }
        }))
        .await
        .into_iter()
        .for_each(|outcome| outcome.unwrap());
        for owner in &owners {
            let kept = store.usage(owner.account.id).await.unwrap();
            let counted = use_by_records(store, owner.account.id).await;
            assert_eq!(kept, counted, "round {round}");
        }
    }
    assert!(store.usage(owners[0].account.id).await.unwrap().workspaces > 3);
}

fn plan_memory(mib: u64) -> skerry_model::MemMib {
    let asked = skerry_model::RequestedShape {
        vcpu_count: None,
        memory_mib: Some(mib),
        disk_mib: None,
        cpu_kind: skerry_model::spec::CpuKind::Shared,
    };
    skerry_model::limits::check_shape(&plan(), &asked).unwrap().memory_mib
}
