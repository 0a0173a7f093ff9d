"""Drives volumes with the unmodified PyPI package `instavm` against SKERRY_URL."""

import os
import tempfile

import requests
from instavm import InstaVM, InstaVMError

URL, KEY = os.environ["SKERRY_URL"], os.environ["SKERRY_KEY"]
client = InstaVM(api_key=KEY, base_url=URL, auto_start_session=False)
SIZE = {"memory_mb": 256, "vcpu_count": 1}


def shell(vm, command, code=0):
    client.session_id = vm["session_id"]
    result = client.execute(command, language="bash", timeout=120)
    assert result["exit_code"] == code, (command, result)
    return result["stdout"]


def refused(status, call, *words):
    try:
        call()
    except requests.HTTPError as error:
        assert error.response.status_code == status, error.response.text
        assert all(word in error.response.json()["detail"] for word in words), error.response.text
        return
    raise AssertionError(f"not refused with {status}")


volume = client.volumes.create("data", 64 * 1024 * 1024)
assert volume["status"] == "ready" and volume["quota_bytes"] == 64 * 1024 * 1024, volume
data = volume["id"]
refused(409, lambda: client.volumes.create("data", 1 << 26), "data")
assert [one["id"] for one in client.volumes.list(refresh_usage=True)] == [data]
assert client.volumes.update(data, name="set")["name"] == "set"
assert client.volumes.get(data, refresh_usage=True)["used_bytes"] > 0

# Files, while no VM has it: served by the server's own.
with tempfile.TemporaryDirectory() as here:
    local, back = os.path.join(here, "local"), os.path.join(here, "back")
    content = bytes(range(256)) * 1024
    with open(local, "wb") as file:
        file.write(content)
    assert client.volumes.upload_file(data, local, "/models/one")["size"] == len(content)
    try:
        client.volumes.upload_file(data, local, "models/one")
    except InstaVMError as error:
        # The package wraps what the server said.
        assert "409" in str(error), error
    else:
        raise AssertionError("a file was replaced unasked")
    client.volumes.upload_file(data, local, "models/one", overwrite=True)
    found = client.volumes.list_files(data, prefix="models/")
    assert [(one["path"], one["size"]) for one in found] == [("models/one", len(content))], found
    assert client.volumes.download_file(data, "models/one", local_path=back)["saved_bytes"] == len(content)
    with open(back, "rb") as file:
        assert file.read() == content
    refused(404, lambda: client.volumes.download_file(data, "models/two"))
    client.volumes.delete_file(data, "models/one")
    assert client.volumes.list_files(data) == []
    # An empty directory goes in the same way.
    client.volumes.delete_file(data, "models")
    assert client.volumes.list_files(data, recursive=False) == []
    with open(local, "w") as file:
        file.write("from outside\n")
    client.volumes.upload_file(data, local, "note")
assert client.volumes.update(data, quota_bytes=96 * 1024 * 1024)["quota_bytes"] == 96 * 1024 * 1024
refused(422, lambda: client.volumes.update(data, quota_bytes=1))

# Made with the VM, and nobody else's to write meanwhile.
first = client.vms.create(volumes=[{"volume_id": data, "mount_path": "/data", "mode": "rw"}], **SIZE)
mounts = client.vms.list_volumes(first["vm_id"])
assert [(one["volume_id"], one["mount_path"], one["mode"]) for one in mounts] == [(data, "/data", "rw")], mounts
shell(first, "echo first > /data/file && sync /data/file")
# Its files are reached through the VM meanwhile.
assert shell(first, "cat /data/note") == "from outside\n"
client.volumes.delete_file(data, "note")
shell(first, "! test -e /data/note && mkdir /data/dir && ln -s /etc/hostname /data/dir/out")
assert [one["path"] for one in client.volumes.list_files(data, prefix="dir/")] == ["dir/out"]
refused(409, lambda: client.volumes.download_file(data, "dir/out"))
shell(first, "rm -r /data/dir")
assert client.volumes.update(data, quota_bytes=128 * 1024 * 1024)["quota_bytes"] == 128 * 1024 * 1024
assert int(shell(first, "df -Pm /data | tail -1 | awk '{print $2}'")) > 96
second = client.vms.create(**SIZE)
for mode in ("rw", "ro"):
    refused(409, lambda: client.vms.mount_volume(second["vm_id"], data, "/data", mode=mode), "attached for writing")
refused(409, lambda: client.volumes.delete(data), "attached")

# What is on it outlives the VM, and is there at once in one that runs.
client.vms.delete(first["vm_id"])
mounted = client.vms.mount_volume(second["vm_id"], data, "/srv/data")
assert (mounted["mount_path"], mounted["mode"], mounted["status"]) == ("/srv/data", "rw", "mounted"), mounted
assert shell(second, "cat /srv/data/file") == "first\n"
shell(second, "echo second > /srv/data/file")
# Somebody has a file open: it stays.
shell(second, "(cd /srv/data && exec setsid sleep 600 > /dev/null 2>&1 < /dev/null & echo $! > /root/pid)")
refused(409, lambda: client.vms.unmount_volume(second["vm_id"], data, "/srv/data"), "uses it")
assert shell(second, "cat /srv/data/file; kill $(cat /root/pid); while kill -0 $(cat /root/pid) 2> /dev/null; do :; done") == "second\n"
assert client.vms.unmount_volume(second["vm_id"], data, "/srv/data")["status"] == "unmounted"
assert client.vms.list_volumes(second["vm_id"]) == []

# What it was at a moment is kept, while a guest writes on, and read by who likes.
client.vms.mount_volume(second["vm_id"], data, "/srv/data")
shell(second, "echo kept > /srv/data/then")
checkpoint = client.volumes.create_checkpoint(data, name="before")
assert (checkpoint["name"], checkpoint["status"]) == ("before", "ready"), checkpoint
shell(second, "echo changed > /srv/data/then; rm /srv/data/file")
fourth = client.vms.create(
    volumes=[{"volume_id": data, "mount_path": "/then", "mode": "ro", "checkpoint_id": checkpoint["id"]}], **SIZE
)
assert shell(fourth, "cat /then/then /then/file") == "kept\nsecond\n"
assert shell(second, "cat /srv/data/then; ls /srv/data") == "changed\nlost+found\nthen\n"
assert [one["id"] for one in client.volumes.list_checkpoints(data)] == [checkpoint["id"]]
refused(409, lambda: client.volumes.delete_checkpoint(data, checkpoint["id"]), "attached")
client.vms.delete(fourth["vm_id"])
assert client.volumes.delete_checkpoint(data, checkpoint["id"])["status"] == "deleted"
assert client.volumes.list_checkpoints(data) == []
shell(second, "echo second > /srv/data/file")
client.vms.unmount_volume(second["vm_id"], data, "/srv/data")

# Read by two, written by none.
third = client.vms.create(volumes=[{"volume_id": data, "mount_path": "/in", "mode": "ro"}], **SIZE)
client.vms.mount_volume(second["vm_id"], data, "/in", mode="ro")
for reader in (second, third):
    assert shell(reader, "cat /in/file") == "second\n"
    shell(reader, "! touch /in/file")
for reader in (second, third):
    client.vms.delete(reader["vm_id"])
assert client.volumes.delete(data)["status"] == "deleted"
assert client.volumes.list() == []
print("instavm volumes: ok")
