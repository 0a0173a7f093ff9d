"""Drives the unmodified PyPI package `instavm` against SKERRY_URL; the test checks what it prints."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import requests
from instavm import AuthenticationError, InstaVM

URL, KEY = os.environ["SKERRY_URL"], os.environ["SKERRY_KEY"]

# Without a session: management calls only.
client = InstaVM(api_key=KEY, base_url=URL, auto_start_session=False)
made = client.vms.create(wait=True, metadata={"team": "e2e"}, env={"GREETING": "hello"})
assert made["status"] == "active", made
vm = made["vm_id"]
assert client.vms.get(vm)["status"] == "active"
assert [item["vm_id"] for item in client.vms.list()] == [vm]
assert vm in [item["vm_id"] for item in client.vms.list_all_records()]
assert client.vms.get(vm)["metadata"] == {"team": "e2e"}
assert "hello" not in str(client.vms.get(vm)), "values of variables are not shown"
client.vms.delete(vm)
assert vm not in [item["vm_id"] for item in client.vms.list()]


def status_of(call):
    try:
        call()
    except requests.HTTPError as error:
        return error.response.status_code
    return 200


assert status_of(lambda: client.vms.delete(vm)) == 404
assert status_of(lambda: client.vms.create(vcpu_count=9)) == 422
assert status_of(lambda: client.vms.create(custom_domain={"domain": "x.example.org"})) == 422
shared = client.vms.create(share={"port": 8000}, custom_domain={"domain": "x.example.org"})
assert shared["share"]["port"] == 8000 and shared["share"]["share_id"] in shared["share"]["url"]
assert shared["custom_domain"]["status"] == "pending", shared
client.vms.delete(shared["vm_id"])
assert status_of(lambda: client.vms.create(egress_policy={"allow_https": True})) == 400
assert client.vms.list_all_records() == []

# Found at once; several deletions at once are no fault of the server.
early = client.vms.create(wait=False)
assert (early["status"], client.vms.get(early["vm_id"])["status"]) == ("creating", "creating")
with ThreadPoolExecutor() as pool:
    deletions = pool.map(lambda _: status_of(lambda: client.vms.delete(early["vm_id"])), range(3))
    assert set(deletions) <= {200, 404}
assert status_of(lambda: client.vms.get(early["vm_id"])) == 404

# A lifetime ends.
brief = client.vms.create(vm_lifetime_seconds=2)
deadline = time.monotonic() + 30
while status_of(lambda: client.vms.get(brief["vm_id"])) == 200:
    assert time.monotonic() < deadline, "its lifetime ended long ago"
    time.sleep(0.2)

# As the package's own first example does it: the constructor opens a session, its key in the body.
session = InstaVM(api_key=KEY, base_url=URL, env={"GREETING": "hello $x"}, cpu_count=1, memory_mb=256)
assert session.session_id
assert session.execute('nproc; echo "$GREETING"', language="bash")["stdout"] == "1\nhello $x\n"
result = session.execute("echo $((6*7)); exit 3", language="bash")
assert (result["stdout"], result["exit_code"]) == ("42\n", 3), result
assert session.is_session_active()
session.kill()

try:
    InstaVM(api_key="not-the-key", base_url=URL)
except AuthenticationError:
    pass
else:
    raise AssertionError("a wrong key was accepted")
print("instavm: ok")
