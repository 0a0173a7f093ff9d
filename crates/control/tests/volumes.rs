//! Volumes: made, given to workspaces, taken away, deleted.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail where it likes")]

mod ground;

use ground::{LONG, by_id, is_running, provisioned, refused_by_state, running, until};
use skerry_control::{
    AttachVolume, Caller, CheckpointRef, CreateVolume, CreateWorkspace, Error, VolumeRef, Wait,
    internal_api::NodeError,
    sim_node::Point,
    testing::{self, TestControl},
};
use skerry_model::{
    ErrorKind, MountMode, Plan, SnapshotContents, Volume, VolumeMount, VolumeState, Workspace,
    error::Limit,
};

async fn volume(test: &TestControl, caller: &Caller, name: &str) -> Volume {
    let request = CreateVolume { name: name.to_owned(), size_mib: 64 };
    let made = test.control.create_volume(caller, request, LONG).await.unwrap();
    assert_eq!(made.volume.state, VolumeState::Ready);
    assert_eq!(made.used_bytes, Some(1 << 20));
    made.volume
}

fn at(volume: &Volume, path: &str, mode: MountMode) -> AttachVolume {
    AttachVolume { volume: VolumeRef::Id(volume.id), path: path.to_owned(), mode, checkpoint: None }
}

fn conflict(error: &Error) -> &str {
    let ErrorKind::Conflict(why) = error.kind() else { panic!("{error:?}") };
    why
}

/// Where the VM has what mounted.
fn mounted(test: &TestControl, workspace: &Workspace) -> Vec<String> {
    let mounts = test.node.mounts_of(workspace.id);
    let words =
        |mount: &skerry_model::VolumeMount| format!("{} {}", mount.path, mount.mode.as_str());
    mounts.iter().map(words).collect()
}

#[tokio::test]
async fn a_volume_is_there_at_create_and_goes_on_to_the_next_workspace() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let data = volume(&test, &caller, "data").await;
    let request =
        CreateWorkspace { volumes: vec![at(&data, "/data", MountMode::ReadWrite)], ..running() };
    let first = test.control.create_workspace(&caller, request.clone()).await.unwrap();
    assert_eq!(mounted(&test, &first), ["/data rw"]);
    let shown = test.control.get_volume(&caller, &VolumeRef::Name("data".into())).await.unwrap();
    assert_eq!(shown.attachments[0].workspace_id, first.id);

    let second = test.control.create_workspace(&caller, request.clone()).await.unwrap_err();
    assert!(conflict(&second).contains("attached for writing"), "{second}");
    // Nothing is left of the second.
    let all = test.control.list_workspaces(&caller, &Default::default()).await.unwrap();
    assert_eq!(all.total, 1);
    let which = VolumeRef::Id(data.id);
    let kept = test.control.delete_volume(&caller, &which, LONG).await.unwrap_err();
    assert!(conflict(&kept).contains(first.slug.as_str()), "{kept}");

    test.control.delete_workspace(&caller, &by_id(&first), LONG).await.unwrap();
    let second = test.control.create_workspace(&caller, request).await.unwrap();
    assert_eq!(mounted(&test, &second), ["/data rw"]);
    test.control.delete_workspace(&caller, &by_id(&second), LONG).await.unwrap();
    assert!(test.control.delete_volume(&caller, &which, LONG).await.unwrap());
    let gone = test.control.get_volume(&caller, &which).await.unwrap_err();
    assert_eq!(gone.kind(), &ErrorKind::NotFound { what: "volume" });
}

