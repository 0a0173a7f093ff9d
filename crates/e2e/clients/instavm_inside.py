"""Drives the inside of VMs with the unmodified PyPI package `instavm` against SKERRY_URL: Python, files, tasks."""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

from instavm import ExecutionError, InstaVM, InstaVMError

URL, KEY = os.environ["SKERRY_URL"], os.environ["SKERRY_KEY"]
client = InstaVM(api_key=KEY, base_url=URL, auto_start_session=False)
made = client.vms.create(memory_mb=256, vcpu_count=1, env={"GREETING": "hello"})
vm, client.session_id = made["vm_id"], made["session_id"]


def run(code, language=None, timeout=60):
    result = client.execute(code, language=language, timeout=timeout)
    assert result["session_id"] == client.session_id, result
    return result["stdout"], result["stderr"], result["exit_code"]


# One kernel for all calls: names, imports and the directory stay; the last expression is shown.
assert run("import os\nx = 41\nos.chdir('/srv')") == ("", "", 0)
assert run("x + 1", "python") == ("42\n", "", 0)
assert run("print(os.getcwd(), os.environ['GREETING'])") == ("/srv hello\n", "", 0)
assert run("import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(3)") == ("out\n", "err\n", 3)
out, err, code = run("def f():\n    return 1 / 0\nf()")
assert (out, code) == ("", 1), (out, code)
assert err.startswith("Traceback (most recent call last):\n") and "    return 1 / 0\n" in err, err
assert err.endswith("ZeroDivisionError: division by zero\n"), err
assert run("os.system('echo child')\nprint('parent')")[0] == "child\nparent\n"
assert "SyntaxError" in run("x = = 1")[1]
assert run("input()")[1].endswith("EOFError: EOF when reading a line\n")

# What is no Python is a script, unless Python was said; notebook lines are both.
assert run("mkdir -p d && cd d && pwd; exit 4") == ("/srv/d\n", "", 4)
assert "SyntaxError" in run("mkdir -p d && cd d", "python")[1]
assert run("!echo $GREETING\nx") == ("hello\n41\n", "", 0)

# Long code and long output go through whole.
assert run(f"y = {'z' * 90_000!r}\nlen(y)") == ("90000\n", "", 0)
assert run(f"echo {'z' * 90_000} | wc -c", "bash") == ("90001\n", "", 0)
out, err, code = run("print('o' * 3_000_000)\nprint('e' * 2_000_000, file=sys.stderr)")
assert (len(out), set(out), len(err), code) == (3_000_001, {"o", "\n"}, 2_000_001, 0)

# Time over: interrupted, and what was there is there; one that does not stop is started again. Every
# answer is earlier than the client's own clock.
out, err, code = run("import time\nprint('began', flush=True)\ntime.sleep(60)", timeout=10)
assert (out, code) == ("began\n", 124) and "Execution timed out after 10 seconds" in err, (out, err)
assert run("x") == ("41\n", "", 0)
stubborn = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\ntime.sleep(60)"
out, err, code = run(stubborn, timeout=10)
assert code == 124 and "Execution timed out after 10 seconds" in err, (code, err)
assert "NameError" in run("x")[1]
assert run("echo began; sleep 60", "bash", timeout=10)[::2] == ("began\n", 124)
out, err, code = run("import os\nos._exit(5)")
assert code == 5 and "variables are lost" in err, (code, err)

# One after the other in one kernel.
assert run("n = 0") == ("", "", 0)
with ThreadPoolExecutor(4) as pool:
    assert {code for _, _, code in pool.map(run, ["n += 1"] * 4)} == {0}
assert run("n") == ("4\n", "", 0)

# It lives in the VM: suspended, resumed, saved, cloned and restored with it.
assert run("state = {'kept': [1, 2]}") == ("", "", 0)
client.vms.suspend(vm)
client.vms.resume(vm)
assert run("state") == ("{'kept': [1, 2]}\n", "", 0)
session, clone = client.session_id, client.vms.clone(vm)
client.session_id = clone["session_id"]
assert run("state['kept'].append(3); state") == ("{'kept': [1, 2, 3]}\n", "", 0)
client.vms.delete(clone["vm_id"])
client.session_id = session
assert run("state") == ("{'kept': [1, 2]}\n", "", 0)
snapshot = client.vms.snapshot(vm, name="kernel")
copy = client.vms.create(snapshot_id=snapshot["id"])
client.session_id = copy["session_id"]
assert run("state['kept']") == ("[1, 2]\n", "", 0)
client.vms.delete(copy["vm_id"])
client.snapshots.delete(snapshot["id"])
client.session_id = session

# Files, of any bytes and size, also none.
with tempfile.TemporaryDirectory() as here:
    for size, remote in [(5_000_000, "made/by/upload.bin"), (0, "/srv/empty"), (1, "one")]:
        content = os.urandom(size)
        local, back = os.path.join(here, "local"), os.path.join(here, "back")
        with open(local, "wb") as file:
            file.write(content)
        sent = client.upload_file(local, remote, recursive=True)
        assert (sent["status"], sent["size"]) == ("success", size), sent
        assert client.download_file(remote)["content"] == content
        assert client.download_file(remote, back)["size"] == size
        with open(back, "rb") as file:
            assert file.read() == content
assert run("stat -c %s /app/made/by/upload.bin /srv/empty", "bash")[0] == "5000000\n0\n"
for wrong in ["/none", "/srv"]:
    try:
        client.download_file(wrong)
    except InstaVMError:
        pass
    else:
        raise AssertionError(f"{wrong} is no file")

# Tasks run without their caller.
task = client.execute_async("n += 1; print('task', n)\nn / 0")["task_id"]
result = client.get_task_result(task, timeout=60)
assert result["stdout"] == "task 5\n" and "ZeroDivisionError" in result["stderr"], result
assert result["execution_time"] > 0 and result["created_at"], result
slow = client.execute_async("sleep 60", language="bash", timeout=600)["task_id"]
try:
    client.get_task_result(slow, timeout=1)
except TimeoutError:
    pass
else:
    raise AssertionError("it sleeps")

assert list(client.execute_streaming("n"))[0].count("5\\n") == 1

# The command.
environment = {**os.environ, "INSTAVM_BASE_URL": URL, "INSTAVM_API_KEY": KEY}
command = [sys.executable, "-m", "instavm", "exec", "--session", session, "--cmd", "n", "--json"]
done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
assert done.returncode == 0 and json.loads(done.stdout)["stdout"] == "5\n", done

# What the VM does not have when it goes, its callers are told.
client.vms.delete(vm)
try:
    run("1")
except ExecutionError as error:
    assert "404" in str(error), error
else:
    raise AssertionError("the session is gone")
print("instavm inside: ok")
