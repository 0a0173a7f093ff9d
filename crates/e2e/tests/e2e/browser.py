"""A browser in a network of its own, from which the one way out is a socket file to the server.

Started in a new network namespace, as root: browser.py PORT SOCKET USER PROFILE URL. Prints the page as it
is when all of it has loaded.
"""

import os
import pwd
import socket
import subprocess
import sys
import threading

port, gate, user, profile, url = sys.argv[1:]
port = int(port)


def carry(from_, to):
    try:
        while piece := from_.recv(65536):
            to.sendall(piece)
        to.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (from_, to):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def serve(listener):
    while True:
        near, _ = listener.accept()
        far = socket.socket(socket.AF_UNIX)
        far.connect(gate)
        for ends in ((near, far), (far, near)):
            threading.Thread(target=carry, args=ends, daemon=True).start()


subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
# Loopback and nothing else: what the browser asks of anybody but the server goes nowhere.
if [name for _, name in socket.if_nameindex()] != ["lo"]:
    sys.exit("this is not a network namespace of its own")
listener = socket.create_server(("127.0.0.1", port), backlog=64)
threading.Thread(target=serve, args=(listener,), daemon=True).start()

account = pwd.getpwnam(user)
os.chown(profile, account.pw_uid, account.pw_gid)
browser = [
    "chromium-headless-shell",
    # Its own sandbox asks for what a host may not give to ordinary users. It shows our own page alone.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE *.localhost, EXCLUDE 127.0.0.1",
    f"--user-data-dir={profile}",
    "--dump-dom",
    url,
]
environment = {"HOME": profile, "TMPDIR": profile, "PATH": os.environ["PATH"]}
ended = subprocess.run(
    browser,
    user=account.pw_uid,
    group=account.pw_gid,
    extra_groups=[],
    cwd=profile,
    env=environment,
    stdin=subprocess.DEVNULL,
)
sys.exit(ended.returncode)