#[tokio::test]
async fn a_volume_comes_to_a_workspace_that_runs_and_goes_again() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let (data, models) =
        (volume(&test, &caller, "data").await, volume(&test, &caller, "models").await);
    let one = test.control.create_workspace(&caller, running()).await.unwrap();
    let two = test.control.create_workspace(&caller, running()).await.unwrap();
    let attach = |workspace: &Workspace, request| {
        let (control, caller, which) = (test.control.clone(), caller.clone(), by_id(workspace));
        async move { control.attach_volume(&caller, &which, request).await }
    };
    attach(&one, at(&data, "/data", MountMode::ReadWrite)).await.unwrap();
    attach(&one, at(&models, "/models", MountMode::ReadOnly)).await.unwrap();
    attach(&two, at(&models, "/srv/models", MountMode::ReadOnly)).await.unwrap();
    assert_eq!(mounted(&test, &one), ["/data rw", "/models ro"]);

    for (request, word) in [
        (at(&data, "/data", MountMode::ReadOnly), "attached for writing"),
        (at(&models, "/other", MountMode::ReadWrite), "already"),
        (at(&models, "/other", MountMode::ReadOnly), "already"),
    ] {
        let refused = attach(&two, request).await.unwrap_err();
        assert!(conflict(&refused).contains(word), "{refused}");
    }
    let below = volume(&test, &caller, "below").await;
    let refused = attach(&one, at(&below, "/data/in", MountMode::ReadWrite)).await.unwrap_err();
    assert!(conflict(&refused).contains("above or below"), "{refused}");
    let refused = attach(&one, at(&below, "/etc", MountMode::ReadWrite)).await.unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::Invalid(invalid) if invalid.field == "mount_path"));

    // What fails on the node leaves the workspace without it.
    let busy = NodeError::Guest { code: "busy", message: "/data: something uses it".to_owned() };
    test.node.fail_next(Point::AttachVolume, busy.clone());
    attach(&two, at(&below, "/b", MountMode::ReadWrite)).await.unwrap_err();
    let view = test.control.get_volume(&caller, &VolumeRef::Id(below.id)).await.unwrap();
    assert_eq!(view.attachments, []);

    let which = VolumeRef::Id(data.id);
    test.node.fail_next(Point::DetachVolume, busy);
    let refused = test.control.detach_volume(&caller, &by_id(&one), &which).await.unwrap_err();
    assert_eq!(conflict(&refused), "/data: something uses it");
    assert_eq!(mounted(&test, &one), ["/data rw", "/models ro"]);
    test.control.detach_volume(&caller, &by_id(&one), &which).await.unwrap();
    assert_eq!(mounted(&test, &one), ["/models ro"]);
    attach(&two, at(&data, "/data", MountMode::ReadWrite)).await.unwrap();
    let not_its = test.control.detach_volume(&caller, &by_id(&one), &which).await.unwrap_err();
    assert_eq!(not_its.kind(), &ErrorKind::NotFound { what: "volume" });
}

#[tokio::test]
async fn a_workspace_that_rests_keeps_its_volumes_and_has_them_at_its_next_start() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let data = volume(&test, &caller, "data").await;
    let made = test.control.create_workspace(&caller, provisioned()).await.unwrap();
    let which = by_id(&made);
    let mount = at(&data, "/data", MountMode::ReadWrite);
    test.control.attach_volume(&caller, &which, mount).await.unwrap();
    assert_eq!(mounted(&test, &made), Vec::<String>::new());
    test.control.start_workspace(&caller, &which, LONG).await.unwrap();
    assert_eq!(mounted(&test, &made), ["/data rw"]);

    // Memory would be restored without it.
    let asked = ground::of(Some(SnapshotContents::DiskAndMemory));
    let refused = test.control.create_snapshot(&caller, &which, asked, LONG).await.unwrap_err();
    assert!(refused_by_state(&refused).contains("detached first"), "{refused}");
    let taken =
        test.control.create_snapshot(&caller, &which, ground::of(None), LONG).await.unwrap();
    assert_eq!(taken.contents, SnapshotContents::Disk);

    test.control.suspend_workspace(&caller, &which, LONG).await.unwrap();
    let volume = VolumeRef::Id(data.id);
    let refused = test.control.detach_volume(&caller, &which, &volume).await.unwrap_err();
    assert!(refused_by_state(&refused).contains("resume or stop"), "{refused}");
    test.control.start_workspace(&caller, &which, LONG).await.unwrap();
    assert_eq!(mounted(&test, &made), ["/data rw"]);
    test.control.stop_workspace(&caller, &which, LONG).await.unwrap();
    test.control.detach_volume(&caller, &which, &volume).await.unwrap();
    assert!(test.control.list_mounts(&caller, &which).await.unwrap().is_empty());
    until(&test, &made, |workspace| !is_running(workspace)).await;
}

