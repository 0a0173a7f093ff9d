//! Use cases on the simulated node.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use skerry_control::{
    ConditionalWish, CreateWorkspace, Credential, ListWorkspaces, StartPolicy, UpdateWorkspace,
    Wait, WorkspaceRef,
    internal_api::{LogSource, NodeApi as _, NodeError, VmExit, VmPhase},
    sim_node::Point,
    testing::{self, TestControl},
};
use skerry_model::{
    Desired, EnvVar, ErrorKind, Expiry, ExpiryAction, Incarnation, Secret, State, Wish, Workspace,
    error::Limit,
};

const LONG: Wait = Wait::UpTo(Duration::from_secs(20));

fn running() -> CreateWorkspace {
    CreateWorkspace::new(StartPolicy::Now(LONG))
}

fn provisioned() -> CreateWorkspace {
    CreateWorkspace::new(StartPolicy::Later)
}

fn by_id(workspace: &Workspace) -> WorkspaceRef {
    WorkspaceRef::Id(workspace.id)
}

/// Waits until the record is as wanted; the test's own bound is the only clock.
async fn until(
    test: &TestControl,
    workspace: &Workspace,
    what: impl Fn(&Workspace) -> bool,
) -> Workspace {
    testing::until(&test.control, workspace.id, what).await
}

#[tokio::test]
async fn a_created_workspace_runs_and_its_guest_answers() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = test.control.create_workspace(&caller, running()).await.unwrap();
    assert!(matches!(made.state, State::Running { .. }), "{:?}", made.state);
    assert_eq!(made.incarnation, Incarnation(1));
    let guest = test.control.guest(&caller, &by_id(&made)).await.unwrap();
    assert_eq!(guest.stats().await.unwrap().cpus_online, 1);
    assert_eq!(test.node.vms()[0].phase, VmPhase::Running);
}

#[tokio::test]
async fn a_stopped_workspace_keeps_its_files_and_starts_with_the_next_incarnation() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = test.control.create_workspace(&caller, running()).await.unwrap();
    test.node.sim_guest(made.id).unwrap().put_file("/root/kept", b"x");
    let stopped = test.control.stop_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert_eq!(stopped.state, State::Stopped);
    assert_eq!(test.node.vms()[0].phase, VmPhase::Stopped);
    let started = test.control.start_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert_eq!(started.incarnation, Incarnation(2));
    assert_eq!(test.node.sim_guest(made.id).unwrap().file("/root/kept"), Some(b"x".to_vec()));
}

#[tokio::test]
async fn starting_what_runs_and_stopping_what_is_stopped_are_successes() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = test.control.create_workspace(&caller, running()).await.unwrap();
    let again = test.control.start_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert_eq!(again, made);
    let cold = test.control.create_workspace(&caller, provisioned()).await.unwrap();
    let stopped = test.control.stop_workspace(&caller, &by_id(&cold), LONG).await.unwrap();
    assert_eq!(stopped.state, State::Provisioned);
}

#[tokio::test]
async fn a_restart_replaces_the_vm() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = test.control.create_workspace(&caller, running()).await.unwrap();
    let again = test.control.restart_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert!(matches!(again.state, State::Running { .. }));
    assert_eq!(again.incarnation, Incarnation(2));
    assert_eq!(
        test.node.calls(),
        ["ensure_running #1", "ensure_stopped #1 gracefully", "ensure_running #2"]
    );
}

#[tokio::test]
async fn a_deleted_workspace_is_gone_from_record_and_node() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = test.control.create_workspace(&caller, running()).await.unwrap();
    let deleted = test.control.delete_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert!(deleted.complete);
    assert_eq!(deleted.workspace.state, State::Deleting);
    assert!(test.node.vms().is_empty());
    let gone = test.control.get_workspace(&caller, &by_id(&made)).await.unwrap_err();
    assert_eq!(*gone.kind(), ErrorKind::NotFound { what: "workspace" });
    let twice = test.control.delete_workspace(&caller, &by_id(&made), LONG).await.unwrap_err();
    assert_eq!(*twice.kind(), ErrorKind::NotFound { what: "workspace" });
}

