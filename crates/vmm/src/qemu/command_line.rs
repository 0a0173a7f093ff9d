//! The arguments of QEMU: which machine the guest sees.
//!
//! Machine `microvm` with virtio-mmio devices and an uncompressed kernel entered through PVH. Every
//! file is named by its number in the child ([`Files`]), never by its path: the process's user need
//! not be able to reach it.

use std::ffi::OsString;

use serde_json::{Value, json};
use skerry_model::VolumeSlot;

use super::{spawn::FIRST_FD, volumes};
use crate::{Accelerator, BootSpec, Cable, CpuModel, DiskSpec, VmmError};

/// The name of the agent's port as the guest sees it in `/sys/class/virtio-ports/*/name`.
const AGENT_PORT: &str = "skerry.agent";

/// The root disk's serial number, by which the agent finds it: letters depend on probing order.
const ROOT_DISK_SERIAL: &str = "root";

/// x86-64-v2, the least that current distributions are built for. `arat` keeps the guest from
/// ticking 250 times a second when idle (5.8 % of a host CPU against 0.5 %).
const TCG_CPU: &str = "qemu64,+arat,+ssse3,+sse4.1,+sse4.2,+popcnt";

/// Translated code is kept up to this. The default is 1 GiB of address space, which would count
/// against an address-space limit; a smaller cache than this is flushed often by a compiler run.
const TCG_CACHE_MIB: u32 = 64;

/// The limit of the kernel's own command line on x86 (`COMMAND_LINE_SIZE`).
const MAX_KERNEL_COMMAND_LINE: usize = 2047;

/// The base image's node in the disk's chain.
pub(super) const BASE_NODE: &str = "base";
/// The node of the overlay with which the process was started.
pub(super) const ROOT_NODE: &str = "root";
/// The nodes of the layers with which it was started, counted from the base, are named so.
pub(super) const LAYER_NODE: &str = "layer-";

/// A file handed to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum File {
    Qmp,
    Agent,
    Console,
    State,
    Memory,
    Kernel,
    Initramfs,
    Base,
    /// Counted from the base upwards.
    Layer(usize),
    Overlay,
    Tap,
}

/// The saved state's number in the process: the same for every life of ours.
pub(super) const STATE_FD: i32 = FIRST_FD + 3;

/// The files in the order in which they are handed over.
pub(super) fn files(spec: &BootSpec, beginning: Beginning) -> Vec<File> {
    let mut files = vec![File::Qmp, File::Agent, File::Console];
    match beginning {
        Beginning::Boot => files.extend([File::Kernel, File::Initramfs]),
        Beginning::Restore(_) => files.push(File::State),
    }
    match beginning.mapping(spec) {
        Mapping::Anonymous => {}
        Mapping::Own | Mapping::Private | Mapping::PrivateReadOnly => files.push(File::Memory),
    }
    if let Some(disk) = &spec.disk {
        files.push(File::Base);
        files.extend((0..disk.layers.len()).map(File::Layer));
        files.push(File::Overlay);
    }
    match spec.cable {
        Cable::Loose => {}
        Cable::Tap { .. } => files.push(File::Tap),
    }
    files
}

/// How the machine's memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// From a file of its own.
    Own,
    /// From no file.
    Anonymous,
    /// Privately, from a file that the process can open for writing though nobody can write it: QEMU
    /// before 8.2 opens it so in any case.
    Private,
    /// Privately, from a file opened for reading.
    PrivateReadOnly,
}

/// What the process begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// A kernel.
    Boot,
    /// It waits for a saved state.
    Restore(Mapping),
}

impl Beginning {
    pub(super) fn mapping(self, spec: &BootSpec) -> Mapping {
        match (self, &spec.memory_file) {
            (Self::Boot, Some(_)) => Mapping::Own,
            (Self::Boot, None) => Mapping::Anonymous,
            (Self::Restore(mapping), _) => mapping,
        }
    }
}

/// What the host adds to the spec.
#[derive(Clone, Copy, Debug)]
pub(super) struct Host {
    pub(super) accelerator: Accelerator,
    /// The time-stamp counter's frequency.
    pub(super) tsc_khz: u64,
}

