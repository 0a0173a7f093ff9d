"""Drives terminals, keys and lists with the unmodified PyPI package `instavm` and its command against SKERRY_URL."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile

import requests
import websockets
from instavm import InstaVM

URL, KEY = os.environ["SKERRY_URL"], os.environ["SKERRY_KEY"]
client = InstaVM(api_key=KEY, base_url=URL, auto_start_session=False)
made = client.vms.create(memory_mb=256, vcpu_count=1, metadata={"team": "e2e", "tags": ["a", "b"]})
vm, session = made["vm_id"], made["session_id"]
client.session_id = session


async def typed(url, text, until):
    """What a terminal prints until that, or until its exit, which is returned too."""
    printed = b""
    async with websockets.connect(url) as socket:
        await socket.send(json.dumps({"type": "resize", "cols": 120, "rows": 40}))
        await socket.send(text)
        async for message in socket:
            if isinstance(message, str):
                return printed, json.loads(message)
            printed += message
            if until in printed:
                return printed, None
    raise AssertionError(f"closed without an exit: {printed}")


def terminal(url, text, until=b"\0never"):
    return asyncio.run(asyncio.wait_for(typed(url, text, until), 120))


# A terminal outlives its connections, has the size that was asked for, and tells its exit code.
pty = client.pty.create(session, cols=100, rows=30)["session_id"]
printed, _ = terminal(client.pty.ws_url(session, pty), b"stty size; echo pwd=$PWD\n", b"pwd=/app")
assert b"40 120" in printed, printed
assert client.pty.get(session, pty)["alive"] is True
assert client.pty.resize(session, pty, 90, 20)["cols"] == 90
printed, end = terminal(client.pty.ws_url(session, pty), b"tty; exit 7\n")
assert b"/dev/pts" in printed and end == {"type": "exit", "exit_code": 7}, (printed, end)
assert client.pty.get(session, pty)["exit_code"] == 7

# One that is killed is gone; a whole command line; variables staged before it starts.
assert client.vms.stage_env(vm, {"TOKEN": "it's $ecret"})["staged"] == ["TOKEN"]
line = client.pty.create_for_vm(vm, login_command='test "$TOKEN" = "it\'s \\$ecret" && echo staged; cat', pty_id="pty-line")
assert line["session_id"] == "pty-line", line
terminal(client.pty.ws_url_for_vm(vm, "pty-line"), b"", b"staged")
assert client.pty.resize_for_vm(vm, "pty-line", 81, 25)["rows"] == 25
assert "pty-line" in [one["session_id"] for one in client.pty.list_for_vm(vm)]
assert client.pty.get_for_vm(vm, "pty-line")["alive"] is True
client.pty.kill_for_vm(vm, "pty-line")
client.pty.kill(session, pty)
assert client.pty.list(session) == []
try:
    terminal(client.pty.ws_url(session, "pty-line").replace(KEY, "not-the-key"), b"")
except websockets.InvalidStatus as error:
    assert error.response.status_code == 401, error
else:
    raise AssertionError("a stranger was let in")

# Lists and what is used.
assert [one["sandbox_id"] for one in client.list_sandboxes(metadata={"tags": ["b"]}, limit=5)] == [session]
assert client.list_sandboxes(metadata={"team": "other"}) == []
usage = client.get_usage()
assert usage["vm_id"] == vm and usage["cpu_seconds"] > 0 and usage["memory_used_bytes"] > 0, usage
assert client.get_current_user()["name"] == "admin"
assert client.get_session_info()["session_id"] == session

# What may leave the VM: nothing, as said and as told, of the VM and of its session.
nothing = {"allow_http": False, "allow_https": False, "allow_package_managers": False}
client.set_vm_egress(vm, **nothing)
assert client.get_vm_egress(vm)["allow_https"] is False
client.set_session_egress(session, **nothing)
assert client.get_session_egress(session)["allowed_domains"] == []

# A session of its own, from the client's own call.
client.session_id = None
assert client.start_session() == client.session_id != session
client.kill()
client.session_id = session

# Keys.
made = client.api_keys.create(description="for ci")
assert InstaVM(api_key=made["key"], base_url=URL, auto_start_session=False).vms.list()[0]["vm_id"] == vm
assert made["id"] in [key["id"] for key in client.api_keys.list()]
assert client.api_keys.get(made["id"])["description"] == "for ci"
client.api_keys.delete(made["id"])
with tempfile.TemporaryDirectory() as here:
    path = os.path.join(here, "id")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ada@e2e", "-f", path], check=True)
    with open(path + ".pub") as file:
        public_key = file.read()
    added = client.add_ssh_key(public_key)
    listed = client.list_ssh_keys()
    assert [key["fingerprint"] for key in listed] == [added["fingerprint"]], listed
    environment = {**os.environ, "INSTAVM_BASE_URL": URL, "INSTAVM_API_KEY": KEY}

    def command(*args):
        line = [sys.executable, "-m", "instavm", *args, "--json"]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (args, done.stdout, done.stderr)
        return json.loads(done.stdout)

    assert command("ssh-key", "list")["keys"][0]["comment"] == "ada@e2e"
    assert command("whoami")["ssh_keys"][0]["fingerprint"] == added["fingerprint"]
    client.delete_ssh_key(added["id"])
    assert command("ssh-key", "list")["keys"] == []
    command("ssh-key", "add", public_key)
    command("ssh-key", "remove", str(client.list_ssh_keys()[0]["id"]))
assert client.list_ssh_keys() == []

client.vms.delete(vm)
try:
    client.pty.list(session)
except requests.HTTPError as error:
    assert error.response.status_code == 404, error
else:
    raise AssertionError("the session is gone")
print("instavm account: ok")