#[tokio::test]
async fn a_deletion_wins_over_a_start_under_way() {
    let test = testing::open().await;
    let caller = test.caller().await;
    test.node.hang(Point::EnsureRunning);
    let request = CreateWorkspace::new(StartPolicy::Now(Wait::No));
    let made = test.control.create_workspace(&caller, request).await.unwrap();
    until(&test, &made, |w| w.state == State::Starting).await;
    let deleted = test.control.delete_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert!(deleted.complete);
    test.node.release(Point::EnsureRunning);
    assert!(test.node.vms().is_empty());
    assert_eq!(test.node.boots(), 0);
}

#[tokio::test]
async fn a_stop_during_a_start_wins() {
    let test = testing::open().await;
    let caller = test.caller().await;
    test.node.hang(Point::EnsureRunning);
    let request = CreateWorkspace::new(StartPolicy::Now(Wait::No));
    let made = test.control.create_workspace(&caller, request).await.unwrap();
    until(&test, &made, |w| w.state == State::Starting).await;
    let stopped = test.control.stop_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert_eq!(stopped.state, State::Stopped);
    test.node.release(Point::EnsureRunning);
    assert_eq!(test.node.boots(), 0);
}

#[tokio::test]
async fn a_wait_that_is_over_does_not_end_the_work() {
    let test = testing::open().await;
    let caller = test.caller().await;
    test.node.hang(Point::EnsureRunning);
    let short = Wait::UpTo(Duration::from_millis(20));
    let request = CreateWorkspace::new(StartPolicy::Now(short));
    let made = test.control.create_workspace(&caller, request).await.unwrap();
    assert!(!made.is_settled());
    test.node.release(Point::EnsureRunning);
    until(&test, &made, Workspace::is_settled).await;
}

#[tokio::test]
async fn a_client_that_hangs_up_does_not_end_the_work() {
    let test = testing::open().await;
    let caller = test.caller().await;
    test.node.hang(Point::EnsureRunning);
    let control = test.control.clone();
    let asker = caller.clone();
    let request = tokio::spawn(async move { control.create_workspace(&asker, running()).await });
    let made = loop {
        let all = ListWorkspaces::default();
        let page = test.control.list_workspaces(&caller, &all).await.unwrap();
        if let Some(made) = page.items.into_iter().next() {
            break made;
        }
        tokio::task::yield_now().await;
    };
    request.abort();
    test.node.release(Point::EnsureRunning);
    until(&test, &made, Workspace::is_settled).await;
}

#[tokio::test]
async fn a_start_that_fails_is_recorded_counted_and_not_repeated() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let error = NodeError::Timeout { step: "boot", bound_seconds: 60 };
    test.node.fail_next(Point::EnsureRunning, error.clone());
    let made = test.control.create_workspace(&caller, running()).await.unwrap();
    let State::Failed(failure) = &made.state else { panic!("{:?}", made.state) };
    assert_eq!((failure.code.as_str(), failure.attempts), ("boot_timeout", 1));
    assert!(failure.retryable);
    assert_eq!(made.desired, Desired::Stopped);
    test.node.fail_next(Point::EnsureRunning, NodeError::NoSuchImage("base".to_owned()));
    let again = test.control.start_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    let State::Failed(failure) = &again.state else { panic!("{:?}", again.state) };
    assert_eq!((failure.code.as_str(), failure.attempts), ("image_missing", 2));
    assert!(!failure.retryable);
    let third = test.control.start_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert!(matches!(third.state, State::Running { .. }));
    assert_eq!(third.failed_starts, 0);
    assert_eq!(test.node.calls().len(), 3);
}

#[tokio::test]
async fn a_stop_or_deletion_that_fails_is_repeated() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = test.control.create_workspace(&caller, running()).await.unwrap();
    test.node.fail_next(Point::EnsureStopped, NodeError::Step { step: "kill" });
    let stopped = test.control.stop_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert_eq!(stopped.state, State::Stopped);
    test.node.fail_next(Point::EnsureDeleted, NodeError::Step { step: "unlink" });
    test.node.fail_next(Point::EnsureDeleted, NodeError::Step { step: "unlink" });
    let deleted = test.control.delete_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert!(deleted.complete);
}

#[tokio::test]
async fn a_guest_that_powers_itself_off_stays_stopped() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = test.control.create_workspace(&caller, running()).await.unwrap();
    test.node.end_vm(made.id, VmExit::PoweredOff);
    let now = until(&test, &made, |w| w.state == State::Stopped).await;
    assert_eq!(now.desired, Desired::Stopped);
}