/// All arguments after the program's name.
pub(super) fn arguments(
    spec: &BootSpec,
    host: Host,
    beginning: Beginning,
) -> Result<Vec<OsString>, VmmError> {
    let mut args = Arguments { words: Vec::new(), files: files(spec, beginning) };
    let accelerator = accelerator(host.accelerator)?;

    args.add("-name", format!("skerry-{}", spec.label));
    args.flags(&["-nodefaults", "-no-user-config", "-no-reboot"]);
    args.add("-display", "none");
    args.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");

    args.add("-machine", "microvm,rtc=on,pit=off,pic=off,isa-serial=on,memory-backend=ram");
    args.add("-global", "virtio-mmio.force-legacy=off");
    args.add("-accel", accelerator);
    args.add("-cpu", cpu(spec.cpu_model, host.accelerator));
    args.add("-smp", spec.vcpu_count.get().to_string());
    args.add("-m", format!("{}M", spec.memory_mib.get()));
    args.memory(spec, beginning.mapping(spec));
    match beginning {
        Beginning::Boot => {
            args.add("-kernel", args.path(File::Kernel));
            args.add("-initrd", args.path(File::Initramfs));
            args.add("-append", kernel_command_line(spec, host)?);
        }
        Beginning::Restore(_) => {
            // Stopped, until it is told to load and then to run.
            args.flags(&["-S"]);
            args.add("-incoming", "defer");
        }
    }

    args.socket("qmp", File::Qmp);
    args.add("-mon", "chardev=qmp,mode=control");
    // A second control connection, on which nobody ever says anything and which never ends. When the
    // last one ends QEMU closes the files it was handed since it runs; their numbers then go to later
    // files, and a disk's layer that is opened anew by its number is another file.
    args.add("-chardev", "ringbuf,id=keep,size=64");
    args.add("-mon", "chardev=keep,mode=control");
    args.socket("console", File::Console);
    args.add("-serial", "chardev:console");
    args.socket("agent", File::Agent);
    args.add("-device", "virtio-serial-device,id=serial");
    args.add("-device", format!("virtserialport,bus=serial.0,chardev=agent,name={AGENT_PORT}"));

    if let Some(disk) = &spec.disk {
        args.root_disk(disk);
        args.volume_slots();
    }

    match spec.cable {
        // The card is there all the same, and what it is plugged into has no other port.
        Cable::Loose => args.add("-netdev", "hubport,id=net,hubid=0"),
        // Without vhost, which needs a device of the kernel for each, and rights to it.
        Cable::Tap { .. } => {
            let number = args.number(File::Tap);
            args.add("-netdev", format!("tap,id=net,fd={number},vhost=off"));
        }
    }
    let mac = spec.mac.map(|byte| format!("{byte:02x}")).join(":");
    args.add("-device", format!("virtio-net-device,netdev=net,mac={mac}"));

    args.add("-object", "rng-builtin,id=rng");
    args.add("-device", "virtio-rng-device,rng=rng");
    Ok(args.words)
}

struct Arguments {
    words: Vec<OsString>,
    files: Vec<File>,
}

impl Arguments {
    fn add(&mut self, name: &str, value: impl Into<OsString>) {
        self.words.push(name.into());
        self.words.push(value.into());
    }

    fn flags(&mut self, names: &[&str]) {
        self.words.extend(names.iter().map(OsString::from));
    }

    /// The file's number in the child.
    fn number(&self, file: File) -> i32 {
        let before = self.files.iter().take_while(|other| **other != file).count();
        FIRST_FD + i32::try_from(before).unwrap_or(i32::MAX)
    }

    /// A path that opens the same file again, whatever directory it lies in.
    fn path(&self, file: File) -> String {
        format!("/proc/self/fd/{}", self.number(file))
    }

    fn json(&mut self, name: &str, value: Value) {
        self.add(name, value.to_string());
    }

    /// A listening socket bound by us. With nobody connected QEMU drops what the guest writes and
    /// goes on, and a later life of ours can connect again.
    fn socket(&mut self, id: &str, file: File) {
        let number = self.number(file);
        self.add("-chardev", format!("socket,id={id},fd={number},server=on,wait=off"));
    }

    fn memory(&mut self, spec: &BootSpec, mapping: Mapping) {
        let bytes = spec.memory_mib.bytes();
        let from_file = |args: &Self, share: bool| {
            json!({
                "qom-type": "memory-backend-file", "id": "ram", "size": bytes,
                "mem-path": args.path(File::Memory), "share": share,
            })
        };
        let memory = match mapping {
            Mapping::Own => from_file(self, true),
            Mapping::Anonymous => {
                json!({ "qom-type": "memory-backend-ram", "id": "ram", "size": bytes })
            }
            Mapping::Private => from_file(self, false),
            Mapping::PrivateReadOnly => {
                let mut memory = from_file(self, false);
                memory["readonly"] = true.into();
                // The guest may write all the same: into its own copy.
                memory["rom"] = "off".into();
                memory
            }
        };
        self.json("-object", memory);
    }