#[tokio::test]
async fn names_are_unique_sizes_and_sums_have_limits_and_others_see_nothing() {
    let plan = Plan { max_volumes: 3, max_volume_mib: 200, ..testing::plan() };
    let config = skerry_control::ControlConfig { plan, ..testing::config() };
    let test = testing::open_with(config).await;
    let (caller, other) = (test.caller().await, test.other_caller("other").await.0);
    let data = volume(&test, &caller, "data").await;
    let make = |name: &str, size_mib| {
        let request = CreateVolume { name: name.to_owned(), size_mib };
        test.control.create_volume(&caller, request, Wait::No)
    };
    assert!(conflict(&make("data", 16).await.unwrap_err()).contains("data"));
    for size_mib in [0, 15, 4 * 1024 * 1024 + 1] {
        let refused = make("odd", size_mib).await.unwrap_err();
        assert!(
            matches!(refused.kind(), ErrorKind::Invalid(invalid) if invalid.field == "size_mib")
        );
    }
    let too_much = make("large", 137).await.unwrap_err();
    let ErrorKind::Quota { limit, requested, current, max, .. } = too_much.kind() else {
        panic!("{too_much}")
    };
    assert_eq!((limit, requested, current, max), (&Limit::VolumeSpace, &137, &64, &200));
    make("two", 16).await.unwrap();
    make("three", 16).await.unwrap();
    let too_many = make("four", 16).await.unwrap_err();
    assert!(matches!(too_many.kind(), ErrorKind::Quota { limit: Limit::VolumeCount, .. }));

    let which = VolumeRef::Id(data.id);
    let missing = ErrorKind::NotFound { what: "volume" };
    assert_eq!(test.control.get_volume(&other, &which).await.unwrap_err().kind(), &missing);
    assert_eq!(test.control.list_volumes(&other).await.unwrap(), []);
    let theirs = test.control.create_workspace(&other, running()).await.unwrap();
    let mount = at(&data, "/data", MountMode::ReadOnly);
    let refused = test.control.attach_volume(&other, &by_id(&theirs), mount).await.unwrap_err();
    assert_eq!(refused.kind(), &missing);

    let renamed = test.control.rename_volume(&caller, &which, "set").await.unwrap();
    assert_eq!(renamed.volume.name.as_str(), "set");
    assert!(
        conflict(&test.control.rename_volume(&caller, &which, "two").await.unwrap_err())
            .contains("two")
    );
}

#[tokio::test]
async fn a_volume_that_cannot_be_made_or_is_lost_has_failed_and_can_be_deleted() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let full = NodeError::NoCapacity("the host's disk is full".to_owned());
    test.node.fail_next(Point::EnsureVolume, full);
    let request = CreateVolume { name: "data".to_owned(), size_mib: 64 };
    let made = test.control.create_volume(&caller, request, LONG).await.unwrap();
    let VolumeState::Failed(failure) = &made.volume.state else { panic!("{made:?}") };
    assert!(failure.message.contains("disk is full"), "{failure:?}");
    let which = VolumeRef::Id(made.volume.id);
    let workspace = test.control.create_workspace(&caller, running()).await.unwrap();
    let mount = at(&made.volume, "/data", MountMode::ReadOnly);
    let refused = test.control.attach_volume(&caller, &by_id(&workspace), mount).await.unwrap_err();
    assert_eq!(conflict(&refused), "the volume is failed, not ready");
    assert!(test.control.delete_volume(&caller, &which, LONG).await.unwrap());

    let lost = volume(&test, &caller, "data").await;
    test.node.lose_volume(lost.id);
    // A life begins with a comparison.
    let test = test.reopen().await;
    test.compared().await;
    test.quiet().await;
    let seen = test.control.get_volume(&caller, &VolumeRef::Id(lost.id)).await.unwrap();
    assert_eq!(seen.volume.state.name(), "failed");
}

