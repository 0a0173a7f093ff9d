"""Drives the unmodified PyPI package `instavm` against SKERRY_URL; the test checks what it prints."""

import os

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
client.vms.delete(vm)
assert vm not in [item["vm_id"] for item in client.vms.list()]

# As the package's own first example does it: the constructor opens a session, its key in the body.
session = InstaVM(api_key=KEY, base_url=URL)
assert session.session_id
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
