"""Drives vaults with the unmodified PyPI package `instavm` against SKERRY_URL.

    instavm_vaults.py before NOTES    makes a vault, and VMs that use it; one of them is then suspended
    instavm_vaults.py after NOTES     uses those VMs again
"""

import json
import os
import sys

import requests
from instavm import InstaVM

URL, KEY = os.environ["SKERRY_URL"], os.environ["SKERRY_KEY"]
SECRET, MARK = os.environ["SKERRY_SECRET"], os.environ["SKERRY_MARK"]
client = InstaVM(api_key=KEY, base_url=URL, auto_start_session=False)
SIZE = {"memory_mb": 256, "vcpu_count": 1, "vm_lifetime_seconds": 7200}
CURL = "curl -sS --noproxy '*' --connect-timeout 60 --max-time 120"
NOTHING = {key: False for key in ("allow_package_managers", "allow_http", "allow_https")}


def shell(session, command, code=0):
    client.session_id = session
    result = client.execute(command, language="bash", timeout=300)
    assert result["exit_code"] == code, (command, result)
    assert SECRET not in json.dumps(result), command
    return result["stdout"]


def refused(status, call):
    try:
        call()
    except requests.HTTPError as error:
        assert error.response.status_code == status, error.response.text
        assert SECRET not in error.response.text
        return
    raise AssertionError(f"not refused with {status}")


def reaches(session):
    """The host is reached with everything that programs trust by: the environment, and without it."""
    said = shell(session, f'{CURL} -H "Authorization: Bearer $SITE_KEY" https://site.test/')
    assert said == "site\n", said
    assert shell(session, f"env -i {CURL} https://site.test/") == "site\n"
    python = "import urllib.request as u; print(u.urlopen('https://site.test/').read().decode(), end='')"
    for clean in ("", "env -i "):
        said = shell(session, f'{clean}/usr/bin/python3 -c "{python}"')
        assert said == "site\n", said


def before(notes):
    vault = client.create_vault("keys", "of tests")
    id = vault["id"]
    assert id.startswith("vlt_") and vault["name"] == "keys", vault
    assert client.get_vault(id) == vault and client.list_vaults() == [vault]
    assert client.update_vault(id, name="my keys")["description"] == "of tests"
    added = client.add_vault_credential(id, name="SITE_KEY", value="first-" + SECRET)
    rotated = client.rotate_vault_credential(id, added["id"], value=SECRET)
    refused(409, lambda: client.add_vault_credential(id, name="SITE_KEY", value=SECRET))
    [listed] = client.list_vault_credentials(id)
    assert listed == rotated and listed["enabled"] and listed["credential_type"] == "api_key", listed
    auth = {"type": "bearer", "token": "SITE_KEY"}
    service = client.add_vault_service(id, host="site.test", auth_config=auth)
    assert (service["host"], service["auth_config"]) == ("site.test", auth), service
    assert "openai" in [one["id"] for one in client.get_vault_catalog()]
    [openai] = client.add_vault_services_from_templates(id, ["openai"])["services"]
    assert openai["host"] == "api.openai.com", openai
    assert client.delete_vault_service(id, openai["id"])
    assert [one["id"] for one in client.list_vault_services(id)] == [service["id"]]
    spare = client.add_vault_credential(id, name="SPARE", value=SECRET)
    assert client.delete_vault_credential(id, spare["id"])
    discovered = client.discover_vault(id)
    assert discovered["credentials"] == ["SITE_KEY"], discovered
    assert discovered["services"][0]["host"] == "site.test", discovered
    assert client.get_vault_request_logs(id) == []

    # Named when it is made: nothing but the vault's host is reached.
    vm = client.vms.create(wait=True, env={"MARK": MARK}, egress_policy=NOTHING, vault_ids=[id], **SIZE)
    session = vm["session_id"]
    assert shell(session, "echo $SITE_KEY $MARK") == f"SITE_KEY {MARK}\n"
    reaches(session)
    client.session_id = session
    other = client.execute(f"{CURL} https://other.test/", language="bash", timeout=300)
    assert other["exit_code"] != 0 and "other\n" not in other["stdout"], other
    logs = client.get_vault_request_logs(id)
    assert len(logs) == 4, logs
    assert {(one["host"], one["status"], one["credential_name"]) for one in logs} == {("site.test", 200, "SITE_KEY")}

    # A clone goes on with what it has.
    clone = client.vms.clone(vm["vm_id"], wait=True)
    reaches(clone["session_id"])

    # Named when a command is run, in a VM that ran before it was.
    late = client.vms.create(wait=True, egress_policy=NOTHING, **SIZE)
    body = {
        "session_id": late["session_id"],
        "command": f"{CURL} https://site.test/",
        "language": "bash",
        "timeout": 300,
        "vault_ids": [id],
    }
    answer = requests.post(f"{URL}/execute", json=body, headers={"X-API-Key": KEY}, timeout=300).json()
    assert answer["stdout"] == "site\n", answer
    # And taken back.
    client.vms.update(late["vm_id"], vault_ids=[])
    client.session_id = late["session_id"]
    gone = client.execute(f"{CURL} https://site.test/", language="bash", timeout=300)
    assert gone["exit_code"] != 0, gone
    client.vms.delete(late["vm_id"])
    refused(404, lambda: client.vms.update(clone["vm_id"], vault_ids=["vlt_" + "0" * 25]))

    client.vms.suspend(vm["vm_id"])
    with open(notes, "w") as file:
        json.dump({"vault": id, "vm": vm["vm_id"], "clone": clone}, file)


def after(notes):
    with open(notes) as file:
        noted = json.load(file)
    clone = noted["clone"]
    reaches(clone["session_id"])
    assert client.delete_vault(noted["vault"])
    assert client.list_vaults() == []
    client.session_id = clone["session_id"]
    gone = client.execute(f"{CURL} https://site.test/", language="bash", timeout=300)
    assert "site\n" not in gone["stdout"], gone
    client.vms.delete(clone["vm_id"])
    client.vms.delete(noted["vm"])


{"before": before, "after": after}[sys.argv[1]](sys.argv[2])
print("instavm vaults: ok")
