"""Drives suspend, resume, clone and snapshots of the unmodified PyPI package `instavm` against SKERRY_URL."""

import os
import time

import requests
from instavm import ExecutionError, ForbiddenError, InstaVM

URL, KEY = os.environ["SKERRY_URL"], os.environ["SKERRY_KEY"]
client = InstaVM(api_key=KEY, base_url=URL, auto_start_session=False)


def shell(session, command, code=0):
    client.session_id = session
    result = client.execute(command, language="bash", timeout=120)
    assert result["exit_code"] == code, (command, result)
    return result["stdout"]


def status_of(call):
    try:
        call()
    except requests.HTTPError as error:
        return error.response.status_code
    return 200


def until(vm, status):
    deadline = time.monotonic() + 120
    while (record := client.vms.get(vm))["status"] != status:
        assert time.monotonic() < deadline, record
        time.sleep(0.1)
    return record


# A file, and a process that counts. Which process it is says the moment of its start too.
BEGIN = """
echo kept > /root/file
setsid sh -c 'i=0; while :; do i=$((i+1)); echo $i > /root/count; sleep 0.1; done' >/dev/null 2>&1 &
echo $! > /root/pid
"""
PROCESS = 'p=$(cat /root/pid); echo $p $(cut -d" " -f22 /proc/$p/stat)'
COUNTS = 'a=$(cat /root/count); for _ in $(seq 100); do sleep 0.1; [ "$(cat /root/count)" != "$a" ] && exit 0; done; exit 1'

made = client.vms.create(memory_mb=256, vcpu_count=1, metadata={"team": "e2e"})
first, session = made["vm_id"], made["session_id"]
shell(session, BEGIN)
shell(session, COUNTS)
process = shell(session, PROCESS)

# Parked: nothing of it answers until it is resumed, as another VM of the same session.
assert client.vms.suspend(first)["status"] == "suspended"
assert client.vms.get(first)["status"] == "suspended"
assert client.get_session_status()["vm_status"] == "suspended"
assert not client.is_session_active()
try:
    shell(session, "true")
except ExecutionError as error:
    assert "409" in str(error), error
else:
    raise AssertionError("a parked VM ran a command")
resumed = client.vms.resume(first)
second = resumed["vm_id"]
assert resumed["status"] == "active" and resumed["session_id"] == session, resumed
assert second != first
assert client.vms.get(first)["vm_id"] == client.vms.get(second)["vm_id"] == second
assert client.is_session_active()
assert shell(session, "cat /root/file") == "kept\n"
assert shell(session, PROCESS) == process
shell(session, COUNTS)

# Woken by use, once it may be.
assert client.vms.update(second, auto_resume=True)["auto_resume"] is True
client.vms.suspend(second)
assert shell(session, PROCESS) == process
third = client.vms.get(second)["vm_id"]
assert third not in (first, second)

# A snapshot, and a VM made from it: its size, its file, its process, another machine.
snapshot = client.vms.snapshot(third, name="dev-base")
assert snapshot["status"] == "ready", snapshot
assert client.snapshots.get(snapshot["snapshot_id"])["name"] == "dev-base"
assert [item["id"] for item in client.snapshots.list(snapshot_type="user")] == [snapshot["id"]]
assert client.snapshots.list(snapshot_type="system") == []
copy = client.vms.create(snapshot_id=snapshot["id"])
assert copy["session_id"] != session
record = client.vms.get(copy["vm_id"])
assert (record["snapshot_id"], record["memory_mb"]) == (snapshot["id"], 256), record
assert shell(copy["session_id"], "cat /root/file") == "kept\n"
assert shell(copy["session_id"], PROCESS) == process
identity = "cat /etc/machine-id"
assert shell(copy["session_id"], identity) != shell(session, identity)
shell(session, "echo changed > /root/file")
assert shell(copy["session_id"], "cat /root/file") == "kept\n"

# A clone; the snapshot in between is gone.
clone = client.vms.clone(third)
assert clone["status"] == "active" and clone["snapshot_deleted"] is True, clone
assert clone["vm_id"] != third and clone["session_id"] not in (session, copy["session_id"])
assert shell(clone["session_id"], "cat /root/file") == "changed\n"
assert shell(clone["session_id"], PROCESS) == process
shell(clone["session_id"], COUNTS)
assert client.vms.get(clone["vm_id"])["metadata"] == {"team": "e2e"}
assert [item["name"] for item in client.snapshots.list()] == ["dev-base"]

# What is terminated leaves a snapshot.
client.vms.update(clone["vm_id"], snapshot_on_terminate=True, snapshot_name="last")
client.vms.delete(clone["vm_id"])
last = [item for item in client.snapshots.list() if item["name"] == "last"]
assert [item["status"] for item in last] == ["ready"], last
heir = client.vms.create(snapshot_id=last[0]["id"], vm_lifetime_seconds=3, auto_suspend=True)
assert shell(heir["session_id"], "cat /root/file") == "changed\n"

# Its time is over: parked instead of killed. With a new lifetime it goes on.
parked = until(heir["vm_id"], "suspended")
assert parked["auto_suspend"] is True
renewed = client.vms.update(heir["vm_id"], vm_lifetime_seconds=600, auto_suspend=False)
assert (renewed["vm_lifetime_seconds"], renewed["auto_suspend"]) == (600, False), renewed
heir_id = client.vms.resume(heir["vm_id"])["vm_id"]
assert client.vms.get(heir_id)["expires_at"] is not None
assert shell(heir["session_id"], "cat /root/file") == "changed\n"

# Nothing that runs needs a snapshot it was made from.
for item in client.snapshots.list():
    assert client.snapshots.delete(item["id"])["status"] == "deleted"
assert client.snapshots.list() == []
assert shell(copy["session_id"], "cat /root/file") == "kept\n"

# As the package maps refusals.
gone = snapshot["id"]
assert status_of(lambda: client.snapshots.get(gone)) == 404
assert status_of(lambda: client.snapshots.delete(gone)) == 404
assert status_of(lambda: client.vms.create(snapshot_id=gone)) == 404
assert status_of(lambda: client.vms.suspend("vm_none")) == 404
assert status_of(lambda: client.vms.resume("vm_none")) == 404
assert status_of(lambda: client.vms.clone("vm_none")) == 404
assert status_of(lambda: client.vms.snapshot(third, name="x" * 256)) == 422
assert status_of(lambda: client.snapshots.create(oci_image="python:3.11-slim")) == 400
client.vms.suspend(heir_id)
assert status_of(lambda: client.vms.update(heir_id, memory_mb=512)) == 409
try:
    client.vms.update(third, vm_lifetime_seconds=40_000_000)
except ForbiddenError as error:
    assert "VM lifetime cannot exceed 31536000s" in str(error), error
else:
    raise AssertionError("a lifetime that is too long was accepted")

for vm in (first, copy["vm_id"], heir["vm_id"]):
    client.vms.delete(vm)
assert client.vms.list_all_records() == []
assert client.snapshots.list() == []
print("instavm life: ok")