#[tokio::test]
async fn a_vm_that_dies_makes_its_workspace_failed() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = test.control.create_workspace(&caller, running()).await.unwrap();
    test.node.end_vm(made.id, VmExit::Crashed { reason: "signal 9".to_owned() });
    let now = until(&test, &made, |w| matches!(w.state, State::Failed(_))).await;
    let State::Failed(failure) = now.state else { unreachable!() };
    assert_eq!(
        (failure.code.as_str(), failure.message.as_str()),
        ("vm_crashed", "the VM died: signal 9")
    );
}

#[tokio::test]
async fn one_that_hangs_blocks_nobody_else() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = test.control.create_workspace(&caller, running()).await.unwrap();
    test.node.hang(Point::EnsureStopped);
    let stopping = test.control.stop_workspace(&caller, &by_id(&made), Wait::No).await.unwrap();
    assert_eq!(stopping.state, State::Stopping);
    let other = test.control.create_workspace(&caller, running()).await.unwrap();
    assert!(matches!(other.state, State::Running { .. }));
    let page = test.control.list_workspaces(&caller, &ListWorkspaces::default()).await.unwrap();
    assert_eq!(page.total, 2);
    // A deletion does not wait for the stop either.
    assert!(test.control.delete_workspace(&caller, &by_id(&made), LONG).await.unwrap().complete);
    test.node.release(Point::EnsureStopped);
}

#[tokio::test]
async fn bad_input_is_named_and_records_nothing() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let env = |key: &str| vec![EnvVar { key: key.to_owned(), value: "v".to_owned() }];
    let expiry = Expiry { after_seconds: 0, action: ExpiryAction::Stop };
    let cases = [
        ("name", CreateWorkspace { name: Some(" ".to_owned()), ..provisioned() }),
        ("slug", CreateWorkspace { slug: Some("A b".to_owned()), ..provisioned() }),
        ("namespace", CreateWorkspace { namespace: Some("a/b".to_owned()), ..provisioned() }),
        ("image", CreateWorkspace { image: Some("nope".to_owned()), ..provisioned() }),
        ("vcpu_count", CreateWorkspace { vcpu_count: Some(0), ..provisioned() }),
        ("memory_mib", CreateWorkspace { memory_mib: Some(64), ..provisioned() }),
        ("disk_mib", CreateWorkspace { disk_mib: Some(1), ..provisioned() }),
        ("env", CreateWorkspace { env: env("1X"), ..provisioned() }),
        ("env", CreateWorkspace { env: [env("X"), env("X")].concat(), ..provisioned() }),
        ("expiry", CreateWorkspace { expiry: Some(expiry), ..provisioned() }),
    ];
    for (field, request) in cases {
        let error = test.control.create_workspace(&caller, request).await.unwrap_err();
        let ErrorKind::Invalid(invalid) = error.kind() else { panic!("{field}: {error}") };
        assert_eq!(invalid.field, field);
    }
    // An image that was built anew has one name.
    let images = test.node.images().await;
    test.node.set_images([images.clone(), images].concat());
    let image = CreateWorkspace { image: Some("nope".to_owned()), ..provisioned() };
    let error = test.control.create_workspace(&caller, image).await.unwrap_err();
    let said = "image: there is no image nope; allowed: base, node-20";
    assert_eq!(error.to_string(), said);
    let page = test.control.list_workspaces(&caller, &ListWorkspaces::default()).await.unwrap();
    assert_eq!(page.total, 0);
}

#[tokio::test]
async fn an_image_is_known_by_its_aliases() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let request = CreateWorkspace { image: Some("node".to_owned()), ..provisioned() };
    let made = test.control.create_workspace(&caller, request).await.unwrap();
    assert_eq!(made.spec.image.0, "node-20");
    assert!(made.spec.image_digest.0.starts_with("sha256:bbbb"));
    assert!(made.name.as_str().starts_with("node-20-"), "{}", made.name);
    assert_eq!(made.preview_token.expose().len(), 32);
}

