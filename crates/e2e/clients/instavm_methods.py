"""Holds the table of methods in docs/dialects/instavm.md against the unmodified PyPI package `instavm`.

Every public method of the client and its managers has a row, and no row is of something else. What is said to
work is called by one of the scripts beside this one; what is said to be refused is, when called.
"""

import inspect
import os
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import requests
from instavm import InstaVM, InstaVMError

HERE = ["works", "deviates", "served", "refused", "local"]
warnings.simplefilter("ignore")
client = InstaVM(api_key=os.environ["SKERRY_KEY"], base_url=os.environ["SKERRY_URL"], auto_start_session=False)
# A session that cannot be there: what is not refused as a whole says 404.
client.session_id = "00000000-0000-4000-8000-000000000000"
# What some methods want before they ask anybody, though their signature does not.
ASKED_FOR = {"session_id": client.session_id, "selector": "x"}
MANIFEST = SimpleNamespace(
    kind="devbox", slug="x", version="1", vm=SimpleNamespace(vcpu_count=1, memory_mb=512),
    build=(), app=None, terminal=None,
)

methods = {}
for name, method in inspect.getmembers(client, inspect.ismethod):
    if not name.startswith("_"):
        methods[name] = method
for manager_name, manager in vars(client).items():
    if type(manager).__module__.startswith("instavm") and type(manager).__name__.endswith("Manager"):
        for name, method in inspect.getmembers(manager, inspect.ismethod):
            if not name.startswith("_"):
                methods[f"{manager_name}.{name}"] = method

scripts = Path(os.environ["SKERRY_CLIENT_SCRIPTS"])
text = Path(os.environ["SKERRY_DIALECT_DOCS"]).read_text()
rows = {}
for line in text.splitlines():
    row = re.fullmatch(r"\| `([a-z_.]+)` \| (\w+) \|.*\|", line)
    if row and row[2] in HERE:
        assert row[1] not in rows, f"{row[1]} has two rows"
        rows[row[1]] = row[2]
assert not methods.keys() - rows.keys(), f"without a row: {sorted(methods.keys() - rows.keys())}"
assert not rows.keys() - methods.keys(), f"rows of nothing: {sorted(rows.keys() - methods.keys())}"

called = "".join(path.read_text() for path in sorted(scripts.glob("instavm_*.py")) if path.name != Path(__file__).name)
wrong = []
for name, here in rows.items():
    if here in ("works", "deviates") and not re.search(rf"\b(client|session|InstaVM)\b[\w.]*\.{re.escape(name)}\b", called):
        wrong.append(f"{name} is said to be {here}, and no script calls it")
    if here != "refused":
        continue
    values = {int: 1, str: "x", "int": 1}
    arguments = {}
    for parameter in inspect.signature(methods[name]).parameters.values():
        if parameter.default is inspect.Parameter.empty and parameter.kind not in (
            inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL,
        ):
            kind = getattr(parameter.annotation, "__origin__", parameter.annotation)
            arguments[parameter.name] = kind() if kind in (dict, list) else values.get(kind, "x")
        elif parameter.name in ASKED_FOR:
            arguments[parameter.name] = ASKED_FOR[parameter.name]
    for needed, value in {"file_path": __file__, "dir_or_manifest": MANIFEST}.items():
        if needed in arguments:
            arguments[needed] = value
    try:
        answer = methods[name](**arguments)
    except requests.HTTPError as error:
        refused = error.response.status_code in (400, 405, 501)
        said = str(error)
    except InstaVMError as error:
        said = str(error)
        # Some ask without a credential, and are told only that.
        refused = "501" in said or "400 Client Error" in said or "Invalid API key" in said
    else:
        refused, said = False, answer
    if not refused:
        wrong.append(f"{name} is said to be refused: {said}")
assert not wrong, "\n".join(wrong)
print(f"{len(rows)} methods\ninstavm methods: ok")
