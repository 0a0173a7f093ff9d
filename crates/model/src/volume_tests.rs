#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::test_ground::at;

fn failure() -> Failure {
    Failure::new(FailureCode::HostStepFailed, "the disk is full", at(6))
}

fn volume(state: VolumeState) -> Volume {
    Volume {
        id: VolumeId::from_u128(1),
        account_id: AccountId::from_u128(2),
        name: DisplayName::parse("models").unwrap(),
        size_mib: 64,
        state,
        created_at: at(1),
        updated_at: at(1),
        revision: 1,
    }
}

fn states() -> impl Strategy<Value = VolumeState> {
    prop_oneof![
        Just(VolumeState::Creating),
        Just(VolumeState::Ready),
        Just(VolumeState::Failed(failure())),
        Just(VolumeState::Deleting),
    ]
}

fn events() -> impl Strategy<Value = VolumeEvent> {
    prop_oneof![
        Just(VolumeEvent::Made),
        Just(VolumeEvent::Failed(failure())),
        Just(VolumeEvent::Lost(failure())),
        Just(VolumeEvent::DeletionBegun),
    ]
}

fn mounts() -> impl Strategy<Value = (u128, u128, &'static str, MountMode)> {
    let paths = prop_oneof![Just("/data"), Just("/data/in"), Just("/models"), Just("/srv/a")];
    let modes = prop_oneof![Just(MountMode::ReadWrite), Just(MountMode::ReadOnly)];
    (0..4_u128, 0..4_u128, paths, modes)
}

/// Some volumes in some slots, each slot once.
fn wishes() -> impl Strategy<Value = Vec<VolumeMount>> {
    let one = prop::option::of((0..4_u128, mounts()));
    prop::collection::vec(one, usize::from(VolumeSlot::COUNT)).prop_map(|slots| {
        let mut wishes: Vec<VolumeMount> = Vec::new();
        for (slot, wish) in VolumeSlot::all().zip(slots) {
            let Some((volume, (_, _, path, mode))) = wish else { continue };
            let volume_id = VolumeId::from_u128(volume);
            if wishes.iter().all(|other| other.volume_id != volume_id) {
                let path = MountPath::parse(path).unwrap();
                wishes.push(VolumeMount { volume_id, slot, path, mode, checkpoint_id: None });
            }
        }
        wishes
    })
}

proptest! {
    #[test]
    fn whatever_a_vm_has_it_comes_to_have_what_is_wished_and_no_slot_is_taken_twice(
        wished in wishes(), before in wishes(), settled in any::<[bool; 4]>(),
    ) {
        let progress = |settled: bool| match settled {
            true => MountProgress::Mounted,
            false => MountProgress::Unsettled,
        };
        let mut held: Vec<HeldMount> = before
            .into_iter()
            .map(|mount| {
                let progress = progress(settled[usize::from(mount.slot.get())]);
                HeldMount { mount, progress }
            })
            .collect();
        for _ in 0..=2 * VolumeSlot::COUNT {
            match next_mount_step(&wished, &held) {
                MountStep::Nothing => break,
                MountStep::Detach(id) => held.retain(|held| held.mount.volume_id != id),
                MountStep::Attach(mount) => {
                    held.retain(|held| held.mount != mount);
                    prop_assert!(held.iter().all(|held| held.mount.slot != mount.slot));
                    held.push(HeldMount { mount, progress: MountProgress::Mounted });
                }
            }
        }
        prop_assert_eq!(next_mount_step(&wished, &held), MountStep::Nothing);
        prop_assert_eq!(held.len(), wished.len());
    }

    #[test]
    fn a_deletion_is_accepted_everywhere_and_nothing_undoes_it(
        state in states(), later in prop::collection::vec(events(), 0..8),
    ) {
        let mut volume = volume(state);
        volume.apply(&VolumeEvent::DeletionBegun);
        for event in &later {
            prop_assert!(!volume.apply(event));
        }
        prop_assert_eq!(&volume.state, &VolumeState::Deleting);
    }

    /// A node that does what it is told brings every record to rest in a few steps, and a ready volume
    /// is there.
    #[test]
    fn the_steps_come_to_an_end(state in states(), there in 0..3) {
        let mut volume = volume(state);
        let mut there =
            [OnNode::Present, OnNode::Smaller, OnNode::Absent][usize::try_from(there).unwrap()];
        for _ in 0..4 {
            match next_volume_step(&volume, there, at(9)) {
                VolumeStep::Make => {
                    there = OnNode::Present;
                    prop_assert!(volume.apply(&VolumeEvent::Made));
                }
                VolumeStep::Record(event) => prop_assert!(volume.apply(&event)),
                VolumeStep::Grow => there = OnNode::Present,
                VolumeStep::Delete => return Ok(()),
                VolumeStep::Nothing => {
                    prop_assert_eq!(volume.state == VolumeState::Ready, there == OnNode::Present);
                    return Ok(());
                }
            }
        }
        prop_assert!(false, "still not at rest: {:?}", volume.state);
    }

    /// Whoever attaches what: never two of which one writes, never two in a slot or on one place.
    #[test]
    fn no_volume_is_written_by_one_and_had_by_another(
        asked in prop::collection::vec(mounts(), 0..40),
    ) {
        let mut all: Vec<Attachment> = Vec::new();
        for (workspace, volume, path, mode) in asked {
            let (workspace_id, volume_id) =
                (WorkspaceId::from_u128(workspace), VolumeId::from_u128(volume));
            let path = MountPath::parse(path).unwrap();
            let of_volume: Vec<_> =
                all.iter().filter(|held| held.mount.volume_id == volume_id).cloned().collect();
            let of_workspace: Vec<_> = all
                .iter()
                .filter(|held| held.workspace_id == workspace_id)
                .map(|held| held.mount.clone())
                .collect();
            let admitted =
                admit_attachment(workspace_id, &path, mode, None, &of_volume, &of_workspace);
            if let Ok(slot) = admitted {
                let mount = VolumeMount { volume_id, slot, path, mode, checkpoint_id: None };
                all.push(Attachment { workspace_id, mount });
            }
        }
        for (index, one) in all.iter().enumerate() {
            for other in &all[index + 1..] {
                if one.mount.volume_id == other.mount.volume_id {
                    prop_assert_eq!(one.mount.mode, MountMode::ReadOnly);
                    prop_assert_eq!(other.mount.mode, MountMode::ReadOnly);
                    prop_assert_ne!(one.workspace_id, other.workspace_id);
                }
                if one.workspace_id == other.workspace_id {
                    prop_assert_ne!(one.mount.slot, other.mount.slot);
                    prop_assert!(!one.mount.path.overlaps(&other.mount.path));
                }
            }
        }
    }
}