#[tokio::test]
async fn the_running_pool_is_given_back_when_a_workspace_stops() {
    let mut config = testing::config();
    config.plan.running_pool.vcpu_count = 1;
    let test = testing::open_with(config).await;
    let caller = test.caller().await;
    let first = test.control.create_workspace(&caller, running()).await.unwrap();
    let refused = test.control.create_workspace(&caller, running()).await.unwrap_err();
    let limit = |error: &skerry_control::Error| match error.kind() {
        ErrorKind::Quota { limit, .. } => *limit,
        other => panic!("{other}"),
    };
    assert_eq!(limit(&refused), Limit::RunningPool);
    let second = test.control.create_workspace(&caller, provisioned()).await.unwrap();
    let start = test.control.start_workspace(&caller, &by_id(&second), LONG).await;
    assert_eq!(limit(&start.unwrap_err()), Limit::RunningPool);
    test.control.stop_workspace(&caller, &by_id(&first), LONG).await.unwrap();
    test.control.start_workspace(&caller, &by_id(&second), LONG).await.unwrap();
    let quota = test.control.quota(&caller).await.unwrap();
    assert_eq!((quota.usage.workspaces, quota.usage.running.vcpu_count), (2, 1));
    assert_eq!(quota.blocked, None);
}

#[tokio::test]
async fn a_disk_grows_while_its_workspace_runs_and_otherwise_with_its_next_start() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = test.control.create_workspace(&caller, running()).await.unwrap();
    let disk = |mib| UpdateWorkspace { disk_mib: Some(mib), ..UpdateWorkspace::default() };
    let grown = test.control.update_workspace(&caller, &by_id(&made), disk(2048)).await.unwrap();
    assert_eq!(grown.spec.shape.disk_mib.get(), 2048);
    let calls = test.node.calls();
    assert_eq!(calls.last().map(String::as_str), Some("ensure_disk_size 2048 MiB"), "{calls:?}");
    let smaller = test.control.update_workspace(&caller, &by_id(&made), disk(1024)).await;
    assert!(smaller.unwrap_err().to_string().contains("2048 to 204800 MiB"));
    // What the node could not do comes with the next start.
    test.node.fail_next(Point::GrowDisk, NodeError::Step { step: "grow" });
    let failed = test.control.update_workspace(&caller, &by_id(&made), disk(4096)).await;
    assert!(matches!(failed.unwrap_err().kind(), ErrorKind::Unavailable(_)));
    let now = test.control.get_workspace(&caller, &by_id(&made)).await.unwrap();
    assert_eq!(now.spec.shape.disk_mib.get(), 4096);
    // The same again ends it.
    test.control.update_workspace(&caller, &by_id(&made), disk(4096)).await.unwrap();
    let both = UpdateWorkspace { memory_mib: Some(1024), ..disk(8192) };
    let refused = test.control.update_workspace(&caller, &by_id(&made), both).await.unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::RefusedByState { .. }), "{refused}");
}

#[tokio::test]
async fn a_size_changes_only_without_a_vm_and_a_disk_only_grows() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = test.control.create_workspace(&caller, running()).await.unwrap();
    let update = UpdateWorkspace { memory_mib: Some(1024), ..UpdateWorkspace::default() };
    let refused = test.control.update_workspace(&caller, &by_id(&made), update.clone()).await;
    let error = refused.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::RefusedByState { state: "running", .. }), "{error}");
    test.control.stop_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    let grown = test.control.update_workspace(&caller, &by_id(&made), update).await.unwrap();
    assert_eq!(grown.spec.shape.memory_mib.get(), 1024);
    assert_eq!(grown.spec.shape.disk_mib, made.spec.shape.disk_mib);
    let smaller = UpdateWorkspace { disk_mib: Some(512), ..UpdateWorkspace::default() };
    let error = test.control.update_workspace(&caller, &by_id(&made), smaller).await.unwrap_err();
    assert!(error.to_string().contains("1024 to 204800 MiB"), "{error}");
    let renamed = UpdateWorkspace { name: Some("new".to_owned()), ..UpdateWorkspace::default() };
    let renamed = test.control.update_workspace(&caller, &by_id(&made), renamed).await.unwrap();
    assert_eq!(renamed.name.as_str(), "new");
}

#[tokio::test]
async fn a_slug_is_taken_once_and_a_name_finds_only_one() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let request = CreateWorkspace {
        name: Some("web".to_owned()),
        slug: Some("my-web".to_owned()),
        ..provisioned()
    };
    let first = test.control.create_workspace(&caller, request.clone()).await.unwrap();
    let clash = test.control.create_workspace(&caller, request.clone()).await.unwrap_err();
    assert!(matches!(clash.kind(), ErrorKind::Conflict(_)), "{clash}");
    let by_name = WorkspaceRef::SlugOrName("web".to_owned());
    assert_eq!(test.control.get_workspace(&caller, &by_name).await.unwrap(), first);
    let second = CreateWorkspace { slug: None, ..request };
    test.control.create_workspace(&caller, second).await.unwrap();
    let unclear = test.control.get_workspace(&caller, &by_name).await.unwrap_err();
    assert!(matches!(unclear.kind(), ErrorKind::Conflict(_)), "{unclear}");
    let by_slug = WorkspaceRef::SlugOrName("my-web".to_owned());
    assert_eq!(test.control.get_workspace(&caller, &by_slug).await.unwrap(), first);
}