#[tokio::test]
async fn what_a_vm_lacks_or_should_not_have_is_found_by_the_next_comparison() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let (data, odd) = (volume(&test, &caller, "data").await, volume(&test, &caller, "odd").await);
    let request =
        CreateWorkspace { volumes: vec![at(&data, "/data", MountMode::ReadWrite)], ..running() };
    let made = test.control.create_workspace(&caller, request).await.unwrap();
    let right = test.node.mounts_of(made.id);
    let strange = VolumeMount { volume_id: odd.id, ..right[0].clone() };
    // A life begins with a comparison.
    let mut test = test;
    for wrong in [vec![], vec![strange]] {
        test.node.disturb_mounts(made.id, wrong);
        test = test.reopen().await;
        test.compared().await;
        test.quiet().await;
        assert_eq!(test.node.mounts_of(made.id), right);
    }

    // While it stands still nothing can be changed; nor is anything tried.
    let caller = test.caller().await;
    test.control.pause_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    test.node.disturb_mounts(made.id, Vec::new());
    let test = test.reopen().await;
    test.compared().await;
    test.quiet().await;
    assert_eq!(test.node.mounts_of(made.id), []);
}

#[tokio::test]
async fn a_volume_that_the_node_could_not_be_asked_to_take_out_is_the_workspaces_again() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let data = volume(&test, &caller, "data").await;
    let request =
        CreateWorkspace { volumes: vec![at(&data, "/data", MountMode::ReadWrite)], ..running() };
    let made = test.control.create_workspace(&caller, request).await.unwrap();
    let right = test.node.mounts_of(made.id);
    let lost = NodeError::GuestUnreachable("no answer".to_owned());
    test.node.fail_next(Point::DetachVolume, lost);
    test.node.disturb_mounts(made.id, Vec::new());
    let which = VolumeRef::Id(data.id);
    test.control.detach_volume(&caller, &by_id(&made), &which).await.unwrap_err();
    test.quiet().await;
    assert_eq!(test.node.mounts_of(made.id), right);
}

#[tokio::test]
async fn checkpoints_are_made_read_beside_a_writer_and_deleted() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let data = volume(&test, &caller, "data").await;
    let which = VolumeRef::Id(data.id);
    let request =
        CreateWorkspace { volumes: vec![at(&data, "/data", MountMode::ReadWrite)], ..running() };
    let writer = test.control.create_workspace(&caller, request).await.unwrap();
    let reader = test.control.create_workspace(&caller, running()).await.unwrap();
    let read = |checkpoint| AttachVolume {
        checkpoint: Some(checkpoint),
        ..at(&data, "/then", MountMode::ReadOnly)
    };
    let attach = |request| {
        let (control, caller, which) = (test.control.clone(), caller.clone(), by_id(&reader));
        async move { control.attach_volume(&caller, &which, request).await }
    };
    // Without a checkpoint the latest state is the volume as it is.
    let refused = attach(read(CheckpointRef::Latest)).await.unwrap_err();
    assert!(conflict(&refused).contains("attached for writing"), "{refused}");

    let make = |name: Option<&'static str>| {
        let (control, caller, which) = (test.control.clone(), caller.clone(), which.clone());
        async move { control.create_checkpoint(&caller, &which, name, LONG).await.unwrap() }
    };
    let first = make(Some("first")).await;
    test.advance(std::time::Duration::from_secs(1));
    let second = make(None).await;
    assert_eq!((&first.state, &second.state), (&VolumeState::Ready, &VolumeState::Ready));
    assert_eq!(second.name.as_str(), "2026-01-01T00:00:01Z");
    let listed = test.control.list_checkpoints(&caller, &which).await.unwrap();
    assert_eq!(listed, [second.clone(), first.clone()]);

    let latest = attach(read(CheckpointRef::Latest)).await.unwrap();
    assert_eq!(latest.checkpoint_id, Some(second.id));
    let kept = CheckpointRef::Id(second.id);
    let refused = test.control.delete_checkpoint(&caller, &which, &kept, LONG).await.unwrap_err();
    assert!(conflict(&refused).contains(reader.slug.as_str()), "{refused}");
    test.control.detach_volume(&caller, &by_id(&reader), &which).await.unwrap();
    assert!(test.control.delete_checkpoint(&caller, &which, &kept, LONG).await.unwrap());
    let gone = attach(read(kept)).await.unwrap_err();
    assert_eq!(gone.kind(), &ErrorKind::NotFound { what: "checkpoint" });
    let named = attach(read(CheckpointRef::Name("first".to_owned()))).await.unwrap();
    assert_eq!(named.checkpoint_id, Some(first.id));
    let write = AttachVolume { mode: MountMode::ReadWrite, ..read(CheckpointRef::Latest) };
    let refused = attach(write).await.unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::Invalid(invalid) if invalid.field == "mode"));

    // A guest that stands still cannot write back.
    test.control.pause_workspace(&caller, &by_id(&writer), LONG).await.unwrap();
    let still = test.control.create_checkpoint(&caller, &which, None, LONG).await.unwrap_err();
    assert!(refused_by_state(&still).contains("resume or stop"), "{still}");
    for workspace in [&writer, &reader] {
        test.control.delete_workspace(&caller, &by_id(workspace), LONG).await.unwrap();
    }
    assert!(test.control.delete_volume(&caller, &which, LONG).await.unwrap());
    let gone = test.control.list_checkpoints(&caller, &which).await.unwrap_err();
    assert_eq!(gone.kind(), &ErrorKind::NotFound { what: "volume" });
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_made_has_failed_and_their_number_has_a_limit() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let data = volume(&test, &caller, "data").await;
    let which = VolumeRef::Id(data.id);
    let full = NodeError::NoCapacity("the host's disk is full".to_owned());
    test.node.fail_next(Point::EnsureCheckpoint, full);
    let make = || test.control.create_checkpoint(&caller, &which, Some("one"), LONG);
    let failed = make().await.unwrap();
    let VolumeState::Failed(failure) = &failed.state else { panic!("{failed:?}") };
    assert!(failure.message.contains("disk is full"), "{failure:?}");
    let failed = CheckpointRef::Id(failed.id);
    assert!(test.control.delete_checkpoint(&caller, &which, &failed, LONG).await.unwrap());
    for _ in 0..skerry_model::MAX_CHECKPOINTS_OF_A_VOLUME {
        make().await.unwrap();
    }
    assert!(conflict(&make().await.unwrap_err()).contains("delete one first"));

    let other = test.other_caller("other").await.0;
    let theirs = test.control.list_checkpoints(&other, &which).await.unwrap_err();
    assert_eq!(theirs.kind(), &ErrorKind::NotFound { what: "volume" });
}

