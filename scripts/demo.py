#!/usr/bin/env python3
"""Creates one workspace through each of the four dialects, runs a command in it, deletes it again.

Usage: SKERRY_KEY=... demo.py URL

The key comes by the environment: everybody on the machine can read a command line.

Each create request is the shortest one that product's own page shows. Only the standard library is
used, so that what is printed is plain HTTP and nothing else.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request

COMMAND = "uname -a && cat /etc/os-release"
# Under software emulation a boot takes seconds, on a busy machine tens of seconds.
READY_WITHIN_SECONDS = 300


class Server:
    def __init__(self, url, key):
        self.url = url.rstrip("/")
        self.key = key

    def call(self, method, path, body=None, headers=None):
        """One request; returns the decoded JSON answer (None for an empty one)."""
        request = urllib.request.Request(self.url + path, method=method)
        for name, value in (headers or {"Authorization": f"Bearer {self.key}"}).items():
            request.add_header(name, value)
        data = None
        if body is not None:
            request.add_header("Content-Type", "application/json")
            data = json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request, data, timeout=READY_WITHIN_SECONDS) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            sys.exit(f"{method} {path} answered {error.code}: {error.read().decode()}")
        return json.loads(text) if text else None

    def until(self, path, reached, headers=None):
        """Asks until `reached(answer)` is true."""
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        while time.monotonic() < deadline:
            answer = self.call("GET", path, headers=headers)
            if reached(answer):
                return answer
            time.sleep(0.2)
        sys.exit(f"GET {path}: not ready within {READY_WITHIN_SECONDS} s: {json.dumps(answer)}")

    def run(self, workspace, command):
        """Runs a shell command in the workspace, named by whichever dialect's id."""
        return self.call(
            "POST",
            f"/skerry/v1/workspaces/{workspace}/exec",
            {"argv": ["sh", "-c", command]},
        )


def settled(word, *failed):
    """A test for `until`: the status became `word`; one of `failed` ends the demonstration."""

    def reached(status, answer):
        if status in failed:
            sys.exit(f"the workspace ended as {status}: {json.dumps(answer)}")
        return status == word

    return reached


def rigbox(server):
    """POST /api/v1/workspaces, then .../{id}/start."""
    made = server.call("POST", "/api/v1/workspaces", {"name": "rigbox-demo"})
    path = f"/api/v1/workspaces/{made['vm']['id']}"
    server.call("POST", f"{path}/start")
    running = settled("running", "failed")
    server.until(path, lambda answer: running(answer["vm"]["status"], answer))
    return made["vm"]["id"], lambda: server.call("DELETE", path)


def aether(server):
    """POST /projects/{id}/workspaces."""
    projects = server.call("GET", "/projects")["projects"]
    project = next((p for p in projects if p["name"] == "demo"), None)
    project = project or server.call("POST", "/projects", {"name": "demo"})
    hardware = {
        "cpu_kind": "shared",
        "cpus": 2,
        "memory_mb": 2048,
        "volume_size_gb": 10,
        "gpu_kind": None,
    }
    made = server.call(
        "POST",
        f"/projects/{project['id']}/workspaces",
        {"hardware": hardware, "keep_active": False},
    )
    path = f"/workspaces/{made['id']}"
    running = settled("running", "error")
    server.until(path, lambda answer: running(answer["status"], answer))
    return made["id"], lambda: server.call("DELETE", path)


def instavm(server):
    """POST /v1/vms."""
    key = {"X-API-Key": server.key}
    made = server.call("POST", "/v1/vms", {}, headers=key)
    path = f"/v1/vms/{made['vm_id']}"
    running = settled("active", "failed")
    server.until(path, lambda answer: running(answer["status"], answer), headers=key)
    return made["vm_id"], lambda: server.call("DELETE", path, headers=key)


def oblien(server):
    """POST /workspace."""
    client = {"X-Client-ID": "admin", "X-Client-Secret": server.key}
    made = server.call(
        "POST",
        "/workspace",
        {"name": "my-app", "image": "node-20", "config": {"cpus": 2, "memory_mb": 2048}},
        headers=client,
    )
    identity = made["workspace"]["id"]
    path = f"/workspace/{identity}"
    running = settled("running", "error")
    server.until(
        path,
        lambda answer: running(answer["workspace"]["info"]["status"], answer),
        headers=client,
    )
    return identity, lambda: server.call("DELETE", path, headers=client)


def main():
    key = os.environ.get("SKERRY_KEY")
    if len(sys.argv) != 2 or not key:
        sys.exit(__doc__)
    server = Server(sys.argv[1], key)
    for dialect in (rigbox, aether, instavm, oblien):
        print(f"\n=== {dialect.__name__}: {dialect.__doc__}", flush=True)
        began = time.monotonic()
        identity, delete = dialect(server)
        ready = time.monotonic()
        print(f"{identity} is ready after {ready - began:.1f} s", flush=True)
        result = server.run(identity, COMMAND)
        ran = time.monotonic()
        print(f"$ {COMMAND}")
        print(result["stdout"], end="")
        if result["exit_code"] != 0:
            sys.exit(f"exit code {result['exit_code']}: {result['stderr']}")
        delete()
        print(
            f"command: {(ran - ready) * 1000:.0f} ms; "
            f"deleted after {time.monotonic() - ran:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
