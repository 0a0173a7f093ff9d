//! The promises about saved states.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use skerry_agent_protocol::handshake;
use skerry_vmm::{
    BootSpec, RestoreSpec, RestoredMemory, SaveProgress, SavedMemory, Vm, Vmm, VmmError, VmmRecord,
};

use crate::suite::{ANSWER_DEADLINE, Harness, boot, connect, converse, files_left};

/// Makes one test of each promise for one harness.
macro_rules! state_contract {
    ($harness:ty) => {
        $crate::contract! { $harness, states:
            a_saved_vm_goes_on_in_another_process,
            a_running_vm_is_saved_and_runs_until_it_is_paused,
            many_clones_start_from_one_memory_file_that_none_of_them_changes,
            a_clone_is_saved_with_its_memory_which_can_become_what_others_are_cloned_from,
            a_state_that_is_cut_off_or_not_this_machines_is_refused_and_nothing_is_made,
            a_save_given_up_leaves_the_vm_as_it_was,
            a_parked_process_is_adopted_and_loaded_by_the_next_life,
            a_restored_vm_is_adopted_and_saved_by_the_next_life,
            a_save_of_an_earlier_life_is_given_up_by_the_next,
            a_parked_process_runs_nothing_and_is_killed_like_any_other,
            a_killed_vm_ends_its_save,
            a_save_that_cannot_be_written_fails_and_the_vm_goes_on,
        }
    };
}
pub(crate) use state_contract;

pub(crate) const STEP: Duration = Duration::from_secs(60);

pub(crate) fn new_file(path: &Path) -> File {
    File::options().read(true).write(true).create_new(true).open(path).unwrap()
}

/// Saves a paused VM.
pub(crate) async fn save(vm: &Arc<dyn Vm>, state: &Path, memory: SavedMemory) {
    vm.begin_save(new_file(state), memory).await.unwrap();
    vm.wait_save(SaveProgress::Complete, STEP).await.unwrap();
}

pub(crate) async fn park(vmm: &Arc<dyn Vmm>, spec: &RestoreSpec) -> Arc<dyn Vm> {
    vmm.park(spec, &mut |_| Ok(())).await.unwrap()
}

/// Parks, loads and lets run.
pub(crate) async fn restore(vmm: &Arc<dyn Vmm>, spec: &RestoreSpec) -> Arc<dyn Vm> {
    let vm = park(vmm, spec).await;
    vm.load(STEP).await.unwrap();
    vm.resume(STEP).await.unwrap();
    vm
}

pub(crate) fn from_state(machine: BootSpec, state: &Path) -> RestoreSpec {
    RestoreSpec { machine, state: state.to_owned(), memory: RestoredMemory::InState }
}

/// A machine that was saved in its memory file, and is gone.
pub(crate) struct Template {
    pub(crate) state: PathBuf,
    pub(crate) ram: PathBuf,
}

impl Template {
    /// Of a VM that runs; it is killed.
    pub(crate) async fn of(vm: Arc<dyn Vm>, machine: &BootSpec, dir: &Path) -> Self {
        vm.pause(STEP).await.unwrap();
        let state = dir.join("template.state");
        save(&vm, &state, SavedMemory::InMemoryFile).await;
        vm.kill().await.unwrap();
        let ram = dir.join("ram");
        let memory_file = machine.memory_file.as_ref().unwrap();
        fs::copy(memory_file, &ram).unwrap();
        fs::remove_file(memory_file).unwrap();
        seal(&state);
        seal(&ram);
        Self { state, ram }
    }

    pub(crate) fn clone_in(&self, machine: BootSpec) -> RestoreSpec {
        let memory = RestoredMemory::CloneOf { file: self.ram.clone() };
        RestoreSpec { machine, state: self.state.clone(), memory }
    }
}

/// As the node seals what others start from.
pub(crate) fn seal(path: &Path) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(0), Some(0)).unwrap();
    }
}

async fn template(harness: &impl Harness, vmm: &Arc<dyn Vmm>) -> Template {
    let spec = harness.spec_in("origin");
    let vm = boot(vmm, &spec).await;
    converse(&mut connect(&vm).await, 1).await;
    Template::of(vm, &spec, &harness.kept_dir()).await
}

