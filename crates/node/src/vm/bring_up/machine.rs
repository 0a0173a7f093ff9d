//! The machine a workspace of a shape gets.

use std::path::PathBuf;

use skerry_internal_api::{StartFrom, VmSpec};
use skerry_model::{
    Incarnation, MemMib, Shape, WorkspaceId,
    spec::{ImageDigest, LogRetention},
};
use skerry_vmm::{BootSpec, Cable, CpuModel, DiskSpec, Sandbox};

use super::BringUp;
use crate::{disk::most_file_bytes, error::Error};

/// Without a cgroup the process may map its guest's memory and this much more: libraries, thread
/// stacks and the cache of translated code.
const ADDRESS_SPACE_OVERHEAD_BYTES: u64 = 4 << 30;
/// A state is the memory and the devices.
const DEVICES_OVERHEAD_BYTES: u64 = 64 << 20;
/// Volumes up to this size fit below the limit that each process has from its start. For a larger one
/// the limit has to be raised, which not every container permits.
const VOLUME_BYTES: u64 = 16 << 30;
/// What a guest that belongs to nobody calls itself.
const NEUTRAL_HOSTNAME: &str = "skerry";

impl BringUp<'_> {
    pub(super) fn machine(&self) -> Result<BootSpec, Error> {
        let identity = self.identity.as_ref().ok_or(Error::StepMissing("vm_directory"))?;
        let ground = self.ground()?;
        let chain = self.disk.as_ref().ok_or(Error::StepMissing("disk"))?;
        let disk = self.host.storage.disks.at(&self.paths.dir);
        let shape = &self.spec.shape;
        let without_cgroup =
            || shape.memory_mib.bytes().saturating_add(ADDRESS_SPACE_OVERHEAD_BYTES);
        let boot = ground.boot.as_ref();
        let (mac, cable) = self.card(identity.mac)?;
        Ok(BootSpec {
            label: format!("vm-{}", self.spec.workspace_id.as_uuid().simple()),
            run_dir: self.paths.run_dir.clone(),
            kernel: boot.map(|boot| boot.kernel.clone()).unwrap_or_default(),
            initramfs: boot.map(|boot| boot.initramfs.clone()).unwrap_or_default(),
            memory_file: Some(self.paths.memory_file.clone()),
            disk: Some(disk.spec(chain, ground.base.clone())?),
            mac,
            cable,
            kernel_args: self.network_arguments(),
            console_log: self.paths.console_log.clone(),
            console_limit_bytes: self.host.config.console_limit_bytes,
            sandbox: Sandbox {
                uid: self.uid.as_ref().map(|lease| lease.uid()),
                rlimit_address_space_bytes: self.cgroup_procs.is_empty().then(without_cgroup),
                rlimit_file_size_bytes: Some(
                    most_file_bytes(chain.size_bytes.max(VOLUME_BYTES))
                        .max(most_state_bytes(shape.memory_mib)),
                ),
                cgroup_procs: self.cgroup_procs.clone(),
            },
            ..machine_of(shape, Cable::Loose)
        })
    }
}

/// The most the state of a VM may come to: saved while the guest runs it holds what changed meanwhile
/// a second time.
fn most_state_bytes(memory: MemMib) -> u64 {
    memory.bytes().saturating_mul(2).saturating_add(DEVICES_OVERHEAD_BYTES)
}

/// Everything of the machine that depends on the shape; the rest is in nobody's fingerprint.
pub(crate) fn machine_of(shape: &Shape, cable: Cable) -> BootSpec {
    let nowhere = PathBuf::new;
    BootSpec {
        label: String::new(),
        run_dir: nowhere(),
        kernel: nowhere(),
        initramfs: nowhere(),
        memory_file: None,
        memory_mib: shape.memory_mib,
        vcpu_count: shape.vcpu_count,
        cpu_kind: shape.cpu_kind,
        cpu_model: CpuModel::Default,
        disk: Some(DiskSpec { overlay: nowhere(), layers: Vec::new(), base: nowhere() }),
        mac: [0; 6],
        cable,
        console_log: nowhere(),
        console_limit_bytes: 0,
        kernel_args: Vec::new(),
        sandbox: Sandbox::default(),
    }
}

/// A VM that is nobody's. `number` names it on the host and is no workspace's.
pub(crate) fn neutral_spec(number: WorkspaceId, image: &ImageDigest, shape: &Shape) -> VmSpec {
    VmSpec {
        workspace_id: number,
        incarnation: Incarnation(1),
        hostname: NEUTRAL_HOSTNAME.to_owned(),
        image_digest: image.clone(),
        shape: *shape,
        env: Vec::new(),
        log_retention: LogRetention::ThisStart,
        start_from: StartFrom::Disk,
        volumes: Vec::new(),
    }
}