#[tokio::test]
async fn another_tenants_workspace_is_not_found_by_any_call() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let (stranger, _) = test.other_caller("stranger").await;
    let made = test.control.create_workspace(&caller, running()).await.unwrap();
    let control = &test.control;
    let refs = [
        by_id(&made),
        WorkspaceRef::Slug(made.slug.as_str().to_owned()),
        WorkspaceRef::SlugOrName(made.name.as_str().to_owned()),
    ];
    for which in &refs {
        let update =
            UpdateWorkspace { name: Some("mine".to_owned()), ..UpdateWorkspace::default() };
        let outcomes = [
            control.get_workspace(&stranger, which).await.map(drop),
            control.start_workspace(&stranger, which, LONG).await.map(drop),
            control.stop_workspace(&stranger, which, LONG).await.map(drop),
            control.restart_workspace(&stranger, which, LONG).await.map(drop),
            control.delete_workspace(&stranger, which, LONG).await.map(drop),
            control.update_workspace(&stranger, which, update).await.map(drop),
            control.guest(&stranger, which).await.map(drop),
            control.workspace_stats(&stranger, which).await.map(drop),
            control.workspace_log(&stranger, which, LogSource::Console, 10).await.map(drop),
        ];
        for outcome in outcomes {
            let error = outcome.unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::NotFound { what: "workspace" });
        }
    }
    let page = control.list_workspaces(&stranger, &ListWorkspaces::default()).await.unwrap();
    assert_eq!(page.total, 0);
    let projects = control.list_projects(&caller).await.unwrap();
    let foreign = CreateWorkspace { project_id: Some(projects[0].id), ..provisioned() };
    let error = control.create_workspace(&stranger, foreign).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::NotFound { what: "project" });
    assert_eq!(control.get_workspace(&caller, &by_id(&made)).await.unwrap(), made);
    assert!(control.doctor(&stranger).await.is_err());
    control.doctor(&caller).await.unwrap();
}

#[tokio::test]
async fn a_credential_is_the_secret_and_the_account_it_claims() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let (_, secret) = test.other_caller("other").await;
    let ask = |secret: &str, account: Option<&str>| Credential {
        secret: Secret::new(secret),
        account: account.map(str::to_owned),
    };
    let id = caller.account_id().to_string();
    for account in [None, Some("admin"), Some(id.as_str())] {
        let found = test.control.authenticate(&ask(testing::KEY, account)).await.unwrap();
        assert_eq!(found, caller);
    }
    for (secret, account) in [
        ("wrong", None),
        ("", None),
        (testing::KEY, Some("other")),
        (testing::KEY, Some("")),
        (secret.expose(), Some("admin")),
    ] {
        let error = test.control.authenticate(&ask(secret, account)).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Unauthenticated);
    }
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = test.control.create_key(&caller, "laptop").await.unwrap();
    assert_eq!(made.secret.expose().len(), 46);
    assert!(made.secret.expose().ends_with(&made.key.secret_tail));
    let credential = Credential { secret: made.secret.clone(), account: None };
    test.control.authenticate(&credential).await.unwrap();
    test.control.delete_key(&caller, made.key.id).await.unwrap();
    let error = test.control.authenticate(&credential).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Unauthenticated);
    let last = test.control.delete_key(&caller, caller.key_id().unwrap()).await.unwrap_err();
    assert!(matches!(last.kind(), ErrorKind::Conflict(_)), "{last}");
    let bad = test.control.create_key(&caller, "").await.unwrap_err();
    assert!(matches!(bad.kind(), ErrorKind::Invalid(_)), "{bad}");
}