/// A VM that has answered and stands still.
async fn paused(vmm: &Arc<dyn Vmm>, spec: &BootSpec) -> Arc<dyn Vm> {
    let vm = boot(vmm, spec).await;
    converse(&mut connect(&vm).await, 1).await;
    vm.pause(STEP).await.unwrap();
    vm
}

async fn is_silent(vm: &Arc<dyn Vm>) -> bool {
    let mut channel = connect(vm).await;
    let outcome = handshake::connect(&mut channel, [99; 16], Duration::from_secs(1)).await;
    matches!(outcome, Err(handshake::HandshakeError::Timeout(_)))
}

fn is_refused(outcome: &Result<(), VmmError>) -> bool {
    matches!(outcome, Err(VmmError::Refused { .. }))
}

pub(crate) async fn a_saved_vm_goes_on_in_another_process(harness: impl Harness) {
    let vmm = harness.vmm().await;
    let state = harness.kept_dir().join("state");
    let vm = paused(&vmm, &harness.spec_in("first")).await;
    save(&vm, &state, SavedMemory::InState).await;
    vm.kill().await.unwrap();
    let saved = fs::read(&state).unwrap();

    let spec = harness.spec_in("second");
    let committed = Mutex::new(Vec::<VmmRecord>::new());
    let vm = vmm
        .park(&from_state(spec.clone(), &state), &mut |record| {
            committed.lock().unwrap().push(record.clone());
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(*committed.lock().unwrap(), [vm.record().clone()]);
    vm.load(STEP).await.unwrap();
    assert!(is_silent(&vm).await);
    vm.resume(STEP).await.unwrap();
    converse(&mut connect(&vm).await, 2).await;
    assert!(!spec.memory_file.as_ref().unwrap().exists());
    vm.kill().await.unwrap();
    assert_eq!(fs::read(&state).unwrap(), saved);
}

pub(crate) async fn a_running_vm_is_saved_and_runs_until_it_is_paused(harness: impl Harness) {
    let vmm = harness.vmm().await;
    let state = harness.kept_dir().join("state");
    let vm = boot(&vmm, &harness.spec_in("first")).await;
    converse(&mut connect(&vm).await, 1).await;

    vm.begin_save(new_file(&state), SavedMemory::InState).await.unwrap();
    vm.wait_save(SaveProgress::Converged, STEP).await.unwrap();
    converse(&mut connect(&vm).await, 2).await;
    // It never gets there by itself.
    let outcome = vm.wait_save(SaveProgress::Complete, Duration::from_secs(1)).await;
    assert!(matches!(outcome, Err(VmmError::Timeout(_))), "{outcome:?}");
    let unfinished = from_state(harness.spec_in("unfinished"), &state);
    let outcome = vmm.park(&unfinished, &mut |_| Ok(())).await.err();
    assert!(matches!(outcome, Some(VmmError::InvalidState(_))), "{outcome:?}");

    vm.pause(STEP).await.unwrap();
    vm.wait_save(SaveProgress::Captured, STEP).await.unwrap();
    vm.resume(STEP).await.unwrap();
    vm.wait_save(SaveProgress::Complete, STEP).await.unwrap();
    vm.wait_save(SaveProgress::Converged, STEP).await.unwrap();
    converse(&mut connect(&vm).await, 3).await;

    let other = restore(&vmm, &from_state(harness.spec_in("second"), &state)).await;
    converse(&mut connect(&other).await, 4).await;
    converse(&mut connect(&vm).await, 5).await;
    for vm in [vm, other] {
        vm.kill().await.unwrap();
    }
}

pub(crate) async fn many_clones_start_from_one_memory_file_that_none_of_them_changes(
    harness: impl Harness,
) {
    let vmm = harness.vmm().await;
    let template = template(&harness, &vmm).await;
    let before = fs::read(&template.ram).unwrap();
    let specs = [harness.spec_in("one"), harness.spec_in("two")];
    let mut clones = Vec::new();
    for spec in &specs {
        clones.push(restore(&vmm, &template.clone_in(spec.clone())).await);
        assert!(!spec.memory_file.as_ref().unwrap().exists());
    }
    for clone in &clones {
        converse(&mut connect(clone).await, 2).await;
    }
    for clone in clones {
        clone.kill().await.unwrap();
    }
    assert!(fs::read(&template.ram).unwrap() == before, "the template's memory has changed");
}

pub(crate) async fn a_clone_is_saved_with_its_memory_which_can_become_what_others_are_cloned_from(
    harness: impl Harness,
) {
    let vmm = harness.vmm().await;
    let template = template(&harness, &vmm).await;
    let state = template.ram.with_file_name("state");
    let clone = restore(&vmm, &template.clone_in(harness.spec_in("clone"))).await;
    converse(&mut connect(&clone).await, 2).await;
    clone.pause(STEP).await.unwrap();

    let refused = template.ram.with_file_name("refused");
    let outcome = clone.begin_save(new_file(&refused), SavedMemory::InMemoryFile).await;
    assert!(is_refused(&outcome), "{outcome:?}");
    save(&clone, &state, SavedMemory::InState).await;
    clone.kill().await.unwrap();

    let spec = harness.spec_in("owner");
    let memory = RestoredMemory::InStateToFile;
    let to_file = RestoreSpec { memory, ..from_state(spec.clone(), &state) };
    let owner = restore(&vmm, &to_file).await;
    assert_eq!(
        fs::metadata(spec.memory_file.as_ref().unwrap()).unwrap().len(),
        spec.memory_mib.bytes()
    );
    converse(&mut connect(&owner).await, 3).await;
    // One that runs cannot leave its memory where it is.
    let outcome =
        owner.begin_save(new_file(&refused.with_extension("2")), SavedMemory::InMemoryFile);
    assert!(is_refused(&outcome.await));
    // What it owns may become the memory of clones in turn; it never goes on itself.
    owner.pause(STEP).await.unwrap();
    let second_state = template.ram.with_file_name("second.state");
    save(&owner, &second_state, SavedMemory::InMemoryFile).await;
    assert!(is_refused(&owner.resume(STEP).await));
    let again = refused.with_extension("3");
    assert!(is_refused(&owner.begin_save(new_file(&again), SavedMemory::InState).await));
    owner.kill().await.unwrap();
    let promoted = Template { state: second_state, ram: spec.memory_file.unwrap() };
    seal(&promoted.ram);
    let vm = restore(&vmm, &promoted.clone_in(harness.spec_in("grandchild"))).await;
    converse(&mut connect(&vm).await, 4).await;
    vm.kill().await.unwrap();
}

pub(crate) async fn a_state_that_is_cut_off_or_not_this_machines_is_refused_and_nothing_is_made(
    harness: impl Harness,
) {
    let vmm = harness.vmm().await;
    let dir = harness.kept_dir();
    let state = dir.join("state");
    let vm = paused(&vmm, &harness.spec_in("first")).await;
    save(&vm, &state, SavedMemory::InState).await;
    vm.kill().await.unwrap();

    let good = from_state(harness.spec_in("second"), &state);
    let whole = fs::read(&state).unwrap();
    let variant = |name: &str, bytes: &[u8]| {
        fs::write(dir.join(name), bytes).unwrap();
        RestoreSpec { state: dir.join(name), ..good.clone() }
    };
    let ram = dir.join("ram");
    File::create(&ram).unwrap().set_len(good.machine.memory_mib.bytes()).unwrap();
    let mut larger = good.machine.clone();
    larger.memory_mib.0 *= 2;
    let cases = [
        variant("empty", b""),
        variant("short", &whole[..whole.len() - 1]),
        variant("half", &whole[..whole.len() / 2]),
        variant("other", &[b'x'; 4096]),
        RestoreSpec { machine: larger, ..good.clone() },
        RestoreSpec { memory: RestoredMemory::CloneOf { file: ram }, ..good.clone() },
    ];
    let before = files_left(&good.machine.run_dir);
    for spec in cases {
        let outcome = vmm.park(&spec, &mut |_| panic!("nothing exists to be recorded")).await;
        let error = outcome.err().unwrap();
        assert!(matches!(error, VmmError::InvalidState(_)), "{}: {error}", spec.state.display());
    }
    assert_eq!(files_left(&good.machine.run_dir), before);

    let memory = RestoredMemory::CloneOf { file: state.clone() };
    let spec = RestoreSpec { memory, ..good };
    let error = vmm.park(&spec, &mut |_| panic!("nothing to record")).await.err().unwrap();
    assert!(
        matches!(&error, VmmError::InvalidSpec { field: "memory.file", .. }),
        "memory of another size: {error}"
    );
}

pub(crate) async fn a_save_given_up_leaves_the_vm_as_it_was(harness: impl Harness) {
    let vmm = harness.vmm().await;
    let dir = harness.kept_dir();
    let vm = boot(&vmm, &harness.spec()).await;
    converse(&mut connect(&vm).await, 1).await;
    vm.cancel_save(STEP).await.unwrap();

    vm.begin_save(new_file(&dir.join("given-up")), SavedMemory::InState).await.unwrap();
    let second = vm.begin_save(new_file(&dir.join("second")), SavedMemory::InState).await;
    assert!(is_refused(&second), "{second:?}");
    vm.cancel_save(STEP).await.unwrap();
    assert!(is_refused(&vm.wait_save(SaveProgress::Complete, STEP).await));
    converse(&mut connect(&vm).await, 2).await;

    // Given up in the blackout.
    vm.begin_save(new_file(&dir.join("late")), SavedMemory::InState).await.unwrap();
    vm.wait_save(SaveProgress::Converged, STEP).await.unwrap();
    vm.pause(STEP).await.unwrap();
    vm.cancel_save(STEP).await.unwrap();
    vm.cancel_save(STEP).await.unwrap();
    assert!(is_silent(&vm).await);
    vm.resume(STEP).await.unwrap();
    converse(&mut connect(&vm).await, 3).await;

    // The next one is whole.
    vm.pause(STEP).await.unwrap();
    save(&vm, &dir.join("state"), SavedMemory::InState).await;
    vm.kill().await.unwrap();
    let vm = restore(&vmm, &from_state(harness.spec_in("second"), &dir.join("state"))).await;
    converse(&mut connect(&vm).await, 4).await;
    vm.kill().await.unwrap();
}

pub(crate) async fn a_parked_process_is_adopted_and_loaded_by_the_next_life(harness: impl Harness) {
    let vmm = harness.vmm().await;
    let template = template(&harness, &vmm).await;
    let clone = park(&vmm, &template.clone_in(harness.spec_in("clone"))).await;
    let record = clone.record().clone();
    drop((clone, vmm));

    let vm = harness.next_life().await.adopt(&record).await.unwrap();
    assert_eq!(*vm.record(), record);
    assert!(is_refused(&vm.resume(STEP).await));
    vm.load(STEP).await.unwrap();
    vm.resume(STEP).await.unwrap();
    converse(&mut connect(&vm).await, 2).await;
    vm.kill().await.unwrap();
    assert!(!harness.is_alive(&record));
}

pub(crate) async fn a_restored_vm_is_adopted_and_saved_by_the_next_life(harness: impl Harness) {
    let vmm = harness.vmm().await;
    let template = template(&harness, &vmm).await;
    let clone = restore(&vmm, &template.clone_in(harness.spec_in("clone"))).await;
    converse(&mut connect(&clone).await, 2).await;
    let record = clone.record().clone();
    drop((clone, vmm));

    let vmm = harness.next_life().await;
    let vm = vmm.adopt(&record).await.unwrap();
    assert!(is_refused(&vm.load(STEP).await));
    vm.pause(STEP).await.unwrap();
    let state = template.ram.with_file_name("state");
    let whole = template.ram.with_file_name("whole");
    let outcome = vm.begin_save(new_file(&whole), SavedMemory::InMemoryFile).await;
    assert!(is_refused(&outcome), "{outcome:?}");
    save(&vm, &state, SavedMemory::InState).await;
    vm.kill().await.unwrap();
    let vm = restore(&vmm, &from_state(harness.spec_in("second"), &state)).await;
    converse(&mut connect(&vm).await, 3).await;
    vm.kill().await.unwrap();
}

pub(crate) async fn a_save_of_an_earlier_life_is_given_up_by_the_next(harness: impl Harness) {
    let vmm = harness.vmm().await;
    let dir = harness.kept_dir();
    let vm = boot(&vmm, &harness.spec()).await;
    converse(&mut connect(&vm).await, 1).await;
    vm.begin_save(new_file(&dir.join("lost")), SavedMemory::InState).await.unwrap();
    let record = vm.record().clone();
    drop((vm, vmm));

    let vm = harness.next_life().await.adopt(&record).await.unwrap();
    assert!(is_refused(&vm.wait_save(SaveProgress::Complete, STEP).await));
    vm.cancel_save(STEP).await.unwrap();
    converse(&mut connect(&vm).await, 2).await;
    vm.pause(STEP).await.unwrap();
    save(&vm, &dir.join("state"), SavedMemory::InState).await;
    vm.resume(STEP).await.unwrap();
    converse(&mut connect(&vm).await, 3).await;
    vm.kill().await.unwrap();
}

pub(crate) async fn a_parked_process_runs_nothing_and_is_killed_like_any_other(
    harness: impl Harness,
) {
    let vmm = harness.vmm().await;
    let template = template(&harness, &vmm).await;
    let vm = park(&vmm, &template.clone_in(harness.spec_in("clone"))).await;
    assert!(harness.is_alive(vm.record()));
    assert!(is_silent(&vm).await);
    assert!(is_refused(&vm.pause(STEP).await));
    assert!(is_refused(&vm.resume(STEP).await));
    let state = template.ram.with_file_name("state");
    assert!(is_refused(&vm.begin_save(new_file(&state), SavedMemory::InState).await));
    vm.kill().await.unwrap();
    assert!(!harness.is_alive(vm.record()));
    assert!(matches!(vm.load(STEP).await, Err(VmmError::Gone)));
}

pub(crate) async fn a_killed_vm_ends_its_save(harness: impl Harness) {
    let vm = boot(&harness.vmm().await, &harness.spec()).await;
    vm.begin_save(new_file(&harness.kept_dir().join("state")), SavedMemory::InState).await.unwrap();
    let waiter = {
        let vm = vm.clone();
        tokio::spawn(async move { vm.wait_save(SaveProgress::Complete, ANSWER_DEADLINE).await })
    };
    tokio::task::yield_now().await;
    vm.kill().await.unwrap();
    assert!(matches!(waiter.await.unwrap(), Err(VmmError::Gone)));
    assert!(matches!(vm.cancel_save(STEP).await, Err(VmmError::Gone)));
}

/// The disk is full, as far as the driver can see.
pub(crate) async fn a_save_that_cannot_be_written_fails_and_the_vm_goes_on(harness: impl Harness) {
    let vmm = harness.vmm().await;
    let dir = harness.kept_dir();
    let vm = boot(&vmm, &harness.spec_in("first")).await;
    converse(&mut connect(&vm).await, 1).await;
    let file = memfd_create(c"state", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    vm.begin_save(File::from(file.try_clone().unwrap()), SavedMemory::InState).await.unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
    // Converged or failed already.
    let _ = vm.wait_save(SaveProgress::Converged, STEP).await;
    vm.pause(STEP).await.unwrap();
    let outcome = vm.wait_save(SaveProgress::Complete, STEP).await;
    assert!(matches!(outcome, Err(VmmError::Io { .. })), "{outcome:?}");
    vm.cancel_save(STEP).await.unwrap();
    assert!(is_silent(&vm).await);
    vm.resume(STEP).await.unwrap();
    converse(&mut connect(&vm).await, 2).await;

    vm.pause(STEP).await.unwrap();
    save(&vm, &dir.join("state"), SavedMemory::InState).await;
    vm.kill().await.unwrap();
    let vm = restore(&vmm, &from_state(harness.spec_in("second"), &dir.join("state"))).await;
    converse(&mut connect(&vm).await, 3).await;
    vm.kill().await.unwrap();
}