    /// Naming the backing node overrides whatever path a header holds. The format is named too: a
    /// guest's bytes are never probed.
    fn root_disk(&mut self, disk: &DiskSpec) {
        self.json(
            "-blockdev",
            json!({
                "node-name": BASE_NODE, "driver": "raw",
                "read-only": true, "auto-read-only": false,
                "file": { "driver": "file", "filename": self.path(File::Base) },
            }),
        );
        let mut below = BASE_NODE.to_owned();
        for layer in 0..disk.layers.len() {
            let node = format!("{LAYER_NODE}{}", layer + 1);
            self.json(
                "-blockdev",
                json!({
                    "node-name": node, "driver": "qcow2",
                    "read-only": true, "auto-read-only": false,
                    "backing": below,
                    "file": { "driver": "file", "filename": self.path(File::Layer(layer)) },
                }),
            );
            below = node;
        }
        self.json(
            "-blockdev",
            json!({
                "node-name": ROOT_NODE, "driver": "qcow2", "discard": "unmap",
                "backing": below,
                "file": { "driver": "file", "filename": self.path(File::Overlay) },
            }),
        );
        let device = format!("virtio-blk-device,drive={ROOT_NODE},serial={ROOT_DISK_SERIAL}");
        self.add("-device", device);
    }

    /// The slots for volumes, empty. The machine takes no new device while it runs, but what stands
    /// below a device can be exchanged: see [`super::volumes`].
    fn volume_slots(&mut self) {
        for slot in VolumeSlot::all() {
            let (device, empty) = (volumes::device_node(slot), volumes::empty_node(slot));
            self.json(
                "-blockdev",
                json!({ "node-name": empty, "driver": "null-co", "size": 0, "read-zeroes": true }),
            );
            self.json("-blockdev", volumes::device_options(slot, &empty));
            let device = format!("virtio-blk-device,id={device},drive={device},serial={device}");
            self.add("-device", device);
        }
    }
}

fn accelerator(accelerator: Accelerator) -> Result<String, VmmError> {
    match accelerator {
        Accelerator::Kvm => Ok("kvm".into()),
        Accelerator::Tcg => Ok(format!("tcg,thread=multi,tb-size={TCG_CACHE_MIB}")),
        Accelerator::None => {
            Err(VmmError::NotUsable("QEMU runs guests by kvm or tcg, not by none".into()))
        }
    }
}

fn cpu(model: CpuModel, accelerator: Accelerator) -> &'static str {
    match (model, accelerator) {
        (CpuModel::Default, Accelerator::Kvm) => "host",
        (CpuModel::Default, Accelerator::Tcg | Accelerator::None) => TCG_CPU,
    }
}