#[tokio::test]
async fn growth_is_recorded_within_the_plan_and_comes_about_whatever_the_node_does_first() {
    let plan = Plan { max_volume_mib: 512, ..testing::config().plan };
    let test =
        testing::open_with(skerry_control::ControlConfig { plan, ..testing::config() }).await;
    let caller = test.caller().await;
    let data = volume(&test, &caller, "data").await;
    volume(&test, &caller, "other").await;
    let which = VolumeRef::Id(data.id);
    let grow = |mib| test.control.grow_volume(&caller, &which, mib);
    assert_eq!(grow(128).await.unwrap().volume.size_mib, 128);
    assert_eq!(grow(128).await.unwrap().volume.size_mib, 128);
    let smaller = grow(64).await.unwrap_err();
    assert!(smaller.to_string().contains("128 to 4194304 MiB"), "{smaller}");
    let refused = grow(512).await.unwrap_err();
    let of_space = matches!(refused.kind(), ErrorKind::Quota { limit: Limit::VolumeSpace, .. });
    assert!(of_space, "{refused}");

    test.node.fail_next(Point::GrowVolume, NodeError::Step { step: "grow" });
    assert!(grow(256).await.is_err());
    let shown = test.control.get_volume(&caller, &which).await.unwrap();
    assert_eq!(shown.volume.size_mib, 256);
    let on_node = async || {
        let all = internal_volumes(&test).await;
        all.iter().find(|one| one.id == data.id).unwrap().size_bytes
    };
    let grown = async {
        while on_node().await < 256 << 20 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), grown).await.unwrap();
}

async fn internal_volumes(test: &TestControl) -> Vec<skerry_control::internal_api::VolumeInfo> {
    use skerry_control::internal_api::NodeApi as _;
    test.node.volumes().await.unwrap()
}
