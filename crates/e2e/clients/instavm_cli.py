"""Drives the command of the unmodified PyPI package `instavm` against SKERRY_URL, each call a process."""

import json
import os
import subprocess
import sys

ENVIRONMENT = {
    **os.environ,
    "INSTAVM_BASE_URL": os.environ["SKERRY_URL"],
    "INSTAVM_API_KEY": os.environ["SKERRY_KEY"],
}


def instavm(*args):
    command = [sys.executable, "-m", "instavm", *args]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def answer(*args):
    done = instavm(*args, "--json")
    assert done.returncode == 0, (args, done.stdout, done.stderr)
    return json.loads(done.stdout)


account = answer("whoami")
assert (account["name"], account["ssh_keys"]) == ("admin", []), account

made = answer("create", "--timeout", "120", "--memory", "256", "--vcpu", "1")
assert made["status"] == "active", made
vm = made["vm_id"]
assert [item["vm_id"] for item in answer("ls")["vms"]] == [vm]
assert [item["vm_id"] for item in answer("ls", "--all")["vms"]] == [vm]

# The VM's own session: what was asked for is what is there.
inside = answer(
    "exec", "--session", made["session_id"], "--language", "bash", "--cmd",
    "nproc; awk '/MemTotal/ {print ($2 < 262144)}' /proc/meminfo; exit 3",
)
assert (inside["stdout"], inside["exit_code"]) == ("1\n1\n", 3), inside

for args, words in [
    (["create", "--memory", "100"], "greater than or equal to 128"),
    (["create", "--vcpu", "9"], "less than or equal to 8"),
    (["create", "--snapshot", "snap_1"], "Snapshot not found"),
    (["snapshot", "build", "python:3.11-slim"], "oci_image is not available"),
    (["vm", "update", vm, "--snapshot-name", "alone"], "goes with snapshot_on_terminate"),
    (["create", "--volume", "v:/data"], "volume not found"),
    (["create", "--timeout", "99999999"], "VM lifetime cannot exceed 31536000s"),
    (["create", "--session", made["session_id"]], "already has a live VM"),
]:
    refused = instavm(*args)
    said = refused.stdout + refused.stderr
    assert refused.returncode != 0 and words in said, (args, said)
assert len(answer("ls", "--all")["vms"]) == 1

# Parked and resumed as another VM; both ids lead to it.
updated = answer("vm", "update", vm, "--auto-suspend", "--auto-resume")
assert (updated["auto_suspend"], updated["auto_resume"]) == (True, True), updated
assert answer("vm", "suspend", vm)["status"] == "suspended"
resumed = answer("vm", "resume", vm)
assert resumed["status"] == "active" and resumed["vm_id"] != vm, resumed
assert [item["vm_id"] for item in answer("ls")["vms"]] == [resumed["vm_id"]]

# A snapshot, a VM made from it, a clone.
snapshot = answer("snapshot", "create", vm, "--name", "kept")
assert snapshot["status"] == "ready", snapshot
listed = answer("snapshot", "ls", "--type", "user")["snapshots"]
assert [item["name"] for item in listed] == ["kept"], listed
assert answer("snapshot", "get", snapshot["id"])["status"] == "ready"
copy = answer("create", "--snapshot", snapshot["id"])
assert copy["status"] == "active", copy
clone = answer("clone", vm)
assert clone["status"] == "active", clone
assert answer("snapshot", "rm", snapshot["id"])["status"] == "deleted"
for other in (copy["vm_id"], clone["vm_id"]):
    assert instavm("rm", other).returncode == 0

assert instavm("rm", vm).returncode == 0
again = instavm("rm", vm)
assert again.returncode != 0 and "VM not found" in again.stdout + again.stderr, again
assert answer("ls", "--all")["vms"] == []
print("instavm cli: ok")
