//! What a saved state depends on, as one word.
//!
//! The machine `microvm` has no versions: a state fits only the program that wrote it. The program
//! is known by its version, its length and the time of its last change, which a package's files keep
//! from where they were built.
//!
//! Under emulation the guest measures time with the host's time-stamp counter at the frequency it
//! was told at its boot. That frequency is measured anew in each of our lives and never twice the
//! same, so it cannot be part of a word; the kind of processor stands for it here, and the exact
//! number is compared, with some room, when a state is opened ([`check_clock`]).

use std::{io, os::unix::fs::MetadataExt, path::Path};

use sha2::{Digest, Sha256};

use super::command_line::{self, Beginning, Host, Mapping};
use crate::{Accelerator, BootSpec, DiskSpec, Sandbox, VmmError};

/// 128 bits are more than enough: nobody gains from a collision.
const DIGEST_BYTES: usize = 16;

/// A clock that is wrong by less goes unnoticed beside the error of the measurement and the steps in
/// which the host corrects its own; a processor of another frequency is further off.
const CLOCK_TOLERANCE_PER_MILLE: u64 = 2;

/// The program and the host: everything that is the same for all machines.
pub(super) fn of_program(binary: &Path, version: &str, cpu: &str) -> io::Result<String> {
    let meta = std::fs::metadata(binary)?;
    let (length, modified, nanoseconds) = (meta.len(), meta.mtime(), meta.mtime_nsec());
    Ok(format!("{version}\n{length} {modified}.{nanoseconds}\n{cpu}"))
}

/// The machine under that program: its command line without what may differ.
pub(super) fn of_machine(
    program: &str,
    machine: &BootSpec,
    accelerator: Accelerator,
) -> Result<String, VmmError> {
    let disk = machine.disk.as_ref().map(|_| DiskSpec {
        overlay: "/".into(),
        layers: Vec::new(),
        base: "/".into(),
    });
    let machine = BootSpec {
        label: String::new(),
        // It is in the saved state and comes back with it.
        mac: [0; 6],
        disk,
        kernel_args: Vec::new(),
        sandbox: Sandbox::default(),
        ..machine.clone()
    };
    let host = Host { accelerator, tsc_khz: 0 };
    let beginning = Beginning::Restore(Mapping::Anonymous);
    let mut digest = Sha256::new_with_prefix(program);
    for argument in command_line::arguments(&machine, host, beginning)? {
        digest.update([0]);
        digest.update(argument.as_encoded_bytes());
    }
    let digest = digest.finalize();
    let digits: String = digest[..DIGEST_BYTES].iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!("qemu-{digits}"))
}

/// The counter's frequency that belongs into a state's label.
pub(super) fn clock_of(accelerator: Accelerator, tsc_khz: u64) -> Option<u64> {
    match accelerator {
        Accelerator::Tcg | Accelerator::None => Some(tsc_khz),
        // QEMU saves and checks it.
        Accelerator::Kvm => None,
    }
}

/// Refuses a state whose guest would measure time wrongly here.
pub(super) fn check_clock(saved: Option<u64>, here: Option<u64>) -> Result<(), VmmError> {
    let (Some(saved), Some(here)) = (saved, here) else { return Ok(()) };
    if saved.abs_diff(here) > here / 1000 * CLOCK_TOLERANCE_PER_MILLE {
        return Err(VmmError::InvalidState(format!(
            "its clock counts {saved} kHz, this host {here} kHz"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use skerry_model::{MemMib, VcpuCount, spec::CpuKind};

    use super::*;
    use crate::{Cable, CpuModel};

    fn machine() -> BootSpec {
        BootSpec {
            label: "a".into(),
            run_dir: "/a".into(),
            kernel: "/a".into(),
            initramfs: "/a".into(),
            memory_file: Some("/a".into()),
            memory_mib: MemMib(256),
            vcpu_count: VcpuCount(1),
            cpu_kind: CpuKind::Shared,
            cpu_model: CpuModel::Default,
            disk: Some(DiskSpec { overlay: "/a".into(), layers: Vec::new(), base: "/a".into() }),
            mac: [2; 6],
            cable: Cable::Loose,
            console_log: "/a".into(),
            console_limit_bytes: 1,
            kernel_args: Vec::new(),
            sandbox: Sandbox::default(),
        }
    }

    fn of(machine: &BootSpec) -> String {
        of_machine("7.2", machine, Accelerator::Tcg).unwrap()
    }

    #[test]
    fn paths_rights_label_and_kernel_do_not_matter() {
        let other = BootSpec {
            label: "b".into(),
            run_dir: "/b".into(),
            kernel: "/b".into(),
            initramfs: "/b".into(),
            memory_file: None,
            disk: Some(DiskSpec {
                overlay: "/b".into(),
                layers: vec!["/c".into()],
                base: "/b".into(),
            }),
            mac: [4; 6],
            console_log: "/b".into(),
            console_limit_bytes: 2,
            kernel_args: vec!["b".into()],
            sandbox: Sandbox { uid: Some(1), ..Sandbox::default() },
            ..machine()
        };
        assert_eq!(of(&machine()), of(&other));
    }

    #[test]
    fn sizes_the_disk_the_network_and_the_program_do() {
        let others = [
            of(&BootSpec { memory_mib: MemMib(512), ..machine() }),
            of(&BootSpec { vcpu_count: VcpuCount(2), ..machine() }),
            of(&BootSpec { disk: None, ..machine() }),
            of(&BootSpec { cable: Cable::Tap { tap: None }, ..machine() }),
            of_machine("7.3", &machine(), Accelerator::Tcg).unwrap(),
            of_machine("7.2", &machine(), Accelerator::Kvm).unwrap(),
        ];
        for other in others {
            assert_ne!(other, of(&machine()));
        }
    }

    #[test]
    fn a_clock_of_another_frequency_is_refused_and_a_new_measurement_is_not() {
        assert!(check_clock(Some(2_445_426), Some(2_446_000)).is_ok());
        assert!(check_clock(Some(2_445_426), Some(2_495_000)).is_err());
        assert!(check_clock(None, Some(1)).is_ok());
    }
}
