//! The floor: the same machine, kernel, image and agent without the platform. The hypervisor's driver
//! and one line to the agent; no HTTP, no database, no ledger, no control groups, no own user.

mod guest;
mod template;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use skerry_model::{
    MemMib, VcpuCount,
    spec::{CpuKind, ImageRef},
};
use skerry_node::images::{BootFiles, ImageStore, KernelChoice, StoredImage};
use skerry_vmm::{
    BootSpec, Cable, CpuModel, DiskSpec, Sandbox, Vmm,
    qemu::{AcceleratorChoice, QemuConfig, QemuVmm},
};

pub use guest::{FloorVm, Identity};
pub use template::{SavedMachine, Template, start};

/// No single step of a VMM takes longer.
const STEP_WITHIN: Duration = Duration::from_secs(120);
/// Nor does an emulated guest's way from its kernel's first instruction to its agent.
const GUEST_WITHIN: Duration = Duration::from_secs(180);
/// As the platform's default.
const CONSOLE_LIMIT_BYTES: u64 = 1024 * 1024;
/// Writable disk beyond the image, as the platform's default.
const DISK_BYTES: u64 = 1024 * 1024 * 1024;
/// The image of the platform's workspaces that name none.
const IMAGE: &str = "base";

/// What the floor's VMs are made of.
pub struct Floor {
    vmm: QemuVmm,
    image: StoredImage,
    boot: BootFiles,
    /// A directory for each VM, and for each template.
    dir: PathBuf,
    /// Where a booted guest's memory is: as the platform's, on a tmpfs.
    memory_dir: PathBuf,
    made: AtomicU64,
    templates: BTreeMap<u32, Template>,
}

impl Floor {
    /// Finds the hypervisor, the image and the kernel. `accelerator` is what the server has found.
    ///
    /// # Errors
    /// One of them is missing.
    pub async fn open(
        image_dir: &Path,
        kernel: KernelChoice,
        accelerator: &str,
        (dir, memory_dir): (PathBuf, PathBuf),
    ) -> Result<Self> {
        let store = ImageStore::open(image_dir)?.with_kernel_choice(kernel);
        let accelerator = match accelerator {
            "kvm" => AcceleratorChoice::Kvm,
            _ => AcceleratorChoice::Tcg,
        };
        for dir in [&dir, &memory_dir] {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        Ok(Self {
            vmm: QemuVmm::open(QemuConfig { binary: None, accelerator }).await?,
            image: store.by_name(&ImageRef(IMAGE.to_owned()))?,
            boot: store.boot_files()?,
            dir,
            memory_dir,
            made: AtomicU64::new(0),
            templates: BTreeMap::new(),
        })
    }

    /// The hypervisor's version.
    pub fn hypervisor(&self) -> String {
        self.vmm.capabilities().version.clone()
    }

    /// The guests' kernel.
    pub fn guest_kernel(&self) -> String {
        format!("{} ({})", self.boot.kernel_release, self.boot.kernel_variant.name())
    }

    /// Boots a machine and returns once its process runs.
    ///
    /// # Errors
    /// The VMM does not start.
    pub async fn boot(&self, memory_mib: u32) -> Result<FloorVm> {
        let files = self.files()?;
        let memory_file = self.memory_dir.join(files.name());
        let spec = self.machine(&files, memory_mib, Some(memory_file), &[])?;
        self.boot_as(spec, files).await
    }

    async fn boot_as(&self, spec: BootSpec, files: Arc<VmFiles>) -> Result<FloorVm> {
        let vm = self.vmm.boot(&spec, &mut |_| Ok(())).await?;
        Ok(FloorVm::new(vm, spec, files))
    }

    /// The template of this size, made at the first call.
    ///
    /// # Errors
    /// It cannot be made.
    pub async fn template(&mut self, memory_mib: u32) -> Result<Template> {
        if let Some(found) = self.templates.get(&memory_mib) {
            return Ok(found.clone());
        }
        let made = Template::make(self, memory_mib).await?;
        self.templates.insert(memory_mib, made.clone());
        Ok(made)
    }

    /// Ends what watches VMs and removes the templates. Every VM has to be gone.
    pub async fn close(self) {
        self.vmm.close().await;
        for template in self.templates.values() {
            template.remove();
        }
    }

    fn files(&self) -> Result<Arc<VmFiles>> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        VmFiles::make(self.dir.join(number.to_string()), &self.memory_dir).map(Arc::new)
    }

    /// The machine a workspace of this size gets, with its empty overlay made.
    fn machine(
        &self,
        files: &VmFiles,
        memory_mib: u32,
        memory_file: Option<PathBuf>,
        layers: &[PathBuf],
    ) -> Result<BootSpec> {
        Ok(BootSpec {
            label: format!("bench-{}", files.name()),
            run_dir: files.dir.join("run"),
            kernel: self.boot.kernel.clone(),
            initramfs: self.boot.initramfs.clone(),
            memory_file,
            memory_mib: MemMib(memory_mib),
            vcpu_count: VcpuCount(1),
            cpu_kind: CpuKind::Shared,
            cpu_model: CpuModel::Default,
            disk: Some(DiskSpec {
                overlay: self.new_overlay(&files.dir, "disk.qcow2")?,
                layers: layers.to_vec(),
                base: self.image.disk.clone(),
            }),
            mac: [0x52, 0x54, 0, 0, 0, 1],
            cable: Cable::Loose,
            console_log: files.dir.join("console.log"),
            console_limit_bytes: CONSOLE_LIMIT_BYTES,
            kernel_args: Vec::new(),
            sandbox: Sandbox::default(),
        })
    }

    fn new_overlay(&self, dir: &Path, name: &str) -> Result<PathBuf> {
        let path = dir.join(name);
        let file = fs::File::options().write(true).create_new(true).open(&path)?;
        skerry_node::write_empty_overlay(&file, self.image.disk_bytes() + DISK_BYTES)
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// What a VM has on the disk. Removed when dropped.
pub struct VmFiles {
    dir: PathBuf,
    memory_file: PathBuf,
}

impl VmFiles {
    fn make(dir: PathBuf, memory_dir: &Path) -> Result<Self> {
        let run_dir = dir.join("run");
        fs::create_dir_all(&run_dir).with_context(|| format!("making {}", run_dir.display()))?;
        let memory_file = memory_dir.join(dir.file_name().unwrap_or_default());
        Ok(Self { dir, memory_file })
    }

    fn name(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

impl Drop for VmFiles {
    fn drop(&mut self) {
        // What stays is told as a leak at the end of the run.
        let _ = fs::remove_dir_all(&self.dir);
        let _ = fs::remove_file(&self.memory_file);
    }
}

/// What others start from is nobody's to write.
fn seal(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o444))
        .with_context(|| format!("sealing {}", path.display()))
}