fn kernel_command_line(spec: &BootSpec, host: Host) -> Result<String, VmmError> {
    let mut words: Vec<String> = [
        "console=ttyS0",
        "quiet",
        // Reboot at once on a panic, which ends the process: a dead guest must not look alive.
        "panic=-1",
        "net.ifnames=0",
        "cryptomgr.notests",
        "audit=0",
        "random.trust_cpu=on",
        "8250.nr_uarts=1",
        "lsm=",
        // Devices reach all of guest memory; without this large guests lose 64 MiB to bounce buffers.
        "swiotlb=noforce",
    ]
    .map(String::from)
    .into();
    match host.accelerator {
        Accelerator::Kvm => {}
        Accelerator::Tcg | Accelerator::None => words.extend([
            // Emulation has nothing to mitigate, and pays for every barrier.
            "mitigations=off".into(),
            "noreplace-smp".into(),
            // The machine has no PIT, HPET or PM timer to calibrate the counter against: without its
            // frequency the guest hangs.
            format!("tsc_early_khz={}", host.tsc_khz),
            "tsc=reliable".into(),
        ]),
    }
    words.extend(spec.kernel_args.iter().cloned());
    let line = words.join(" ");
    if line.len() > MAX_KERNEL_COMMAND_LINE {
        return Err(VmmError::InvalidSpec {
            field: "kernel_args",
            reason: "the kernel's command line would be too long".into(),
        });
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use skerry_model::{MemMib, VcpuCount, spec::CpuKind};

    use super::*;
    use crate::Sandbox;

    fn spec() -> BootSpec {
        BootSpec {
            label: "ws-1".into(),
            run_dir: "/run/vm".into(),
            kernel: "/images/vmlinux".into(),
            initramfs: "/images/initramfs.cpio".into(),
            memory_file: Some("/run/vm/ram".into()),
            memory_mib: MemMib(256),
            vcpu_count: VcpuCount(2),
            cpu_kind: CpuKind::Shared,
            cpu_model: CpuModel::Default,
            disk: Some(DiskSpec {
                overlay: "/vm/root.qcow2".into(),
                layers: Vec::new(),
                base: "/images/base.raw".into(),
            }),
            mac: [0x52, 0x54, 0, 0x12, 0x34, 0xab],
            cable: Cable::Loose,
            console_log: PathBuf::from("/vm/console.log"),
            console_limit_bytes: 4096,
            kernel_args: vec!["skerry.test=1".into()],
            sandbox: Sandbox::default(),
        }
    }

    fn lines(spec: &BootSpec, accelerator: Accelerator) -> String {
        lines_of(spec, accelerator, Beginning::Boot)
    }

    fn lines_of(spec: &BootSpec, accelerator: Accelerator, beginning: Beginning) -> String {
        let args = arguments(spec, Host { accelerator, tsc_khz: 2_445_426 }, beginning).unwrap();
        let args: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
        args.join("\n")
            .replace("\n-", "\n\n-")
            .replace("\n\n", "\u{0}")
            .replace('\n', " ")
            .replace('\u{0}', "\n")
    }

    #[test]
    fn emulation_gets_the_whole_machine() {
        insta::assert_snapshot!(lines(&spec(), Accelerator::Tcg));
    }

    #[test]
    fn hardware_virtualisation_calibrates_its_own_clock() {
        insta::assert_snapshot!(lines(&spec(), Accelerator::Kvm));
    }

    /// Whose disk has layers.
    fn layered() -> BootSpec {
        let mut spec = spec();
        let layers = vec!["/layers/upper.qcow2".into(), "/layers/lower.qcow2".into()];
        spec.disk.as_mut().unwrap().layers = layers;
        spec
    }

    #[test]
    fn a_restored_machine_is_the_booted_one_without_a_kernel() {
        let beginning = Beginning::Restore(Mapping::Anonymous);
        let restored = lines_of(&spec(), Accelerator::Tcg, beginning);
        insta::assert_snapshot!(restored);
        // Device for device, in the same order: a state belongs to its devices.
        let devices = |text: &str| -> Vec<String> {
            let kinds = ["-device", "-machine", "-cpu", "-smp", "-m ", "-global", "-netdev"];
            let is_device = |line: &&str| kinds.iter().any(|kind| line.starts_with(kind));
            text.lines().filter(is_device).map(str::to_owned).collect()
        };
        assert_eq!(devices(&restored), devices(&lines(&spec(), Accelerator::Tcg)));
    }

    #[test]
    fn a_clone_maps_the_memory_privately_and_stands_on_layers() {
        let beginning = Beginning::Restore(Mapping::PrivateReadOnly);
        insta::assert_snapshot!(lines_of(&layered(), Accelerator::Tcg, beginning));
        let older = Beginning::Restore(Mapping::Private);
        let older = lines_of(&layered(), Accelerator::Tcg, older);
        assert!(older.contains("\"share\":false}") && !older.contains("rom"), "{older}");
    }

    #[test]
    fn a_saved_state_has_the_number_by_which_later_lives_name_it() {
        let all = [Mapping::Own, Mapping::Anonymous, Mapping::Private, Mapping::PrivateReadOnly];
        for mapping in all {
            let files = files(&layered(), Beginning::Restore(mapping));
            let at = files.iter().position(|file| *file == File::State).unwrap();
            assert_eq!(FIRST_FD + i32::try_from(at).unwrap(), STATE_FD);
        }
    }

    #[test]
    fn no_path_of_the_host_is_on_the_command_line() {
        let text = lines(&layered(), Accelerator::Tcg);
        for path in ["/run/vm", "/images", "/vm/", "/layers"] {
            assert!(!text.contains(path), "{path} in {text}");
        }
    }

    #[test]
    fn a_tap_is_handed_over_as_a_number_and_nothing_else_of_the_card_changes() {
        let tapped = BootSpec { cable: Cable::Tap { tap: None }, ..spec() };
        let text = lines(&tapped, Accelerator::Tcg);
        let number = FIRST_FD + i32::try_from(files(&spec(), Beginning::Boot).len()).unwrap();
        let netdev = format!("-netdev tap,id=net,fd={number},vhost=off");
        let loose = text.replace(&netdev, "-netdev hubport,id=net,hubid=0");
        assert_ne!(loose, text);
        assert_eq!(loose, lines(&spec(), Accelerator::Tcg));
    }

    #[test]
    fn without_a_disk_nothing_of_one_is_left() {
        let text = lines(&BootSpec { disk: None, ..spec() }, Accelerator::Tcg);
        assert!(!text.contains("blockdev") && !text.contains("virtio-blk"), "{text}");
    }
}
