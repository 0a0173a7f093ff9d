"""Run inside a workspace as root: uses what containers and usual programs ask of a kernel, for real.

Prints one line for each thing, `ok NAME` or `FAILED NAME: why`, and nothing else on standard output.
Needs Python, util-linux, iproute2 and e2fsprogs. Numbers are those of Linux for x86-64.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import struct
import subprocess
import tempfile

libc = ctypes.CDLL(None, use_errno=True)


def syscall(number, *arguments):
    """The result, or OSError. Numbers go as 64 bits: the C library's own type for them is `long`."""
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def in_child(work):
    """Does `work` in a process of its own, which it may spoil."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.write(writer, b"ok")
        except BaseException as failure:
            os.write(writer, str(failure).encode()[:400] or b"failed")
        os._exit(0)
    os.close(writer)
    answer = b"".join(iter(lambda: os.read(reader, 4096), b"")).decode()
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    if answer != "ok":
        raise RuntimeError(answer or f"ended with status {status}")


def unshare(flags):
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")


CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWTIME = 0x10000000, 0x20000000, 0x40000000, 0x80


def name_spaces():
    flags = (CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID,
             CLONE_NEWNET, CLONE_NEWTIME)
    for flag in flags:
        in_child(lambda: unshare(flag))


def unprivileged_user_name_space():
    def work():
        os.setuid(65534)
        unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET)

    in_child(work)


def overlay():
    def work():
        unshare(CLONE_NEWNS)
        run("mount", "--make-rprivate", "/")
        with tempfile.TemporaryDirectory() as top:
            run("mount", "-t", "tmpfs", "none", top)
            for name in ("lower", "upper", "work", "merged"):
                os.mkdir(f"{top}/{name}")
            with open(f"{top}/lower/file", "w") as file:
                file.write("lower")
            layers = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work"
            run("mount", "-t", "overlay", "-o", layers, "none", f"{top}/merged")
            with open(f"{top}/merged/file", "a") as file:
                file.write(" and upper")
            assert open(f"{top}/upper/file").read() == "lower and upper"
            assert open(f"{top}/lower/file").read() == "lower"
            run("umount", f"{top}/merged")
            run("umount", top)

    in_child(work)


def loop_device():
    with tempfile.TemporaryDirectory() as top:
        image, at = f"{top}/image", f"{top}/at"
        os.mkdir(at)
        with open(image, "wb") as file:
            file.truncate(16 << 20)
        run("mkfs.ext4", "-q", "-F", image)
        run("mount", "-o", "loop", image, at)
        try:
            with open(f"{at}/file", "w") as file:
                file.write("inside")
        finally:
            run("umount", at)


def file_systems():
    known = {line.split()[-1] for line in open("/proc/filesystems")}
    wanted = {"overlay", "ext4", "tmpfs", "fuse", "virtiofs", "squashfs", "erofs", "mqueue",
              "hugetlbfs", "cgroup", "cgroup2", "binfmt_misc", "devpts", "proc", "sysfs", "autofs"}
    assert wanted <= known, f"unknown: {sorted(wanted - known)}"


def control_groups():
    rows = [line.split() for line in open("/proc/cgroups") if not line.startswith("#")]
    enabled = {row[0] for row in rows if row[3] == "1"}
    wanted = {"cpuset", "cpu", "cpuacct", "blkio", "memory", "devices", "freezer", "net_cls",
              "perf_event", "net_prio", "hugetlb", "pids", "misc"}
    assert wanted <= enabled, f"not enabled: {sorted(wanted - enabled)}"


def old_control_groups_can_be_mounted():
    def work():
        unshare(CLONE_NEWNS)
        run("mount", "--make-rprivate", "/")
        with tempfile.TemporaryDirectory() as top:
            run("mount", "-t", "cgroup", "-o", "none,name=test", "none", top)
            run("umount", top)

    in_child(work)


def seccomp_filter():
    def work():
        # Loads the number of the system call; getppid (110) fails with EPERM, the rest is allowed.
        program = b"".join(struct.pack("HBBI", *step) for step in (
            (0x20, 0, 0, 0), (0x15, 0, 1, 110), (0x06, 0, 0, 0x50000 | errno.EPERM),
            (0x06, 0, 0, 0x7FFF0000)))
        buffer = ctypes.create_string_buffer(program)
        filter = struct.pack("HxxxxxxQ", 4, ctypes.addressof(buffer))
        assert libc.prctl(38, 1, 0, 0, 0) == 0
        assert libc.prctl(22, 2, ctypes.create_string_buffer(filter), 0, 0) == 0
        try:
            syscall(110)
        except PermissionError:
            return
        raise RuntimeError("the filter did nothing")

    in_child(work)


def keyring():
    key = syscall(248, b"user", b"skerry-test", b"secret", 6, -3)
    buffer = ctypes.create_string_buffer(16)
    assert syscall(250, 11, key, buffer, 16) == 6 and buffer.value == b"secret"


def posix_message_queue():
    queue = syscall(240, b"skerry-test", os.O_CREAT | os.O_RDWR, 0o600, 0)
    syscall(242, queue, b"hello", 5, 0, 0)
    buffer = ctypes.create_string_buffer(8192)
    assert syscall(243, queue, buffer, 8192, 0, 0) == 5 and buffer.value == b"hello"
    os.close(queue)
    syscall(241, b"skerry-test")


def tun_device():
    with open("/dev/net/tun", "rb+", buffering=0) as tun:
        fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"skerrytun", 0x1001))
        assert "skerrytun" in run("ip", "-brief", "link")


def wireguard():
    def work():
        unshare(CLONE_NEWNET)
        run("ip", "link", "add", "wg0", "type", "wireguard")

    in_child(work)


def other_links():
    def work():
        unshare(CLONE_NEWNET)
        run("ip", "link", "add", "d0", "type", "dummy")
        run("ip", "link", "add", "link", "d0", "name", "m0", "type", "macvlan", "mode", "bridge")
        run("ip", "link", "add", "d1", "type", "dummy")
        run("ip", "link", "add", "link", "d1", "name", "i0", "type", "ipvlan", "mode", "l2")
        run("ip", "link", "add", "link", "d0", "name", "v7", "type", "vlan", "id", "7")
        run("ip", "link", "add", "x0", "type", "vxlan", "id", "7", "dstport", "4789", "dev", "d0")

    in_child(work)


# -- nftables, spoken directly: the image has no command for it. Linux include/uapi/linux/netfilter/ --


def attribute(kind, payload):
    if isinstance(payload, str):
        payload = payload.encode() + b"\0"
    elif isinstance(payload, int):
        payload = struct.pack(">I", payload)
    length = 4 + len(payload)
    return struct.pack("HH", length, kind) + payload + bytes(-length % 4)


def nested(kind, *attributes):
    return attribute(kind | 0x8000, b"".join(attributes))


def nft_transaction(*messages):
    """Each message is (type, family, flags, attributes). Every one has to be acknowledged."""
    NEW, ACK, IPV4 = 0x400, 0x4, 2
    batch, sequence = b"", 1

    def message(kind, flags, family, resource, payload):
        nonlocal batch, sequence
        payload = struct.pack(">BBH", family, 0, resource) + payload
        batch += struct.pack("IHHII", 16 + len(payload), kind, flags, sequence, 0) + payload
        sequence += 1

    message(0x10, 1, 0, 10, b"")
    for kind, attributes in messages:
        message(0xA00 | kind, 1 | ACK | NEW, IPV4, 0, attributes)
    message(0x11, 1, 0, 10, b"")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
        netlink.bind((0, 0))
        netlink.settimeout(10)
        netlink.send(batch)
        acknowledged = 0
        while acknowledged < len(messages):
            data = netlink.recv(65536)
            while data:
                length, kind, _, number, _ = struct.unpack_from("IHHII", data)
                code = struct.unpack_from("i", data, 16)[0]
                assert kind == 2 and code == 0, f"message {number}: {os.strerror(-code)}"
                acknowledged += 1
                data = data[length + -length % 4:]


def masquerade_with_nftables(address):
    """`ip daddr ADDRESS masquerade` in a chain of the hook postrouting."""
    NEWTABLE, NEWCHAIN, NEWRULE = 0, 3, 6
    payload = nested(1, attribute(1, "payload"),
                     nested(2, attribute(1, 1), attribute(2, 1), attribute(3, 16), attribute(4, 4)))
    compare = nested(1, attribute(1, "cmp"),
                     nested(2, attribute(1, 1), attribute(2, 0),
                            nested(3, attribute(1, socket.inet_aton(address)))))
    count = nested(1, attribute(1, "counter"), nested(2))
    masquerade = nested(1, attribute(1, "masq"), nested(2))
    hook = nested(4, attribute(1, 4), attribute(2, 100))
    nft_transaction(
        (NEWTABLE, attribute(1, "skerry") + attribute(2, 0)),
        (NEWCHAIN, attribute(1, "skerry") + attribute(3, "post") + hook + attribute(7, "nat")),
        (NEWRULE, attribute(1, "skerry") + attribute(2, "post")
         + nested(4, payload, compare, count, masquerade)))


@contextlib.contextmanager
def network(name):
    run("ip", "netns", "add", name)
    try:
        yield name
    finally:
        run("ip", "netns", "del", name)


def container_network():
    """A container behind a bridge speaks to the outside under the address of its host."""
    serve = ("import socket; s = socket.create_server(('192.0.2.2', 7)); print(flush=True);"
             "c, a = s.accept(); c.sendall(a[0].encode())")
    ask = ("import socket; s = socket.create_connection(('192.0.2.2', 7), 20);"
           "print(s.recv(100).decode())")

    def work():
        unshare(CLONE_NEWNET)
        with network("skerry-in") as inside, network("skerry-out") as outside:
            run("ip", "link", "set", "lo", "up")
            run("ip", "link", "add", "bridge0", "type", "bridge", "vlan_filtering", "0")
            run("ip", "addr", "add", "10.99.0.1/24", "dev", "bridge0")
            run("ip", "link", "set", "bridge0", "up")
            run("ip", "link", "add", "in0", "type", "veth", "peer", "name", "eth0", "netns", inside)
            run("ip", "link", "set", "in0", "master", "bridge0", "up")
            run("ip", "-n", inside, "addr", "add", "10.99.0.2/24", "dev", "eth0")
            run("ip", "-n", inside, "link", "set", "eth0", "up")
            run("ip", "-n", inside, "route", "add", "default", "via", "10.99.0.1")
            run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", outside)
            run("ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
            run("ip", "link", "set", "up0", "up")
            run("ip", "-n", outside, "addr", "add", "192.0.2.2/24", "dev", "eth0")
            run("ip", "-n", outside, "link", "set", "eth0", "up")
            with open("/proc/sys/net/ipv4/ip_forward", "w") as forward:
                forward.write("1")
            masquerade_with_nftables("192.0.2.2")
            enter = ("ip", "netns", "exec")
            server = subprocess.Popen((*enter, outside, "python3", "-c", serve),
                                      stdout=subprocess.PIPE)
            try:
                server.stdout.readline()
                seen = run(*enter, inside, "python3", "-c", ask).strip()
                assert seen == "192.0.2.1", f"the outside saw {seen}"
            finally:
                server.kill()
                server.wait()

    in_child(work)


def old_iptables():
    """Each of its tables answers `IPT_SO_GET_INFO` (64)."""
    for family, level in ((socket.AF_INET, socket.SOL_IP), (socket.AF_INET6, socket.IPPROTO_IPV6)):
        with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for table in (b"filter", b"nat", b"mangle", b"raw"):
                info = ctypes.create_string_buffer(table, 84)
                length = ctypes.c_uint(84)
                result = libc.getsockopt(raw.fileno(), level, 64, info, ctypes.byref(length))
                assert result == 0, f"{family.name} {table.decode()}: {ctypes.get_errno()}"


def connection_tracking():
    assert os.path.exists("/proc/sys/net/netfilter/nf_conntrack_max")
    assert os.path.exists("/proc/sys/net/bridge/bridge-nf-call-iptables")
    assert os.path.exists("/proc/net/ip_vs")


def io_uring():
    os.close(syscall(425, 4, ctypes.create_string_buffer(120)))


def userfaultfd():
    os.close(syscall(323, os.O_CLOEXEC))


def notifications():
    os.close(syscall(294, 0))
    os.close(syscall(300, 0, os.O_RDONLY))


def bpf_map():
    attributes = ctypes.create_string_buffer(struct.pack("IIIII", 2, 4, 8, 16, 0), 72)
    os.close(syscall(321, 0, attributes, 72))


def perf_event():
    # A software event: the clock of a CPU.
    attributes = ctypes.create_string_buffer(struct.pack("IIQ", 1, 112, 0), 112)
    os.close(syscall(298, attributes, 0, -1, -1, 0))


def other_system_calls():
    os.close(os.memfd_create("skerry"))
    os.close(os.pidfd_open(os.getpid()))
    # kcmp, membarrier (query), name_to_handle_at (of too small a buffer), process_vm_readv
    assert syscall(312, os.getpid(), os.getpid(), 2, 0, 0) == 0
    assert syscall(324, 0, 0, 0) > 0
    try:
        syscall(303, -100, b"/", ctypes.create_string_buffer(8), ctypes.create_string_buffer(4), 0)
    except OSError as failure:
        assert failure.errno == errno.EOVERFLOW, failure
    assert syscall(310, os.getpid(), None, 0, None, 0, 0) == 0


def vsock():
    socket.socket(40, socket.SOCK_STREAM).close()


def swap_in_a_file():
    with tempfile.TemporaryDirectory() as top:
        swap = f"{top}/swap"
        with open(swap, "wb") as file:
            file.write(bytes(4 << 20))
        os.chmod(swap, 0o600)
        run("mkswap", swap)
        run("swapon", swap)
        run("swapoff", swap)


def huge_pages():
    with open("/proc/sys/vm/nr_hugepages", "w") as count:
        count.write("1")
    try:
        MAP_HUGETLB = 0x40000
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB
        with mmap.mmap(-1, 2 << 20, flags) as page:
            page[0] = 1
    finally:
        with open("/proc/sys/vm/nr_hugepages", "w") as count:
            count.write("0")
    assert os.path.exists("/sys/kernel/mm/transparent_hugepage/enabled")


def pressure():
    for what in ("cpu", "memory", "io"):
        assert open(f"/proc/pressure/{what}").read().startswith("some")


def programs_of_32_bits():
    # An ELF file of one instruction more than `exit(42)`: header, one segment, code.
    code = b"\xb8\x01\0\0\0\xbb\x2a\0\0\0\xcd\x80"
    base, size = 0x8048000, 52 + 32 + len(code)
    header = struct.pack("<16sHHIIIIIHHHHHH", b"\x7fELF\x01\x01\x01", 2, 3, 1, base + 84, 52, 0, 0,
                         52, 32, 1, 0, 0, 0)
    segment = struct.pack("<IIIIIIII", 1, 0, base, base, size, size, 5, 0x1000)
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(header + segment + code)
    try:
        os.chmod(file.name, 0o700)
        assert subprocess.run([file.name]).returncode == 42
    finally:
        os.unlink(file.name)


def tracing_of_processes():
    pid = os.fork()
    if pid == 0:
        libc.ptrace(0, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(7)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSTOPPED(status)
    libc.ptrace(7, pid, 0, 0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7


def its_configuration():
    import gzip
    text = gzip.open("/proc/config.gz", "rt").read()
    assert "CONFIG_OVERLAY_FS=y" in text and "=m\n" not in text


def terminals():
    leader, follower = os.openpty()
    os.close(leader)
    os.close(follower)


def an_idle_guest_does_not_tick():
    """Timer interrupts of all CPUs in a second in which nothing happens: fewer than its 100 Hz."""
    import time

    def interrupts():
        rows = [line for line in open("/proc/interrupts") if line.strip().startswith("LOC:")]
        return sum(int(word) for word in rows[0].split() if word.isdigit())

    fewest = None
    for _ in range(5):
        before = interrupts()
        time.sleep(1)
        ticks = interrupts() - before
        fewest = ticks if fewest is None else min(fewest, ticks)
    assert fewest < 50, f"{fewest} timer interrupts a second"


CHECKS = (
    name_spaces, unprivileged_user_name_space, overlay, loop_device, file_systems, control_groups,
    old_control_groups_can_be_mounted, seccomp_filter, keyring, posix_message_queue, tun_device,
    wireguard, other_links, container_network, old_iptables, connection_tracking, io_uring,
    userfaultfd, notifications, bpf_map, perf_event, other_system_calls, vsock, swap_in_a_file,
    huge_pages, pressure, programs_of_32_bits, tracing_of_processes,
    its_configuration, terminals, an_idle_guest_does_not_tick,
)

for check in CHECKS:
    try:
        check()
        print(f"ok {check.__name__}", flush=True)
    except Exception as failure:
        print(f"FAILED {check.__name__}: {type(failure).__name__} {failure}", flush=True)