#[tokio::test]
async fn a_time_to_live_stops_or_deletes_and_survives_a_restart() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let with = |action, after_seconds| CreateWorkspace {
        expiry: Some(Expiry { after_seconds, action }),
        ..running()
    };
    let stop = test.control.create_workspace(&caller, with(ExpiryAction::Stop, 60)).await.unwrap();
    let delete =
        test.control.create_workspace(&caller, with(ExpiryAction::Delete, 90)).await.unwrap();
    let lasting = test.control.create_workspace(&caller, running()).await.unwrap();
    let end = stop.expires_at.unwrap();
    assert_eq!(end.duration_since(test.clock.now()).as_secs(), 60);
    // Down while the first one ends.
    test.clock.advance(Duration::from_secs(61));
    let test = test.reopen().await;
    let stopped = until(&test, &stop, |w| w.state == State::Stopped).await;
    assert_eq!(stopped.expires_at, None);
    test.clock.advance(Duration::from_secs(30));
    let test = test.reopen().await;
    let gone = async {
        while test.control.get_workspace(&caller, &by_id(&delete)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
    let kept = test.control.get_workspace(&caller, &by_id(&lasting)).await.unwrap();
    assert!(matches!(kept.state, State::Running { .. }));
    // A new start begins a new time.
    let again = test.control.start_workspace(&caller, &by_id(&stop), LONG).await.unwrap();
    let end = again.expires_at.unwrap();
    assert_eq!(end.duration_since(test.clock.now()).as_secs(), 60);
}

#[tokio::test]
async fn a_restarted_server_adopts_what_runs_and_repairs_what_does_not() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let kept = test.control.create_workspace(&caller, running()).await.unwrap();
    let lost = test.control.create_workspace(&caller, running()).await.unwrap();
    let grown = test.control.create_workspace(&caller, provisioned()).await.unwrap();
    let mut unknown = test.node.spec(kept.id).unwrap();
    unknown.workspace_id = skerry_model::WorkspaceId::from_u128(404);
    let mut unwanted = unknown.clone();
    unwanted.workspace_id = grown.id;
    test.node.lose(lost.id);
    test.node.grow(unknown);
    test.node.grow(unwanted);
    test.clock.advance(Duration::from_secs(1000));
    let test = test.reopen().await;
    let now = until(&test, &lost, |w| matches!(w.state, State::Failed(_))).await;
    let State::Failed(failure) = &now.state else { unreachable!() };
    assert_eq!((failure.code.as_str(), failure.retryable), ("vm_lost", true));
    let all_well = async {
        loop {
            let vms = test.node.vms();
            let live: Vec<_> = vms.iter().filter(|vm| vm.phase == VmPhase::Running).collect();
            if live.len() == 1 && !vms.iter().any(|vm| vm.workspace_id.as_u128() == 404) {
                assert_eq!(live[0].workspace_id, kept.id);
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all_well).await.unwrap();
    let same = test.control.get_workspace(&caller, &by_id(&kept)).await.unwrap();
    assert_eq!(same, kept, "the uptime and the record are as before");
    assert_eq!(test.node.boots(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_wait_the_answer_is_the_record_as_it_was_written() {
    let test = testing::open().await;
    let caller = test.caller().await;
    for _ in 0..25 {
        let request = CreateWorkspace::new(StartPolicy::Now(Wait::No));
        let made = test.control.create_workspace(&caller, request).await.unwrap();
        assert_eq!((made.state.name(), made.desired), ("provisioned", Desired::Running));
        let up = until(&test, &made, Workspace::is_settled).await;
        let stopping = test.control.stop_workspace(&caller, &by_id(&up), Wait::No).await.unwrap();
        assert_eq!((stopping.state.name(), stopping.desired), ("stopping", Desired::Stopped));
        test.control.delete_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    }
}

#[tokio::test]
async fn a_caller_sees_the_use_of_the_key_it_called_with() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let keys = test.control.list_keys(&caller).await.unwrap();
    assert_eq!(keys[0].last_used_at, Some(test.clock.now()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_callers_who_may_start_a_workspace_at_rest_one_does() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = test.control.create_workspace(&caller, provisioned()).await.unwrap();
    let mut starts = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let (control, caller, which) = (test.control.clone(), caller.clone(), by_id(&made));
        starts.spawn(async move {
            let at_rest = |found: &Workspace| found.desired == Desired::Stopped;
            control.wish_if(&caller, &which, Wish::Start, at_rest).await.unwrap()
        });
    }
    let outcomes = starts.join_all().await;
    let recorded =
        outcomes.iter().filter(|outcome| matches!(outcome, ConditionalWish::Recorded(_)));
    assert_eq!(recorded.count(), 1);
    until(&test, &made, |now| matches!(now.state, State::Running { .. })).await;
    assert_eq!(test.node.boots(), 1);
}
