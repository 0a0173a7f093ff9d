//! The arguments of QEMU: which machine the guest sees.
//!
//! Machine `microvm` with virtio-mmio devices and an uncompressed kernel entered through PVH. Every
//! file is named by its number in the child ([`Files`]), never by its path: the process's user need
//! not be able to reach it.

use std::ffi::OsString;

use serde_json::{Value, json};

use super::spawn::FIRST_FD;
use crate::{Accelerator, BootSpec, CpuModel, VmmError};

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

/// The order in which files are handed to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum File {
    Qmp,
    Agent,
    Console,
    Memory,
    Kernel,
    Initramfs,
    Base,
    Overlay,
}

impl File {
    /// Its number in the child.
    fn number(self) -> i32 {
        FIRST_FD + self as i32
    }

    /// A path that opens the same file again, whatever directory it lies in.
    fn path(self) -> String {
        format!("/proc/self/fd/{}", self.number())
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
pub(super) fn arguments(spec: &BootSpec, host: Host) -> Result<Vec<OsString>, VmmError> {
    let mut args = Arguments(Vec::new());
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
    args.json(
        "-object",
        json!({
            "qom-type": "memory-backend-file", "id": "ram", "size": spec.memory_mib.bytes(),
            "mem-path": File::Memory.path(), "share": true,
        }),
    );

    args.add("-kernel", File::Kernel.path());
    args.add("-initrd", File::Initramfs.path());
    args.add("-append", kernel_command_line(spec, host)?);

    args.socket("qmp", File::Qmp);
    args.add("-mon", "chardev=qmp,mode=control");
    args.socket("console", File::Console);
    args.add("-serial", "chardev:console");
    args.socket("agent", File::Agent);
    args.add("-device", "virtio-serial-device,id=serial");
    args.add("-device", format!("virtserialport,bus=serial.0,chardev=agent,name={AGENT_PORT}"));

    if spec.disk.is_some() {
        args.root_disk();
    }

    // The card is there from the start, so that templates keep their device list; its cable ends in
    // a hub with no other port.
    args.add("-netdev", "hubport,id=net,hubid=0");
    let mac = spec.mac.map(|byte| format!("{byte:02x}")).join(":");
    args.add("-device", format!("virtio-net-device,netdev=net,mac={mac}"));

    args.add("-object", "rng-builtin,id=rng");
    args.add("-device", "virtio-rng-device,rng=rng");
    Ok(args.0)
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn add(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    fn flags(&mut self, names: &[&str]) {
        self.0.extend(names.iter().map(OsString::from));
    }

    fn json(&mut self, name: &str, value: Value) {
        self.add(name, value.to_string());
    }

    /// A listening socket bound by us. With nobody connected QEMU drops what the guest writes and
    /// goes on, and a later life of ours can connect again.
    fn socket(&mut self, id: &str, file: File) {
        let number = file.number();
        self.add("-chardev", format!("socket,id={id},fd={number},server=on,wait=off"));
    }

    fn root_disk(&mut self) {
        self.json(
            "-blockdev",
            json!({
                "node-name": "base", "driver": "raw",
                "read-only": true, "auto-read-only": false,
                "file": { "driver": "file", "filename": File::Base.path() },
            }),
        );
        self.json(
            "-blockdev",
            // Naming the backing node overrides whatever path the overlay's own header holds. The
            // format is named too: a guest's bytes are never probed.
            json!({
                "node-name": "root", "driver": "qcow2", "discard": "unmap",
                "backing": "base",
                "file": { "driver": "file", "filename": File::Overlay.path() },
            }),
        );
        self.add("-device", format!("virtio-blk-device,drive=root,serial={ROOT_DISK_SERIAL}"));
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
    use crate::{DiskSpec, Sandbox};

    fn spec() -> BootSpec {
        BootSpec {
            label: "ws-1".into(),
            run_dir: "/run/vm".into(),
            kernel: "/images/vmlinux".into(),
            initramfs: "/images/initramfs.cpio".into(),
            memory_file: "/run/vm/ram".into(),
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
            console_log: PathBuf::from("/vm/console.log"),
            console_limit_bytes: 4096,
            kernel_args: vec!["skerry.test=1".into()],
            sandbox: Sandbox::default(),
        }
    }

    fn lines(spec: &BootSpec, accelerator: Accelerator) -> String {
        let args = arguments(spec, Host { accelerator, tsc_khz: 2_445_426 }).unwrap();
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

    #[test]
    fn no_path_of_the_host_is_on_the_command_line() {
        let text = lines(&spec(), Accelerator::Tcg);
        for path in ["/run/vm", "/images", "/vm/"] {
            assert!(!text.contains(path), "{path} in {text}");
        }
    }

    #[test]
    fn without_a_disk_nothing_of_one_is_left() {
        let text = lines(&BootSpec { disk: None, ..spec() }, Accelerator::Tcg);
        assert!(!text.contains("blockdev") && !text.contains("virtio-blk"), "{text}");
    }
}