#[test]
fn a_mount_path_is_absolute_and_leaves_the_system_alone() {
    for (asked, kept) in [("/data", "/data"), ("/data/", "/data"), ("/home/me/x y", "/home/me/x y")]
    {
        assert_eq!(MountPath::parse(asked).unwrap().as_str(), kept);
    }
    let long = format!("/{}", "x".repeat(255));
    for refused in [
        "",
        "/",
        "data",
        "//",
        "/a//b",
        "/a/../b",
        "/a/.",
        "/..",
        "/a\nb",
        "/proc",
        "/proc/self",
        "/dev/shm",
        "/usr",
        "/etc/",
        &long,
    ] {
        assert_eq!(MountPath::parse(refused).unwrap_err().field, "mount_path", "{refused}");
    }
    assert!(MountPath::parse("/var/lib/data").is_ok() && MountPath::parse("/processes").is_ok());
}

#[test]
fn a_workspace_has_as_many_volumes_as_its_machine_has_slots() {
    let here = WorkspaceId::from_u128(1);
    let mut held = Vec::new();
    for number in 0..VolumeSlot::COUNT {
        let path = MountPath::parse(&format!("/volume-{number}")).unwrap();
        let slot = admit_attachment(here, &path, MountMode::ReadWrite, None, &[], &held).unwrap();
        let volume_id = VolumeId::from_u128(number.into());
        held.push(VolumeMount {
            volume_id,
            slot,
            path,
            mode: MountMode::ReadWrite,
            checkpoint_id: None,
        });
    }
    let path = MountPath::parse("/more").unwrap();
    let more =
        |held: &[VolumeMount]| admit_attachment(here, &path, MountMode::ReadOnly, None, &[], held);
    assert_eq!(more(&held), Err(AttachRefusal::NoSlot));
    let freed = held.remove(1).slot;
    assert_eq!(more(&held), Ok(freed));
}

#[test]
fn a_checkpoint_is_read_beside_whoever_writes_the_volume() {
    let (writer, reader) = (WorkspaceId::from_u128(1), WorkspaceId::from_u128(2));
    let (volume_id, slot) = (VolumeId::from_u128(1), VolumeSlot::new(0).unwrap());
    let path = MountPath::parse("/data").unwrap();
    let checkpoint = Some(CheckpointId::from_u128(1));
    let mount = |mode, checkpoint_id| VolumeMount {
        volume_id,
        slot,
        path: path.clone(),
        mode,
        checkpoint_id,
    };
    let held = |workspace_id, mount| [Attachment { workspace_id, mount }];
    let written = held(writer, mount(MountMode::ReadWrite, None));
    let admit = |who, mode, checkpoint, of_volume: &[Attachment]| {
        admit_attachment(who, &path, mode, checkpoint, of_volume, &[])
    };
    let read = |checkpoint| admit(reader, MountMode::ReadOnly, checkpoint, &written);
    assert_eq!(read(None), Err(AttachRefusal::HasWriter(writer)));
    assert_eq!(read(checkpoint), Ok(slot));
    let read = held(reader, mount(MountMode::ReadOnly, checkpoint));
    assert_eq!(admit(writer, MountMode::ReadWrite, None, &read), Ok(slot));
    assert_eq!(admit(reader, MountMode::ReadWrite, None, &read), Err(AttachRefusal::Already));
}
